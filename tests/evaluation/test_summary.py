"""What a table claims: ranks, stars and verdicts, and the names and digits of its columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from lucidnft.evaluation.evaluator import evaluate
from lucidnft.evaluation.metrics import MetricInfo, metric_specs
from lucidnft.evaluation.protocols import decimals_of
from lucidnft.evaluation.report import write_report
from lucidnft.evaluation.results import write_results
from lucidnft.evaluation.summary import label, summarise
from lucidnft.evaluation.tables import markdown, p_text, plain
from tests.evaluation.small_results import STEMS, evaluation, with_scores


def test_what_prints_equal_is_equally_best_and_stars_need_enough_images():
    result = evaluation(base=(20.0, 0.3), ours=(20.0001, 0.3))
    summary = summarise(result)
    assert summary.best["psnr"] == {"base", "ours"} and not summary.second["psnr"]
    assert not summary.cells["ours", "psnr"].gain.significant  # six images: p = 2 / 2^6, times 2
    assert summary.cells["ours", "psnr"].gain.p == pytest.approx(2 / 64)
    assert summary.cells["ours", "lpips"].gain.p == 1.0 and summary.cells["base", "psnr"].gain is None
    more = evaluation(base=(20.0, 0.3), ours=(21.0, 0.3))
    for name, shift in (("base", 0.0), ("ours", 1.0)):
        more.scores[name]["psnr"] = {f"s{i}": 20 + i + shift * (1 + i / 50) for i in range(9)}
    assert "(+1.08\\*)" in markdown(more, summarise(more))


def test_gains_are_on_common_images_and_their_direction_is_the_metrics():
    result = evaluation(base=(20.0, 0.3), ours=(22.0, 0.2))
    del result.scores["ours"]["psnr"]["s5"]
    summary = summarise(result)
    cell = summary.cells["ours", "psnr"]
    assert (cell.n, cell.gain.paired.n) == (5, 5) and "| 5-6 |" in markdown(result, summary)
    assert cell.gain.paired.difference == pytest.approx(2 * 1.02)
    assert [decimals_of("psnr", 0), decimals_of("new", 30), decimals_of("new", 4), decimals_of("new", 0.3)] == [
        2, 2, 3, 4,
    ]  # fmt: skip
    assert (p_text(0.00001), p_text(0.5)) == ("< 0.0001", "0.5000")


def test_the_verdict_is_that_of_the_corrected_test_everywhere(tmp_path):
    result = evaluation(base=(20.0, 0.3), ours=(22.0, 0.2))  # better on all of six, but for four comparisons
    summary = summarise(result)
    gain = summary.cells["ours", "psnr"].gain
    assert gain.paired.low > 0 and gain.p < 0.05 < gain.p_holm
    assert gain.verdict == "not distinguishable" == summary.cells["ours", "psnr"].record()["verdict"]
    html = write_report(tmp_path, result, summary).read_text()
    assert "ours against base: 0 improved, 0 worse, 2 not distinguishable of 2 metrics." in html
    assert html.count('<span class="badge ">not distinguishable</span>') == 2


def test_a_verdict_has_the_direction_of_its_metric():
    base = [20.0 + i for i in range(9)]
    higher = [score + 1 + i / 50 for i, score in enumerate(base)]
    for metric, better in (("psnr", (base, higher)), ("lpips", (higher, base))):
        improved, worse = with_scores(*better, metric=metric), with_scores(*better[::-1], metric=metric)
        found = [summarise(r).cells["ours", metric].gain.verdict for r in (improved, worse)]
        assert found == ["improved", "worse"]


def test_nothing_is_claimed_where_the_mean_and_the_test_disagree():
    rises = [0.1 + i / 1000 for i in range(20)]
    gain = summarise(with_scores([20.0] * 21, [20.0 + r for r in rises] + [10.0])).cells["ours", "psnr"].gain
    assert gain.p_holm < 0.05 and gain.rank_sum > 0 > gain.paired.difference
    assert gain.verdict == "not distinguishable" and not gain.significant


def test_means_over_different_images_are_not_ranked(tmp_path):
    result = evaluation(base=(20.0, 0.3), ours=(19.0, 0.2), third=(18.0, 0.4))
    for stem in STEMS[:2]:  # the hard ones, where ours failed: its mean is the best now
        del result.scores["ours"]["psnr"][stem]
    summary = summarise(result)
    assert summary.cells["ours", "psnr"].mean > summary.cells["base", "psnr"].mean
    assert not summary.best["psnr"] and not summary.second["psnr"]
    assert summary.best["lpips"] == {"ours"} and summary.second["lpips"] == {"base"}
    said = "No best is marked for PSNR: the means are over different images (base 6, ours 4, third 6; 4 in common)."
    assert summary.notes == (said,)
    assert plain(result, summary).splitlines()[-1] == said
    write_results(tmp_path, result, summary, method_column=True)
    html = write_report(tmp_path, result, summary).read_text()
    assert all(said in text for text in (html, markdown(result, summary)))
    assert said in json.loads((tmp_path / "scores.json").read_text())["notes"]


def test_as_many_but_other_images_are_not_ranked_either():
    result = evaluation(
        base=(20.0, 0.3), ours=(22.0, 0.2)
    )  # as without HR and LR, where nothing is asked for
    for metric in ("psnr", "lpips"):
        del result.scores["base"][metric]["s0"], result.scores["ours"][metric]["s5"]
    summary = summarise(result)
    assert not any(summary.best.values())
    assert summary.notes == (
        "No best is marked for PSNR, LPIPS (Alex): the means are over different images "
        "(base 5, ours 5; 4 in common).",
    )


def test_a_method_without_a_metric_does_not_hinder_the_others():
    result = evaluation(base=(20.0, 0.3), ours=(22.0, 0.2), third=(18.0, 0.4))
    result.scores["third"]["psnr"] = {}
    summary = summarise(result)
    assert summary.best["psnr"] == {"ours"} and not summary.second["psnr"] and not summary.notes


def test_the_column_of_lucid_consistency_says_which_embedder(settings, tmp_path):
    remarks = (Path(__file__).parents[2] / "configs/eval/reallq250.yaml").read_text()
    commented = "".join(
        line[2:] for line in remarks.splitlines(keepends=True) if re.match("# (rewards:|  lucid)", line)
    )
    by_name = settings(metrics=["lucid_consistency", "quality_net"])
    of_papers = settings(metrics=["psnr"], rewards=yaml.safe_load(commented)["rewards"])
    embeddings = {"type": "lucid_consistency", "embedder": {"type": "hf_vision"}, "head": None}
    own = settings(
        metrics=["psnr"], rewards={"mine": {"type": "lucid_consistency"}, "lucid_consistency": embeddings}
    )
    labels = [
        [label(MetricInfo(spec.name, False, frozenset(), {"settings": spec.settings.model_dump(mode="json")}))
         for spec in metric_specs(config)]
        for config in (by_name, of_papers, own)
    ]  # fmt: skip
    assert labels == [
        ["LucidConsistency (tiny)", "QualityNet"],
        ["PSNR", "LucidConsistency (Qwen3-VL)"],
        ["PSNR", "mine", "LucidConsistency (hf_vision, no head)"],
    ]
    result = evaluate(by_name, progress=False)
    summary = summarise(result)
    write_results(tmp_path, result, summary, method_column=True)
    texts = [(tmp_path / name).read_text() for name in ("tables.md", "tables.tex", "scores.json")]
    texts.append(write_report(tmp_path, result, summary).read_text())
    assert all("LucidConsistency (tiny)" in text for text in texts)
    assert not any(re.search(r"LucidConsistency(?!Config| \(tiny\))", text) for text in texts)


def test_a_marked_gain_does_not_print_as_zero():
    base = [0.3 + i / 100 for i in range(9)]
    tiny = with_scores(base, [score - 4e-6 * (1 + i / 100) for i, score in enumerate(base)], metric="lpips")
    assert "**0.339996** (-0.000004\\*)" in markdown(tiny, summarise(tiny))
    noise = with_scores(base, [score + 4e-6 * (-1) ** i for i, score in enumerate(base)], metric="lpips")
    assert summarise(noise).decimals == {"lpips": 4}
