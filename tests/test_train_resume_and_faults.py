"""The train command when something is wrong, and when it continues from a checkpoint that is not its latest."""

import json
import shutil
from pathlib import Path

import pytest

from lucidnft.metric_logger import read_metrics
from tests.train_command import NFT, UNTRAINED, comparable, refused, run

pytestmark = pytest.mark.usefixtures("small_base")


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
