"""Photographs for reward tests: the ones inside scikit-image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lucidnft.data.bundled import photograph_paths
from lucidnft.images import read_image


def photograph(name: str, top: int, left: int, size: int = 192) -> Tensor:
    return read_image(photograph_paths([name])[0]).rgb[:, top : top + size, left : left + size]


@pytest.fixture(scope="session")
def photographs() -> Tensor:
    """(4, 3, 192, 192): a face, a cat, a cup, a rocket."""
    return torch.stack(
        [
            photograph("astronaut.png", 20, 130),
            photograph("chelsea.png", 40, 120),
            photograph("coffee.png", 100, 200),
            photograph("rocket.jpg", 60, 220),
        ]
    )


@pytest.fixture(scope="session")
def invisible_patterns() -> dict[str, Tensor]:
    """{name: (192, 192)} of -1 and 1, repeating every 2 or 4 pixels: what a pixel shuffle may leave."""
    rows, columns = torch.meshgrid(torch.arange(192), torch.arange(192), indexing="ij")
    fields = {
        "rows": rows,
        "columns": columns,
        "chequer": rows + columns,
        "chequer of 2 x 2": rows // 2 + columns // 2,
    }
    return {name: 1.0 - 2.0 * (field % 2) for name, field in fields.items()}
