"""The train command end to end, in processes of its own: start, kill, resume, two ranks, and its messages."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lucidnft.checkpoint import load_tensors
from lucidnft.metric_logger import read_metrics
from tests.small_backbone import small_backbone
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


@pytest.fixture(scope="module", autouse=True)
def small_base(tmp_path_factory) -> None:
    """A base that can be trained: the last layer of an untrained one is zero, and so is every gradient."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    small_backbone().save_pretrained(path)
    os.environ["SMALL_BASE"] = ENVIRONMENT["SMALL_BASE"] = str(path)


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


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run("nft", folder, *NFT, "train.max_train_steps=6")
    return folder


def launch(processes: int, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
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
    assert "has started one" in done.stdout and "torchrun" in done.stdout


def test_the_train_command_runs_in_two_processes(tmp_path, unbroken):
    arguments = command("nft", tmp_path, *NFT, "train.max_train_steps=2")[2:]
    done = launch(2, ROOT / "train.py", *arguments)
    assert done.stdout.count("batch plan:") == 1 and "processes                 2" in done.stdout
    one, two = comparable(unbroken / "nft"), comparable(tmp_path / "nft")
    assert [row["step"] for row in two] == [0, 1, 2]
    assert two[1]["reward/fidelity/mean"] == pytest.approx(one[1]["reward/fidelity/mean"], rel=1e-4)


@pytest.mark.parametrize("config", ["nft", "nft_paired", "flow_matching", "quality", "consistency"])
def test_every_shipped_run_file_starts_and_a_dry_run_writes_nothing(tmp_path, config, capsys):
    main(command(config, tmp_path, "--dry-run")[2:])
    printed = capsys.readouterr().out
    assert f"task: {'nft' if config.startswith('nft') else config}" in printed
    assert "batch plan:" in printed and "activations of a backward pass" in printed
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.folder=/nowhere"], "/nowhere"),
        (["rollout.group_size=1"], "at least 2"),
        (["train.learning_rate=fast"], "train.learning_rate: expected float, got 'fast' (str)"),
        (["train.lerning_rate=1"], "did you mean learning_rate?"),
        (["rewards.ref={type: full_reference, metric: psnr}"], "needs hr"),
        (["rewards={whole: {type: tests.outside_reward:ContrastConfig}}"], "train.advantage_cell=null"),
        (["train.device=cuda"], "train.device=cpu"),
        (["model.model_name_or_path=/nowhere.safetensors"], "/nowhere.safetensors"),
        (["train.device=cuda:x"], "'train.device=cuda:x': expected"),
        (["--resume_from_checkpoint", "latest", "run_name=never_started"], "there is no run in"),
        (
            ["--resume_from_checkpoint", "/nowhere/checkpoint-000012"],
            "/nowhere/checkpoint-000012 does not exist",
        ),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(tmp_path, arguments, words):
    message = refused("nft", tmp_path, *NFT, *arguments)
    assert message.startswith("train.py: ") and words in message
    assert not list(tmp_path.iterdir())


def test_an_untrained_base_is_named_instead_of_training_nothing(tmp_path):
    # an adapter on the last layer itself would learn
    inner = "model.target_modules=[conv1, conv2]"
    message = refused("nft", tmp_path, *NFT, *UNTRAINED, inner, "train.max_train_steps=1")
    assert "gradient is exactly zero" in message and "model.model_name_or_path" in message
    assert "ValueError" in (tmp_path / "nft/error.txt").read_text()


def test_a_fault_on_the_way_ends_with_one_message_and_keeps_the_last_checkpoint(tmp_path):
    rewards = "rewards={breaks: {type: tests.outside_reward:BreaksConfig, calls: 6}}"
    whole = "train.advantage_cell=null"
    done = run("nft", tmp_path, *NFT, rewards, whole, "train.max_train_steps=9", "log.save_steps=1", expect=1)
    message = done.stderr[done.stderr.index("train.py: ") :]
    assert "breaks" in message and "--resume_from_checkpoint latest" in message and "Traceback" not in message
    last = message.split("last checkpoint: ")[1].split(";")[0]
    assert (Path(last) / "policy.safetensors").is_file()


def test_continuing_from_an_older_checkpoint_makes_a_new_timeline(tmp_path, unbroken):
    shutil.copytree(unbroken / "nft", tmp_path / "nft")
    older = tmp_path / "nft/checkpoint-000002"
    settings = [*NFT, "train.max_train_steps=3", "train.learning_rate=3e-2"]
    done = run("nft", tmp_path, *settings, "--resume_from_checkpoint", str(older))
    assert "checkpoint-000006 was moved" not in done.stdout.replace("superseded/checkpoint-000006", "")
    assert (
        "superseded/checkpoint-000006" in done.stdout and "train.learning_rate: 0.01 -> 0.03" in done.stdout
    )
    run_dir = tmp_path / "nft"
    assert [row["step"] for row in read_metrics(run_dir)] == [0, 1, 2, 3]
    assert comparable(run_dir)[:3] == comparable(unbroken / "nft")[:3]
    assert sorted(p.name for p in (run_dir / "eval").iterdir()) == [
        f"scores-{step:06d}.json" for step in (0, 2, 3)
    ]
    assert sorted(p.name for p in run_dir.glob("checkpoint-*")) == ["checkpoint-000002", "checkpoint-000003"]
    again = run("nft", tmp_path, *settings, "--resume_from_checkpoint", "latest")
    assert "checkpoint-000003" in again.stdout


def test_a_checkpoint_of_another_run_is_continued_in_a_folder_of_its_own(tmp_path, unbroken):
    checkpoint = unbroken / "nft/checkpoint-000004"
    before = sorted(p.relative_to(unbroken) for p in unbroken.rglob("*"))
    settings = [*NFT, "train.max_train_steps=6", "run_name=fork"]
    done = run("nft", tmp_path, *settings, "--resume_from_checkpoint", str(checkpoint))
    assert "from step 4" in done.stdout and "step 0 (base) against step 6" in done.stdout
    assert comparable(tmp_path / "fork") == comparable(unbroken / "nft")
    assert sorted(p.relative_to(unbroken) for p in unbroken.rglob("*")) == before


def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, unbroken):
    checkpoint = str(unbroken / "nft/checkpoint-000006")
    message = refused("nft", tmp_path, *NFT, "model.lora_rank=3", "--resume_from_checkpoint", checkpoint)
    assert message.startswith("train.py: ") and "lora" in message
    assert not list(tmp_path.iterdir())


def test_progress_is_in_state_json(unbroken):
    state = json.loads((unbroken / "nft/checkpoint-000006/state.json").read_text())
    assert state["step"] == 6
    assert state["num_updates"] == 12
    assert state["samples_seen"] == 36
    assert state["best"]["step"] in (0, 2, 4, 6)
