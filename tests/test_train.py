"""The train command end to end, in processes of its own: start, kill, resume, two ranks."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lucidnft.checkpoint import load_tensors
from lucidnft.metric_logger import read_metrics
from tests.train_command import ENVIRONMENT, NFT, ROOT, SMALL, UNTRAINED, command, comparable, run
from train import main

pytestmark = pytest.mark.usefixtures("small_base")


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
    assert all(row["train/grad_norm"] > 0 for row in read_metrics(unbroken / "nft")[1:])
    run("nft", tmp_path, *NFT, "train.max_train_steps=6", "--resume_from_checkpoint", "latest")
    assert comparable(run_dir) == comparable(unbroken / "nft")
    for name in ("policy", "old_policy", "ema", "optimizer"):
        ours, theirs = (
            load_tensors(d / "nft/checkpoint-000006" / f"{name}.safetensors")[0] for d in (tmp_path, unbroken)
        )
        assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def launch(processes: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    several = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    # a free port of its own: two suites may run on one machine
    launcher = [*several, "--main_process_port", "0"] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_two_processes_have_the_rollouts_advantages_and_weights_of_one(tmp_path):
    settings = [*NFT, "rollout.num_groups=4", "train.gradient_steps_per_epoch=1", "train.adam_epsilon=1.0"]
    for processes in (1, 2):
        launch(processes, ROOT / "tests/rank_records.py", str(tmp_path / str(processes)), *settings)
    (one,) = [load_tensors(f)[0] for f in (tmp_path / "1").iterdir()]
    two = [load_tensors(f)[0] for f in sorted((tmp_path / "2").iterdir())]
    assert [t["step0/group_ids"].tolist() for t in two] == [[0, 1], [2, 3]]
    for step in ("step0", "step1"):
        for name, tolerance in (("x_0", 1e-4), ("advantages", 1e-3), ("scores", 1e-4)):
            together = torch.cat([t[f"{step}/{name}"] for t in two])
            torch.testing.assert_close(together, one[f"{step}/{name}"], atol=tolerance, rtol=tolerance)
    weights = [name for name in one if name.startswith("weights/")]
    assert weights
    for name in weights:
        assert torch.equal(two[0][name], two[1][name])  # ranks stay together
        moved = one[name] - one[name.replace("weights/", "start/")]
        difference = two[0][name] - one[name]
        assert difference.norm() <= 1e-2 * moved.norm()
    assert any((one[n] - one[n.replace("weights/", "start/")]).norm() > 0 for n in weights)


def test_one_process_where_two_were_asked_for_is_said(tmp_path):
    arguments = command("nft", tmp_path, *NFT, "--dry-run")[1:]
    options = [
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *options, *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "has started one" in done.stdout and "--multi_gpu" in done.stdout


def test_the_train_command_runs_in_two_processes(tmp_path, unbroken):
    arguments = command("nft", tmp_path, *NFT, "train.max_train_steps=2")[2:]
    done = launch(2, ROOT / "train.py", *arguments)
    assert done.stdout.count("batch plan:") == 1 and "processes                 2" in done.stdout
    one, two = comparable(unbroken / "nft"), comparable(tmp_path / "nft")
    assert [row["step"] for row in two] == [0, 1, 2]
    assert set(two[1]) == set(one[1])
    # Of all ranks' rollouts, not of the first one's.  What follows the first of two updates is another story: it
    # is made of other groups in each.
    for name in (n for n in one[1] if not n.startswith(("loss/", "train/"))):
        assert two[1][name] == pytest.approx(one[1][name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("config", ["nft", "nft_paired", "flow_matching", "quality", "consistency"])
def test_every_shipped_run_file_starts_and_a_dry_run_writes_nothing(tmp_path, config, capsys):
    main(command(config, tmp_path, "--dry-run")[2:])
    printed = capsys.readouterr().out
    assert f"task: {'nft' if config.startswith('nft') else config}" in printed
    assert "batch plan:" in printed and "activations of a backward pass" in printed
    assert printed.endswith("dry run: nothing is missing, the run can start\n")
    assert ("places of 16 x 16 px" in printed) == config.startswith("nft")
    assert not list(tmp_path.iterdir())


def test_supervised_runs_start_save_and_resume(tmp_path):
    arguments = [
        *SMALL,
        *UNTRAINED,
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
    assert not (tmp_path / "flow_matching/tensorboard").exists()
