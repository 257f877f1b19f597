"""Every hostile file is restored correctly or refused with its reason: by the reader, and by the command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lucidnft
from lucidnft.images import LoadedImage, UnreadableImageError, list_images, read_image, read_size
from tests.hostile_files import hostile_files
from tests.hostile_pictures import Hostile
from tests.small_backbone import small_backbone

ROOT = Path(lucidnft.__file__).resolve().parents[1]
ENTRIES = hostile_files()


def integers(image: LoadedImage) -> np.ndarray:
    """What was read as (H, W, channels) integers of the file's depth, grey in one channel."""
    planes = [image.rgb[:1] if image.was_grey else image.rgb]
    planes += [] if image.alpha is None else [image.alpha]
    scaled = torch.cat(planes).double().mul(2**image.bit_depth - 1)
    assert (scaled - scaled.round()).abs().max() < 0.01
    return scaled.round().long().permute(1, 2, 0).numpy()


def test_there_are_enough_of_them():
    assert len(ENTRIES) >= 60
    assert sum(entry.pixels is None for entry in ENTRIES) >= 30
    assert sum(entry.pixels is not None for entry in ENTRIES) >= 30


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: re.sub(r"\W", "_", entry.name)[:40])
def test_the_reader_restores_or_refuses(tmp_path: Path, entry: Hostile):
    path = tmp_path / entry.name
    entry.write(path)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about metadata
        if entry.pixels is None:
            with pytest.raises(UnreadableImageError) as caught:
                read_image(path)
            assert re.search(entry.reason, caught.value.reason), caught.value.reason
            assert str(path) in str(caught.value) and entry.reason
        else:
            image = read_image(path)
            found = integers(image)
            assert image.bit_depth == 8 * entry.pixels.itemsize
            assert found.shape == entry.pixels.shape
            assert np.abs(found - entry.pixels).max() <= entry.tolerance
            assert re.search(entry.problems or "^$", " ".join(image.metadata.problems))
            assert sorted(read_size(path)) == sorted(found.shape[:2])
    assert time.perf_counter() - started < 5
    assert [found.name for found in list_images(tmp_path)] == [entry.name]


def test_the_command_restores_or_reports_each_of_them(tmp_path: Path):
    folder, out, base = tmp_path / "in", tmp_path / "out", tmp_path / "base.safetensors"
    folder.mkdir()
    (folder / "folder.png").mkdir()
    (folder / "round").symlink_to(folder)
    for entry in ENTRIES:
        entry.write(folder / entry.name)
    small_backbone().save_pretrained(base)
    code = """
        import re, sys
        from lucidnft.sample.command import main
        status = main(sys.argv[1:])
        with open("/proc/self/status") as file:
            print("PEAK", re.search(r"VmHWM:\\s*(\\d+) kB", file.read())[1])
        sys.exit(status)
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), "--input", str(folder), "--output_dir",
               str(out), "--checkpoint", str(base), "--device", "cpu", "--num_inference_steps", "1", "--upscale", "2",
               "--recursive", "--tile_size", "none"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        command, capture_output=True, text=True, errors="replace", env=environment, timeout=300, check=False
    )
    assert answer.returncode == 1, answer.stderr
    restored = [entry for entry in ENTRIES if entry.pixels is not None]
    refused = [entry for entry in ENTRIES if entry.pixels is None]
    assert f"{len(restored)} restored, 0 skipped, {len(refused)} failed" in answer.stdout
    for entry in refused:
        (line,) = (
            line for line in answer.stderr.splitlines() if line.startswith(f"failed: {folder / entry.name}: ")
        )
        assert re.search(entry.reason, line)
    assert answer.stderr.count("failed: ") == len(refused)
    for entry in restored:
        with Image.open(out / f"{entry.name.rpartition('.')[0]}.png") as image:
            assert (image.height, image.width) == tuple(2 * side for side in entry.pixels.shape[:2])
    assert len(list(out.rglob("*.png"))) == len(restored) and not list(out.rglob("*.tmp"))
    assert int(re.search(r"PEAK (\d+)", answer.stdout)[1]) < 1_500_000  # kilobytes, most of them torch
