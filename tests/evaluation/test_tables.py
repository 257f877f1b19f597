"""Tables to the letter, the statistics behind them, and the page made of them."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml

from lucidnft.evaluation.evaluator import Evaluation, evaluate
from lucidnft.evaluation.metrics import MetricInfo, UnavailableMetric, metric_specs
from lucidnft.evaluation.pairing import Case, Problem
from lucidnft.evaluation.plots import scatter_charts, sorted_charts
from lucidnft.evaluation.protocols import PROTOCOLS, decimals_of
from lucidnft.evaluation.report import write_report
from lucidnft.evaluation.results import write_results
from lucidnft.evaluation.summary import label, summarise
from lucidnft.evaluation.tables import escape_latex, latex, markdown, p_text, plain
from lucidnft.images import save_image

STEMS = [f"s{i}" for i in range(6)]


def evaluation(**methods: tuple[float, float]) -> Evaluation:
    """Six images whose psnr and lpips are a method's two numbers plus the same spread."""
    names = tuple(methods)
    result = Evaluation("Bench_1", PROTOCOLS["rgb"], names, names[0] if len(names) > 1 else None)
    result.metrics = (
        MetricInfo("psnr", False, frozenset({"hr"}), {}),
        MetricInfo("lpips", True, frozenset({"hr"}), {}),
    )
    for name, (psnr, lpips) in methods.items():
        result.folders[name] = f"folder/{name}"
        result.cases[name] = {stem: Case(name, stem, Path(f"{stem}.png")) for stem in STEMS}
        result.scores[name] = {
            "psnr": {stem: psnr * (1 + i / 100) + i for i, stem in enumerate(STEMS)},
            "lpips": {stem: lpips * (1 + i / 100) for i, stem in enumerate(STEMS)},
        }
    return result


def test_markdown_to_the_letter():
    result = evaluation(base=(20.0, 0.3), ours=(22.0, 0.2), third_1=(18.9, 0.26))
    result.problems = [Problem("ours", "a|b", "gone", ("psnr",))]
    result.unavailable = [UnavailableMetric("musiq", "no weights", "musiq.pth")]
    result.notes = ["Note."]
    text = markdown(result, summarise(result))
    assert "\n".join(text.splitlines()[4:11]) == (
        "| method | n | PSNR \u2191 | LPIPS (Alex) \u2193 |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| base | 6 | <u>23.00</u> | 0.3075 |\n"
        "| ours | 6 | **25.05** (+2.05) | **0.2050** (-0.1025) |\n"
        "| third\\_1 | 6 | 21.87 (-1.13) | <u>0.2665</u> (-0.0410) |\n"
        "\n"
        "Means over images; best bold, second underlined; in brackets the gain over base on the images both have; "
        "\\* p \\< 0.05, two-sided Wilcoxon signed-rank test, Holm-corrected for the 4 comparisons here."
    )
    assert "| ours | PSNR | 6 | 25.050 | " in text and "| 0.0312 | 0.1250 | not distinguishable |" in text
    assert text.endswith(
        "## Notes\n\n- Note.\n\n## Without a number\n\n"
        "- musiq: not available: no weights (needs musiq.pth)\n- ours/a\\|b \\[psnr\\]: gone\n"
    )


