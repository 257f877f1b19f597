"""The train command as tests run it: in a process of its own, on a base as small as can be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lucidnft.metric_logger import read_metrics
from train import main

ROOT = Path(__file__).parents[1]
UNTRAINED = [
    "model.model_name_or_path=null",
    "model.architecture={widths: [8, 12, 16], num_blocks: [1, 1, 1], lr_width: 8, num_lr_blocks: 1, time_width: 16}",
]
SMALL = [
    "train.mixed_precision=no",
    "train.device=cpu",
    "data.crop_size=16",
    "data.val_crop_size=16",
    "data.num_val_images=2",
    "log.report_to=none",
]
NFT = [
    *SMALL,
    "model.model_name_or_path=${oc.env:SMALL_BASE}",  # of the same size, and random everywhere
    "model.lora_rank=2",
    "rollout={num_groups: 2, group_size: 3, num_inference_steps: 2}",
    "rewards={fidelity: {type: lr_fidelity}, sharp: {type: tests.outside_reward:ContrastConfig, weight: 0.5}}",
    "train.learning_rate=1e-2",
    "train.gradient_steps_per_epoch=2",
    "train.use_ema=true",
    "train.per_device_batch_size=2",
    "eval={eval_steps: 2, num_inference_steps: 2}",
    "log.save_steps=2",
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(config: str, output_dir: Path, *arguments: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "train.py"), "--config", str(ROOT / "configs/tiny" / f"{config}.yaml"),
        f"output_dir={output_dir}", *arguments,
    ]  # fmt: skip


def run(config: str, output_dir: Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(config, output_dir, *arguments),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def refused(config: str, output_dir: Path, *arguments: str) -> str:
    """The message with which the command ends, called in this process because starting one takes seconds."""
    with pytest.raises(SystemExit) as caught:
        main(command(config, output_dir, *arguments)[2:])
    assert isinstance(caught.value.code, str)  # printed to stderr by the interpreter, exit status 1
    return caught.value.code


def comparable(run_dir: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(run_dir)]
