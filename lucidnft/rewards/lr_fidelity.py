"""Does the restored image, seen at the resolution of its input, still show the input?

The SR image is reduced by the scale (antialiased bicubic) and compared with LR in mean absolute error.
A plain comparison pays a policy for writing the noise and the JPEG blocks of LR back into the output,
because those too vanish from the error.  Both sides are therefore low-pass filtered first: a Gaussian
of 2 LR pixels removes 98 % of the variance of white noise at the LR resolution and much of the blocking,
and keeps brightness, colour, position and shapes.  Fidelity of the fine detail is for other rewards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from lucidnft.filters import gaussian_blur
from lucidnft.rewards.base import Reference, Reward, RewardCard
from lucidnft.schema import ConfigModel

DEFAULT_BLUR_SIGMA = 2.0


class LRFidelity(Reward):
    """Negative mean absolute error of low-passed LR and low-passed, reduced SR: in [-1, 0], 0 best."""

    def __init__(self, *, blur_sigma: float = DEFAULT_BLUR_SIGMA) -> None:
        """blur_sigma: in LR pixels; 0 compares the plain pixels, noise of LR included."""
        if not blur_sigma >= 0 or math.isinf(blur_sigma):
            raise ValueError(f"blur_sigma is {blur_sigma}, expected a finite number of LR pixels, 0 or more")
        self.blur_sigma = blur_sigma
        self.card = RewardCard(
            name="lr_fidelity",
            needs=frozenset({"lr"}),
            value_range=(-1.0, 0.0),
            note=f"Negative mean absolute error against LR at its size, both blurred by {blur_sigma} LR px.",
        )

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """The low-passed LR images, once per group."""
        if lr is None:
            raise ValueError("reward 'lr_fidelity' needs lr: pass reward(sr, lr=...)")
        if lr.shape[2] > sr_size[0] or lr.shape[3] > sr_size[1]:
            raise ValueError(
                f"reward 'lr_fidelity': lr is {lr.shape[2]}x{lr.shape[3]} px, larger than sr at "
                f"{sr_size[0]}x{sr_size[1]}; were lr and sr exchanged?"
            )
        return {"lr": gaussian_blur(lr.float(), self.blur_sigma)}

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32 in [-1, 0]; differentiable in sr."""
        return self.score_map(sr, reference).mean(dim=(1, 2))

    def score_map(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) -> (N, H/r, W/r): the same at every pixel of LR, mean over the channels."""
        lr = reference["lr"].to(sr.device)
        reduced = sr.float()
        if lr.shape[2:] != sr.shape[2:]:
            size = (lr.shape[2], lr.shape[3])
            reduced = F.interpolate(reduced, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return -(gaussian_blur(reduced, self.blur_sigma) - lr).abs().mean(dim=1)


class LRFidelityConfig(ConfigModel):
    """Settings of `LRFidelity`."""

    type: Literal["lr_fidelity"] = "lr_fidelity"
    blur_sigma: float = Field(default=DEFAULT_BLUR_SIGMA, ge=0, allow_inf_nan=False)
    weight: float = 1.0

    def build(self) -> LRFidelity:
        """Make the reward."""
        return LRFidelity(blur_sigma=self.blur_sigma)
