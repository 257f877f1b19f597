"""The GPU benchmark's script, tried on a CPU with tiny networks."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.small_dit4sr import one_thread

__all__ = ["one_thread"]
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
backbone_step = importlib.import_module("backbone_step")
pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = [
    "--size", "32", "--architecture", "small", "--device", "cpu", "--repeats", "1", "--steps", "1",
    "--group_size", "2", "--chunk_size", "2", "--num_train_timesteps", "1",
]  # fmt: skip


@pytest.mark.parametrize("backbone", ["lucidflux", "dit4sr"])
def test_it_measures_what_runs_and_says_why_the_rest_does_not(backbone: str, tmp_path: Path) -> None:
    output = tmp_path / "step.json"
    variants = ["--variants", "eager xformers", "eager sdpa"]
    backbone_step.main(["--backbone", backbone, *SMALL, *variants, "--output", str(output)])
    report = json.loads(output.read_text())
    assert report["device"] == "cpu" and report["settings"]["size"] == 32 and report["weights_bytes"] is None
    assert "model.attention_backend: xformers" in report["variants"]["eager xformers"]["unavailable"]
    measured = report["variants"]["eager sdpa"]
    assert measured["finite"]
    assert list(measured["phases"]) == ["condition", "rollout", "decode", "optimise"]
    assert all(p["seconds"] > 0 and p["peak_bytes"] is None for p in measured["phases"].values())
    phases, flops, rate = measured["phases"], report["flops"], report["matrix_flop_per_second"]
    assert measured["rollout_seconds_per_image"] == pytest.approx(phases["rollout"]["seconds"] / 2)
    per_time = measured["optimise_seconds_per_trained_timestep"]
    assert per_time == pytest.approx(phases["optimise"]["seconds"] / 2)
    share = flops["optimise_per_trained_timestep"] / per_time / rate
    assert measured["optimise_share_of_matrix_rate"] == pytest.approx(share)
    # old, reference and current, and backward
    assert flops["optimise_per_trained_timestep"] > 3 * flops["rollout_per_image"]
    assert report["aims"] == {"all": "not measured: full-size weights on a GPU are needed"}


def test_the_aims_are_read_off_the_report() -> None:
    def variant(peak: float, share: float) -> dict[str, object]:
        phases = {"rollout": {"peak_bytes": peak / 2}, "optimise": {"peak_bytes": peak}}
        return {"phases": phases, "optimise_share_of_matrix_rate": share}

    settings = {"architecture": "full", "device": "cuda", "backbone": "dit4sr", "size": 512}
    variants = {
        "eager sdpa": variant(25e9, 0.55), "compiled sdpa": variant(23e9, 0.4), "eager xformers": {"unavailable": "no"},
    }  # fmt: skip
    assert backbone_step.aims({"settings": settings, "variants": variants}) == {
        "dit4sr 512 px under 24 GB": "yes: 23.0 GB (compiled sdpa)",
        "optimise at half of the matrix rate": "yes: 0.55 (eager sdpa)",
    }
    variants["compiled sdpa"] = variant(24.5e9, 0.4)
    found = backbone_step.aims({"settings": {**settings, "size": 1024}, "variants": variants})
    assert list(found) == ["optimise at half of the matrix rate"]
    found = backbone_step.aims({"settings": settings, "variants": variants})
    assert found["dit4sr 512 px under 24 GB"] == "no: 24.5 GB (compiled sdpa)"


def test_four_bit_layers_cost_the_flops_of_full_ones() -> None:
    pytest.importorskip("bitsandbytes")
    found = []
    for quantize in ("none", "nf4"):
        args = backbone_step.parse_args(["--backbone", "dit4sr", *SMALL, "--quantize", quantize])
        step = backbone_step.Step(args)
        rollout = step.rollout(step.condition())
        found.append(backbone_step.count_flops(lambda s=step, r=rollout: s.optimise(r), step))
    assert found[0] == found[1] > 0
