"""Settings: the shipped files load, and every mistake is refused before anything is scored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lucidnft.config import read_values
from lucidnft.evaluation.evaluator import evaluate
from lucidnft.evaluation.metrics import check_names, metric_specs
from lucidnft.evaluation.protocols import PROTOCOLS
from lucidnft.evaluation.settings import check_folders, parse_evaluation
from lucidnft.rewards.iqa import IQAConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "eval").glob("*.yaml"))


def test_the_benchmarks_of_the_field_are_there():
    assert [path.stem for path in CONFIGS] == [
        "div2k_val", "drealsr", "lsdir_val", "reallq250", "reallr200", "realset80", "realsr",
    ]  # fmt: skip


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_benchmark_loads_and_its_metrics_exist(path):
    config = parse_evaluation(read_values(path, ["methods.ours=somewhere"]), source=str(path))
    check_names(config.metrics or ())
    assert len(metric_specs(config)) >= 8
    assert config.method_names == ("base", "ours") and config.output_dir == f"evaluation/{path.stem}"
    assert "# Files: " in path.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}, "baseline": None}, "no method to evaluate"),
        ({"baseline": "bse"}, "baseline 'bse' is not one of the methods: base, ours"),
        ({"metrics": ["psnr", "psnr"]}, "psnr: asked for twice"),
        ({"metrics": []}, "no metric"),
        ({"metric": ["psnr"]}, "did you mean metrics"),
        ({"protocol": "stablesr"}, "did you mean stablesr_crop"),
        ({"methods": {"a/b": "x"}, "baseline": None}, "a/b"),
        ({"run": {"tuned": {"checkpoint": "base"}}, "lr": None}, "lr is not set"),
        ({"run": {"ours": {"checkpoint": "base"}}}, "ours: both in methods and in run"),
        ({"rewards": {"q": {"type": "quality_net", "weight": 2.0}}}, "weight has no effect"),
        ({"rewards": {"psnr": {"type": "quality_net"}}}, "psnr: asked for twice"),
    ],
)
def test_mistakes_are_named(settings, change, message):
    with pytest.raises(ValueError, match="problem") as error:
        settings(**change)
    assert message in str(error.value)


def test_unknown_metrics_and_missing_folders_are_named(settings):
    with pytest.raises(ValueError, match="'musik' is unknown; did you mean musiq"):
        check_names(("psnr", "musik"))
    with pytest.raises(ValueError, match="'external' is unknown"):
        check_names(("external",))
    with pytest.raises(ValueError, match="not a folder: hr: nowhere; methods.gone: neither"):
        check_folders(settings(hr="nowhere", methods={"gone": "neither"}, baseline=None))


def test_the_protocol_sets_what_psnr_means(settings):
    by_name = {spec.name: spec.settings for spec in metric_specs(settings(metrics=["psnr", "ssim", "fsim"]))}
    assert by_name["psnr"].color_space == by_name["ssim"].color_space == "ycbcr_y"
    assert by_name["fsim"].type == "iqa"
    (plain,) = metric_specs(settings(metrics=["psnr"], protocol="rgb"))
    (cropped,) = metric_specs(settings(metrics=["psnr"], protocol="full_image_border4"))
    assert (plain.settings.color_space, plain.settings.crop_border) == ("rgb", 0)
    assert (cropped.settings.color_space, cropped.settings.crop_border) == ("ycbcr_y", 4)


def test_metrics_that_need_hr_are_left_out_or_refused_before_they_are_loaded(settings, monkeypatch):
    build = IQAConfig.build

    def no_network(self):
        if self.metric != "piqe":
            raise RuntimeError("no weights and no network")
        return build(self)

    monkeypatch.setattr(IQAConfig, "build", no_network)
    short = replace(PROTOCOLS["full_image"], metrics=("psnr", "lpips", "dists", "piqe"))
    monkeypatch.setitem(PROTOCOLS, "full_image", short)
    result = evaluate(settings(hr=None, metrics=None), progress=False)
    assert result.complete and [metric.name for metric in result.metrics] == ["piqe"]
    assert result.notes == ["Left out, since there are no HR images: psnr, lpips, dists."]
    assert [m.name for m in evaluate(settings(metrics=None), progress=False).unavailable] == [
        "lpips",
        "dists",
    ]
    with pytest.raises(ValueError, match="metric 'lpips' needs hr"):
        evaluate(settings(hr=None, metrics=["lpips"]), progress=False)
    named = evaluate(settings(hr=None, metrics=["musiq", "piqe"]), progress=False)
    assert [m.name for m in named.unavailable] == ["musiq"]
