"""Inpainting through diffusers, with a pipeline of the real classes and a few thousand random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lucidnft.backbones.inpainting import Inpainter, InpaintingConfig


def small_pipeline(folder: Path) -> StableDiffusionInpaintPipeline:
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=4, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return StableDiffusionInpaintPipeline(
        vae=AutoencoderKL(
            block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8),
        unet=UNet2DConditionModel(
            sample_size=8, in_channels=9, out_channels=4, block_out_channels=(8,), norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16, attention_head_dim=4, layers_per_block=1,
        ),
        scheduler=DDIMScheduler(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def inpainter(tmp_path_factory: pytest.TempPathFactory) -> Inpainter:
    folder = tmp_path_factory.mktemp("inpainting")
    small_pipeline(folder).save_pretrained(folder / "model")
    return InpaintingConfig(
        model_name_or_path=str(folder / "model"), num_inference_steps=2, prompt="a"
    ).build()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_only_the_mask_is_repainted_and_the_seed_decides_how(inpainter: Inpainter, image: Tensor) -> None:
    mask = torch.zeros(64, 96, dtype=torch.bool)
    mask[8:40, 16:56] = True
    before = image.clone()
    painted = inpainter(image, mask, 3)
    assert painted.shape == image.shape and painted.dtype == image.dtype
    assert torch.equal(painted[:, ~mask], image[:, ~mask]) and torch.equal(image, before)
    assert not torch.allclose(painted[:, mask], image[:, mask], atol=0.01)
    assert 0 <= float(painted.min()) and float(painted.max()) <= 1  # noqa: SIM300
    assert torch.equal(painted, inpainter(image, mask, 3))
    assert not torch.equal(painted, inpainter(image, mask, 4))


def test_sides_that_a_latent_cannot_have_are_refused(inpainter: Inpainter) -> None:
    with pytest.raises(ValueError, match="multiples of 8, got 60x64"):
        inpainter(torch.rand(3, 60, 64), torch.ones(60, 64, dtype=torch.bool), 0)
