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


def save_small_lucidflux(folder, original):
    """The backbone's weights in `folder`, as a user has the released ones after downloading."""
    import torch
    from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig

    encoders = original.encoders
    original.network.transformer.save_pretrained(folder / "flux" / "transformer")
    encoders.vae.save_pretrained(folder / "flux" / "vae")
    # both sides of SigLIP, as released
    sizes = SiglipVisionConfig(**SMALL.siglip.model_dump())
    text = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        siglip = SiglipModel(
            SiglipConfig(text_config={**text, "vocab_size": 9}, vision_config=sizes.to_dict())
        )
    siglip.vision_model.load_state_dict(encoders.siglip.state_dict(), strict=False)
    siglip.save_pretrained(folder / "siglip")
    parts = {**original.network.conditioner.released_state(), "connector": encoders.connector.state_dict()}
    torch.save({part: dict(tensors) for part, tensors in parts.items()}, folder / "lucidflux.pth")
    swinir = {f"module.{name}": value for name, value in encoders.swinir.state_dict().items()}
    torch.save({"state_dict": swinir}, folder / "swinir.ckpt")
    torch.save({"txt": original.prompt.text, "vec": original.prompt.pooled}, folder / "prompt.pt")


def small_lucidflux_files(folder):
    """The settings that name what `save_small_lucidflux` wrote."""
    return {
        "model_name_or_path": str(folder / "flux"),
        "siglip_name_or_path": str(folder / "siglip"),
        "lucidflux_weights": str(folder / "lucidflux.pth"),
        "swinir_weights": str(folder / "swinir.ckpt"),
        "prompt_embeddings": str(folder / "prompt.pt"),
        "architecture": {"swinir": SMALL.swinir.model_dump(mode="json")},
        "dtype": "float32",
    }
