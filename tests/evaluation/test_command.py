"""The command: files it writes, exit status, and messages for mistakes."""

from __future__ import annotations

import csv
import json
import re

import pytest

from lucidnft.evaluation.__main__ import main, method_name
from tests.evaluation.conftest import STEMS


def test_a_folder_is_scored_into_the_promised_columns(benchmark_folders, tmp_path, capsys):
    flags = [f"--{name}={benchmark_folders[folder]}" for name, folder in (("sr", "ours"), ("hr", "hr"))]
    output = tmp_path / "out"
    arguments = [
        *flags,
        "--metrics=psnr,ssim",
        "--protocol=stablesr_crop",
        f"--output={output}",
        "--workers=1",
    ]
    assert main(arguments) == 0
    rows = list(csv.DictReader((output / "scores.csv").open(newline="")))
    assert list(rows[0]) == ["stem", "metric", "value"]
    assert [(row["stem"], row["metric"]) for row in rows] == [(s, m) for s in STEMS for m in ("psnr", "ssim")]
    assert {path.name for path in output.iterdir()} == {
        "cache.jsonl", "report.html", "scores.csv", "scores.json", "tables.md", "tables.tex",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "note: 5 of 5 HR images are not 512x512 pixels" in printed and re.search(r"ours +5 ", printed)
    (benchmark_folders["ours"] / "b.png").unlink()
    for stem in STEMS:
        if stem != "b":
            (benchmark_folders["ours"] / f"{stem}.png").rename(benchmark_folders["ours"] / f"{stem}_x4.png")
    assert main(arguments) == 2
    assert "--sr_suffix=_x4 without a config" in capsys.readouterr().err
    assert main([*arguments, "--sr_suffix", "_x4"]) == 1
    assert "ours/b: no restored image of this stem" in capsys.readouterr().err


def test_a_config_restores_first_and_compares(settings, benchmark_folders, tmp_path):
    for stem in STEMS[2:]:
        for folder in benchmark_folders.values():
            (folder / f"{stem}.png").unlink()
    config = settings(metrics=["lr_fidelity"]).model_dump(mode="json", exclude={"rewards"})
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(config))
    override = "run={tiny: {checkpoint: base, upscale: 4, num_inference_steps: 1}}"
    assert main([str(path), override, "baseline=tiny"]) == 0
    record = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert list(record["methods"]) == ["tiny", "base", "ours"]
    (folder,) = (tmp_path / "out" / "restored").iterdir()
    assert folder.name.startswith("tiny-") and record["methods"]["tiny"]["folder"] == str(folder)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert len(before) == 2
    assert main([str(path), override, "baseline=tiny"]) == 0
    assert before == {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert main([str(path), override.replace("upscale: 4", "upscale: 4, seed: 1"), "baseline=tiny"]) == 0
    assert len(list((tmp_path / "out" / "restored").iterdir())) == 2  # another setting, another folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sr=x"], "--output missing"),
        (["--sr=nowhere", "--output=out", "--metrics=psnr"], "not a folder: methods.nowhere"),
        (["mine.yaml"], "mine.yaml does not exist"),
        (["mine.yaml", "--sr=x"], "write methods=... behind mine.yaml"),
        (["--sr=.", "--output=out", "--metrics=psnr", "--protocol=table"], "'table' is unknown"),
        (["--sr=.", "--output=out", "--metrics=psn"], "'psn' is unknown; did you mean psnr"),
        (["--sr=.", "--output=out", "--metrics=piqe", "--device=tpu"], "expected auto, cpu, cuda"),
    ],
)
def test_mistakes_end_the_command_before_anything_is_scored(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_names_its_method():
    assert [method_name(name) for name in ("ours", "a/b?", "...", "x y.")] == ["ours", "a_b_", "sr", "x y"]
