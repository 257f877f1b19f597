"""Tables and files to the letter, and the page made of them."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from lucidnft.evaluation.contact_sheets import contact_sheet, order_of
from lucidnft.evaluation.evaluator import evaluate
from lucidnft.evaluation.metrics import MetricInfo, UnavailableMetric
from lucidnft.evaluation.pairing import Case, Problem
from lucidnft.evaluation.plots import scatter_charts, sorted_charts
from lucidnft.evaluation.report import write_report
from lucidnft.evaluation.results import write_results
from lucidnft.evaluation.summary import summarise
from lucidnft.evaluation.tables import markdown, plain
from lucidnft.images import save_image
from tests.evaluation.small_results import evaluation, with_scores


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


def test_a_lone_method_is_neither_best_nor_compared():
    result = evaluation(only=(20.0, 0.3))
    assert "| only | 6 | 23.00 | 0.3075 |" in markdown(result, summarise(result))
    assert plain(result, summarise(result)).splitlines()[2].split() == ["only", "6", "23.00", "0.3075"]


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


def test_sheets_say_what_worst_and_best_go_by(tmp_path):
    result = with_scores([21.0, 23.0, 22.0, 20.0], [25.0, 24.0, 23.5, 23.0])
    metric = result.metrics[0]
    orders = []
    for base in (result.scores["base"]["psnr"], {}, {"other": 20.0}):
        result.scores["base"] = {"psnr": base}
        sheet = contact_sheet(result, summarise(result), "ours", metric)
        orders.append((order_of(result, "ours", metric), re.findall(r"<b>(s\d\d)</b>", sheet)))
        html = write_report(tmp_path, result, summarise(result)).read_text()
        assert f"<summary>PSNR, {orders[-1][0]}</summary>" in html
    by_score = ("by score, since base has none for these images", ["s03", "s02", "s00", "s01"])
    assert orders == [("by gain over base", ["s01", "s02", "s00", "s03"]), by_score, by_score]
    result.baseline = None
    assert order_of(result, "ours", metric) == "by score"


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
