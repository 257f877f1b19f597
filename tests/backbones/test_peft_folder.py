"""PEFT folders are read strictly: what would change the result is applied or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from lucidnft.backbones.adapter_files import read_adapter, read_policy_file
from lucidnft.backbones.lora_values import LoraPair, attach, merge_
from lucidnft.backbones.peft_folder import read_peft_folder, write_peft_folder
from lucidnft.checkpoint import save_tensors
from tests.backbones.random_tensors import draws

LORA = {
    "first.inner": LoraPair(draws(2, 4, seed=1), draws(6, 2, seed=2), 3.0),
    "second.inner": LoraPair(draws(3, 4, seed=3), draws(4, 3, seed=4), 3.0),
    "third.inner": LoraPair(draws(2, 4, seed=5), draws(4, 2, seed=6), 1.0),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_peft_folder(tmp_path, LORA, base="somewhere")
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    """Fields of the config; None takes one away."""
    file = folder / "adapter_config.json"
    config = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({n: v for n, v in config.items() if v is not None or n not in values}))


def retensor(folder: Path, **values: Any) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = {**load_file(file), **{f"base_model.model.{n}": v for n, v in values.items()}}
    save_file({name: value for name, value in tensors.items() if value is not None}, file)


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        read_peft_folder(folder)
    return str(error.value)


def test_ranks_and_scales_come_back(folder):
    found = read_peft_folder(folder).lora
    assert {n: (p.rank, p.alpha) for n, p in found.items()} == {n: (p.rank, p.alpha) for n, p in LORA.items()}
    assert all(
        torch.equal(found[n].b, pair.b) and torch.equal(found[n].a, pair.a) for n, pair in LORA.items()
    )


def test_rank_stabilised_scales_are_divided_by_the_root(folder):
    change(folder, use_rslora=True, alpha_pattern={}, lora_alpha=4)
    scales = {name: pair.scale for name, pair in read_peft_folder(folder).lora.items()}
    assert scales == pytest.approx(
        {"first.inner": 4 / 2**0.5, "second.inner": 4 / 3**0.5, "third.inner": 4 / 2**0.5}
    )


def test_patterns_match_names_and_ends_of_names(folder):
    change(folder, alpha_pattern={"inner": 5, "first.inner": 7}, rank_pattern={"^second.inner": 3})
    assert {p.alpha for p in read_peft_folder(folder).lora.values()} == {5.0}  # the first that matches
    change(folder, rank_pattern={"cond.inner": 3})
    assert (
        "1 of 3 layers have another rank than adapter_config.json says: second.inner has rank 3, not 2"
        in refusal(folder)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "LOKR"}, "is of method 'LOKR'; only plain LoRA"),
        ({"peft_type": None}, "is of method None"),
        ({"use_dora": True}, "uses use_dora: True, which cannot be applied"),
        ({"modules_to_save": ["norm_out"]}, "uses modules_to_save: "),
        ({"a_method_of_tomorrow": {"on": 1}}, "uses a_method_of_tomorrow"),
        ({"bias": "lora_only"}, r"trained biases (bias: lora_only)"),
        ({"init_lora_weights": "pissa"}, "started by 'pissa', which changes the base's weights"),
        ({"r": None}, "r is None, expected a number"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a number"),
        ({"r": 5}, "layers have another rank than adapter_config.json says"),
    ],
)
def test_other_methods_and_missing_scales_are_refused(folder, values, message):
    change(folder, **values)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"first.inner.lora_B.weight": None}, "1 layers lack a factor: first.inner has no B"),
        ({"first.inner.lora_B.weight": draws(6, 3)}, "differ in rank: first.inner: A has 2, B has 3"),
        ({"first.inner.lora_magnitude_vector": draws(6)}, "holds 1 tensors besides LoRA's factors"),
        (
            {"first.inner.lora_A.weight": torch.full((2, 4), torch.nan)},
            "1 layers are not finite: first.inner",
        ),
    ],
)
def test_damaged_factors_are_refused(folder, values, message):
    retensor(folder, **values)
    assert message in refusal(folder)


def test_half_a_folder_is_refused(folder):
    (folder / "adapter_config.json").rename(folder / "config.json")
    with pytest.raises(FileNotFoundError, match=r"half a PEFT folder: it has no adapter_config\.json"):
        read_adapter(folder, "dit4sr")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no adapter"):
        read_adapter(folder, "dit4sr")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_adapter(folder / "nowhere", "dit4sr")


def test_a_pickled_file_is_read_without_executing_it(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    assert torch.equal(read_peft_folder(folder).lora["first.inner"].a, LORA["first.inner"].a)
    torch.save({**tensors, "call": print}, folder / "adapter_model.bin")
    assert "never executed" in refusal(folder)


def test_a_condition_folder_belongs_to_lucidflux_alone(folder):
    write_folder = folder / "out"
    for name in ("lora_dit", "lora_condition"):
        (write_folder / name).mkdir(parents=True)
        write_peft_folder(write_folder / name, LORA, base=None)
    with pytest.raises(ValueError, match="lora_condition, which does not belong to an adapter for 'dit4sr'"):
        read_adapter(write_folder, "dit4sr")
    (write_folder / "lora_dit" / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="lora_dit is half a PEFT folder"):
        read_adapter(write_folder, "lucidflux")


def test_policy_files_of_other_kinds_are_refused(tmp_path):
    file = tmp_path / "policy.safetensors"
    header = {"format": "lucidnft.policy.1", "backbone": {"type": "tiny"}, "base_fingerprint": "0"}
    save_tensors(file, {"a.lora_A.weight": draws(1, 2), "a.lora_B.weight": draws(2, 1)}, header)
    with pytest.raises(ValueError, match="does not say lora_alpha"):
        read_policy_file(file)
    save_tensors(file, {"a.weight": draws(2, 2)}, {**header, "lora": {"a": [1, 2.0]}})
    with pytest.raises(ValueError, match=r"1 tensors besides LoRA's factors A and B \(a\.weight\)"):
        read_policy_file(file)
    save_tensors(
        file,
        {"a.lora_A.weight": draws(1, 2), "a.lora_B.weight": draws(2, 1)},
        {**header, "lora": {"a": [2, 2.0], "b": [1, 2.0]}},
    )
    with pytest.raises(
        ValueError, match=r"its header lists: 1 missing \(b\), 0 unknown \(\), 1 of another rank \(a\)"
    ):
        read_policy_file(file)
    save_tensors(file, {"a.weight": draws(2, 2)}, {"format": "lucidnft.tiny_backbone.1"})
    with pytest.raises(ValueError, match=r"format 'lucidnft\.tiny_backbone\.1'"):
        read_policy_file(file)


def network() -> torch.nn.Module:
    parts = {"first": torch.nn.Linear(4, 6), "second": torch.nn.Linear(4, 4), "third": torch.nn.Linear(4, 4)}
    return torch.nn.ModuleDict({name: torch.nn.ModuleDict({"inner": part}) for name, part in parts.items()})


def test_layers_of_other_names_and_shapes_are_named(folder):
    with pytest.raises(ValueError, match=r"1 of the adapter's 1 layers are not among .*: fourth\.inner"):
        attach(network(), "current", {"fourth.inner": LORA["first.inner"]})
    with pytest.raises(ValueError, match=r"second\.inner is \(4, 4\), its factors change \(6, 4\)"):
        attach(network(), "current", {"second.inner": LORA["first.inner"]})


def test_peft_finds_exactly_the_layers_and_ranks_that_were_written(tmp_path):
    made = network()
    made["out"] = torch.nn.Linear(4, 4)
    made["first"]["out"] = torch.nn.Linear(4, 4)  # ends like the one above, and has no LoRA
    made["second"]["out"] = torch.nn.Linear(4, 4)  # and this one another rank
    lora = {**LORA, "out": LoraPair(draws(5, 4), draws(4, 5), 7.0), "second.out": LORA["third.inner"]}
    write_peft_folder(tmp_path, lora, base=None)
    loaded = PeftModel.from_pretrained(made, tmp_path).base_model.model
    found = {
        n: (m.r["default"], m.scaling["default"])
        for n, m in loaded.named_modules()
        if isinstance(m, LoraLayer)
    }
    assert found == {name: (pair.rank, pytest.approx(pair.scale)) for name, pair in lora.items()}


def test_merging_into_what_cannot_take_it_is_refused():
    made = network()
    made["second"]["inner"].weight = torch.nn.Parameter(
        torch.zeros(4, 4, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ValueError, match=r"second\.inner is a Linear of torch\.int8"):
        merge_(made, LORA)


@torch.no_grad()
def test_merging_equals_attaching():
    attached, merged = network(), network()
    merged.load_state_dict(attached.state_dict())
    attach(attached, "current", LORA)
    merge_(merged, LORA)
    for name in LORA:
        x = draws(5, 4)
        torch.testing.assert_close(merged.get_submodule(name)(x), attached.get_submodule(name)(x))
        assert (
            float((merged.get_submodule(name)(x) - attached.get_submodule(name).base_layer(x)).abs().max())
            > 0.1
        )
