"""Sizes of LucidFlux's networks; the defaults are the released ones.  Imports nothing heavy."""

from __future__ import annotations

from pydantic import Field

from lucidnft.backbones.vae_sizes import AutoencoderSizes
from lucidnft.schema import ConfigModel


class FluxSizes(ConfigModel):
    """diffusers.FluxTransformer2DModel: FLUX.1-dev."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = True
    axes_dims_rope: tuple[int, int, int] = (16, 56, 56)


class VaeSizes(AutoencoderSizes):
    """That of FLUX.1."""

    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159


class SwinIRSizes(ConfigModel):
    """lucidnft.backbones.swinir.SwinIR: DiffBIR's general pre-restorer."""

    embed_dim: int = 180
    depths: tuple[int, ...] = (6,) * 8
    num_heads: tuple[int, ...] = (6,) * 8
    window_size: int = 8
    mlp_ratio: float = 2.0


class SiglipSizes(ConfigModel):
    """transformers.SiglipVisionModel: siglip2-so400m-patch16-512."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 512
    patch_size: int = 16


class LucidFluxArchitecture(ConfigModel):
    """All of them together."""

    transformer: FluxSizes = FluxSizes()
    num_condition_blocks: int = Field(default=2, ge=1)  # double blocks per branch of the conditioner
    vae: VaeSizes = VaeSizes()
    swinir: SwinIRSizes = SwinIRSizes()
    siglip: SiglipSizes = SiglipSizes()
    num_text_tokens: int = Field(default=512, ge=1)
