"""Eight megapixels in bounded memory: the process's own high-water mark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lucidnft

ROOT = Path(lucidnft.__file__).resolve().parents[1]
IMAGE_BYTES = 3 * 4 * 2048 * 4096  # one output in float32
SCRIPT = """
import json, resource, sys, time
import torch
from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.backbones.tiny_network import TinyArchitecture
from lucidnft.inference import restore

torch.set_num_threads(2)
tile_size = json.loads(sys.argv[1])
# as wide as the base that ships where maps are largest, which decides the memory, and several times faster
sizes = TinyArchitecture(widths=(32, 32, 32), num_blocks=(1, 1, 1), lr_width=64, num_lr_blocks=1)
backbone = TinyBackbone.initialise(sizes)
restore(backbone, torch.rand(1, 3, 64, 64), num_inference_steps=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
lr = torch.rand(1, 3, 64, 64).repeat(1, 1, 8, 16)
sr = restore(backbone, lr, tile_size=tile_size, batch_size=1, num_inference_steps=1, align_method="wavelet")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"size": list(sr.shape), "bytes": 1024 * (after - before), "seconds": time.perf_counter() - started}))
"""


def peak(tile_size: int | None) -> dict[str, object]:
    """Restore a 512 x 1024 LR image in a process of its own; what it took beyond a small image."""
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(tile_size)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(answer.stdout)


@pytest.mark.slow
def test_eight_megapixels_in_tiles_take_a_few_times_the_output():
    measured = peak(512)
    assert measured["size"] == [1, 3, 2048, 4096]
    assert measured["bytes"] < 14 * IMAGE_BYTES, measured
