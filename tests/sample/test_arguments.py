"""The command line: its help, other tools' spellings, and what it refuses at once."""

import subprocess
import sys
from pathlib import Path

import pytest

import lucidnft
from lucidnft.flow.solvers import ODE_SOLVERS
from lucidnft.inference.color_fix import COLOR_FIXES
from lucidnft.sample import arguments as sample_arguments
from lucidnft.sample.command import main

ROOT = Path(lucidnft.__file__).resolve().parents[1]


def test_help_is_quick_and_loads_no_heavy_package():
    code = (
        "import sys, runpy; sys.argv = ['sample.py', '--help']\n"
        "try:\n    runpy.run_path('sample.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'pyiqa', 'open_clip', 'peft', 'accelerate'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in answer.stdout
    assert "--align_method" in answer.stdout


@pytest.mark.parametrize(
    "option",
    [
        ["--upscale", "0"],
        ["--upscale", "nan"],
        ["--num_inference_steps", "0"],
        ["--solver", "rk4"],
        ["--sede", "1"],
        ["--fidelity", "1.5"],
        ["--tile_size", "0"],
        ["--latent_tiled_size", "96"],
        ["--fit", "inside"],
    ],
)
def test_mistyped_options_end_with_status_two(option, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--input", str(tmp_path), "--output_dir", str(tmp_path / "out"), *option])
    assert end.value.code == 2
    assert option[0] in capsys.readouterr().err


def test_flags_that_mean_something_else_elsewhere_say_what_to_give_here(capsys):
    for flag, hint in sample_arguments.OTHER_MEANINGS.items():
        with pytest.raises(SystemExit):
            sample_arguments.parse_args(["-i", "a", "-o", "b", flag, "8"])
        assert f"{flag} {hint}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sample_arguments.parse_args(["-i", "a", "-o", "b", "--width", "8", "--upscale", "2"])
    assert "give one of them" in capsys.readouterr().err


def test_the_help_is_grouped_and_fits_two_screens(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = sample_arguments.build_parser().format_help()
    for group in ("files:", "model:", "size:", "look:", "choose and check:", "memory and speed:"):
        assert f"\n{group}\n" in text
    assert len(text.splitlines()) <= 80
    assert not any(alias in text for alias in ("--input_image", "--control_image", "--num_steps"))


def test_choices_are_those_of_the_library():
    source = Path(sample_arguments.__file__).read_text()
    for names in (ODE_SOLVERS, COLOR_FIXES):
        line = next(text for text in source.splitlines() if "choices=" in text and next(iter(names)) in text)
        offered = {word.strip(' "') for word in line.split("choices=(")[1].split(")")[0].split(",")}
        assert offered == set(names)
