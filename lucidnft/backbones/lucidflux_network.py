"""LucidFlux as one network: FLUX's transformer with a residual after each of its double blocks.

Latents come in and go out as (B, C, h, w); that FLUX sees them as a sequence of 2 x 2 cells stays in this file.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import Tensor, nn

from lucidnft.backbones.lucidflux_condition import DualBranchConditioner


class LucidFluxNetwork(nn.Module):
    """The trunk and the conditioner: everything that depends on the time."""

    def __init__(self, transformer: Any, conditioner: DualBranchConditioner) -> None:
        """transformer: a diffusers.FluxTransformer2DModel."""
        super().__init__()
        self.transformer: Any = transformer
        self.conditioner = conditioner
        for module in self.modules():
            if isinstance(module, FluxAttention):
                for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
                    if hasattr(module, name):
                        getattr(module, name).register_forward_hook(_in_dtype_of_input)

    @property
    def num_layers(self) -> int:
        """Double blocks of the trunk."""
        return len(self.transformer.transformer_blocks)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        lq: Tensor,
        pre_restored: Tensor,
        text: Tensor,
        pooled: Tensor,
        siglip: Tensor,
        guidance_scale: float,
    ) -> Tensor:
        """Velocity (B, C, h, w) of x_t (B, C, h, w) at t (B,) in [0, 1].

        Args:
            lq, pre_restored: (B, 3, 8h, 8w) in [-1, 1].
            text, pooled: prompt embeddings, (B, tokens, D) and (B, P).
            siglip: tokens of the pre-restored image, (B, tokens, D); the trunk reads them after the text, the
                conditioner does not read them.
            guidance_scale: of FLUX's guidance embedding, not of classifier-free guidance.
        """
        tokens = pack(x_t)
        guidance = torch.full_like(t, guidance_scale) if self.transformer.config.guidance_embeds else None
        shared: dict[str, Any] = {
            "pooled_projections": pooled,
            "guidance": guidance,
            "img_ids": position_ids(*x_t.shape[2:], device=x_t.device),
        }
        residuals = self.conditioner(
            tokens,
            t,
            lq,
            pre_restored,
            self.num_layers,
            encoder_hidden_states=text,
            txt_ids=text_ids(text),
            **shared,
        )
        context = torch.cat([text, siglip], dim=1)
        velocity: Tensor = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=context,
            timestep=t,  # diffusers' FLUX multiplies by 1000 itself
            txt_ids=text_ids(context),
            controlnet_block_samples=residuals,
            return_dict=False,
            **shared,
        )[0]
        return unpack(velocity, *x_t.shape[2:])


def _in_dtype_of_input(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Under autocast on a GPU the norms give float32 queries and keys; xformers and flash then refuse bf16 values."""
    return output.to(inputs[0].dtype)


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, 4C): cells of 2 x 2 in reading order, channel-major within a cell."""
    batch, channels, height, width = latents.shape
    if height % 2 or width % 2:
        raise ValueError(f"latent of {height} x {width} cells cannot be packed 2 x 2; its sides must be even")
    cells = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, height * width // 4, 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`: (B, h/2 * w/2, 4C) -> (B, C, h, w)."""
    batch, _, channels = tokens.shape
    cells = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def position_ids(height: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """(h/2 * w/2, 3): 0, row and column of each token of an h x w latent."""
    rows = torch.arange(height // 2, device=device, dtype=torch.float32)
    columns = torch.arange(width // 2, device=device, dtype=torch.float32)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], dim=1)


def text_ids(text: Tensor) -> Tensor:
    """(tokens, 3) zeros: text and image-encoder tokens (B, tokens, D) have no position."""
    return torch.zeros(text.shape[1], 3, device=text.device)
