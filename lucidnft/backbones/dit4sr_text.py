"""Text for DiT4SR: embeddings computed beforehand, one text for every image.

The three text encoders of SD 3.5 hold more weights than the transformer, and a fixed instruction needs them once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lucidnft.checkpoint.released_files import load_released

EMPTY = "empty"
NUM_EMPTY_TOKENS = 154
"""77 of the two CLIP encoders and 77 of T5, as the published model is run."""


@dataclass(frozen=True)
class TextEmbeddings:
    """What SD3's text encoders make of a prompt and, for guidance, of a negative prompt."""

    prompt_embeds: Tensor  # (T, D)
    pooled_prompt_embeds: Tensor  # (P,)
    negative_prompt_embeds: Tensor | None = None  # (T', D)
    negative_pooled_prompt_embeds: Tensor | None = None  # (P,)

    @classmethod
    def empty(cls, width: int, pooled_width: int) -> TextEmbeddings:
        """All zeros, which diffusers also puts in the place of an SD3 text encoder that is not there."""
        return cls(torch.zeros(NUM_EMPTY_TOKENS, width), torch.zeros(pooled_width))

    @classmethod
    def from_file(cls, path: str | Path, width: int, pooled_width: int) -> TextEmbeddings:
        """Read a .safetensors file of what diffusers' StableDiffusion3Pipeline.encode_prompt returns.

        Its tensors are prompt_embeds (1, T, width) and pooled_prompt_embeds (1, pooled_width), and either none or
        both of the same names with negative_ before.

        Raises:
            FileNotFoundError, ValueError: no such file, or other names or shapes.
        """
        found = load_released(path)
        names = ["prompt_embeds", "pooled_prompt_embeds"]
        if any(name.startswith("negative_") for name in found):
            names += [f"negative_{name}" for name in names]
        if sorted(found) != sorted(names):
            raise ValueError(
                f"{path} has tensors {sorted(found)}, expected {sorted(names)}: what encode_prompt of diffusers' "
                "StableDiffusion3Pipeline returns, saved with safetensors"
            )
        for name, value in found.items():
            sides = (1, pooled_width) if "pooled" in name else (1, *value.shape[1:2], width)
            want = str(sides) if "pooled" in name else f"(1, T, {width})"
            if tuple(value.shape) != sides or 0 in sides:
                raise ValueError(
                    f"{path}: {name} is {tuple(value.shape)}, expected {want} as the transformer takes it; "
                    "it belongs to another model"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{path}: {name} holds NaN or infinite values; compute the embeddings again")
        return cls(**{name: value[0].float() for name, value in found.items()})

    @property
    def has_negative(self) -> bool:
        """Whether there is a negative prompt, without which guidance has no direction."""
        return self.negative_prompt_embeds is not None

    def fields(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}
