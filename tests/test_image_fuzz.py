"""Mutated image files, for a minute: each gives an image or a refusal, in bounded time and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lucidnft
from tests import fuzz_images
from tests.hostile_bytes import chunk, png
from tests.hostile_pictures import RGB, encoded


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path):
    root = Path(lucidnft.__file__).resolve().parents[1]
    command = [sys.executable, "-m", "tests.fuzz_images", str(tmp_path), "0", "60"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    answer = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr[-2000:]
    assert " 0 bad" in answer.stdout and int(answer.stdout.split()[0]) > 500


def test_a_reader_that_fails_is_noticed(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB, "PNG"))
    whole = fuzz_images.read_image(path)
    assert fuzz_images.wrong(path, whole) == ""
    path.write_bytes(encoded(255 - RGB, "PNG"))
    assert "another picture" in fuzz_images.wrong(path, whole)
    monkeypatch.setattr(fuzz_images, "SECONDS_EACH", -1.0)
    assert "took" in fuzz_images.wrong(path, None)
    monkeypatch.undo()
    monkeypatch.setattr(fuzz_images, "read_image", lambda path: 1 / 0)
    assert "ZeroDivisionError" in fuzz_images.wrong(path, None)


def test_mutations_change_files_and_checksums_follow():
    content = png(RGB, 2, extra=chunk(b"gAMA", b"\0\0\0\1"))
    draw = np.random.default_rng(0)
    changed = [fuzz_images.mutated(content, [content[::-1]], draw)[0] for _ in range(200)]
    assert sum(data != content for data in changed) > 190
    data = bytearray(content)
    data[20] ^= 1
    assert fuzz_images.zlib.crc32(data[12:29]).to_bytes(4, "big") != data[29:33]
    fuzz_images._fix_checksums(data)
    assert fuzz_images.zlib.crc32(data[12:29]).to_bytes(4, "big") == data[29:33]
