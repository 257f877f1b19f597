"""LucidFlux in miniature: every part is there, with a few thousand parameters each."""

from lucidnft.backbones.lucidflux_architecture import (
    FluxSizes,
    LucidFluxArchitecture,
    SiglipSizes,
    SwinIRSizes,
    VaeSizes,
)
from lucidnft.checkpoint.fingerprint import sampled_fingerprint
from tests.backbones.random_tensors import randomise_

SMALL = LucidFluxArchitecture(
    transformer=FluxSizes(
        num_layers=3,  # odd, so that recycling two outputs does not come out even
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=20,
        pooled_projection_dim=12,
        axes_dims_rope=(2, 2, 4),
    ),
    vae=VaeSizes(block_out_channels=(4, 4, 8, 8), layers_per_block=1, norm_num_groups=4),
    swinir=SwinIRSizes(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4),
    siglip=SiglipSizes(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    ),
    num_text_tokens=5,
)


def small_lucidflux(**options):
    """Its backbone, with random weights that are nowhere zero."""
    from lucidnft.backbones.lucidflux import LucidFluxBackbone

    backbone = LucidFluxBackbone.initialise(SMALL, **options)
    randomise_(backbone.network)
    backbone.fingerprint = sampled_fingerprint(backbone.network.state_dict())
    return backbone
