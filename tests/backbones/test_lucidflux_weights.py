"""LucidFlux's released layout of files, in miniature, read strictly."""

import pickle

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from lucidnft.backbones.lucidflux_weights import (
    read_lucidflux_file,
    read_prompt_embeddings,
    read_swinir_file,
)
from lucidnft.checkpoint.released_files import read_released_file
from tests.backbones.random_tensors import draws, uniforms
from tests.backbones.small_lucidflux import (
    SMALL,
    save_small_lucidflux,
    small_lucidflux,
    small_lucidflux_files,
)

T = torch.tensor([0.83, 0.31])


@pytest.fixture(scope="module")
def original():
    return small_lucidflux()


@pytest.fixture
def files(original, tmp_path):
    save_small_lucidflux(tmp_path, original)
    return tmp_path


def config_of(files, **changes):
    named = {
        **small_lucidflux_files(files),
        "architecture": SMALL,
    }
    return LucidFluxBackboneConfig(**{**named, **changes})


@torch.no_grad()
def test_a_backbone_from_released_files_is_the_same(original, files):
    loaded = config_of(files, guidance_scale=3.5, time_grid="flux").build()
    assert (loaded.guidance_scale, loaded.time_grid, loaded.autocast_dtype) == (3.5, "flux", None)
    assert loaded.fingerprint == original.fingerprint
    loaded.guidance_scale = original.guidance_scale
    lr, x_t = uniforms(2, 3, 8, 12), draws(2, 16, 4, 6)
    conditions = [backbone.encode_condition(lr, upscale=4) for backbone in (original, loaded)]
    for name, value in conditions[0].fields.items():
        torch.testing.assert_close(conditions[1][name], value, msg=name)
    v = [b.velocity(x_t, T, c) for b, c in zip((original, loaded), conditions, strict=True)]
    torch.testing.assert_close(v[1], v[0])
    torch.testing.assert_close(loaded.decode(x_t), original.decode(x_t))


@torch.no_grad()
def test_weights_take_the_dtype_asked_for_but_the_pre_restorer_stays_in_float32(files):
    loaded = config_of(files, dtype="bfloat16").build()
    assert {p.dtype for p in loaded.network.parameters()} == {torch.bfloat16}
    encoders = loaded.encoders
    assert {p.dtype for p in encoders.swinir.parameters()} == {torch.float32}
    others = (encoders.vae, encoders.siglip, encoders.connector)
    assert {p.dtype for part in others for p in part.parameters()} == {torch.bfloat16}
    condition = loaded.encode_condition(uniforms(2, 3, 8, 12), upscale=4)
    v = loaded.velocity(draws(2, 16, 4, 6), T, condition)
    assert v.dtype == loaded.decode(v).dtype == torch.float32
    assert bool(torch.isfinite(v).all())


def test_random_weights_are_built_without_any_file_and_follow_the_seed():
    config = LucidFluxBackboneConfig(model_name_or_path=None, architecture=SMALL, dtype="float32")
    assert config.build(seed=3).fingerprint == config.build(seed=3).fingerprint
    assert config.build(seed=3).fingerprint != config.build(seed=4).fingerprint


def test_files_that_random_weights_do_not_read_are_refused():
    with pytest.raises(ValidationError, match="do not read swinir_weights"):
        LucidFluxBackboneConfig(model_name_or_path=None, swinir_weights="swinir.ckpt")


def test_the_release_s_own_prompt_file_is_read(original, files):
    prompt = {"txt": original.prompt.text, "vec": original.prompt.pooled, "prompt": "restore it"}
    torch.save(prompt, files / "prompt.pt")
    assert torch.equal(config_of(files).build().prompt.text, original.prompt.text)


@pytest.mark.parametrize("missing", ["connector", "modulation_ldr"])
def test_a_lucidflux_file_without_a_part_is_refused(files, missing):
    parts = torch.load(files / "lucidflux.pth")
    del parts[missing]
    torch.save(parts, files / "lucidflux.pth")
    with pytest.raises(ValueError, match=f"is not LucidFlux's: it lacks .'{missing}'"):
        config_of(files).build()


def test_every_key_of_every_file_is_accounted_for(files):
    parts = torch.load(files / "lucidflux.pth")
    del parts["condition_lq"]["controlnet_blocks.1.bias"]
    parts["condition_ldr"]["stranger.weight"] = torch.zeros(1)
    torch.save(parts, files / "lucidflux.pth")
    with pytest.raises(ValueError, match=r"part condition_lq: .* 1 missing: controlnet_blocks\.1\.bias"):
        config_of(files).build()
    parts["condition_lq"] = parts["condition_ldr"]
    torch.save(parts, files / "lucidflux.pth")
    with pytest.raises(ValueError, match=r"part condition_lq: 1 names are not FLUX's: stranger\.weight"):
        config_of(files).build()


@pytest.mark.parametrize(
    ("file", "name", "message"),
    [
        ("flux/transformer/diffusion_pytorch_model.safetensors", "x_embedder.bias", "transformer of .*x_emb"),
        ("flux/vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.bias", "vae of .*decoder.conv_in"),
        ("siglip/model.safetensors", "vision_model.post_layernorm.bias", "SigLIP from .*post_layernorm"),
    ],
)
def test_missing_tensors_of_folders_are_never_filled_with_random_ones(files, file, name, message):
    tensors = load_file(files / file)
    del tensors[name]
    save_file(tensors, files / file, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        config_of(files).build()


def test_a_flat_lucidflux_file_is_read_too(original, tmp_path):
    parts = {
        **original.network.conditioner.released_state(),
        "connector": original.encoders.connector.state_dict(),
    }
    flat = {
        f"{part}.{name}": v.contiguous() for part, tensors in parts.items() for name, v in tensors.items()
    }
    save_file(flat, tmp_path / "lucidflux.safetensors")
    read = read_lucidflux_file(tmp_path / "lucidflux.safetensors")
    assert read.keys() == parts.keys()
    assert all(torch.equal(read[p][n], v) for p, tensors in parts.items() for n, v in tensors.items())


def test_prompt_embeddings_are_told_apart_by_their_widths(tmp_path):
    file = tmp_path / "prompt.safetensors"
    text, pooled = draws(5, 20), draws(12)
    save_file({"a": pooled, "b": text}, file)
    read = read_prompt_embeddings(file, 20, 12)
    assert torch.equal(read.text, text[None])
    assert torch.equal(read.pooled, pooled[None])
    with pytest.raises(ValueError, match=r"tokens, 4096\) of T5 .* found \{'a': \(12,\), 'b': \(5, 20\)\}"):
        read_prompt_embeddings(file, 4096, 12)


def test_wrappings_of_the_pre_restorers_file_are_taken_off(files, original):
    assert read_swinir_file(files / "swinir.ckpt").keys() == original.encoders.swinir.state_dict().keys()


class _Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_is_executed_and_other_files_are_named(tmp_path, capsys):
    (tmp_path / "bad.pth").write_bytes(pickle.dumps(_Harmful()))
    with pytest.raises(ValueError, match=r"bad\.pth .* cannot be read as weights"):
        read_released_file(tmp_path / "bad.pth")
    torch.save({"state_dict": _Harmful()}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt .* never executed"):
        read_released_file(tmp_path / "bad.ckpt")
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"12345678901")
    with pytest.raises(ValueError, match=r"cut\.safetensors \(11 bytes\) is not a readable"):
        read_released_file(tmp_path / "cut.safetensors")
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(ValueError, match=r"not '\.txt'"):
        read_released_file(tmp_path / "notes.txt")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list"):
        read_released_file(tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_released_file(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_released_file(tmp_path)
