"""Training with a condition cache: the same numbers as without, counted, also after a stop and from another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lucidnft.checkpoint import load_header, load_tensors
from lucidnft.inference import load_policy
from lucidnft.metric_logger import read_metrics
from lucidnft.policy import Policy
from tests.backbones.test_real_backbone_runs import run_file
from tests.train_command import comparable
from train import main

__all__ = ["run_file"]

pytestmark = pytest.mark.usefixtures("one_thread")


REPEATED = [
    "data.crops_per_image=1", "rollout={num_groups: 8, group_size: 2, num_inference_steps: 1}",
    "train.per_device_batch_size=16", "eval.num_inference_steps=1",
]  # fmt: skip


def counts(run: Path) -> list[tuple[int, int]]:
    rows = [row for row in read_metrics(run) if "perf/condition_cache_hits" in row]
    return [(row["perf/condition_cache_hits"], row["perf/condition_cache_misses"]) for row in rows]


@pytest.mark.parametrize("run_file", ["dit4sr"], indirect=True)
def test_cached_resumed_and_shared_runs_have_the_numbers_of_a_run_without(
    run_file: Path, tmp_path: Path
) -> None:
    runs, cache = tmp_path / "runs", tmp_path / "cache"
    disk = [
        "model.condition_cache=disk",
        f"model.condition_cache_folder={cache}",
        "model.encoder_offload=true",
    ]
    command = ["--config", str(run_file), *REPEATED]
    main([*command, "run_name=plain"])
    main([*command, *disk, "run_name=parts", "train.max_train_steps=1"])
    main([*command, *disk, "run_name=parts", "--resume_from_checkpoint", "latest"])
    main([*command, *disk, "run_name=shared"])
    weights = {
        name: load_tensors(runs / name / "checkpoint-000002" / "policy.safetensors")[0]
        for name in ("plain", "parts", "shared")
    }
    for name in ("parts", "shared"):
        assert all(torch.equal(value, weights["plain"][key]) for key, value in weights[name].items())
    rows = {name: comparable(runs / name) for name in weights}
    assert rows["shared"] == rows["plain"]
    assert rows["parts"][-1]["reward/fidelity/mean"] == rows["plain"][-1]["reward/fidelity/mean"]
    assert counts(runs / "plain") == []
    kept = len(list(cache.rglob("*.safetensors")))
    assert sum(misses for _, misses in counts(runs / "parts")) <= kept
    assert [misses for _, misses in counts(runs / "shared")] == [0, 0]
    assert all(hits >= 8 for hits, _ in counts(runs / "shared"))

    section = load_header(runs / "shared" / "checkpoint-000002" / "policy.safetensors")["backbone"]
    assert section["condition_cache_folder"] == str(cache)
    restored = load_policy(runs / "shared")
    assert isinstance(restored, Policy) and restored.take_cache_counts() == {}
