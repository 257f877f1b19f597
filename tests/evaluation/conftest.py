"""A small benchmark: five HR images, their LR versions, and two methods, one nearer to HR than the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lucidnft.evaluation.settings import EvaluationConfig, parse_evaluation
from lucidnft.images import save_image
from tests.small_dit4sr import one_thread

__all__ = ["one_thread"]

STEMS = ("a.1", "b", "c", "d", "e")


@pytest.fixture
def benchmark_folders(tmp_path: Path) -> dict[str, Path]:
    """Folders hr, lr, base and ours."""
    folders = {name: tmp_path / name for name in ("hr", "lr", "base", "ours")}
    for folder in folders.values():
        folder.mkdir()
    for index, stem in enumerate(STEMS):
        draw = torch.Generator().manual_seed(index)
        coarse = torch.rand((1, 3, 6, 8), generator=draw)
        hr = torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bilinear")[0]
        noise = torch.randn(hr.shape, generator=draw)
        save_image(folders["hr"] / f"{stem}.png", hr)
        save_image(folders["lr"] / f"{stem}.png", torch.nn.functional.avg_pool2d(hr, 4))
        save_image(folders["base"] / f"{stem}.png", (hr + 0.08 * noise).clamp(0, 1))
        save_image(folders["ours"] / f"{stem}.png", (hr + 0.02 * (index + 1) ** 0.5 * noise).clamp(0, 1))
    return folders


@pytest.fixture
def settings(benchmark_folders: dict[str, Path], tmp_path: Path) -> Any:
    """Settings of an evaluation of both methods; keyword arguments replace them."""

    def make(**changes: Any) -> EvaluationConfig:
        values = {
            "benchmark": "Five",
            "protocol": "full_image",
            "hr": str(benchmark_folders["hr"]),
            "lr": str(benchmark_folders["lr"]),
            "methods": {name: str(benchmark_folders[name]) for name in ("base", "ours")},
            "baseline": "base",
            "metrics": ["psnr", "ssim", "lr_fidelity"],
            "output_dir": str(tmp_path / "out"),
            "workers": 1,
            "device": "cpu",
        }
        return parse_evaluation({**values, **changes}, source="test")

    return make
