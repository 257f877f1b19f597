"""Scores equal the metrics called by hand; what is missing is named; nothing is computed twice or taken for another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyiqa
import pytest
import torch
from PIL import Image

from lucidnft.evaluation import metrics, scoring
from lucidnft.evaluation.cache import ScoreCache
from lucidnft.evaluation.evaluator import evaluate
from lucidnft.evaluation.metrics import MetricSpec, UnavailableMetric, build_metric, metric_specs, wanted_file
from lucidnft.evaluation.pairing import Case
from lucidnft.evaluation.protocols import PROTOCOLS
from lucidnft.evaluation.scoring import read_8bit
from lucidnft.images import save_image
from lucidnft.rewards import build_reward
from lucidnft.rewards.iqa import IQAConfig
from lucidnft.rewards.lr_fidelity import LRFidelityConfig
from lucidnft.rewards.quality import (
    QualityArchitecture,
    QualityNetConfig,
    QualityNetwork,
    save_quality_network,
)
from tests.evaluation.conftest import STEMS

REPOSITORY = Path(__file__).parents[2]


def test_scores_are_those_of_pyiqa_by_hand_and_of_the_rewards(settings, benchmark_folders):
    names = ["psnr", "ssim", "psnry", "piqe", "lr_fidelity"]
    result = evaluate(settings(metrics=names), progress=False)
    options = {"psnr": {"test_y_channel": True, "color_space": "ycbcr"}, "psnry": {}, "piqe": {}}
    options["ssim"] = options["psnr"]
    for name in ("psnr", "ssim", "psnry", "piqe"):
        metric = pyiqa.create_metric(name, device="cpu", **options[name])
        for stem in STEMS:
            files = [str(benchmark_folders[side] / f"{stem}.png") for side in ("ours", "hr")]
            by_hand = float(metric(*files) if name != "piqe" else metric(files[0]))
            assert result.scores["ours"][name][stem] == pytest.approx(by_hand, rel=1e-5)
    sr, lr = (read_8bit(benchmark_folders[side] / "b.png") for side in ("ours", "lr"))
    reward = float(build_reward("lr_fidelity")(sr, lr=lr))
    assert result.scores["ours"]["lr_fidelity"]["b"] == pytest.approx(reward)
    assert {m.name: m.lower_is_better for m in result.metrics} == {
        **dict.fromkeys(names, False),
        "piqe": True,
    }
    assert result.scores["base"]["piqe"]["b"] > 0  # in the metric's own direction
    assert result.complete and result.num_computed == 2 * 5 * 5


def test_hostile_files_are_named_and_the_rest_is_scored(settings, benchmark_folders):
    ours = benchmark_folders["ours"]
    content = (ours / "b.png").read_bytes()
    (ours / "b.png").write_bytes(content[: len(content) // 2])
    (ours / "c.png").unlink()
    save_image(ours / "d.png", torch.rand(3, 20, 64))
    save_image(ours / "stray.png", torch.rand(3, 48, 64))
    (ours / "e.bmp").write_bytes(b"")
    (benchmark_folders["lr"] / "a.1.png").write_bytes(b"not a picture")
    result = evaluate(settings(), progress=False)
    assert {stem for stem in STEMS if stem in result.scores["ours"]["psnr"]} == {"a.1"}
    assert set(result.scores["base"]["psnr"]) == set(STEMS)
    reasons = {(p.method, p.stem, p.metrics): p.reason for p in result.problems}
    assert "cannot be read" in reasons["ours", "b", ()]
    assert reasons["ours", "c", ()] == f"no restored image of this stem in {ours}"
    assert "64x20 px, the HR image 64x48" in reasons["ours", "d", ("psnr", "ssim")]
    assert "d" in result.scores["ours"]["lr_fidelity"]  # which needs no HR image
    assert "several files of this stem" in reasons["ours", "e", ()]
    assert "no HR image" in reasons["ours", "stray", ()]
    assert "LR file 'a.1.png' cannot be read" in reasons["ours", "a.1", ("lr_fidelity",)]
    assert len(result.problems) == 7 and not result.complete  # the seventh: a.1 of base


def test_a_metric_without_weights_is_unavailable_and_says_which_file(settings, monkeypatch, tmp_path):
    def download(url: str, cached_file: str) -> None:
        raise OSError(f"no network for {url} to {cached_file}")

    def build(self: IQAConfig) -> None:
        try:
            download("https://example.org/niqe.mat", "/cache/niqe.mat")
        except OSError as error:
            raise RuntimeError("a long story") from error

    monkeypatch.setattr(IQAConfig, "build", build)
    result = evaluate(settings(metrics=["niqe", "psnr"]), progress=False)
    (missing,) = result.unavailable
    assert (missing.name, missing.wanted) == ("niqe", "https://example.org/niqe.mat as /cache/niqe.mat")
    assert missing.reason.startswith("its weights could not be fetched (no network")
    assert len(result.scores["ours"]["psnr"]) == 5 and not result.complete


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "EOFError"), (b"<html>blocked</html>", "UnpicklingError")],
    ids=["empty", "page"],
)
def test_a_damaged_weight_file_makes_its_metric_unavailable(settings, monkeypatch, tmp_path, content, kind):
    """As an interrupted download or a proxy leaves it; pyiqa loads whatever is there."""
    monkeypatch.setattr("pyiqa.utils.download_util.DEFAULT_CACHE_DIR", str(tmp_path))
    weights = tmp_path / "musiq_koniq_ckpt-e95806b9.pth"
    weights.write_bytes(content)
    result = evaluate(settings(metrics=["musiq", "psnr"]), progress=False)
    (missing,) = result.unavailable
    assert missing.line().startswith(f"musiq: not available: its weights could not be loaded ({kind}: ")
    assert missing.line().endswith(f"(needs {weights} whole; delete it and it is fetched again)")
    assert len(result.scores["ours"]["psnr"]) == 5


def test_a_metric_that_fails_in_any_way_while_loading_is_unavailable(settings, monkeypatch):
    def build(self: IQAConfig) -> None:
        raise AttributeError("another version of transformers")

    monkeypatch.setattr(IQAConfig, "build", build)
    result = evaluate(settings(metrics=["niqe", "psnr"]), progress=False)
    assert [m.line() for m in result.unavailable] == [
        "niqe: not available: AttributeError: another version of transformers"
    ]
    assert len(result.scores["ours"]["psnr"]) == 5


def test_the_wanted_file_is_known_for_hub_files_and_unknown_for_other_errors():
    def fetch(repo_id: str, filename: str) -> None:
        raise OSError("offline")

    with pytest.raises(OSError) as hub:
        fetch("timm/vit", "model.safetensors")
    with pytest.raises(ValueError) as other:
        int("x")
    assert wanted_file(hub.value) == "model.safetensors of timm/vit on huggingface.co"
    assert wanted_file(other.value) is None


def test_metrics_that_lack_an_input_are_refused_by_name_and_left_out_of_a_protocol(settings, monkeypatch):
    with pytest.raises(ValueError, match="metric 'psnr' needs hr"):
        evaluate(settings(hr=None, metrics=["psnr", "lr_fidelity"]), progress=False)
    short = replace(PROTOCOLS["full_image"], metrics=("psnr", "piqe"))
    monkeypatch.setitem(PROTOCOLS, "full_image", short)
    result = evaluate(settings(hr=None, metrics=None), progress=False)
    assert [m.name for m in result.metrics] == ["piqe"]
    assert result.notes == ["Left out, since there are no HR images: psnr."]


def test_deep_files_are_scored_on_8_bit_levels(tmp_path):
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    save_image(tmp_path / "deep.png", image, bit_depth=16)
    save_image(tmp_path / "flat.png", image)
    deep, flat = read_8bit(tmp_path / "deep.png"), read_8bit(tmp_path / "flat.png")
    assert float((deep - flat).abs().max()) < 1.01 / 255 and torch.equal(deep, (deep * 255).round() / 255)
    assert torch.equal(flat[0], torch.from_numpy(_pillow(tmp_path / "flat.png")))


def _pillow(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).transpose(2, 0, 1).astype(np.float32) / 255


def test_only_what_changed_is_computed_again(settings, benchmark_folders):
    assert evaluate(settings(), progress=False).num_computed == 30
    assert evaluate(settings(), progress=False).num_computed == 0
    assert (
        evaluate(settings(metrics=["psnr", "ssim", "lr_fidelity", "fsim"]), progress=False).num_computed == 10
    )
    assert evaluate(settings(protocol="rgb", metrics=["psnr"]), progress=False).num_computed == 10
    picture = benchmark_folders["hr"] / "b.png"
    save_image(picture, read_8bit(picture)[0] * 0.9)
    assert evaluate(settings(), progress=False).num_computed == 4  # psnr and ssim of b, two methods


def test_equal_files_are_scored_once_and_fail_together(settings, benchmark_folders):
    for stem in STEMS:
        (benchmark_folders["ours"] / f"{stem}.png").write_bytes(
            (benchmark_folders["base"] / f"{stem}.png").read_bytes()
        )
    small = torch.rand(3, 8, 8)
    for name in ("base", "ours", "hr"):
        save_image(benchmark_folders[name] / "e.png", small)
    result = evaluate(settings(metrics=["psnr", "ssim"]), progress=False)
    assert result.num_computed == 9 and result.scores["ours"] == result.scores["base"]
    assert [(p.method, p.stem, p.metrics) for p in result.problems] == [
        ("base", "e", ("ssim",)),
        ("ours", "e", ("ssim",)),
    ]


def test_a_metric_is_another_with_other_settings_versions_or_weights(monkeypatch, tmp_path):
    def identity(name: str, **values: object) -> str:
        metric = build_metric(MetricSpec(name, LRFidelityConfig(**values)), "cpu")
        assert not isinstance(metric, UnavailableMetric)
        return metric.identity

    first = identity("lr_fidelity")
    assert identity("lr_fidelity") == first
    assert identity("other") != first
    with monkeypatch.context() as patch:
        patch.setattr(metrics, "SCORING_VERSION", 2)
        assert identity("lr_fidelity") != first
    with monkeypatch.context() as patch:
        patch.setattr("lucidnft.environment.importlib.metadata.version", lambda package: "another")
        assert identity("lr_fidelity") != first
    quality = [
        build_metric(MetricSpec("q", QualityNetConfig(path=str(path))), "cpu")
        for path in _two_networks(tmp_path)
    ]
    assert quality[0].facts["weights"] != quality[1].facts["weights"]
    assert quality[0].facts["files"] != quality[1].facts["files"]


def _two_networks(folder: Path) -> tuple[Path, Path]:
    for name in ("one", "two"):
        network = QualityNetwork(QualityArchitecture((8, 8, 8), (1, 1, 1)))
        save_quality_network(network, folder / f"{name}.safetensors")
    return folder / "one.safetensors", folder / "two.safetensors"


def test_a_cut_off_cache_loses_its_last_line_only_and_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "cache.jsonl"
    with ScoreCache(path) as cache:
        cache.add([("k1", "psnr", "a", 1.5), ("k2", "psnr", "b", 2.5)])
        with pytest.raises(ValueError, match="in use by another evaluation"):
            ScoreCache(path)
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with ScoreCache(path) as cache:
        assert (cache.get("k1"), cache.get("k2")) == (1.5, None)
        cache.add([("k2", "psnr", "b", 3.5)])
    with ScoreCache(path) as cache:
        assert cache.get("k2") == 3.5
    path.write_bytes(b"{}\n" + content)
    with pytest.raises(ValueError, match="damaged in line 1"):
        ScoreCache(path)


QUICK = ["lr_fidelity", "quality_net"]  # which start fast


def command(settings, *overrides: str) -> list[str]:
    config = settings(metrics=QUICK)
    path = Path(config.output_dir).with_name("mine.yaml")
    path.write_text(json.dumps(config.model_dump(mode="json", exclude={"run", "rewards"})))
    return [sys.executable, "-m", "lucidnft.evaluation", str(path), *overrides]


def test_a_killed_evaluation_continues_and_processes_do_not_change_the_numbers(settings, tmp_path):
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(
        "import time, lucidnft.evaluation.scoring as s\nscore = s.score_case\n"
        "def late(*a):\n    time.sleep(0.5)\n    return score(*a)\ns.score_case = late\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{slow}:{REPOSITORY}"}
    cache = tmp_path / "out" / "cache.jsonl"
    running = subprocess.Popen(
        command(settings, "workers=2"), env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (cache.is_file() and cache.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    running.wait()
    kept = cache.read_bytes().count(b"\n")
    assert 2 <= kept < 20
    while any(_lives(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_lives(child) for child in children)  # workers follow their parent
    continued = evaluate(settings(metrics=QUICK), progress=False)
    assert continued.num_computed == 20 - kept
    alone = evaluate(settings(metrics=QUICK, output_dir=str(tmp_path / "alone")), progress=False)
    assert alone.num_computed == 20 and alone.scores == continued.scores


def test_metrics_are_loaded_by_the_processes_that_compute_them_and_by_no_other(
    settings, monkeypatch, tmp_path
):
    alone = evaluate(settings(metrics=QUICK), progress=False)

    def refuse(spec: MetricSpec, device: str) -> None:
        raise AssertionError(f"{spec.name} was loaded here")

    monkeypatch.setattr(scoring, "build_metric", refuse)  # in this process only
    gone = {"gone": {"type": "quality_net", "path": str(tmp_path / "gone.safetensors")}}
    config = settings(metrics=QUICK, rewards=gone, workers=2, output_dir=str(tmp_path / "several"))
    several = evaluate(config, progress=False)
    assert several.scores == alone.scores and several.num_computed == 20
    assert [m.facts for m in several.metrics] == [m.facts for m in alone.metrics]
    assert [m.name for m in several.unavailable] == ["gone"]


def test_a_process_loads_only_what_its_jobs_need_and_each_metric_once(settings, monkeypatch):
    config = settings(metrics=["no_such_one", *QUICK])
    specs, built = metric_specs(config), []
    monkeypatch.setattr(
        scoring, "build_metric", lambda spec, where: built.append(spec.name) or build_metric(spec, where)
    )
    case = Case("ours", "b", *(Path(getattr(config, side)) / "b.png" for side in ("lr", "lr")))
    loaded = scoring.LoadedMetrics(specs, "cpu")
    for _ in range(2):
        assert set(loaded.score(scoring.Job(0, case, "digest", ("lr_fidelity",))).scores) == {"lr_fidelity"}
    assert built == ["lr_fidelity"]
    with pytest.raises(RuntimeError, match="'no_such_one' was loaded once and cannot be again"):
        loaded.score(scoring.Job(0, case, "digest", ("no_such_one",)))


def _lives(process: str) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
