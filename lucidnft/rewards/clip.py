"""open_clip models as rewards: similarity of SR to LR (or HR) images, and to a text.

Images are resized and normalised as tensors on the device they live on; no PIL or 8-bit detour.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.rewards.base import Reference, Reward, RewardCard
from lucidnft.schema import ConfigModel

DEFAULT_MODEL = "ViT-B-32"
DEFAULT_PRETRAINED = "laion2b_s34b_b79k"


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


class _ClipReward(Reward):
    """The image side that both CLIP rewards share."""

    OPTIONAL_EXTRA = "clip"

    def __init__(self, network: nn.Module) -> None:
        visual: Any = network.visual
        size = visual.image_size
        self._network = network
        self._size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        open_clip = import_open_clip()
        self._mean = torch.tensor(getattr(visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN)
        self._std = torch.tensor(getattr(visual, "image_std", None) or open_clip.OPENAI_DATASET_STD)

    def embed_images(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, D), L2-normalised.

        The whole image is resized to the model's input, aspect ratio included: a centre crop would
        not see defects near the border.
        """
        resized = images.to(self._mean.device).float()
        if tuple(resized.shape[2:]) != self._size:
            resized = F.interpolate(resized, size=self._size, mode="bicubic", antialias=True).clamp(0, 1)
        normalised = (resized - self._mean.view(1, 3, 1, 1)) / self._std.view(1, 3, 1, 1)
        encode_image: Any = self._network.encode_image
        return F.normalize(encode_image(normalised).float(), dim=-1)

    def to(self, device: torch.device | str) -> _ClipReward:
        """Move the CLIP model."""
        self._network.to(device)
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        return self


class ClipSimilarity(_ClipReward):
    """Cosine of the CLIP embeddings of SR and of LR (or HR), in [-1, 1]."""

    def __init__(self, network: nn.Module, *, against: Literal["lr", "hr"] = "lr") -> None:
        """network: an open_clip model, e.g. from `load_clip`."""
        super().__init__(network)
        if against not in ("lr", "hr"):
            raise ValueError(f"clip_similarity: against is '{against}', expected 'lr' or 'hr'")
        self.against = against
        self.card = RewardCard(
            name="clip_similarity",
            needs=frozenset({against}),
            value_range=(-1.0, 1.0),
            note=f"Cosine of CLIP image embeddings of SR and {against.upper()}: semantics, not detail.",
        )

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """The normalised embeddings of the G references, (G, D)."""
        images = lr if self.against == "lr" else hr
        if images is None:
            raise ValueError(
                f"reward 'clip_similarity' needs {self.against}: pass reward(sr, {self.against}=...)"
            )
        return {"embedding": self.embed_images(images)}

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32 in [-1, 1]."""
        return (self.embed_images(sr) * reference["embedding"]).sum(dim=-1)


class ClipText(_ClipReward):
    """Cosine of the CLIP embeddings of SR and of its prompt, in [-1, 1]."""

    def __init__(self, network: nn.Module, tokenizer: Any, *, prompt: str | None = None) -> None:
        """tokenizer: texts -> token ids; prompt: used for every image, in place of the data's prompts."""
        super().__init__(network)
        self._tokenizer = tokenizer
        self._prompt = prompt
        self.card = RewardCard(
            name="clip_text",
            needs=frozenset() if prompt is not None else frozenset({"prompt"}),
            value_range=(-1.0, 1.0),
            note="Cosine of CLIP embeddings of SR and of a text.",
        )

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """The normalised embeddings of the prompts, (G, D); nothing for a fixed prompt."""
        if self._prompt is not None:
            return {}
        if prompts is None:
            raise ValueError("reward 'clip_text' needs prompt: pass reward(sr, prompt=...) or set 'prompt'")
        return {"embedding": self.embed_texts(prompts)}

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """T texts -> (T, D), L2-normalised."""
        tokens = self._tokenizer(list(texts)).to(self._mean.device)
        encode_text: Any = self._network.encode_text
        return F.normalize(encode_text(tokens).float(), dim=-1)

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32 in [-1, 1]."""
        texts = reference["embedding"] if self._prompt is None else self.embed_texts([self._prompt])
        return (self.embed_images(sr) * texts).sum(dim=-1)


class ClipSimilarityConfig(ConfigModel):
    """Settings of `ClipSimilarity`."""

    type: Literal["clip_similarity"] = "clip_similarity"
    model: str = DEFAULT_MODEL
    pretrained: str = DEFAULT_PRETRAINED  # an open_clip tag or a local weight file
    against: Literal["lr", "hr"] = "lr"
    weight: float = 1.0

    def build(self) -> ClipSimilarity:
        """Load the model and make the reward."""
        return ClipSimilarity(load_clip(self.model, self.pretrained), against=self.against)


class ClipTextConfig(ConfigModel):
    """Settings of `ClipText`."""

    type: Literal["clip_text"] = "clip_text"
    model: str = DEFAULT_MODEL
    pretrained: str = DEFAULT_PRETRAINED
    prompt: str | None = None  # null: the prompts that come with the data
    weight: float = 1.0

    def build(self) -> ClipText:
        """Load the model and its tokenizer and make the reward."""
        network = load_clip(self.model, self.pretrained)
        return ClipText(network, import_open_clip().get_tokenizer(self.model), prompt=self.prompt)
