"""The table at the end of a run and the page that a person opens."""

import base64
import io
import json
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from lucidnft.checkpoint import save_json
from lucidnft.metric_logger import MetricLogger
from lucidnft.training.comparison import read_scores, summarise
from lucidnft.training.report import compare_scores, finish_run, format_table, write_report

KEYS = [f"photo {i}" for i in range(8)]


def record(step, lift=0.0, guards=True):
    wobble = [0.01 * ((i * 5) % 8) for i in range(8)]
    rewards = {
        "quality": [0.3 + w + lift for w in wobble],
        "fidelity": [-0.2 - w + lift * (-1) ** i for i, w in enumerate(wobble)],
    }
    known = {
        "psnr_y": [24 + i - 3 * lift for i in range(8)],
        "spectral_distance": [1.5 + w - lift for w in wobble],
    }
    return {"step": step, "keys": KEYS, "rewards": rewards, "guards": known if guards else {}}


@pytest.fixture
def run_dir(tmp_path):
    """What a short NFT run leaves behind."""
    run = tmp_path / "my <run>"
    with MetricLogger(run, tensorboard=False) as logger:
        for step, lift in ((0, 0.0), (1, 0.05), (2, 0.1)):
            values = record(step, lift)
            (run / "eval").mkdir(exist_ok=True)
            save_json(run / "eval" / f"scores-{step:06d}.json", values)
            means = {
                f"eval/{n}/mean": sum(v) / 8 for n, v in {**values["rewards"], **values["guards"]}.items()
            }
            logger.log(means, step)
            if step:
                logger.log(
                    {"reward/quality/mean": 0.2 + step, "advantage/pair_gap": None, "loss/total": 1 / step},
                    step,
                )
                logger.log({"perf/rollout_seconds": 1.5, "own/thing": 4.0}, step)
            grid = torch.zeros(1, 3, 3, 16, 16)
            grid[:, step] = 1.0
            logger.log_images("held_out", grid, ("LR", "base", "tuned"), step)
    (run / "config.yaml").write_text("task: nft\nrun_name: <b>\n")
    save_json(
        run / "env.json",
        {"python": "3.11", "packages": {"torch": "2.13", "pyiqa": None}, "command": ["a", "b"]},
    )
    return run


