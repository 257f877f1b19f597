"""Qwen3-VL-Embedding as an image embedder, the frozen model behind LucidConsistency (arXiv 2603.05947).

One chat per image: the instruction as system turn, the image alone as user turn, the start of an answer.  The
embedding is the last layer's normalised state at the last token.  Images are cut into patches as tensors on the
model's device; only one whose sides are no multiples of 32 px, or too small or large, makes a detour through
Pillow's 8-bit bicubic, as in the release: embeddings answer to single levels, and Pillow's rounding depends on
the order of its two passes, which it chooses by version and size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lucidnft.checkpoint.required_files import RequiredFile
from lucidnft.images import tensor_to_uint8
from lucidnft.rewards.model_files import qwen_files
from lucidnft.schema import ConfigModel

INSTRUCTION = "Represent the user's input."
MIN_PIXELS, MAX_PIXELS = 4 * 32**2, 1800 * 32**2
MAX_ASPECT_RATIO = 200
MODEL_TYPE = "qwen3_vl"


def embedded_size(
    height: int, width: int, *, factor: int = 32, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """The size at which an image is embedded: multiples of `factor`, near its own, within the pixel bounds.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"an image of {height}x{width} px is too narrow for Qwen3-VL: one side may be at most "
            f"{MAX_ASPECT_RATIO} times the other"
        )
    rounded = [max(factor, round(side / factor) * factor) for side in (height, width)]
    if math.prod(rounded) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = [max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)]
    elif math.prod(rounded) < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded = [math.ceil(side * grow / factor) * factor for side in (height, width)]
    return rounded[0], rounded[1]


