"""Sizes of DiT4SR's networks; the defaults are the released ones.  Imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from lucidnft.backbones.vae_sizes import AutoencoderSizes
from lucidnft.schema import ConfigModel


class SD3Sizes(ConfigModel):
    """diffusers.SD3Transformer2DModel: Stable Diffusion 3.5 medium."""

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 24
    attention_head_dim: int = 64
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1536
    pooled_projection_dim: int = 2048
    out_channels: int = 16
    pos_embed_max_size: int = 384
    dual_attention_layers: tuple[int, ...] = tuple(range(13))
    qk_norm: str = "rms_norm"


class SD3VaeSizes(AutoencoderSizes):
    """That of Stable Diffusion 3."""

    scaling_factor: float = 1.5305
    shift_factor: float = 0.0609


class DiT4SRArchitecture(ConfigModel):
    """All of them together."""

    transformer: SD3Sizes = SD3Sizes()
    vae: SD3VaeSizes = SD3VaeSizes()
    num_text_tokens: int = Field(default=154, ge=1)  # of the random prompt