class Page(HTMLParser):
    """Tags, attributes and text of a page; unbalanced tags are an error."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def test_rows_are_paired_and_judged_by_their_direction():
    rows = {row.name: row for row in compare_scores(record(0), record(9, 0.1))}
    assert list(rows) == ["quality", "fidelity", "psnr_y", "spectral_distance"]
    assert [row.kind for row in rows.values()] == ["reward", "reward", "guard", "guard"]
    quality = rows["quality"].paired
    assert quality.difference == pytest.approx(0.1) and quality.low == pytest.approx(0.1)
    verdicts = {name: row.paired.verdict for name, row in rows.items()}
    assert verdicts == {
        "quality": "improved",
        "fidelity": "not distinguishable",
        "psnr_y": "worse",
        "spectral_distance": "improved",
    }


def test_the_table_for_a_terminal():
    lines = format_table(compare_scores(record(0), record(9, 0.1))).splitlines()
    assert lines[0].split()[:4] == ["score", "kind", "n", "before"]
    assert lines[2].split() == [
        "quality",
        "reward",
        "8",
        "0.3350",
        "0.4350",
        "+0.1000",
        "[+0.1000,",
        "+0.1000]",
        "improved",
    ]
    assert "lower is better" in lines[-1]
    starts = {line.index(kind) for line, kind in zip(lines[2:], ["reward"] * 2 + ["guard"] * 2, strict=True)}
    assert len(starts) == 1


def test_a_small_change_keeps_its_digits():
    row = compare_scores(record(0), record(9, 0.000004))[0]
    assert row.cells()[5] == "+0.00000400"


def test_the_sentence_counts_rewards_and_names_guards_that_fell():
    text = summarise(compare_scores(record(0), record(9, 0.1)))
    assert text.startswith("1 of 2 rewards improved on 8 held-out images (quality 0.3350 to 0.4350")
    assert text.endswith("guards that got worse: psnr_y -0.300.")
    small = summarise(compare_scores(record(0), record(9, 0.000004)))
    assert "(quality 0.33500000 to 0.33500400" in small
    only_psnr = [row for row in compare_scores(record(9, 0.1), record(0)) if row.name != "spectral_distance"]
    assert summarise(only_psnr).endswith("; no guard got worse.")
    unknown = compare_scores(record(0, guards=False), record(9, 0.1, guards=False))
    assert "HR is unknown" in summarise(unknown)


def test_other_images_or_scores_cannot_be_compared():
    other = record(5)
    other["keys"] = ["x", *KEYS[1:]]
    with pytest.raises(ValueError, match="steps 0 and 5 are of different images"):
        compare_scores(record(0), other)
    fewer = record(5)
    del fewer["rewards"]["quality"]
    with pytest.raises(ValueError, match="rewards differ between steps 0 and 5: quality"):
        compare_scores(record(0), fewer)


def test_records_are_read_by_step_and_damage_is_named(run_dir):
    assert [r["step"] for r in read_scores(run_dir)] == [0, 1, 2]
    (run_dir / "eval" / "scores-000003.json").write_text('{"step": 3}')
    with pytest.raises(ValueError, match="scores-000003.json lacks guards, keys, rewards"):
        read_scores(run_dir)


def test_the_page_is_whole_and_loads_nothing_from_outside(run_dir):
    page = page_of(write_report(run_dir))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    style = page.texts[page.texts.index(next(t for t in page.texts if ":root" in t))]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style


def test_the_page_says_what_happened(run_dir):
    page = page_of(write_report(run_dir))
    assert "my <run>" in page.text and "After 2 steps: 1 of 2 rewards improved on 8" in page.text
    for heading in (
        "Before and after",
        "On the held-out images",
        "Rewards of the rollouts",
        "Losses",
        "Speed",
        "own",
    ):
        assert heading in page.text
    assert "+0.1000" in page.text and "not distinguishable" in page.text
    assert "run_name: <b>" in page.text and "2.13" in page.text and "not installed or unknown" in page.text
    charts = [a["aria-label"] for t, a in page.tags if t == "svg" and "aria-label" in a]
    assert any(label.startswith("quality: 0.335 at step 0, 0.435 at step 2") for label in charts)
    assert not any("pair_gap" in label for label in charts)  # logged as undefined only


def test_the_last_and_the_first_picture_are_in_the_page(run_dir):
    page = page_of(write_report(run_dir))
    sources = [a["src"] for t, a in page.tags if t == "img"]
    assert len(sources) == 2
    for source, step in zip(sources, (2, 0), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as image:
            pixels = image.convert("L")
        x = step * 20 + 8  # the white column of that step's grid
        assert pixels.getpixel((x, 30)) > 240
        assert all(pixels.getpixel((c * 20 + 8, 30)) < 15 for c in range(3) if c != step)


def test_finish_run_prints_the_table_and_replaces_the_report(run_dir, capsys):
    (run_dir / "report.html").write_text("old")
    path = finish_run(run_dir)
    assert path == run_dir / "report.html" and path.read_text().startswith("<!doctype html>")
    printed = capsys.readouterr().out
    assert "step 0 (base) against step 2" in printed and "quality" in printed and str(path) in printed
    assert [p.name for p in run_dir.iterdir() if "partial" in p.name] == []


def test_a_supervised_run_gets_first_and_last_evaluation(tmp_path, capsys):
    with MetricLogger(tmp_path, tensorboard=False) as logger:
        logger.log({"eval/psnr_y": 20.0}, 0)
        logger.log({"eval/psnr_y": 23.5, "loss/total": 0.5}, 10)
    page = page_of(finish_run(tmp_path))
    assert "After 10 steps: psnr_y 20.0000 to 23.5000." in page.text
    assert "+3.5000" in page.text
    assert "against step" not in capsys.readouterr().out


def test_a_run_that_has_hardly_begun(tmp_path):
    with MetricLogger(tmp_path, tensorboard=False) as logger:
        logger.log({"loss/total": 0.5}, 1)
    assert "no two evaluations to compare yet" in page_of(write_report(tmp_path)).text


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl does not exist"):
        write_report(tmp_path)


def test_one_held_out_image_has_no_interval(run_dir):
    for path in (run_dir / "eval").iterdir():
        values = json.loads(path.read_text())
        for section in ("rewards", "guards"):
            values[section] = {n: v[:1] for n, v in values[section].items()}
        save_json(path, {**values, "keys": KEYS[:1]})
    assert "needs 2 images" in page_of(write_report(run_dir)).text
