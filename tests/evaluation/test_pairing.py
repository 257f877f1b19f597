"""Which files belong together, whatever their names are made of."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lucidnft.evaluation.evaluator import evaluate
from lucidnft.evaluation.pairing import pair_method, printable
from tests.evaluation.conftest import STEMS


def test_names_that_are_no_text_are_paired_and_printed(tmp_path):
    names = [b"caf\xe9.png", b"new\nline.png", "\u65e5\u672c.png".encode()]
    for side in ("sr", "hr"):
        (tmp_path / side).mkdir()
        for name in names:
            (tmp_path / side / os.fsdecode(name)).write_bytes(b"")
    pairs = pair_method("ours", tmp_path / "sr", {"hr": tmp_path / "hr"})
    assert sorted(case.stem for case in pairs.cases) == ["caf\\xe9", "new\\nline", "\u65e5\u672c"]
    assert not pairs.problems
    json.dumps([case.stem.encode().decode() for case in pairs.cases])
    assert printable("a b") == "a b"


def _suffixed(folder: Path, suffix: str, stems: tuple[str, ...] = STEMS) -> None:
    for stem in stems:
        (folder / f"{stem}.png").rename(folder / f"{stem}{suffix}.png")


def test_a_suffix_of_restored_files_is_taken_off_and_files_without_it_are_left_out(
    settings, benchmark_folders
):
    before = evaluate(settings(metrics=["psnr"]), progress=False)
    _suffixed(benchmark_folders["ours"], "_result")
    (benchmark_folders["ours"] / "b_input.png").write_bytes(b"a preview, no result")
    result = evaluate(settings(metrics=["psnr"], sr_suffix={"ours": "_result"}), progress=False)
    assert result.scores == before.scores and result.complete
    assert result.notes == [
        "1 images in the folder of ours do not end in '_result' and were left out (b_input)."
    ]
    _suffixed(benchmark_folders["base"], "_x4", STEMS[:2])
    result = evaluate(settings(metrics=["psnr"], sr_suffix={"ours": "_result"}), progress=False)
    assert [p.stem for p in result.problems] == ["a.1", "a.1_x4", "b", "b_x4"]  # too few to be a rule


@pytest.mark.parametrize(
    ("suffix", "given", "message"),
    [
        ("_out", None, r"but 5 of 5 have '_out' behind the stem: give sr_suffix\.ours=_out"),
        ("_out", "_result", r"with sr_suffix '_result', but 5 of 5 have '_out'"),
        ("", "_result", "with sr_suffix '_result', but 5 of 5 have no suffix: leave sr_suffix out"),
    ],
)
def test_a_wrong_or_missing_suffix_is_told_before_scoring(
    suffix, given, message, settings, benchmark_folders
):
    _suffixed(benchmark_folders["ours"], suffix)
    with pytest.raises(ValueError, match=message):
        evaluate(settings(sr_suffix={} if given is None else {"ours": given}), progress=False)
    (benchmark_folders["ours"] / f"{STEMS[0]}{suffix}.png").rename(benchmark_folders["ours"] / "zz.png")
    for stem in STEMS[1:]:
        (benchmark_folders["ours"] / f"{stem}{suffix}.png").unlink()
    if given:
        with pytest.raises(ValueError, match="belongs to the benchmark with sr_suffix '_result'; it has zz"):
            evaluate(settings(sr_suffix={"ours": given}), progress=False)
    else:
        assert len(evaluate(settings(metrics=["psnr"]), progress=False).problems) == 6
