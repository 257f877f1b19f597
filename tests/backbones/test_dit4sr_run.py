"""A run on a small DiT4SR: trained, resumed, and restoring from what it left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lucidnft.checkpoint import load_header, load_tensors
from lucidnft.inference import load_policy, restore
from lucidnft.policy import Policy, Role
from tests.run_files import message
from tests.small_dit4sr import save_small_dit4sr
from tests.train_command import comparable
from train import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    settings: dict[str, Any] = {
        "task": "nft",
        "output_dir": str(tmp_path / "runs"),
        "model": {"type": "dit4sr", "lora_rank": 2, "guidance_scale": 2.0, **save_small_dit4sr(tmp_path)},
        "data": {"type": "lr_folder", "crop_size": 16, "val_crop_size": 16, "num_val_images": 2},
        "rollout": {"num_groups": 2, "group_size": 3, "num_inference_steps": 2},
        "rewards": {"fidelity": {"type": "lr_fidelity"}},
        "train": {
            "max_train_steps": 2, "learning_rate": 1e-2, "mixed_precision": "no", "device": "cpu",
            "per_device_batch_size": 3, "gradient_checkpointing": True,
        },
        "eval": {"eval_steps": 2, "num_inference_steps": 2},
        "log": {"save_steps": 1, "report_to": "none"},
    }  # fmt: skip
    path = tmp_path / "nft.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_it_trains_resumes_to_the_same_numbers_and_restores(run_file: Path, tmp_path: Path) -> None:
    main(["--config", str(run_file)])
    main(["--config", str(run_file), "run_name=parts", "train.max_train_steps=1"])
    main(["--config", str(run_file), "run_name=parts", "--resume_from_checkpoint", "latest"])
    whole, parts = tmp_path / "runs" / "nft", tmp_path / "runs" / "parts"
    files = [run / "checkpoint-000002" / "policy.safetensors" for run in (whole, parts)]
    first, second = (load_tensors(file)[0] for file in files)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert load_header(files[0])["backbone"]["lr_key"] == "noise"
    assert comparable(whole)[-1]["reward/fidelity/mean"] == comparable(parts)[-1]["reward/fidelity/mean"]

    trained = load_policy(whole)
    assert isinstance(trained, Policy)
    lr = torch.rand((1, 3, 6, 10), generator=torch.Generator().manual_seed(0))
    sr = restore(trained, lr, upscale=4, num_inference_steps=2)
    trained.load_state_(Role.CURRENT, {n: torch.zeros_like(p) for n, p in trained.parameters.items()})
    base = restore(trained, lr, upscale=4, num_inference_steps=2)
    assert sr.shape == (1, 3, 24, 40)
    assert float((sr - base).abs().max()) > 1e-4


def test_only_a_base_that_can_be_saved_takes_flow_matching(run_file: Path) -> None:
    said = message(run_file, "task=flow_matching", "rollout.num_groups=1")
    assert "model.type: 'dit4sr' is unknown; expected one of tiny" in said
