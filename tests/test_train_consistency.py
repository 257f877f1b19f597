"""Task consistency by the train command: from photographs to a reward, killed while it embeds, checked unrun."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lucidnft.checkpoint import load_tensors
from lucidnft.rewards import LucidConsistency
from lucidnft.training.embedding_cache import CONTENTS_PER_SHARD
from tests.train_command import ENVIRONMENT, ROOT, command, comparable, refused, run
from train import main

CONTENTS = CONTENTS_PER_SHARD + 4


def settings(cache: Path) -> list[str]:
    return [
        f"data.cache_folder={cache}",
        f"data.num_contents={CONTENTS}",
        "data.images={type: hr_folder, crop_size: 16, val_crop_size: 16, num_val_images: 4}",
        "data.pool_size=2",
        "data.num_altered=1",
        "train={max_train_steps: 4, batch_size: 8, device: cpu}",
        "eval.eval_steps=2",
        "log={save_steps: 4, report_to: none}",
    ]


def embedded(stderr: str) -> list[str]:
    """The counts that the bars of the embedding ended with."""
    ends = [
        part
        for part in stderr.replace("\n", "\r").split("\r")
        if part.startswith("embed:") and "100%" in part
    ]
    return [part.split("|")[2].split()[0] for part in ends[-1:]]


def test_killed_while_it_embeds_it_goes_on_and_ends_as_an_unbroken_run(tmp_path: Path) -> None:
    arguments = settings(tmp_path / "cache")
    process = subprocess.Popen(
        command("consistency", tmp_path / "killed", *arguments),
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 250
    while time.monotonic() < deadline and not list((tmp_path / "cache").glob("*/shard-00000.safetensors")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/consistency/report.html").exists(), (
        "the run ended before it could be killed"
    )
    assert len(list((tmp_path / "cache").glob("*/shard-00000.safetensors"))) == 1

    again = run("consistency", tmp_path / "killed", *arguments)
    assert embedded(again.stderr) == [f"{CONTENTS - CONTENTS_PER_SHARD}/{CONTENTS - CONTENTS_PER_SHARD}"]
    unbroken = run("consistency", tmp_path / "unbroken", *settings(tmp_path / "other"))
    assert embedded(unbroken.stderr) == [f"{CONTENTS}/{CONTENTS}"]
    ours, theirs = (comparable(tmp_path / name / "consistency") for name in ("killed", "unbroken"))
    assert ours == theirs and ours[-1]["eval/auc"] > 0.9 and "eval/baseline/spread" in ours[-1]
    weights = "consistency/checkpoint-000004/weights.safetensors"
    first, second = (load_tensors(tmp_path / name / weights)[0] for name in ("killed", "unbroken"))
    assert all(torch.equal(first[name], second[name]) for name in second)
    reward = LucidConsistency.from_pretrained(tmp_path / "killed" / weights)
    assert float(reward(torch.full((1, 3, 32, 32), 0.5), lr=torch.full((1, 3, 8, 8), 0.5))) > 0.99

    # two processes share out the embedding, and then the contents of a step
    arguments = command("consistency", tmp_path / "two", *settings(tmp_path / "shared"))[2:]
    several = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    done = subprocess.run(
        [*several, "--main_process_port", "0", str(ROOT / "train.py"), *arguments],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shards = sorted(path.relative_to(tmp_path / "other") for path in (tmp_path / "other").rglob("shard*"))
    assert len(shards) == 3
    for shard in shards:
        one, two = (load_tensors(tmp_path / name / shard)[0] for name in ("other", "shared"))
        assert all(torch.equal(one[name], two[name]) for name in one)
    start, end = comparable(tmp_path / "two/consistency")[:: len(theirs) - 1]
    for name in ("eval/spread", "eval/found", "eval/matched"):
        assert start[name] == pytest.approx(theirs[0][name], rel=1e-5)
    # negatives are those of a process, so the numbers of training are its own
    assert end["step"] == 4 and end["eval/mismatched"] < start["eval/mismatched"]


def test_the_run_file_of_the_published_embedder_is_checked_without_loading_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = ["data.images.folder=null", f"data.cache_folder={tmp_path / 'cache'}", f"output_dir={tmp_path}"]
    main(["--config", str(ROOT / "configs/lucidflux/consistency.yaml"), *folders, "--dry-run"])
    printed = capsys.readouterr().out
    for words in (
        "Qwen/Qwen3-VL-Embedding-8B",
        "20000 contents, 0 of 625 shards",
        "embeddings of 4096 numbers at 1 place(s)",
        "33.56 M trained",
    ):
        assert words in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data.images={type: lr_folder}"], "data.images.type: 'lr_folder' is unknown"),
        (["data.altered_area=[0.5, 0.1]"], "expected two fractions"),
        (["data.type=pool"], "did you mean pools?"),
        (["data.images.folder=/nowhere"], "/nowhere"),
        (["data.head=/nowhere.safetensors"], "/nowhere.safetensors"),
        (["data.dimension=64"], "gives 128"),
        (["data.embedder={type: hf_vision, model_name_or_path: /nowhere}", "data.dimension=8"], "/nowhere"),
        (["train.batch_size=1"], "2 contents or more"),
    ],
)
def test_mistakes_end_with_one_message(tmp_path: Path, arguments: list[str], words: str) -> None:
    small = [
        "data.images={type: hr_folder, crop_size: 16, val_crop_size: 16, num_val_images: 2}",
        "data.num_contents=2",
    ]
    cache = f"data.cache_folder={tmp_path / 'cache'}"
    message = refused("consistency", tmp_path, cache, *small, *arguments)
    assert message.startswith("train.py: ") and words in message, message
