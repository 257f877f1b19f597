"""The train command end to end, in processes of its own: start, kill, resume, two ranks, and its messages."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lucidnft.checkpoint import load_tensors
from lucidnft.metric_logger import read_metrics

ROOT = Path(__file__).parents[1]
SMALL = [
    "model.model_name_or_path=null",
    "model.architecture={widths: [8, 12, 16], num_blocks: [1, 1, 1], lr_width: 8, num_lr_blocks: 1, time_width: 16}",
    "train.mixed_precision=no",
    "train.device=cpu",
    "data.crop_size=16",
    "data.val_crop_size=16",
    "data.num_val_images=2",
    "log.report_to=none",
]
NFT = [
    *SMALL,
    "model.lora_rank=2",
    "rollout={num_groups: 2, group_size: 3, num_inference_steps: 2}",
    "rewards={fidelity: {type: lr_fidelity}, sharp: {type: tests.outside_reward:ContrastConfig, weight: 0.5}}",
    "train.learning_rate=1e-2",
    "train.t_max=1.0",  # both times of so short a grid
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


def comparable(run_dir: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(run_dir)]


def test_a_run_leaves_its_files_prints_its_table_and_restores(tmp_path):
    done = run("nft", tmp_path, *NFT, "train.max_train_steps=2")
    run_dir = tmp_path / "nft"
    for name in (
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "report.html",
        "checkpoint-000002/policy.safetensors",
    ):
        assert (run_dir / name).is_file(), name
    assert "batch plan:" in done.stdout
    assert "MiB" in done.stdout
    assert "fidelity" in done.stdout
    assert "psnr_y" in done.stdout  # the guard, since the bundled photographs have their HR
    restored = subprocess.run(
        [
            sys.executable, str(ROOT / "sample.py"), "--input", str(run_dir / "images"), "--output_dir",
            str(tmp_path / "out"), "--checkpoint", str(run_dir / "checkpoint-000002"), "--num_inference_steps", "1",
            "--device", "cpu",
        ],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert restored.returncode == 0, restored.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list((run_dir / "images").glob("*.png")))
    # a second run of the same name moves the first aside
    again = run("nft", tmp_path, *NFT, "train.max_train_steps=1")
    assert "was moved to" in again.stdout
    assert (tmp_path / "nft.1" / "report.html").is_file()


@pytest.mark.parametrize(
    "moment", ["before the first checkpoint", "after a checkpoint", "between checkpoints"]
)
def test_killed_at_any_moment_it_resumes_to_the_numbers_of_an_unbroken_run(tmp_path, moment, unbroken):
    process = subprocess.Popen(
        command("nft", tmp_path, *NFT, "train.max_train_steps=6"),
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    run_dir = tmp_path / "nft"
    lines = {"before the first checkpoint": 1, "after a checkpoint": 3, "between checkpoints": 4}[moment]
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        log = run_dir / "metrics.jsonl"
        if log.exists() and log.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(read_metrics(run_dir)) < 7, "the run ended before it could be killed"
    run("nft", tmp_path, *NFT, "train.max_train_steps=6", "--resume_from_checkpoint", "latest")
    assert comparable(run_dir) == comparable(unbroken / "nft")
    for name in ("policy", "old_policy", "ema", "optimizer"):
        ours, theirs = (
            load_tensors(d / "nft/checkpoint-000006" / f"{name}.safetensors")[0] for d in (tmp_path, unbroken)
        )
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run("nft", folder, *NFT, "train.max_train_steps=6")
    return folder


def test_two_processes_have_the_rollouts_scores_and_advantages_of_one(tmp_path, unbroken):
    script = [
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ]  # fmt: skip
    done = subprocess.run(
        [*script, *command("nft", tmp_path, *NFT, "train.max_train_steps=2")[1:]],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("batch plan:") == 1
    one, two = comparable(unbroken / "nft"), comparable(tmp_path / "nft")
    first_of_one, first_of_two = one[1], two[1]
    rollouts = [n for n in first_of_one if n.startswith(("reward/", "advantage/", "health/x0"))]
    assert len(rollouts) > 8
    for name in rollouts:
        assert first_of_two[name] == pytest.approx(first_of_one[name], rel=1e-4, abs=1e-6), name
    # each rank steps on the mean of both, so training stays together as well
    assert two[2]["eval/fidelity/mean"] == pytest.approx(one[2]["eval/fidelity/mean"], rel=1e-2)


@pytest.mark.parametrize("config", ["nft", "nft_paired", "flow_matching", "quality", "consistency"])
def test_every_shipped_run_file_starts_and_a_dry_run_writes_nothing(tmp_path, config):
    done = run(config, tmp_path, "--dry-run")
    assert f"task: {'nft' if config.startswith('nft') else config}" in done.stdout
    assert not list(tmp_path.iterdir())


def test_supervised_runs_start_save_and_resume(tmp_path):
    arguments = [
        *SMALL,
        "train.batch_size=2",
        "eval={eval_steps: 2, num_inference_steps: 2}",
        "log.save_steps=1",
    ]
    run("flow_matching", tmp_path, *arguments, "train.max_train_steps=1")
    done = run(
        "flow_matching", tmp_path, *arguments, "train.max_train_steps=2", "--resume_from_checkpoint", "latest"
    )
    assert "train.max_train_steps: 1 -> 2" in done.stdout
    assert (tmp_path / "flow_matching/checkpoint-000002/weights.safetensors").is_file()
    steps = [row["step"] for row in read_metrics(tmp_path / "flow_matching")]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.folder=/nowhere"], "/nowhere"),
        (["rollout.group_size=1"], "at least 2"),
        (["train.learning_rate=fast"], "train.learning_rate: expected float, got 'fast' (str)"),
        (["train.lerning_rate=1"], "did you mean learning_rate?"),
        (["rewards.ref={type: full_reference, metric: psnr}"], "needs hr"),
        (["train.device=cuda"], "train.device=cpu"),
        (["model.model_name_or_path=/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--resume_from_checkpoint", "latest", "run_name=never_started"], "there is no run in"),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(tmp_path, arguments, words):
    done = run("nft", tmp_path, *NFT, *arguments, expect=1)
    assert words in done.stderr
    assert done.stderr.startswith("train.py: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_progress_is_in_state_json(unbroken):
    state = json.loads((unbroken / "nft/checkpoint-000006/state.json").read_text())
    assert state["step"] == 6
    assert state["num_updates"] == 12
    assert state["samples_seen"] == 36
    assert state["best"]["step"] in (0, 2, 4, 6)
