"""Sizes of the autoencoders of FLUX and of Stable Diffusion 3, which differ in two numbers.  Imports nothing heavy."""

from __future__ import annotations

from lucidnft.schema import ConfigModel


class AutoencoderSizes(ConfigModel):
    """diffusers.AutoencoderKL without the convolutions around its latent."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    scaling_factor: float
    shift_factor: float
