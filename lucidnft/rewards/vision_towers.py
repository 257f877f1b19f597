"""Image encoders of a fixed input size as embedders: open_clip models, and vision towers of transformers.

The whole image is resized to the model's input, aspect ratio included: a centre crop would not see defects near
the border.  Images are resized and normalised as tensors on the model's device; no PIL or 8-bit detour.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.checkpoint.required_files import RequiredFile
from lucidnft.rewards.model_files import CLIP_TAG, clip_files, vision_files
from lucidnft.schema import ConfigModel

DEFAULT_MODEL, DEFAULT_PRETRAINED = CLIP_TAG


class VisionTower(ABC):
    """`lucidnft.rewards.embedders.ImageEmbedder` of one vector per image; subclasses implement `encode`."""

    name: str
    cell: int | None = None
    resizes_lr = False  # any image is resized to the one size of the model

    def __init__(
        self, network: nn.Module, size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """size: (H, W) of the network's input; mean and std: per channel, of pixels in [0, 1]."""
        self.network = network.eval().requires_grad_(False)
        self.size = size
        self._mean, self._std = torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)
        self.dimension = self.embed(torch.zeros(1, 3, *size)).shape[2]

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self._mean.device

    def to(self, device: torch.device | str) -> VisionTower:
        """Move the network."""
        self.network.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 1, D) float32.

        Raises:
            ValueError: an embedding is not finite.
        """
        resized = images.to(self.device).float()
        if tuple(resized.shape[2:]) != self.size:
            resized = F.interpolate(resized, size=self.size, mode="bicubic", antialias=True).clamp(0, 1)
        embeddings = self.encode((resized - self._mean) / self._std).float()
        bad = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"embedder '{self.name}' gave embeddings that are not finite for images {bad[:3]}"
            )
        return embeddings[:, None]

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (N, 3, *size) -> (N, D)."""


class OpenClipEmbedder(VisionTower):
    """The image side of an open_clip model."""

    name = "open_clip"

    def __init__(self, network: nn.Module) -> None:
        """network: an open_clip model, e.g. from `load_clip`."""
        visual: Any = network.visual
        size = visual.image_size
        both = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        open_clip = import_open_clip()
        mean = getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        std = getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
        super().__init__(network, both, mean, std)

    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D)."""
        encode_image: Any = self.network.encode_image
        features: Tensor = encode_image(pixels)
        return features


class HfVisionEmbedder(VisionTower):
    """A vision model of transformers: DINOv2, or the image side of CLIP and SigLIP."""

    name = "hf_vision"

    def __init__(self, network: nn.Module, processor: Any) -> None:
        """network: from AutoModel; processor: its image processor, for the size and the channels' statistics."""
        sizes = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
        sides = {
            name: sizes[name] for name in ("height", "width", "shortest_edge") if sizes[name] is not None
        }
        height = sides.get("height", sides.get("shortest_edge"))
        width = sides.get("width", sides.get("shortest_edge"))
        if height is None or width is None:
            raise ValueError(f"the image processor of this model has no one input size, only {sizes}")
        super().__init__(network, (int(height), int(width)), processor.image_mean, processor.image_std)

    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D): the pooled output, or the class token where there is none."""
        pixels = pixels.to(next(self.network.parameters()).dtype)
        side: Any = getattr(self.network, "get_image_features", self.network)
        output = side(pixel_values=pixels)
        if isinstance(output, Tensor):
            return output
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        return output.last_hidden_state[:, 0] if pooled is None else pooled


def import_open_clip() -> ModuleType:
    """The open_clip module, or an ImportError that says which extra installs it."""
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            f"CLIP rewards need open_clip_torch, which could not be imported ({error}); "
            "run: pip install 'lucidnft[clip]'"
        ) from error
    return open_clip


def load_clip(model: str, pretrained: str | None) -> nn.Module:
    """A frozen open_clip model on the CPU.

    model: an open_clip architecture; pretrained: a tag of it or a local weight file.

    Raises:
        ValueError: unknown architecture or tag, or no weights were named.
        RuntimeError: the weights are neither cached nor reachable.
    """
    open_clip = import_open_clip()
    if model not in open_clip.list_models():
        raise ValueError(f"open_clip has no model '{model}'; see open_clip.list_models()")
    tags = open_clip.list_pretrained_tags_by_model(model)
    if not pretrained:
        raise ValueError(
            f"clip model '{model}' needs 'pretrained': one of {', '.join(tags)} or a weight file"
        )
    if pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(
            f"clip model '{model}' has no weights '{pretrained}', nor is that a file; tags: {', '.join(tags)}"
        )
    try:
        network = open_clip.create_model(model, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"could not load weights '{pretrained}' of clip model '{model}' "
            f"({type(error).__name__}: {error}); without network, give 'pretrained' a local file or fill the "
            "Hugging Face cache (HF_HOME) beforehand"
        ) from error
    return network.eval().requires_grad_(False)


class OpenClipEmbedderConfig(ConfigModel):
    """Settings of `OpenClipEmbedder`."""

    type: Literal["open_clip"] = "open_clip"
    model: str = DEFAULT_MODEL
    pretrained: str = DEFAULT_PRETRAINED  # an open_clip tag or a local weight file

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The weights."""
        return clip_files(self.model, self.pretrained)

    def build(self) -> OpenClipEmbedder:
        """Load the model.  Raises as `load_clip`."""
        return OpenClipEmbedder(load_clip(self.model, self.pretrained))


class HfVisionEmbedderConfig(ConfigModel):
    """Settings of `HfVisionEmbedder`."""

    type: Literal["hf_vision"] = "hf_vision"
    model_name_or_path: str = "facebook/dinov2-base"
    dtype: Literal["bfloat16", "float16", "float32"] = "float32"

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The model and its image processor."""
        return vision_files(self.model_name_or_path)

    def build(self) -> HfVisionEmbedder:
        """Load model and image processor.

        Raises:
            ValueError: the model has no vision side, or the checkpoint lacks weights.
            OSError: neither a folder nor reachable.
        """
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        where = self.model_name_or_path
        config = AutoConfig.from_pretrained(where)
        if not hasattr(config, "vision_config") and not hasattr(config, "image_size"):
            raise ValueError(
                f"embedder.model_name_or_path={where} is a model of type {config.model_type!r}, which sees no images"
            )
        network, info = AutoModel.from_pretrained(
            where, dtype=getattr(torch, self.dtype), output_loading_info=True
        )
        if info["missing_keys"]:
            first = ", ".join(sorted(info["missing_keys"])[:3])
            raise ValueError(
                f"{where} lacks {len(info['missing_keys'])} of the model's weights ({first}, ...)"
            )
        return HfVisionEmbedder(network, AutoImageProcessor.from_pretrained(where))
