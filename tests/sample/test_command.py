"""The restoring command, end to end: a folder of everything, its exit status, and the same pixels every time."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lucidnft
from lucidnft.backbones.tiny import TinyBackboneConfig
from lucidnft.checkpoint import checkpoint_folder, save_tensors
from lucidnft.images import read_image
from lucidnft.inference import restore
from lucidnft.inference.checkpoints import POLICY_FORMAT
from lucidnft.policy import Role
from lucidnft.sample import setup
from lucidnft.sample.command import main
from tests.small_backbone import moved_policy, small_backbone

ROOT = Path(lucidnft.__file__).resolve().parents[1]


@pytest.fixture
def base(tmp_path):
    """Base weights of a few thousand parameters."""
    path = tmp_path / "base.safetensors"
    small_backbone().save_pretrained(path)
    return path


@pytest.fixture
def run_dir(tmp_path, base):
    """A run folder with one checkpoint, as training leaves it."""
    policy = moved_policy(small_backbone())
    section = TinyBackboneConfig(model_name_or_path=str(base), lora_rank=2, lora_alpha=4)
    header = {
        "format": POLICY_FORMAT,
        "backbone": section.model_dump(mode="json"),
        "base_fingerprint": policy.backbone.fingerprint,
        "step": 4,
        "config": {"seed": 0},
    }
    with checkpoint_folder(tmp_path / "run", 4) as folder:
        save_tensors(folder / "policy.safetensors", policy.state(Role.CURRENT), header)
    return tmp_path / "run"


def pixels(height, width, channels=3, seed=0):
    draw = np.random.default_rng(seed)
    return draw.integers(0, 256, (height, width, channels)).astype(np.uint8)


@pytest.fixture
def photos(tmp_path):
    """PNG, JPEG, 16-bit grey, alpha, one pixel, a dotted name, a text file; one truncated, one not an image."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    Image.fromarray(pixels(5, 7)).save(folder / "odd.png")
    Image.fromarray(pixels(6, 4)).save(folder / "holiday.2024.01.JPG")
    Image.fromarray((pixels(3, 4, 1)[..., 0].astype(np.uint16) << 8) + 7).save(folder / "deep.png")
    Image.fromarray(pixels(4, 3, 4)).save(folder / "alpha.webp", lossless=True)
    Image.fromarray(pixels(1, 1)).save(folder / "pixel.bmp")
    Image.fromarray(pixels(2, 2)).save(folder / "sub" / "deeper.png")
    Image.fromarray(pixels(60, 60)).save(folder / "cut.png")
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    (folder / "text.png").write_text("not a picture")
    (folder / "notes.txt").write_text("not meant to be a picture")
    return folder


def arguments(photos, out, checkpoint, *more):
    return ["--input", str(photos), "--output_dir", str(out), "--checkpoint", str(checkpoint), "--device", "cpu",
            "--num_inference_steps", "2", *more]  # fmt: skip


