"""Runs that start from an adapter: `model.adapter`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError

from lucidnft.backbones.adapters import LoraSettings, lora_layers
from lucidnft.backbones.lora_start import SHAPE_SETTINGS
from lucidnft.checkpoint import load_header, load_tensors, save_tensors
from lucidnft.config import dump_config, load_config
from lucidnft.inference import load_policy
from lucidnft.inference.adapter_export import export_adapter
from lucidnft.policy import Policy, Role
from tests.run_files import message
from tests.small_adapters import apart, save_policy, small_base, small_policy, velocity
from tests.small_dit4sr import one_thread  # noqa: F401  a fixture
from train import main

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def exported(tmp_path: Path) -> tuple[Any, Policy, Path]:
    """(settings of the base, the policy, its PEFT folders)."""
    base = small_base(tmp_path, "tiny")
    policy = small_policy(base)
    export_adapter(save_policy(tmp_path / "policy.safetensors", policy, base), tmp_path / "adapter")
    return base, policy, tmp_path / "adapter"


def write_run(folder: Path, base: Any, adapter: Path, **sections: Any) -> Path:
    settings: dict[str, Any] = {
        "task": "nft",
        "output_dir": str(folder / "runs"),
        "model": {**base.model_dump(mode="json", exclude=set(SHAPE_SETTINGS)), "adapter": str(adapter)},
        "data": {"type": "lr_folder", "crop_size": 16, "val_crop_size": 16, "num_val_images": 2},
        "rollout": {"num_groups": 2, "group_size": 3, "num_inference_steps": 2},
        "rewards": {"fidelity": {"type": "lr_fidelity"}},
        "train": {"max_train_steps": 2, "learning_rate": 1e-2, "mixed_precision": "no", "device": "cpu"},
        "eval": {"eval_steps": 2, "num_inference_steps": 2},
        "log": {"save_steps": 1, "report_to": "none"},
    }
    for name, section in sections.items():
        settings[name].update(section)
    path = folder / "nft.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def run_file(exported: Any, tmp_path: Path) -> Path:
    base, _, adapter = exported
    return write_run(tmp_path, base, adapter)


@pytest.mark.parametrize("kind", ["lucidflux", "dit4sr"])
def test_a_real_backbone_takes_a_step_from_somebodys_adapter(kind, tmp_path):
    base = small_base(tmp_path, kind)
    linears = (
        "to_q",
        "add_k_proj",
        "to_add_out",
        "ff.net.2",
        "proj_out",
    )  # some of which no velocity depends on
    policy = small_policy(base, linears)
    export_adapter(save_policy(tmp_path / "policy.safetensors", policy, base), tmp_path / "adapter")
    (tmp_path / "adapter" / "lucidnft.json").unlink()
    few = {"num_groups": 1, "group_size": 2, "num_inference_steps": 1}
    once = {"max_train_steps": 1, "timestep_sampling": "uniform"}
    run_file = write_run(
        tmp_path, base, tmp_path / "adapter", rollout=few, train=once, data={"num_val_images": 1},
        eval={"num_inference_steps": 1},
    )  # fmt: skip
    main(["--config", str(run_file)])
    trained = load_policy(tmp_path / "runs" / "nft")
    assert 0 < apart(velocity(policy), velocity(trained)) < 1


@pytest.mark.parametrize("source", ["folder", "file"])
def test_both_roles_start_from_it_and_the_reference_does_not(exported, source):
    base, policy, folder = exported
    settings = LoraSettings(
        adapter=str(folder if source == "folder" else folder.parent / "policy.safetensors")
    )
    started = Policy(base.build(), settings, seed=3)
    assert torch.equal(velocity(started), velocity(policy))
    expected = policy.state(Role.CURRENT)
    for role in (Role.CURRENT, Role.OLD):
        assert all(torch.equal(value, expected[name]) for name, value in started.state(role).items())
    assert started.old_equals_current and not started.is_reference
    layers = lora_layers(started.backbone.network).values()
    assert {(layer.r["old"], layer.scaling["current"]) for layer in layers} == {(2, 1.5)}
    trainable = {n for n, p in started.backbone.network.named_parameters() if p.requires_grad}
    assert len(trainable) == len(expected) and all(".current." in name for name in trainable)


def test_its_own_rank_and_scale_are_not_to_be_set(exported):
    for name, value in (("lora_rank", 16), ("lora_alpha", 4.0), ("target_modules", ("conv1",))):
        with pytest.raises(ValidationError, match=f"{name} cannot be set beside adapter"):
            LoraSettings(adapter="a", **{name: value})


def test_an_adapter_for_another_backbone_or_base_is_refused(exported, tmp_path):
    base, _, folder = exported
    other = small_base(tmp_path, "dit4sr")
    with pytest.raises(ValueError, match="is an adapter for backbone 'tiny', not for 'dit4sr'"):
        Policy(other.build(), LoraSettings(adapter=str(folder)), seed=0)
    changed = base.build()
    changed.fingerprint = "0123"
    with pytest.raises(ValueError, match="was trained on base weights .*, but these are 0123"):
        Policy(changed, LoraSettings(adapter=str(folder)), seed=0)


def test_a_run_starts_from_it_resumes_without_it_and_can_be_loaded(run_file, exported, tmp_path):
    _, policy, adapter = exported
    main(["--config", str(run_file)])
    main(["--config", str(run_file), "run_name=parts", "train.max_train_steps=1"])
    first = tmp_path / "runs" / "parts" / "checkpoint-000001" / "policy.safetensors"
    moved = {n: v - policy.state(Role.CURRENT)[n] for n, v in load_tensors(first)[0].items()}
    assert 0 < max(float(v.abs().max()) for v in moved.values()) < 0.05  # one step away from its start
    main(["--config", str(run_file), "run_name=parts", "--resume_from_checkpoint", "latest"])
    whole, parts = (tmp_path / "runs" / name / "checkpoint-000002" for name in ("nft", "parts"))
    for name in ("policy", "old_policy"):
        states = [load_tensors(run / f"{name}.safetensors")[0] for run in (whole, parts)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    header = load_header(whole / "policy.safetensors")
    assert set(map(tuple, header["lora"].values())) == {(2, 3.0)} and "lora_rank" not in header["backbone"]

    shutil.rmtree(adapter)  # a checkpoint is whole without what the run started from
    loaded = load_policy(tmp_path / "runs" / "nft")
    assert apart(velocity(loaded), velocity(policy)) > 1e-4
    export_adapter(tmp_path / "runs" / "nft", tmp_path / "again")
    assert torch.equal(velocity(load_policy(tmp_path / "again")), velocity(loaded))
    with pytest.raises(SystemExit, match=r"adapter .* does not exist"):
        main(["--config", str(run_file), "run_name=parts", "--resume_from_checkpoint", "latest"])


def test_resuming_with_other_scales_is_refused(run_file, exported, tmp_path):
    base, policy, _ = exported
    main(["--config", str(run_file), "train.max_train_steps=1"])
    file = save_policy(tmp_path / "other.safetensors", policy, base)
    shapes = {name.rsplit(".lora_", 1)[0]: [2, 8.0] for name in policy.parameters}
    save_tensors(file, policy.state(Role.CURRENT), {**load_header(file), "lora": shapes})
    with pytest.raises(SystemExit, match="was started from another model.adapter"):
        main(["--config", str(run_file), f"model.adapter={file}", "--resume_from_checkpoint", "latest"])


def test_the_written_config_reads_back(run_file, tmp_path):
    config = load_config(run_file)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert "lora_rank" not in dump_config(config)
    assert "lora_rank cannot be set beside adapter" in message(run_file, "model.lora_rank=8")


def test_flow_matching_takes_no_adapter(run_file):
    flow = ["task=flow_matching", "rewards=null", "data={type: hr_folder}", "train={}", "rollout=null"]
    assert "model: task flow_matching trains the base itself and takes no adapter" in message(run_file, *flow)
