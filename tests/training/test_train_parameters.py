"""Runs that train parameters of the network itself: they learn, resume to the same numbers and restore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lucidnft.checkpoint import load_header, load_tensors
from lucidnft.inference import load_policy, restore
from lucidnft.policy import Policy, Role
from tests.backbones.small_lucidflux import SMALL as LUCIDFLUX
from tests.run_files import message
from tests.small_backbone import small_backbone
from tests.small_dit4sr import one_thread, save_small_dit4sr
from tests.train_command import comparable
from train import main

__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")


def model_section(name: str, folder: Path) -> dict[str, Any]:
    if name == "tiny":
        small_backbone().save_pretrained(folder / "base.safetensors")
        return {
            "model_name_or_path": str(folder / "base.safetensors"),
            "train_parameters": ["*conv2*", "out.*"],
        }
    if name == "dit4sr":
        return {"train_parameters": ["*control*"], **save_small_dit4sr(folder), "dtype": "bfloat16"}
    return {
        "model_name_or_path": None, "architecture": LUCIDFLUX.model_dump(mode="json"), "dtype": "float32",
        "train_parameters": ["conditioner.modulation_*", "conditioner.*controlnet_blocks*", "*proj_out*"],
    }  # fmt: skip


def run_file(name: str, folder: Path) -> Path:
    settings: dict[str, Any] = {
        "task": "nft",
        "output_dir": str(folder / "runs"),
        "model": {"type": name, **model_section(name, folder)},
        "data": {"type": "lr_folder", "crop_size": 16, "val_crop_size": 16, "num_val_images": 2},
        "rollout": {"num_groups": 1, "group_size": 3, "num_inference_steps": 2},
        "rewards": {"fidelity": {"type": "lr_fidelity"}},
        "train": {
            "max_train_steps": 2, "learning_rate": 1e-2, "mixed_precision": "no", "device": "cpu", "kl_beta": 0.01,
            "per_device_batch_size": 3, "gradient_checkpointing": True,
            "old_policy": {"schedule": "custom", "ramp_rate": 0.3, "max_decay": 0.6},
        },
        "eval": {"eval_steps": 2, "num_inference_steps": 2},
        "log": {"save_steps": 1, "report_to": "none"},
    }  # fmt: skip
    path = folder / "nft.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize("name", ["tiny", "lucidflux", "dit4sr"])
def test_a_run_learns_resumes_to_the_same_numbers_and_restores(name: str, tmp_path: Path) -> None:
    file = run_file(name, tmp_path)
    main(["--config", str(file)])
    main(["--config", str(file), "run_name=parts", "train.max_train_steps=1"])
    main(["--config", str(file), "run_name=parts", "--resume_from_checkpoint", "latest"])
    whole, parts = (tmp_path / "runs" / run / "checkpoint-000002" for run in ("nft", "parts"))
    for part in ("policy", "old_policy", "ema", "optimizer"):
        first, second = (load_tensors(run / f"{part}.safetensors")[0] for run in (whole, parts))
        assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first), part
    assert comparable(whole.parent)[-1] == comparable(parts.parent)[-1]

    header = load_header(whole / "policy.safetensors")
    assert header["backbone"]["train_parameters"] == header["config"]["model"]["train_parameters"]
    current, old = (load_tensors(whole / f"{f}.safetensors")[0] for f in ("policy", "old_policy"))
    policy = load_policy(whole.parent)
    assert isinstance(policy, Policy)
    with torch.no_grad(), policy.trainable.use(Role.REFERENCE.value):
        base = {n: p.detach().float().clone() for n, p in policy.parameters.items()}
    assert current.keys() == old.keys() == base.keys()
    for tensors in ((current, base), (old, base), (current, old)):
        assert any(not torch.equal(tensors[0][n], tensors[1][n]) for n in base)
    assert all(v.dtype == torch.float32 for v in current.values())

    lr = torch.rand((1, 3, 8, 12), generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"upscale": 4, "num_inference_steps": 2}
    sr = restore(policy, lr, **options)
    policy.load_state_(Role.CURRENT, base)
    assert policy.is_reference
    assert float((sr - restore(policy, lr, **options)).abs().max()) > 1e-4


def test_a_checkpoint_of_the_other_kind_is_refused_in_one_message(tmp_path: Path) -> None:
    file = run_file("tiny", tmp_path)
    adapter = ["model.train_parameters=null", "model.lora_rank=2", "train.max_train_steps=1"]
    main(["--config", str(file), "train.max_train_steps=1"])
    main(["--config", str(file), "run_name=lora", *adapter])
    resume = ["--resume_from_checkpoint", "latest"]
    for arguments, said in (
        (adapter, "policy.safetensors: these are 14 parameters of the network itself"),
        (["run_name=lora"], "policy.safetensors: this is a LoRA adapter of 24 tensors"),
        (["model.train_parameters=[out.*]"], "12 unexpected: "),
    ):
        with pytest.raises(SystemExit, match=said):
            main(["--config", str(file), *arguments, *resume])


def test_mistakes_in_the_settings_stop_the_run_before_it_starts(tmp_path: Path) -> None:
    file = run_file("tiny", tmp_path)
    assert "remove lora_rank, or set train_parameters to null" in message(file, "model.lora_rank=3")
    with pytest.raises(SystemExit, match=r"'\*conv3\*' matches no parameter of TinyTrunk"):
        main(["--config", str(file), "model.train_parameters=['*conv3*']"])
    assert not (tmp_path / "runs").exists()
