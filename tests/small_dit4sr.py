"""A DiT4SR of a few thousand parameters, of the very classes that a run with the released weights uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import save_file
from torch import nn

from lucidnft.backbones.dit4sr import DiT4SRBackbone
from lucidnft.backbones.dit4sr_network import DiT4SRNetwork
from lucidnft.backbones.dit4sr_text import TextEmbeddings

SMALL = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 6,
    "num_attention_heads": 2, "joint_attention_dim": 10, "caption_projection_dim": 12, "pooled_projection_dim": 7,
    "out_channels": 4, "pos_embed_max_size": 10, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm",
}  # fmt: skip
SMALL_VAE: dict[str, Any] = {
    "block_out_channels": (4, 4, 4, 4), "norm_num_groups": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip


@pytest.fixture
def one_thread() -> None:
    """Thousands of operations too small to share: two threads on a busy machine take twenty times as long."""
    torch.set_num_threads(1)  # the next test has its own number again


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomise_(module: nn.Module, seed: int) -> None:
    """Random weights everywhere, so that neither a zero nor a one hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def small_network(lr_key: str = "lr", *, control_scale: float = 1.2) -> DiT4SRNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DiT4SRNetwork(lr_key=lr_key, control_scale=control_scale, **SMALL)
    randomise_(network, 1)
    return network


def small_vae() -> AutoencoderKL:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(**SMALL_VAE)
    randomise_(vae, 2)
    with torch.no_grad():
        vae.encoder.conv_out.bias[4:] += 1.5  # standard deviations that differ from variances
    return vae


def small_text(*, negative: bool = False) -> TextEmbeddings:
    parts = [draws(5, 10, seed=3), draws(7, seed=4), draws(3, 10, seed=5), draws(7, seed=6)]
    return TextEmbeddings(*parts) if negative else TextEmbeddings(*parts[:2])


def small_dit4sr(lr_key: str = "lr", *, negative: bool = False, **options: Any) -> DiT4SRBackbone:
    return DiT4SRBackbone(small_network(lr_key), small_vae(), small_text(negative=negative), **options)


def save_small_dit4sr(folder: Path, lr_key: str = "noise") -> dict[str, str]:
    """A diffusers folder of the base and the other files; returns the settings that name them."""
    SD3Transformer2DModel(**SMALL).save_config(folder / "sd3" / "transformer")
    small_vae().save_pretrained(folder / "sd3" / "vae")
    (folder / "dit4sr").mkdir()
    save_file(small_network(lr_key).state_dict(), folder / "dit4sr" / "model.safetensors")
    text = {name: value[None] for name, value in small_text(negative=True).fields().items()}
    save_file(text, folder / "text.safetensors")
    return {
        "model_name_or_path": str(folder / "sd3"), "transformer_path": str(folder / "dit4sr"),
        "lr_key": lr_key, "text_embeddings": str(folder / "text.safetensors"), "dtype": "float32",
    }  # fmt: skip
