"""--metrics: the numbers of the evaluation for the saved files, once each, and nothing missing without a word."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lucidnft.evaluation.__main__ import main as evaluate
from lucidnft.images import read_image, save_image
from lucidnft.rewards import build_reward
from lucidnft.sample import scores as module
from lucidnft.sample.scores import (
    check_metrics,
    name_pairs,
    parse_metrics,
    score_outputs,
    write_scores_csv,
)

NAMES = ("lucid_consistency", "lr_fidelity", "piqe")


@pytest.fixture
def pairs(tmp_path):
    """Three inputs and outputs: a plain one, a 16-bit one in a sub-folder, one whose input lies on its side."""
    found = []
    for index, name in enumerate(("a.1", "sub/b", "turned")):
        draw = torch.Generator().manual_seed(index)
        coarse = torch.rand((1, 3, 5, 6), generator=draw)
        sr = torch.nn.functional.interpolate(coarse, size=(40, 48), mode="bilinear")[0]
        lr = torch.nn.functional.avg_pool2d(sr, 4)
        source, output = tmp_path / "in" / f"{name}.png", tmp_path / "out" / f"{name}.png"
        for path in (source, output):
            path.parent.mkdir(parents=True, exist_ok=True)
        if name == "turned":
            exif = Image.Exif()
            exif[274] = 6
            sideways = np.rot90((lr.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
            Image.fromarray(np.ascontiguousarray(sideways)).save(source, exif=exif)
        else:
            save_image(source, lr)
        save_image(output, sr, bit_depth=16 if index == 1 else 8)
        found.append((source, output))
    return name_pairs(found, tmp_path / "out")


def score(pairs, tmp_path, names=NAMES, **options):
    options = {"progress": False, **options}
    return score_outputs(pairs, names, cache=tmp_path / "kept.jsonl", **options)


def test_values_are_those_of_the_evaluation_and_of_the_rewards(pairs, tmp_path):
    result = score(pairs, tmp_path)
    assert [(row["stem"], row["metric"]) for row in result.rows] == [
        (stem, name) for stem in ("a.1", "sub/b", "turned") for name in NAMES
    ]
    values = {(row["stem"], row["metric"]): row["value"] for row in result.rows}
    for stem, source, output in (pairs[0], pairs[2]):
        sr, lr = read_image(output).rgb[None], read_image(source).rgb[None]
        for name in ("lucid_consistency", "lr_fidelity"):
            assert values[stem, name] == pytest.approx(float(build_reward(name)(sr, lr=lr)), rel=1e-5)
        assert values[stem, "piqe"] == pytest.approx(-float(build_reward("piqe")(sr)), rel=1e-5)
    write_scores_csv(tmp_path / "scores.csv", result.rows)
    flags = ["--sr", "out", "--lr", "in", "--metrics", ",".join(NAMES), "--output", "evaluation"]
    argv = [str(tmp_path / word) if word in ("out", "in", "evaluation") else word for word in flags]
    assert evaluate([*argv, "--workers", "1", "--device", "cpu"]) == 0  # which does not look into sub-folders
    with (
        (tmp_path / "evaluation/scores.csv").open(newline="") as other,
        (tmp_path / "scores.csv").open() as own,
    ):
        theirs, ours = list(csv.DictReader(other)), list(csv.DictReader(own))
    assert list(theirs[0]) == list(ours[0]) == ["stem", "metric", "value"]
    assert theirs == [row for row in ours if row["stem"] != "sub/b"]


def test_only_what_changed_is_computed_again(pairs, tmp_path):
    first = score(pairs, tmp_path)
    assert first.num_computed == 9
    again = score(pairs, tmp_path)
    assert again.num_computed == 0 and again.rows == first.rows
    assert score(pairs, tmp_path, [*NAMES, "quality_net"]).num_computed == 3
    _, source, output = pairs[0]
    save_image(output, read_image(output).rgb * 0.9)
    changed = score(pairs, tmp_path)
    assert changed.num_computed == 3 and changed.rows[3:] == first.rows[3:]
    assert changed.rows[1]["value"] < first.rows[1]["value"]
    save_image(source, read_image(source).rgb * 0.9)
    assert score(pairs, tmp_path).num_computed == 2  # piqe does not look at it


def test_what_was_scored_before_a_kill_is_kept(pairs, tmp_path, monkeypatch):
    real, seen = module.Scorer.score, []

    def killed(scorer, jobs):
        for done in real(scorer, jobs):
            if seen:
                raise KeyboardInterrupt
            seen.append(done)
            yield done

    monkeypatch.setattr(module.Scorer, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        score(pairs, tmp_path)
    monkeypatch.undo()
    assert score(pairs, tmp_path).num_computed == 6


def test_files_without_a_score_are_named_and_the_rest_goes_on(pairs, tmp_path):
    pairs[0][2].write_bytes(b"broken")
    pairs[1][2].unlink()
    pairs[2][1].write_bytes(b"broken")
    result = score(pairs, tmp_path)
    assert [(row["stem"], row["metric"]) for row in result.rows] == [("turned", "piqe")]
    lines = result.missing_lines()
    assert len(lines) == 3
    assert lines[0].startswith("a.1: the SR file 'a.1.png' cannot be read")
    assert lines[1].startswith("sub/b: ") and "'b.png' cannot be read: No such file" in lines[1]
    assert lines[2].startswith("turned [lucid_consistency, lr_fidelity]: the LR file 'turned.png' cannot")


def test_a_metric_without_weights_is_reported_and_the_rest_goes_on(pairs, tmp_path, monkeypatch):
    def unreachable(metric, **options):
        url, cached_file = "https://hub/musiq.pth", "/cache/musiq.pth"
        raise OSError(f"no route to {url and cached_file}")

    monkeypatch.setattr("pyiqa.create_metric", unreachable)
    missing = check_metrics(["musiq", "lr_fidelity"])
    assert [metric.name for metric in missing] == ["musiq"]
    result = score(pairs, tmp_path, ["musiq", "lr_fidelity"])
    assert {row["metric"] for row in result.rows} == {"lr_fidelity"} == set(result.lower_is_better)
    (line,) = result.missing_lines()
    assert line.startswith("musiq: not available: ") and "https://hub/musiq.pth as /cache/musiq.pth" in line
    assert score(pairs, tmp_path, ["musiq"]).rows == []


def test_without_pyiqa_its_metrics_are_not_available_and_our_own_are(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    names = parse_metrics("musiq,quality_net")
    (missing,) = check_metrics(names)
    assert missing.name == "musiq" and "lucidnft[iqa]" in missing.line()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("musiqq", "did you mean musiq?"),
        ("qualty_net", "did you mean quality_net?"),
        ("musiq,", "a name is missing"),
        ("musiq,piqe,musiq", "musiq stands twice"),
        ("external", "rewards: in a config of python -m lucidnft.evaluation"),
    ],
)
def test_names_that_mean_nothing_are_refused(text, words):
    with pytest.raises(ValueError, match="^metrics: ") as caught:
        parse_metrics(text)
    assert words in str(caught.value)


def test_metrics_that_need_a_reference_are_refused_before_anything_is_restored():
    assert parse_metrics("psnr, lr_fidelity") == ("psnr", "lr_fidelity")
    with pytest.raises(ValueError, match="'psnr' needs hr, and restoring has the input image alone"):
        check_metrics(["psnr", "lr_fidelity"])


def test_names_are_unique_and_fit_on_a_line(tmp_path):
    places = ["cat.1.png", "sub/cat.1.png", "dog.png", "dog.jpg", "new\nline.png", r"new\nline.png"]
    named = name_pairs([(tmp_path / "in", tmp_path / place) for place in places], tmp_path)
    assert [name for name, _, _ in named] == [
        "cat.1",
        "sub/cat.1",
        "dog.png",
        "dog.jpg",
        r"new\nline",
        r"new\nline (2)",
    ]
    with pytest.raises(ValueError, match="stand for several outputs, e.g. 'dog'"):
        score([("dog", tmp_path, tmp_path), ("dog", tmp_path, tmp_path / "b")], tmp_path)


def test_the_summary_has_direction_number_mean_and_interval(pairs, tmp_path):
    result = score(pairs, tmp_path)
    head, *lines = (line.split() for line in result.summary_lines())
    assert head == ["metric", "better", "n", "mean", "95", "%", "interval"]
    for name, line in zip(NAMES, lines, strict=True):
        mean = sum(row["value"] for row in result.rows if row["metric"] == name) / 3
        assert line[:3] == [name, "lower" if name == "piqe" else "higher", "3"]
        assert float(line[3]) == pytest.approx(mean, abs=0.006)
        assert float(line[4].strip("[,")) <= mean + 0.006 and float(line[5].strip("]")) >= mean - 0.006
    alone = score(pairs[:1], tmp_path, ["lr_fidelity"])
    assert alone.summary_lines()[1].endswith("needs 2 images")
