"""Dry runs on a machine that has neither weights nor data, and what a run with `auto` chunk sizes starts with."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lucidnft.config import parse_config
from lucidnft.metric_logger import MetricLogger
from lucidnft.rollout import RolloutConfig
from lucidnft.training import nft_plan
from lucidnft.training.chunk_sizes import choose_chunks
from lucidnft.training.memory import Line, RunMemory
from lucidnft.training.run_folder import stop_message
from tests.small_dit4sr import one_thread  # noqa: F401  a fixture
from tests.train_command import ROOT, command
from train import main

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS: dict[str, dict[str, Any]] = {
    "lucidflux": {
        "type": "lucidflux", "lucidflux_weights": "no/lucidflux.pth", "swinir_weights": "no/swinir.ckpt",
        "prompt_embeddings": "no/prompt.pt",
    },
    "dit4sr": {
        "type": "dit4sr", "model_name_or_path": "no/sd3", "transformer_path": "no/dit4sr", "lr_key": "lr",
    },
}  # fmt: skip


def values(model: str, **sections: Any) -> dict[str, Any]:
    return {
        "task": "nft",
        "model": {**MODELS[model], "lora_rank": 4, "target_modules": ["to_q"]},
        "data": {"type": "lr_folder", "folder": "no/photographs", "crop_size": 256, "val_crop_size": 64},
        "rollout": {"num_groups": 2, "group_size": 12, "chunk_size": "auto"},
        "rewards": {"fidelity": {"type": "lr_fidelity"}},
        "train": {
            "gradient_checkpointing": True, "per_device_batch_size": 1, "num_train_timesteps": 1, "device": "cpu",
        },
        "eval": {"batch_size": 1, "max_images": 1},
        **sections,
    }  # fmt: skip


@pytest.mark.parametrize(("model", "trunk"), [("lucidflux", "22.2 GiB"), ("dit4sr", "5.5 GiB")])
def test_a_full_size_run_is_planned_without_its_weights_and_data(tmp_path: Path, model, trunk, capsys):
    path = tmp_path / "nft.yaml"
    path.write_text(yaml.safe_dump(values(model, output_dir=str(tmp_path / "runs"))))
    main(["--config", str(path), "--dry-run"])
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"trunk {trunk}" in lines
    assert "1024x1024 px output" in printed and "data.folder: no folder 'no/photographs'" in printed
    unnamed = [name for name, value in MODELS[model].items() if str(value).startswith("no/")]
    assert all(any(line.startswith(f"model.{name}: ") for line in lines) for name in unnamed)
    missing = lines[lines.index("missing:") + 1 : -1]
    assert lines[-1] == f"dry run: {len(missing)} thing(s) missing before this run can start"
    assert [p.name for p in tmp_path.iterdir()] == ["nft.yaml"]


FEWER_BLOCKS = {
    "lucidflux": "model.architecture={transformer: {num_layers: 2, num_single_layers: 1}}",
    "dit4sr": "model.architecture={transformer: {num_layers: 2, dual_attention_layers: [0]}}",
}
"""One case above has them all; here the shipped settings are what is tried."""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*/nft*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}"
)
def test_every_shipped_run_file_is_planned_offline(path: Path, tmp_path, capsys):
    settings = [
        f"output_dir={tmp_path}",
        *([FEWER_BLOCKS[path.parent.name]] if path.parent.name in FEWER_BLOCKS else []),
    ]
    main(["--config", str(path), *settings, "--dry-run"])
    printed = capsys.readouterr().out
    assert "batch plan:" in printed and "peak of each phase" in printed
    last = printed.splitlines()[-1]
    if path.parent.name == "tiny":
        assert last == "dry run: nothing is missing, the run can start"
    else:
        assert "data.folder: no folder 'data/lr_photos'" in printed
        assert "weight files:" in printed and last.endswith("missing before this run can start")
    assert list(tmp_path.iterdir()) == []


def test_the_run_file_of_the_published_embedder_needs_no_image_folder_to_be_planned(tmp_path, capsys):
    settings = [f"data.cache_folder={tmp_path / 'cache'}", f"output_dir={tmp_path}"]
    main(["--config", str(ROOT / "configs/lucidflux/consistency.yaml"), *settings, "--dry-run"])
    printed = capsys.readouterr().out
    assert "data.images.folder: no folder 'data/LSDIR/HR'" in printed
    assert "missing before this run can start" in printed.splitlines()[-1] and "33.56 M trained" in printed
    with pytest.raises(SystemExit, match=r"data\.images\.folder: .*LSDIR"):
        main(["--config", str(ROOT / "configs/lucidflux/consistency.yaml"), *settings])


MEMORY = RunMemory(
    parts={"trunk": 100}, condition=Line(0, 1), kept_condition=0, latents=0, images=24, rollout=Line(10, 10),
    decode=Line(0, 40), backward=50, evaluate=20, groups=2,
)  # fmt: skip


def choice(free: int, **rollout: Any):
    config = parse_config(values("dit4sr", rollout={"num_groups": 2, "group_size": 12, **rollout}))
    return choose_chunks(MEMORY, config, 24, free, "here")


def test_auto_takes_the_fewest_equal_chunks_that_fit_in_nine_tenths():
    both = {"chunk_size": "auto", "decode_chunk_size": "auto"}
    # 0.9 * 300 = 270: (270 - 110) / 10 = 16 fit, two chunks of 12 do; (270 - 124) / 40 = 3
    assert choice(300, **both).rollout.chunks == (12, 3)
    assert choice(10**6, **both).rollout.chunks == (24, 24)
    assert choice(300, chunk_size="auto").rollout.chunks == (3, 3)
    assert choice(300, chunk_size=5, decode_chunk_size="auto").rollout.chunks == (5, 3)
    as_set = choice(300, chunk_size=20)
    assert as_set.rollout.chunks == (20, 20) and "less than rollout and decode may need" in as_set.reason


def test_a_run_of_which_not_one_rollout_fits_is_refused_with_what_to_set(tmp_path, monkeypatch):
    assert choice(200, chunk_size="auto").problem is None
    problem = choice(170, chunk_size="auto").problem
    assert problem is not None and "optimise phase needs about" in problem
    assert "lower data.crop_size (it is 256)" in problem and "checkpointing" not in problem
    monkeypatch.setattr(nft_plan, "free_bytes", lambda *_: 2**20)
    with pytest.raises(SystemExit, match="1.0 MiB are free on cpu; lower data.crop_size"):
        main(command("nft", tmp_path, "rollout.chunk_size=auto")[2:])


@pytest.mark.parametrize("wrong", ["atuo", 0, 1.5])
def test_a_chunk_size_is_a_number_or_auto(wrong):
    with pytest.raises(ValueError, match="expected a number of rollouts, 1 or more, or auto"):
        RolloutConfig(chunk_size=wrong)
    with pytest.raises(ValueError, match="outside of train.py give a number"):
        _ = RolloutConfig(chunk_size="auto").chunks


def test_a_step_out_of_memory_says_its_phase_and_what_helps(tmp_path):
    logger = MetricLogger(tmp_path, enabled=False)
    with pytest.raises(torch.OutOfMemoryError) as caught, logger.phase("decode"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    said = stop_message(caught.value, None)
    assert "phase decode: lower rollout.decode_chunk_size" in said and "per_device_batch_size" not in said