def resize_with_pillow(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) in [0, 1] -> (3, *size) float32 on the same device, through 8 bits and bicubic."""
    pixels = tensor_to_uint8(image).permute(1, 2, 0).cpu().numpy()
    resized = Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).to(image.device).float() / 255


class Qwen3VLEmbedder:
    """`lucidnft.rewards.embedders.ImageEmbedder`: one vector per image, LR taken at its own size."""

    name = MODEL_TYPE
    cell: int | None = None
    resizes_lr = False

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        instruction: str = INSTRUCTION,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """model: a transformers Qwen3VLModel; processor: its Qwen3VLProcessor (tokenizer, template, patch sizes)."""
        self.model = model.eval().requires_grad_(False)
        self.config: Any = model.config
        self.dimension = int(self.config.text_config.hidden_size)
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        images = processor.image_processor
        self._patch, self._merge, self._frames = (
            images.patch_size,
            images.merge_size,
            images.temporal_patch_size,
        )
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (images.image_mean, images.image_std))
        turns = [
            {"role": "system", "content": [{"type": "text", "text": instruction}]},
            {"role": "user", "content": [{"type": "image"}]},
        ]
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        self._ids = torch.tensor(processor.tokenizer(text)["input_ids"])
        if int((self._ids == self.config.image_token_id).sum()) != 1:
            raise ValueError(
                f"the chat template gives {text!r}, in which the image token {self.config.image_token_id} does not "
                "stand once; it is not the template of a Qwen3-VL model"
            )
        self._pad_id = int(processor.tokenizer.pad_token_id or 0)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def to(self, device: torch.device | str) -> Qwen3VLEmbedder:
        """Move the model."""
        self.model.to(device)
        return self

    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, 1, D) float32."""
        return self.embed_each(list(images))

    @torch.no_grad()
    def embed_each(self, images: Sequence[Tensor]) -> Tensor:
        """N images (3, H, W) in [0, 1] of any sizes -> (N, 1, D) float32, in one right-padded batch.

        Raises:
            ValueError: an image is too narrow, or its embedding is not finite.
        """
        patches, grids, rows = [], [], []
        for image in images:
            packed, grid = self.patches(image.to(self.device).float())
            patches.append(packed)
            grids.append(grid)
            rows.append(self.token_ids(grid))
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self._pad_id).to(self.device)
        mask = torch.arange(ids.shape[1], device=self.device) < lengths[:, None]
        states = self.model(
            input_ids=ids,
            attention_mask=mask.long(),
            mm_token_type_ids=(mask & (ids == self.config.image_token_id)).int(),
            pixel_values=torch.cat(patches),
            image_grid_thw=torch.tensor(grids, device=self.device),
            use_cache=False,
        ).last_hidden_state
        embeddings = states[torch.arange(len(rows), device=self.device), lengths - 1].float()
        bad = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            shown = [tuple(images[i].shape) for i in bad[:3]]
            raise ValueError(
                f"Qwen3-VL gave embeddings that are not finite for images {bad[:3]} of shapes {shown}"
            )
        return embeddings[:, None]

    def patches(self, image: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """(3, H, W) in [0, 1] -> (P, 3 * frames * patch * patch) and (1, rows, columns) of patches.

        Patches that the model merges lie next to each other; a still image is its own second frame.
        """
        patch, merge = self._patch, self._merge
        own = (image.shape[1], image.shape[2])
        bounds = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
        size = embedded_size(*own, factor=patch * merge, **bounds)
        image = image if size == own else resize_with_pillow(image, size)
        x = (image - self._mean.to(image.device)) / self._std.to(image.device)
        rows, columns = size[0] // patch, size[1] // patch
        x = x.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
        x = x.permute(1, 4, 2, 5, 0, 3, 6)  # blocks, patches of a block, channel, pixels
        x = x.unsqueeze(5).expand(-1, -1, -1, -1, -1, self._frames, -1, -1)
        return x.reshape(rows * columns, -1), (1, rows, columns)

    def token_ids(self, grid: tuple[int, int, int]) -> Tensor:
        """(L,) the chat with as many image tokens as the model makes of this grid of patches."""
        count = math.prod(grid) // self._merge**2
        place = int((self._ids == self.config.image_token_id).nonzero())
        image = torch.full((count,), self.config.image_token_id)
        return torch.cat([self._ids[:place], image, self._ids[place + 1 :]])


class Qwen3VLEmbedderConfig(ConfigModel):
    """Settings of `Qwen3VLEmbedder`."""

    type: Literal["qwen3_vl"] = "qwen3_vl"
    model_name_or_path: str = "Qwen/Qwen3-VL-Embedding-8B"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    instruction: str = INSTRUCTION
    min_pixels: int = MIN_PIXELS
    max_pixels: int = MAX_PIXELS
    require_embedding_checkpoint: bool = True  # refuse weights that were trained to write text only

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The model and its processor."""
        return qwen_files(self.model_name_or_path)

    def build(self) -> Qwen3VLEmbedder:
        """Load model and processor.

        Raises:
            ValueError: not a Qwen3-VL checkpoint, one for generation, or one with missing weights.
            OSError: neither a folder nor reachable.
        """
        from transformers import AutoConfig, AutoModel, AutoProcessor

        where = self.model_name_or_path
        config = AutoConfig.from_pretrained(where)
        if config.model_type != MODEL_TYPE:
            raise ValueError(
                f"embedder.model_name_or_path={where} is a model of type {config.model_type!r}, expected "
                f"{MODEL_TYPE!r} (images and text), such as Qwen/Qwen3-VL-Embedding-8B"
            )
        if self.require_embedding_checkpoint and not is_embedding_checkpoint(where, config):
            raise ValueError(
                f"embedder.model_name_or_path={where} looks like a checkpoint for writing text (architectures "
                f"{config.architectures}, no modules.json that says how it pools); use Qwen/Qwen3-VL-Embedding-8B or "
                "-2B, or set embedder.require_embedding_checkpoint=false"
            )
        model, info = AutoModel.from_pretrained(
            where,
            dtype=getattr(torch, self.dtype),
            attn_implementation=self.attention,
            output_loading_info=True,
        )
        if info["missing_keys"]:
            first = ", ".join(sorted(info["missing_keys"])[:3])
            raise ValueError(f"{where} lacks {len(info['missing_keys'])} weights of Qwen3-VL ({first}, ...)")
        return Qwen3VLEmbedder(
            model,
            AutoProcessor.from_pretrained(where),
            instruction=self.instruction,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )


def is_embedding_checkpoint(where: str | Path, config: Any) -> bool:
    """Whether a Qwen3-VL checkpoint says that it is for embeddings, by its architecture or by how it pools.

    The published embedding models name the generating architecture too; that they have the modules.json of
    sentence-transformers is what others say of them, and could not be looked up here.
    """
    from transformers.utils import cached_file

    if not any(name.endswith("ForConditionalGeneration") for name in config.architectures or ()):
        return True
    found = cached_file(
        where,
        "modules.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return found is not None
