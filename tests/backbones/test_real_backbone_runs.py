"""Runs on the small LucidFlux and the small DiT4SR: trained, resumed, and restoring a folder from what they left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import sample
from lucidnft.checkpoint import load_header, load_tensors
from lucidnft.inference import load_policy, restore
from lucidnft.policy import Policy, Role
from tests.backbones.small_lucidflux import save_small_lucidflux, small_lucidflux, small_lucidflux_files
from tests.run_files import message
from tests.small_dit4sr import save_small_dit4sr
from tests.train_command import comparable
from train import main

pytestmark = pytest.mark.usefixtures("one_thread")
BACKBONES = ("lucidflux", "dit4sr")


def model_section(backbone: str, folder: Path) -> dict[str, Any]:
    """Weights of the released layout in `folder`, and the settings that name them."""
    if backbone == "dit4sr":
        return {"type": "dit4sr", "lora_rank": 2, "guidance_scale": 2.0, **save_small_dit4sr(folder)}
    save_small_lucidflux(folder, small_lucidflux())
    return {"type": "lucidflux", "lora_rank": 2, **small_lucidflux_files(folder)}


@pytest.fixture(params=BACKBONES)
def run_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    settings: dict[str, Any] = {
        "task": "nft",
        "output_dir": str(tmp_path / "runs"),
        "model": model_section(request.param, tmp_path),
        "data": {"type": "lr_folder", "crop_size": 16, "val_crop_size": 16, "num_val_images": 2},
        "rollout": {"num_groups": 2, "group_size": 3, "num_inference_steps": 2},
        "rewards": {"fidelity": {"type": "lr_fidelity"}},
        "train": {
            "max_train_steps": 2, "learning_rate": 1e-2, "mixed_precision": "no", "device": "cpu",
            "per_device_batch_size": 3, "gradient_checkpointing": True, "kl_beta": 0.01,
        },
        "eval": {"eval_steps": 2, "num_inference_steps": 2},
        "log": {"save_steps": 1, "report_to": "none"},
    }  # fmt: skip
    path = tmp_path / "nft.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_it_trains_resumes_to_the_same_numbers_and_restores_a_folder(run_file: Path, tmp_path: Path) -> None:
    main(["--config", str(run_file)])
    main(["--config", str(run_file), "run_name=parts", "train.max_train_steps=1"])
    main(["--config", str(run_file), "run_name=parts", "--resume_from_checkpoint", "latest"])
    whole, parts = tmp_path / "runs" / "nft", tmp_path / "runs" / "parts"
    files = [run / "checkpoint-000002" / "policy.safetensors" for run in (whole, parts)]
    first, second = (load_tensors(file)[0] for file in files)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert load_header(files[0])["backbone"]["type"] == yaml.safe_load(run_file.read_text())["model"]["type"]
    assert comparable(whole)[-1]["reward/fidelity/mean"] == comparable(parts)[-1]["reward/fidelity/mean"]

    trained = load_policy(whole)
    assert isinstance(trained, Policy)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)
    lr = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    sr = restore(trained, lr, upscale=4, num_inference_steps=2, keys=["wide"])
    trained.load_state_(Role.CURRENT, {n: torch.zeros_like(p) for n, p in trained.parameters.items()})
    base = restore(trained, lr, upscale=4, num_inference_steps=2, keys=["wide"])
    assert sr.shape == (1, 3, 24, 40)
    assert float((sr - base).abs().max()) > 1e-4

    photos, out = tmp_path / "photos", tmp_path / "restored"
    photos.mkdir()
    Image.fromarray(pixels).save(photos / "wide.png")
    Image.fromarray(pixels[:1, :1]).save(photos / "pixel.png")
    command = [
        "--input",
        photos,
        "--output_dir",
        out,
        "--checkpoint",
        whole,
        "--num_inference_steps",
        2,
        "--device",
        "cpu",
    ]
    assert sample.main([str(part) for part in command]) == 0
    restored = torch.from_numpy(np.array(Image.open(out / "wide.png"))).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(restored, sr, rtol=0, atol=0.51 / 255)  # the very image, rounded to 8 bits
    assert Image.open(out / "pixel.png").size == (4, 4)


@pytest.mark.parametrize("run_file", ["dit4sr"], indirect=True)
def test_only_a_base_that_can_be_saved_takes_flow_matching(run_file: Path) -> None:
    said = message(run_file, "task=flow_matching", "rollout.num_groups=1")
    assert "model.type: 'dit4sr' is unknown; expected one of tiny" in said


def test_a_run_whose_attention_backend_cannot_run_says_so(run_file: Path) -> None:
    with pytest.raises(SystemExit, match=r"^train\.py: model\.attention_backend: flash .*sdpa"):
        main(["--config", str(run_file), "model.attention_backend=flash"])
