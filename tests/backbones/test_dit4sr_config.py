"""DiT4SR from local folders: every tensor accounted for, and one message where something is not as it should be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from lucidnft.backbones.dit4sr import DiT4SRBackbone
from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from tests.small_dit4sr import draws, save_small_dit4sr, small_dit4sr, small_network, small_text, small_vae

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A diffusers folder of the base and, beside it, the released kind of transformer weights."""
    save_small_dit4sr(tmp_path)
    return tmp_path


def config(folder: Path, **changes: Any) -> DiT4SRBackboneConfig:
    settings = {
        "model_name_or_path": str(folder / "sd3"), "transformer_path": str(folder / "dit4sr"),
        "lr_key": "noise", "text_embeddings": str(folder / "text.safetensors"), "dtype": "float32",
    }  # fmt: skip
    return DiT4SRBackboneConfig(**{**settings, **changes})


def velocity(backbone: DiT4SRBackbone) -> torch.Tensor:
    lr = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        condition = backbone.encode_condition(lr, upscale=4)
        return backbone.velocity(draws(1, 4, 4, 4), torch.tensor([0.3]), condition)


def test_what_is_built_is_what_was_saved(folder: Path) -> None:
    built, want = config(folder).build(), small_dit4sr("noise", negative=True)
    assert built.fingerprint == want.fingerprint
    torch.testing.assert_close(velocity(built), velocity(want))
    everything = [*built.network.state_dict().values(), *built.autoencoder.vae.state_dict().values()]
    assert not any(value.is_meta for value in everything)
    rounded = config(folder, dtype="bfloat16").build()
    assert {p.dtype for p in rounded.network.parameters()} == {torch.bfloat16}
    assert velocity(rounded).dtype == torch.float32


def test_every_setting_arrives(folder: Path) -> None:
    changed = {
        "lr_key": "lr",
        "control_scale": 1.0,
        "guidance_scale": 4.0,
        "posterior": "mean",
        "time_grid": "uniform",
    }
    built = config(folder, **changed).build()
    network = small_network("lr", control_scale=1.0)
    options = {name: changed[name] for name in ("guidance_scale", "posterior", "time_grid")}
    want = DiT4SRBackbone(network, small_vae(), small_text(negative=True), **options)
    torch.testing.assert_close(velocity(built), velocity(want))
    assert torch.equal(built.default_time_grid(4, 64, 64), want.default_time_grid(4, 64, 64))
    empty = config(folder, text_embeddings="empty").build()
    assert empty.text.prompt_embeds.shape == (154, 10) and empty.text.pooled_prompt_embeds.shape == (7,)


def test_the_version_of_the_weights_must_be_said(folder: Path) -> None:
    with pytest.raises(ValidationError, match="lr_key"):
        DiT4SRBackboneConfig(model_name_or_path="a", transformer_path="b")
    with pytest.raises(ValidationError, match="'noise' or 'lr'"):
        config(folder, lr_key="r1")


def test_other_weights_are_refused_by_name(folder: Path) -> None:
    file = folder / "dit4sr" / "model.safetensors"
    tensors = load_file(file)
    sd3 = {name: value for name, value in tensors.items() if "control" not in name}
    save_file(sd3, file)
    with pytest.raises(ValueError, match=r"46 missing: transformer_blocks.0.attn.to_q_control.weight"):
        config(folder).build()
    save_file({**tensors, "stranger": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="1 unexpected: stranger"):
        config(folder).build()
    save_file(tensors, file)
    vae = folder / "sd3" / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({n: v for n, v in load_file(vae).items() if n != "decoder.conv_in.bias"}, vae)
    with pytest.raises(ValueError, match="1 missing: decoder.conv_in.bias"):
        config(folder).build()


def test_folders_of_other_models_and_missing_ones(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere/transformer/config.json does not exist; model_name"):
        config(folder, model_name_or_path="nowhere").build()
    with pytest.raises(FileNotFoundError, match="absent.safetensors does not exist"):
        config(folder, transformer_path=str(folder / "absent.safetensors")).build()
    file = folder / "sd3" / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(
        ValueError, match="describes a 'FluxTransformer2DModel', expected 'SD3Transformer2DModel'"
    ):
        config(folder).build()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"prompt_embeds": torch.zeros(1, 5, 11)}, r"prompt_embeds is \(1, 5, 11\), expected \(1, T, 10\)"),
        ({"prompt_embeds": torch.zeros(5, 10)}, r"prompt_embeds is \(5, 10\), expected \(1, T, 10\)"),
        ({"pooled_prompt_embeds": torch.zeros(2, 7)}, r"is \(2, 7\), expected \(1, 7\)"),
        ({"negative_prompt_embeds": torch.zeros(1, 0, 10)}, r"is \(1, 0, 10\)"),
        ({"prompt_embeds": torch.full((1, 5, 10), torch.nan)}, "prompt_embeds holds NaN"),
        ({"prompt": torch.zeros(1)}, "'prompt', .*expected .*encode_prompt"),
    ],
)
def test_text_that_does_not_fit(folder: Path, change: dict[str, torch.Tensor], match: str) -> None:
    file = folder / "text.safetensors"
    save_file({**load_file(file), **change}, file)
    with pytest.raises(ValueError, match=match):
        config(folder).build()


def test_a_negative_prompt_comes_whole(folder: Path) -> None:
    file = folder / "text.safetensors"
    save_file({n: v for n, v in load_file(file).items() if n != "negative_pooled_prompt_embeds"}, file)
    with pytest.raises(ValueError, match="expected .*'negative_pooled_prompt_embeds'"):
        config(folder).build()
    save_file({n: v for n, v in load_file(file).items() if "negative" not in n}, file)
    assert not config(folder).build().text.has_negative
    with pytest.raises(ValueError, match="no negative prompt"):
        config(folder, guidance_scale=2.0).build()
