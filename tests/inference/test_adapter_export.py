"""Adapters out and in again: PEFT folders in both namings, and bases with the adapter merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lucidnft.backbones.adapter_files import POLICY_FORMAT
from lucidnft.checkpoint import save_tensors
from lucidnft.export import main
from lucidnft.inference import load_policy
from lucidnft.inference.adapter_export import export_adapter
from lucidnft.policy import Policy, Role
from tests.small_adapters import KINDS, apart, save_policy, scatter_, small_base, small_policy, velocity

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """(file, policy, velocity of the policy, velocity of the base, settings of the base) of each backbone."""
    folder = tmp_path_factory.mktemp(request.param)
    base = small_base(folder, request.param)
    policy = small_policy(base)
    file = save_policy(folder / "policy.safetensors", policy, base)
    own, bare = velocity(policy), velocity(base.build())
    assert apart(own, bare) > 0.05
    return file, policy, own, bare, base


@pytest.mark.parametrize("names", ["release", "diffusers"])
def test_an_exported_adapter_comes_back_as_it_was(trained, names, tmp_path):
    file, policy, own, _, base = trained
    main([str(file), str(tmp_path / "out"), "--names", names])
    folders = {"lora_dit", "lora_condition"} if base.type == "lucidflux" else {"lora_dit"}
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {*folders, "lucidnft.json"}
    back = load_policy(tmp_path / "out")
    assert isinstance(back, Policy)
    torch.testing.assert_close(velocity(back), own, atol=1e-6, rtol=0)
    state, expected = back.state(Role.CURRENT), policy.state(Role.CURRENT)
    assert state.keys() == expected.keys()  # ranks too: a fused layer is taken apart as it was put together
    assert all(torch.equal(state[name], expected[name]) for name in state)
    card = json.loads((tmp_path / "out" / "lucidnft.json").read_text())
    assert (card["step"], card["base_fingerprint"]) == (7, policy.backbone.fingerprint)


def test_one_naming_becomes_the_other(trained, tmp_path):
    file, policy, *_ = trained
    export_adapter(file, tmp_path / "one", names="release")
    export_adapter(tmp_path / "one", tmp_path / "two", names="diffusers")
    export_adapter(tmp_path / "two", tmp_path / "three", names="release")
    expected = policy.state(Role.CURRENT)
    state = load_policy(tmp_path / "three").state(Role.CURRENT)
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_merged_weights_are_the_policy(trained, tmp_path):
    file, _, own, bare, base = trained
    assert main([str(file), str(tmp_path / "merged"), "--merge"]) == 0
    merged = load_policy(tmp_path / "merged")
    assert not isinstance(merged, Policy)
    torch.testing.assert_close(velocity(merged), own, atol=1e-4, rtol=1e-4)
    section = {**base.model_dump(), **merged_files(tmp_path / "merged", base.type)}
    torch.testing.assert_close(
        velocity(type(base)(**section).build()), velocity(merged)
    )  # by a run file's settings
    torch.testing.assert_close(velocity(base.build()), bare)


PATTERNS = {
    "lucidflux": "conditioner.modulation_*",
    "dit4sr": "*control*",
}


@pytest.mark.parametrize("kind", ["lucidflux", "dit4sr"])
def test_trained_parameters_are_merged_and_have_no_peft_folders(kind, tmp_path):
    base = small_base(tmp_path, kind)
    section = {**base.model_dump(mode="json"), "train_parameters": [PATTERNS[kind]]}
    policy = scatter_(Policy(base.build(), type(base)(**section), seed=0))
    header = {
        "format": POLICY_FORMAT, "backbone": section, "step": 3,
        "base_fingerprint": policy.backbone.fingerprint, "config": {"seed": 0},
    }  # fmt: skip
    save_tensors(tmp_path / "policy.safetensors", policy.state(Role.CURRENT), header)
    with pytest.raises(ValueError, match=r"model.train_parameters.* write the whole with --merge"):
        export_adapter(tmp_path / "policy.safetensors", tmp_path / "out")
    export_adapter(tmp_path / "policy.safetensors", tmp_path / "out", merge=True)
    merged = load_policy(tmp_path / "out")
    assert not isinstance(merged, Policy)
    torch.testing.assert_close(velocity(merged), velocity(policy))
    assert apart(velocity(merged), velocity(base.build())) > 0.01
    assert json.loads((tmp_path / "out" / "merged.json").read_text())["model"]["train_parameters"] is None


def test_what_was_learned_on_a_quantised_base_is_merged_into_the_full_one(tmp_path):
    pytest.importorskip("torchao")
    base = small_base(tmp_path, "dit4sr")
    policy = small_policy(base)  # on the full base, whose fingerprint a quantised one has
    file = save_policy(tmp_path / "policy.safetensors", policy, base.model_copy(update={"quantize": "int8"}))
    export_adapter(file, tmp_path / "out", merge=True)
    merged = load_policy(tmp_path / "out")
    torch.testing.assert_close(velocity(merged), velocity(policy), atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "out" / "merged.json").read_text())["model"]["quantize"] == "none"


def merged_files(folder: Path, kind: str) -> dict[str, str]:
    named = {
        "tiny": {"model_name_or_path": "weights.safetensors"},
        "lucidflux": {"model_name_or_path": ".", "lucidflux_weights": "lucidflux.safetensors"},
        "dit4sr": {"model_name_or_path": ".", "transformer_path": "dit4sr"},
    }
    return {name: str(folder / file) for name, file in named[kind].items()}


@pytest.mark.parametrize("kind", ["lucidflux", "dit4sr"])
def test_merging_rounds_once_from_float32_to_the_bases_dtype(kind, tmp_path):
    base = small_base(tmp_path, kind, "bfloat16")
    policy = small_policy(base)
    module = next(name for name in policy.parameters if name.endswith("to_q.lora_A.weight"))[:-14]
    stored = {
        name: value.float() / 3 for name, value in policy.state(Role.CURRENT).items()
    }  # not bfloat16 numbers
    policy.state = lambda role: stored
    file = save_policy(tmp_path / "policy.safetensors", policy, base)
    export_adapter(file, tmp_path / "merged", merge=True)
    weight = base.build().network.get_submodule(module).weight
    change = 1.5 * stored[f"{module}.lora_B.weight"] @ stored[f"{module}.lora_A.weight"]
    expected = (weight.float() + change).to(torch.bfloat16)
    found = load_policy(tmp_path / "merged").network.get_submodule(module).weight
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_the_files_are_exact_and_complete_or_not_there(trained, tmp_path, monkeypatch):
    file, policy, *_ = trained
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not an empty folder"):
        export_adapter(file, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    export_adapter(file, tmp_path / "empty", names="diffusers")
    with safe_open(tmp_path / "empty" / "lora_dit" / "adapter_model.safetensors", framework="pt") as stored:
        assert {str(stored.get_tensor(name).dtype) for name in stored.keys()} == {"torch.float32"}  # noqa: SIM118

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lucidnft.backbones.adapter_files.save_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_adapter(file, tmp_path / "cut")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "full"]


def test_an_export_needs_no_base_but_loading_does(tmp_path, capsys):
    base = small_base(tmp_path, "tiny")
    file = save_policy(tmp_path / "policy.safetensors", small_policy(base), base)
    Path(base.model_name_or_path).rename(tmp_path / "moved.safetensors")
    assert main([str(file), str(tmp_path / "out")]) == 0
    assert "layers in lora_dit" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="needs its base weights"):
        load_policy(tmp_path / "out")
    assert isinstance(
        load_policy(tmp_path / "out", model_name_or_path=tmp_path / "moved.safetensors"), Policy
    )
    assert main([str(file), str(tmp_path / "merged"), "--merge"]) == 2
    assert "needs its base weights" in capsys.readouterr().err and not (tmp_path / "merged").exists()


def test_half_an_export_and_another_base_are_refused(tmp_path):
    base = small_base(tmp_path, "tiny")
    policy = small_policy(base)
    export_adapter(save_policy(tmp_path / "policy.safetensors", policy, base), tmp_path / "out")
    (tmp_path / "other").mkdir()
    other = small_base(tmp_path / "other", "tiny")
    other_backbone = other.build()
    with torch.no_grad():
        next(other_backbone.module.parameters()).add_(1)
    other_backbone.save_pretrained(other.model_name_or_path)
    with pytest.raises(ValueError, match="was trained on base weights"):
        load_policy(tmp_path / "out", model_name_or_path=other.model_name_or_path)
    weights = tmp_path / "out" / "lora_dit" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = sorted(tensors)[0].rsplit(".lora_", 1)[0]
    save_file({name: value for name, value in tensors.items() if first not in name}, weights)
    with pytest.raises(ValueError, match=r"that its lucidnft\.json lists: 1 missing"):
        load_policy(tmp_path / "out")
    weights.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"half a PEFT folder: it has neither adapter_model\.safetensors"
    ):
        load_policy(tmp_path / "out")
    (tmp_path / "out" / "lora_dit" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="half a PEFT folder"):
        load_policy(tmp_path / "out")


def test_somebody_elses_folder_needs_the_settings_of_its_base(tmp_path):
    base = small_base(tmp_path, "dit4sr")
    policy = small_policy(base)
    export_adapter(save_policy(tmp_path / "policy.safetensors", policy, base), tmp_path / "out")
    (tmp_path / "out" / "lucidnft.json").unlink()
    with pytest.raises(ValueError, match="does not say which base it is for"):
        load_policy(tmp_path / "out")
    for folder in (tmp_path / "out", tmp_path / "out" / "lora_dit"):
        torch.testing.assert_close(
            velocity(load_policy(folder, base=base)), velocity(policy), atol=1e-6, rtol=0
        )
    with pytest.raises(ValueError, match="both given"):
        load_policy(tmp_path / "out", base=base, model_name_or_path="elsewhere")
    with pytest.raises(
        ValueError, match=r"\d+ of the adapter's \d+ layers are not among the layers of .*to_q"
    ):
        load_policy(tmp_path / "out", base=small_base(tmp_path, "lucidflux"))
    with pytest.raises(ValueError, match="an adapter for backbone 'dit4sr', the settings are for 'tiny'"):
        load_policy(tmp_path / "policy.safetensors", base=small_base(tmp_path, "tiny"))
    torch.testing.assert_close(velocity(load_policy("base", base=base)), velocity(base.build()))


def test_the_command_takes_the_base_from_a_run_file(tmp_path, capsys):
    base = small_base(tmp_path, "dit4sr")
    policy = small_policy(base)
    export_adapter(save_policy(tmp_path / "policy.safetensors", policy, base), tmp_path / "out")
    (tmp_path / "out" / "lucidnft.json").unlink()
    run = {"task": "nft", "model": base.model_dump(mode="json"), "data": {"type": "lr_folder"}}
    run["rewards"] = {"fidelity": {"type": "lr_fidelity"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    arguments = ["--merge", "--base_config", str(tmp_path / "run.yaml")]
    assert main([str(tmp_path / "out"), str(tmp_path / "merged"), *arguments]) == 0, capsys.readouterr().err
    torch.testing.assert_close(
        velocity(load_policy(tmp_path / "merged")), velocity(policy), atol=1e-4, rtol=1e-4
    )