def outputs(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_the_command_restores_a_folder_of_everything(photos, run_dir, tmp_path):
    out = tmp_path / "restored"
    # A machine without the IQA extra: training needed it, restoring must not.
    code = "import sys, runpy; sys.modules['pyiqa'] = sys.modules['open_clip'] = None; sys.argv[:] = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [
        sys.executable,
        "-c",
        code,
        "sample.py",
        *arguments(photos, out, run_dir, "--recursive", "--upscale", "2.5"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 1, answer.stderr
    assert "6 restored, 0 skipped, 2 failed" in answer.stdout
    for name, reason in (("cut.png", "truncated"), ("text.png", "not PNG")):
        assert any(
            name in line and reason in line
            for line in answer.stderr.splitlines()
            if line.startswith("failed")
        )
    assert "8/8" in answer.stderr and "s/image" in answer.stderr
    sizes = {}
    for name in outputs(out):
        with Image.open(out / name) as image:
            sizes[name] = (image.height, image.width)
    assert sizes == {
        "odd.png": (12, 18),
        "holiday.2024.01.png": (15, 10),
        "deep.png": (8, 10),
        "alpha.png": (10, 8),
        "pixel.png": (2, 2),
        "sub/deeper.png": (5, 5),
    }
    deep, alpha = read_image(out / "deep.png"), read_image(out / "alpha.png")
    assert deep.was_grey and deep.bit_depth == 16 and alpha.alpha is not None
    assert sorted(p.name for p in out.iterdir()) == sorted(
        {n.split("/")[0] for n in sizes} | {"manifest.jsonl"}
    )  # nothing half-written


def test_pixels_are_those_of_restore_with_the_trained_policy(photos, run_dir, tmp_path):
    assert main(arguments(photos / "odd.png", tmp_path / "out", run_dir, "--seed", "3")) == 0
    lr = read_image(photos / "odd.png").rgb[None]
    expected = restore(
        moved_policy(small_backbone()), lr, upscale=4.0, seed=3, keys=["odd"], num_inference_steps=2
    )
    written = read_image(tmp_path / "out" / "odd.png").rgb[None]
    assert written.shape == (1, 3, 20, 28)
    torch.testing.assert_close(written, expected, atol=0.5 / 255 + 1e-6, rtol=0)


def test_pixels_depend_neither_on_the_folder_nor_on_its_order(photos, base, tmp_path):
    assert main(arguments(photos, tmp_path / "all", base)) == 1
    everything = outputs(tmp_path / "all")
    (photos / "aaa.png").write_bytes((photos / "deep.png").read_bytes())  # comes first now
    (photos / "alpha.webp").unlink()
    assert main(arguments(photos, tmp_path / "changed", base)) == 1
    for name in ("odd.png", "holiday.2024.01.png", "deep.png", "pixel.png"):
        assert outputs(tmp_path / "changed")[name] == everything[name]
    assert main(arguments(photos / "deep.png", tmp_path / "one", base)) == 0
    assert outputs(tmp_path / "one") == {"deep.png": everything["deep.png"]}
    assert outputs(tmp_path / "changed")["aaa.png"] != everything["deep.png"]  # the same image, other noise
    assert main(arguments(photos / "deep.png", tmp_path / "seeded", base, "--seed", "1")) == 0
    assert outputs(tmp_path / "seeded")["deep.png"] != everything["deep.png"]


def test_existing_outputs_are_skipped_only_when_asked_for(photos, base, tmp_path, capsys):
    out = tmp_path / "out"
    for name in ("cut.png", "text.png"):
        (photos / name).unlink()
    assert main(arguments(photos, out, base)) == 0
    first = outputs(out)
    (out / "odd.png").unlink()
    (out / "deep.png").write_bytes(b"mine")
    assert main(arguments(photos, out, base, "--skip_existing")) == 0
    assert "1 restored, 4 skipped, 0 failed" in capsys.readouterr().out
    assert outputs(out) == {**first, "deep.png": b"mine"}
    assert main(arguments(photos, out, base)) == 0
    assert outputs(out) == first


def test_options_reach_the_restoration(photos, base, tmp_path):
    plain = arguments(photos / "odd.png", tmp_path / "plain", base)
    assert main(plain) == 0
    for number, option in enumerate(
        (
            ["--align_method", "wavelet"],
            ["--solver", "heun"],
            ["--num_inference_steps", "3"],
            ["--fidelity", "0.5"],
            ["--tile_size", "16"],
            ["--process_size", "40"],
            ["--width", "27"],
        )
    ):
        out = tmp_path / str(number)
        assert main([*arguments(photos / "odd.png", out, base), *option]) == 0
        assert outputs(out) != outputs(tmp_path / "plain")


def test_what_cannot_start_ends_with_status_two_and_writes_nothing(photos, base, tmp_path, capsys):
    out = tmp_path / "out"
    Image.fromarray(pixels(2, 2)).save(photos / "odd.jpg")
    cases = [
        (arguments(photos, out, base), "odd.png <- "),
        (arguments(tmp_path / "nowhere", out, base), "nowhere does not exist"),
        (arguments(photos / "odd.png", photos, base), "would replace an input"),
        (arguments(photos / "odd.png", out, tmp_path / "no_run"), "checkpoint"),
        (arguments(photos / "odd.png", out, photos), "no checkpoint in"),
        ([*arguments(photos / "odd.png", out, base), "--device", "tpu"], "'--device tpu': expected auto"),
        (
            [
                *arguments(photos / "odd.png", out, base),
                "--align_to",
                "pre_restored",
                "--align_method",
                "adain",
            ],
            "has no pre-restorer",
        ),
        (
            [*arguments(photos / "odd.png", out, base), "--tile_size", "3"],
            "tile_size is 3, expected 8 or more",
        ),
        ([*arguments(photos / "odd.png", out, base), "--tile_overlap", "-5"], "tile_overlap is -5"),
    ]
    for argv, message in cases:
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("sample.py: ") and message in error
    assert not out.exists()


def test_the_size_is_that_asked_for_and_a_distortion_is_that_file_s_failure(photos, base, tmp_path, capsys):
    def sizes(out):
        return {name: Image.open(out / name).size for name in outputs(out)}

    for name in ("cut.png", "text.png", "pixel.bmp", "deep.png"):
        (photos / name).unlink()  # leaves 7 x 5, 4 x 6 and 3 x 4
    assert main(arguments(photos, tmp_path / "wide", base, "--width", "35")) == 0
    assert sizes(tmp_path / "wide") == {
        "alpha.png": (35, 47), "holiday.2024.01.png": (35, 52), "odd.png": (35, 25)}  # fmt: skip
    box = ["--width", "28", "--height", "20"]
    assert main(arguments(photos, tmp_path / "box", base, *box)) == 1
    assert sizes(tmp_path / "box") == {"odd.png": (28, 20)}
    assert "alpha.webp: 28x20 would distort an image of 3x4 px" in capsys.readouterr().err
    assert main(arguments(photos, tmp_path / "inside", base, *box, "--fit", "inside")) == 0
    assert sizes(tmp_path / "inside") == {
        "alpha.png": (15, 20), "holiday.2024.01.png": (13, 20), "odd.png": (28, 20)}  # fmt: skip


def test_other_tools_spellings_mean_the_same(photos, base, tmp_path):
    assert main(arguments(photos / "odd.png", tmp_path / "ours", base, "--align_method", "adain")) == 0
    for number, (read, write, steps, colours) in enumerate(
        (
            ("--input_image", "--output_dir", "--num_inference_steps", "--align_method"),
            ("--image_path", "--save_dir", "--steps", "--color_align"),
            ("--control_image", "--output", "--num_steps", "--colorfix_type"),
        )
    ):
        out = tmp_path / str(number)
        argv = [f"{read}={photos / 'odd.png'}", write, str(out), steps, "2", colours, "adain", "-s", "4"]
        assert main([*argv, "--checkpoint", str(base), "--device", "cpu"]) == 0
        assert outputs(out) == outputs(tmp_path / "ours")


def test_outputs_never_lie_among_other_files_of_the_command(photos, base, tmp_path, capsys):
    (photos / "sub").rename(photos / "maps")
    argv = [*arguments(photos, tmp_path / "out", base), "--recursive"]
    assert main([*argv, "--save_map"]) == 2
    assert "deeper.png would be written into" in capsys.readouterr().err
    assert main([*argv, "--keep_candidates", "--num_samples", "2", "--select_by", "lr_fidelity"]) == 1
    assert (tmp_path / "out" / "maps" / "deeper.png").is_file()


def test_outputs_that_differ_in_case_alone_need_a_disk_that_tells(
    photos, base, tmp_path, capsys, monkeypatch
):
    Image.fromarray(pixels(2, 2)).save(photos / "ODD.png")
    argv = arguments(photos, tmp_path / "out", base)
    with monkeypatch.context() as patch:
        patch.setattr("lucidnft.sample.setup.ignores_case", lambda folder: True)
        assert main(argv) == 2
    assert "does not tell upper from lower case" in capsys.readouterr().err
    assert main(argv) == 1 and (tmp_path / "out" / "ODD.png").is_file()


def test_an_unexpected_error_ends_the_run_with_a_report(photos, base, tmp_path, capsys, monkeypatch):
    real = setup.restore

    def broken(policy, lr, *, keys, **options):
        if keys != ["alpha"]:
            raise RuntimeError("mat1 and mat2")
        return real(policy, lr, keys=keys, **options)

    monkeypatch.setattr(setup, "restore", broken)
    assert main([*arguments(photos, tmp_path / "out", base), "--metrics", "lr_fidelity"]) == 1
    said = capsys.readouterr()
    assert "sample.py: stopped: RuntimeError: mat1 and mat2" in said.err and "Traceback" in said.err
    assert "1 restored, 0 skipped, 3 failed" in said.out and "scores: " in said.out


def test_nothing_that_befalls_the_checks_hides_what_was_restored(photos, base, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise MemoryError("42 GiB")

    monkeypatch.setattr("lucidnft.sample.checks.score_outputs", full)
    assert main([*arguments(photos / "odd.png", tmp_path / "out", base), "--metrics", "lr_fidelity"]) == 1
    said = capsys.readouterr()
    assert "1 restored" in said.out and "could not be looked at: MemoryError: 42 GiB" in said.err


def test_outputs_larger_than_strange_files_may_be_are_looked_at(photos, base, tmp_path, capsys, monkeypatch):
    """12 megapixels, four times as wide and high, are more than is read of a file that may be a trap."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # odd.png has 35, its output 560
    argv = [*arguments(photos / "odd.png", tmp_path / "out", base), "--metrics", "lr_fidelity", "--compare"]
    assert main(argv) == 0
    assert len((tmp_path / "out" / "metrics.csv").read_text().splitlines()) == 2
    assert len(list((tmp_path / "out" / "compare").iterdir())) == 2


def test_an_output_folder_that_cannot_be_written_ends_with_status_one(
    photos, base, tmp_path, capsys, monkeypatch
):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lucidnft.inference.folder.save_image", full)
    assert main(arguments(photos / "odd.png", tmp_path / "out", base)) == 1
    assert "No space left on device" in capsys.readouterr().err