def test_latex_to_the_letter():
    result = evaluation(base=(20.0, 0.3), third_1=(18.9, 0.26))
    lines = latex(result, summarise(result)).splitlines()
    assert lines[3:] == [
        r"\begin{tabular}{lrcc}",
        r"\toprule",
        r"Method & $n$ & PSNR $\uparrow$ & LPIPS (Alex) $\downarrow$ \\",
        r"\midrule",
        r"base & 6 & \textbf{23.00} & 0.3075 \\",
        r"third\_1 & 6 & 21.87 (-1.13) & \textbf{0.2665} (-0.0410) \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    assert escape_latex("a\\b_c%") == r"a\textbackslash{}b\_c\%"


def test_a_lone_method_is_neither_best_nor_compared():
    result = evaluation(only=(20.0, 0.3))
    assert "| only | 6 | 23.00 | 0.3075 |" in markdown(result, summarise(result))
    assert plain(result, summarise(result)).splitlines()[2].split() == ["only", "6", "23.00", "0.3075"]


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


def with_scores(base: list[float], ours: list[float], metric: str = "psnr") -> Evaluation:
    """Two methods with these scores of one metric."""
    result = evaluation(base=(20.0, 0.3), ours=(20.0, 0.3))
    result.metrics = tuple(m for m in result.metrics if m.name == metric)
    for name, scores in (("base", base), ("ours", ours)):
        stems = [f"s{i:02d}" for i in range(len(scores))]
        result.scores[name] = {metric: dict(zip(stems, scores, strict=True))}
        result.cases[name] = {stem: Case(name, stem, Path(f"{stem}.png")) for stem in stems}
    return result


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


def test_files_hold_the_same_numbers(tmp_path):
    result = evaluation(base=(20.0, 0.3), ours=(22.0, 0.2))
    del result.scores["ours"]["psnr"]["s5"]
    write_results(tmp_path, result, summarise(result), method_column=True)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open(newline="")))
    assert list(rows[0]) == ["method", "stem", "metric", "value"] and len(rows) == 23
    record = json.loads((tmp_path / "scores.json").read_text())
    assert [float(row["value"]) for row in rows] == [row["value"] for row in record["scores"]]
    assert record["metrics"]["lpips"]["lower_is_better"] is True
    (cell,) = [c for c in record["summary"] if (c["method"], c["metric"]) == ("ours", "lpips")]
    assert cell["mean"] == pytest.approx(0.205) and cell["gain"] == pytest.approx(-0.1025)
    write_results(tmp_path, result, summarise(result), method_column=False)
    assert (tmp_path / "scores.csv").read_text().startswith("stem,metric,value\n")


class Page(HTMLParser):
    """Counts tags, and refuses one that is closed wrongly or fetches something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            assert not (name in ("src", "href") and not str(value).startswith("data:image/jpeg;base64,"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_whole_page_with_plots_and_sheets(settings, benchmark_folders, tmp_path):
    for folder in benchmark_folders.values():
        save_image(folder / "<i>.png", torch.rand(3, 48, 64))
    result = evaluate(settings(metrics=["psnr", "ssim", "piqe"]), progress=False)
    html = write_report(tmp_path, result, summarise(result)).read_text()
    page = Page()
    page.feed(html)
    assert not page.open
    assert page.counts["svg"] >= 2 + 3  # scatters of piqe against psnr and ssim, sorted differences of all
    assert page.counts["img"] == 3 * 6 * 4  # three metrics, three worst and three best, LR base ours HR
    assert "&lt;i&gt;" in html and "<i>.png" not in html
    assert "ours against base: " in html and re.search(r"improved, \d worse", html)


def test_points_are_where_better_is_up_and_to_the_right():
    result = evaluation(base=(20.0, 0.3), ours=(22.0, 0.2))
    result.metrics = (result.metrics[0], MetricInfo("lpips", True, frozenset(), {}))
    (chart,) = scatter_charts(result, summarise(result))
    found = re.findall(r'class="mean m(\d)" cx="([\d.]+)" cy="([\d.]+)"', chart)
    (_, base_x, base_y), (_, ours_x, ours_y) = found
    assert float(ours_x) > float(base_x) and float(ours_y) < float(base_y)  # SVG counts y downwards
    bars = sorted_charts(result, "ours")[1]
    assert bars.count('class="gained"') == 6 and "better in 6 of 6" in bars
    changes = [float(v) for v in re.findall(r"<title>s\d: ([+-][\d.e-]+)</title>", bars)]
    assert changes == sorted(changes, reverse=True)  # the least improved first


def test_the_report_of_many_images_stays_light(tmp_path):
    picture = tmp_path / "noise.png"
    save_image(picture, torch.rand(3, 176, 176, generator=torch.Generator().manual_seed(0)))
    result = evaluation(base=(20.0, 0.3), ours=(22.0, 0.2))
    stems = [f"image_{i:03d}" for i in range(250)]
    for name in result.methods:
        result.cases[name] = {stem: Case(name, stem, picture, picture, picture) for stem in stems}
        for metric in ("psnr", "lpips"):
            shift = 0.1 if name == "ours" else 0.0
            result.scores[name][metric] = {
                stem: 20 + i % 97 + shift * (i % 7) for i, stem in enumerate(stems)
            }
    html = write_report(tmp_path, result, summarise(result)).read_text()
    pictures = re.findall(r'src="data:[^"]*"', html)
    assert len(pictures) == 2 * 6 * 4  # two metrics, three worst and three best, LR base ours HR
    assert len(html) - sum(map(len, pictures)) < 120_000
