"""The benchmark of restoring, tried on a few small files."""

import importlib
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
restore_benchmark = importlib.import_module("restore")


def test_both_ways_write_the_same_files_and_the_report_has_every_round(tmp_path):
    output = tmp_path / "restore.json"
    restore_benchmark.main(
        ["--num_images", "3", "--size", "24", "--batch_size", "2", "--repeats", "2", "--num_inference_steps", "1",
         "--output", str(output)]
    )  # fmt: skip
    result = json.loads(output.read_text())["result"]
    assert result["largest_difference_in_levels"] == 0
    for way in ("naive", "ours"):
        assert len(result["seconds"][way]) == 2 and min(result["seconds"][way]) > 0
        assert result["images_per_second"][way] == pytest.approx(3 / min(result["seconds"][way]))
    ratios = [n / o for n, o in zip(*result["seconds"].values(), strict=True)]
    assert (result["ratio"]["least"], result["ratio"]["most"]) == pytest.approx((min(ratios), max(ratios)))
