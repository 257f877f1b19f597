"""What LucidFlux needs beside its velocity network: autoencoder, pre-restorer and the image's tokens.

None of it depends on the time or on adapters.  All of it is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft.backbones.swinir import SwinIR
from lucidnft.images import resize


@dataclass(frozen=True)
class PromptEmbeddings:
    """The one prompt of a LucidFlux model, encoded."""

    text: Tensor  # (1, tokens, D) of T5
    pooled: Tensor  # (1, P) of CLIP


class LucidFluxEncoders(nn.Module):
    """The frozen networks around the velocity network."""

    def __init__(self, vae: Any, swinir: SwinIR, siglip: Any, connector: Any) -> None:
        """Networks to hold: diffusers' AutoencoderKL, ours, transformers' SiglipVisionModel and diffusers'
        ReduxImageEncoder.

        Raises:
            ValueError: an autoencoder that does not shrink by 8, which the conditioner's convolutions do.
        """
        super().__init__()
        downscale = 2 ** (len(vae.config.block_out_channels) - 1)
        if downscale != 8:
            raise ValueError(f"the autoencoder shrinks by {downscale}, LucidFlux's conditioner by 8")
        self.vae: Any = vae
        self.swinir = swinir
        self.siglip: Any = siglip
        self.connector: Any = connector
        self.requires_grad_(False).eval()

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> latents (B, C, H/8, W/8) float32: the mean, no noise is drawn."""
        config = self.vae.config
        pixels = (2 * images - 1).to(self.vae.device, self.vae.dtype)
        mean = self.vae.encode(pixels).latent_dist.mode().float()
        return (mean - config.shift_factor) * config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse: (B, C, h, w) -> (B, 3, 8h, 8w) float32, clamped to [0, 1]."""
        config = self.vae.config
        scaled = latents.float() / config.scaling_factor + config.shift_factor
        pixels = self.vae.decode(scaled.to(self.vae.dtype), return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def pre_restore(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the same, clamped, float32."""
        weight = self.swinir.conv_last.weight
        return self.swinir(images.to(weight.device, weight.dtype)).float().clamp(0, 1)

    def image_tokens(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, tokens, D): SigLIP's last hidden state through the connector.

        The image is squeezed to SigLIP's square with its values rounded to 8 bits before and after, as when its
        processor gets an image file.
        """
        side = self.siglip.config.image_size
        squeezed = _to_8_bits(resize(_to_8_bits(images), (side, side), "bilinear"))
        pixels = ((squeezed - 0.5) / 0.5).to(self.siglip.device, self.siglip.dtype)
        hidden = self.siglip(pixel_values=pixels).last_hidden_state
        tokens: Tensor = self.connector(hidden.to(self.connector.dtype)).image_embeds
        return tokens


def _to_8_bits(images: Tensor) -> Tensor:
    return (images * 255).round() / 255


def check_prompt(prompt: PromptEmbeddings, text_width: int, pooled_width: int) -> None:
    """Raise a ValueError unless the embeddings are (1, tokens, text_width) and (1, pooled_width)."""
    found = (tuple(prompt.text.shape), tuple(prompt.pooled.shape))
    fits = prompt.text.ndim == 3 and found == ((1, prompt.text.shape[1], text_width), (1, pooled_width))
    valued = [part for part in (prompt.text, prompt.pooled) if not part.is_meta]
    if not fits or not all(bool(torch.isfinite(part).all()) for part in valued):
        raise ValueError(
            f"prompt embeddings are {found[0]} and {found[1]}, expected finite (1, tokens, {text_width}) of T5 and "
            f"(1, {pooled_width}) of CLIP; were they made for another model?"
        )
