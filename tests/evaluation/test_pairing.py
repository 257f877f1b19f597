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


def test_one_missing_reference_blocks_only_the_metrics_that_need_it(settings, benchmark_folders):
    (benchmark_folders["lr"] / "b.png").unlink()
    (benchmark_folders["hr"] / "c.png").unlink()
    (benchmark_folders["hr"] / "d.webp").write_bytes(b"")
    (benchmark_folders["lr"] / "e.png").unlink()
    (benchmark_folders["lr"] / "e.png").symlink_to("nowhere.png")
    result = evaluate(settings(metrics=["psnr", "lr_fidelity", "piqe"]), progress=False)
    scored = {name: set(values) for name, values in result.scores["ours"].items()}
    assert scored["piqe"] == set(STEMS)
    assert scored["psnr"] == {"a.1", "b", "e"} and scored["lr_fidelity"] == {"a.1", "c", "d"}
    reasons = {(p.stem, p.metrics): p.reason for p in result.problems if p.method == "ours"}
    assert reasons.keys() == {
        ("b", ("lr_fidelity",)),
        ("c", ("psnr",)),
        ("d", ("psnr",)),
        ("e", ("lr_fidelity",)),
    }
    assert reasons["b", ("lr_fidelity",)] == f"no LR image of this stem in {benchmark_folders['lr']}"
    assert "the LR file 'e.png' cannot be read" in reasons["e", ("lr_fidelity",)]
    assert not evaluate(settings(metrics=["piqe"]), progress=False).problems


def test_a_side_of_other_names_blocks_only_the_metrics_that_need_it(settings, benchmark_folders):
    for number, stem in enumerate(STEMS):
        new = f"{stem}_x4" if number < 2 else f"{number}_x4"  # too few for advice
        (benchmark_folders["lr"] / f"{stem}.png").rename(benchmark_folders["lr"] / f"{new}.png")
    result = evaluate(settings(metrics=["psnr", "lr_fidelity"]), progress=False)
    assert len(result.scores["ours"]["psnr"]) == 5 and not result.scores["ours"]["lr_fidelity"]
    assert {p.metrics for p in result.problems} == {("lr_fidelity",)} and len(result.problems) == 10
    for stem in STEMS[:2]:
        (benchmark_folders["lr"] / f"{stem}_x4.png").rename(benchmark_folders["lr"] / f"{stem}9_x4.png")
    run = {"methods": {}, "baseline": None, "run": {"tiny": {"num_inference_steps": 1}}, "lr_suffix": "_x4"}
    restored = evaluate(settings(metrics=["psnr", "lr_fidelity"], **run), progress=False)
    assert len(restored.scores["tiny"]["lr_fidelity"]) == 5 and not restored.scores["tiny"]["psnr"]
    assert len([p for p in restored.problems if p.metrics == ("psnr",)]) == 5


@pytest.mark.parametrize(("of_hr", "of_lr"), [("", "x4"), ("_HR", "_LR4"), ("_x2", "_x4"), ("_HR", "")])
def test_lr_and_hr_of_other_names_belong_together_by_their_suffixes(
    of_hr, of_lr, settings, benchmark_folders
):
    names = ["psnr", "lr_fidelity"]
    before = evaluate(settings(metrics=names), progress=False)
    _suffixed(benchmark_folders["hr"], of_hr)
    _suffixed(benchmark_folders["lr"], of_lr)
    given = {f"{side}_suffix": end for side, end in (("hr", of_hr), ("lr", of_lr)) if end}
    advised = " ".join(f"{name}={end}" for name, end in given.items())
    with pytest.raises(ValueError, match=f"no LR image in .* but 5 of 5 have .*: give {advised} \\(--"):
        evaluate(settings(metrics=names), progress=False)
    with pytest.raises(ValueError, match=f"ends in '_wrong', as lr_suffix says; of LR and HR.*{of_lr}"):
        evaluate(settings(metrics=names, lr_suffix="_wrong"), progress=False)
    result = evaluate(settings(metrics=names, **given), progress=False)
    assert result.scores == before.scores and result.complete and result.num_computed == 0
    _suffixed(benchmark_folders["ours"], "_out")
    with pytest.raises(
        ValueError, match=r"5 of 5 have '_out' .*: give sr_suffix\.ours=_out \(--sr_suffix=_out"
    ):
        evaluate(settings(metrics=names, **given), progress=False)
    assert not evaluate(
        settings(
            metrics=["psnr"],
            methods={"base": str(benchmark_folders["base"])},
            **{name: end for name, end in given.items() if name == "hr_suffix"},
        ),
        progress=False,
    ).problems  # names of LR images do not matter to PSNR


def test_lr_and_hr_in_one_folder_are_told_apart_and_only_lr_is_restored(settings, benchmark_folders):
    hr, lr = benchmark_folders["hr"], benchmark_folders["lr"]
    _suffixed(hr, "_HR")
    for stem in STEMS:
        (lr / f"{stem}.png").rename(hr / f"{stem}_LR4.png")
    run = {"tiny": {"num_inference_steps": 1}}
    both = {"lr": str(hr), "hr": str(hr), "methods": {}, "run": run, "baseline": None, "metrics": ["psnr"]}
    with pytest.raises(ValueError, match="the same files; give lr_suffix and hr_suffix"):
        settings(**both)
    result = evaluate(settings(**both, lr_suffix="_LR4", hr_suffix="_HR"), progress=False)
    assert set(result.scores["tiny"]["psnr"]) == set(STEMS) and result.complete
    restored = {path.name for path in Path(result.folders["tiny"]).iterdir()}
    assert restored == {f"{stem}_LR4.png" for stem in STEMS}
    assert f"5 images in {hr} do not end in lr_suffix '_LR4' and were left out" in result.notes[1]


def test_what_was_restored_is_paired_by_the_names_of_lr_and_failures_are_named_by_stem(
    settings, benchmark_folders
):
    _suffixed(benchmark_folders["lr"], "x4")
    (benchmark_folders["lr"] / "bx4.png").write_bytes(b"not a picture")
    changes = {
        "run": {"tiny": {"num_inference_steps": 1}},
        "methods": {},
        "baseline": None,
        "metrics": ["psnr"],
    }
    with pytest.raises(ValueError, match=r"5 of 5 have 'x4' behind the stem: give lr_suffix=x4"):
        evaluate(settings(**changes), progress=False)
    assert not (benchmark_folders["lr"].parent / "out" / "restored").exists()
    result = evaluate(settings(**changes, lr_suffix="x4"), progress=False)
    assert set(result.scores["tiny"]["psnr"]) == set(STEMS) - {"b"}
    (problem,) = result.problems
    assert problem.stem == "b" and problem.reason.startswith("could not be restored")


def test_a_suffix_that_no_file_has_is_told_without_a_benchmark_too(settings):
    with pytest.raises(ValueError, match="with sr_suffix '_x'; it has a.1, b"):
        evaluate(settings(hr=None, lr=None, metrics=["piqe"], sr_suffix={"ours": "_x"}), progress=False)
