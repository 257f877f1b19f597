"""Tiles that fit into memory: their size before the work, and what to do when it was too large after all."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from lucidnft.inference.tiling import TileLayout

TileSize = int | Literal["auto"] | None

AUTO_TILE_SIZES = (4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256)
"""Tile sizes that "auto" chooses from: few, so that a little more or less free memory gives the same pixels."""

SMALLEST_TILE = 128
"""Pixels a side below which tiles are not halved: networks see too little of an image in them."""

SHARE_OF_FREE = 0.7
CPU_BYTES_PER_PIXEL = 4096
"""Taken per output pixel on the CPU, where nothing counts allocations: the tiny backbone needs about a tenth, an
autoencoder of FLUX's size in float32 about this."""

OUT_OF_MEMORY_SIGNS = (
    "can't allocate memory",  # torch's allocator on the CPU
    "CUDA error: out of memory",  # what is allocated past torch's allocator: kernels, streams, graphs
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What RuntimeErrors say that are of no class of their own."""


@dataclass(frozen=True)
class TilePlan:
    """How images are cut and how much goes through the backbone at once."""

    tile_size: int | None  # output pixels a side; None: the whole image
    tile_overlap: int | None  # output pixels; None: an eighth of the tile
    at_once: int  # images, or tiles of one image
    may_shrink: bool = False  # whether less is tried when memory runs out

    def __str__(self) -> str:
        tiles = "whole images" if self.tile_size is None else f"tiles of {self.tile_size} px"
        return f"{tiles}, {self.at_once} at once"

    def layout(self, height: int, width: int, unit: int) -> TileLayout:
        """Tiles over an image of height x width output pixels, both multiples of `unit`.

        The tile's size is rounded down to whole units, the overlap up.

        Raises:
            ValueError: a tile below one unit, or an overlap that leaves no step between tiles.
        """
        rows, columns = height // unit, width // unit
        if self.tile_size is None:
            return TileLayout.cover(rows, columns, max(rows, columns), 0)
        tile = self.tile_size // unit
        if tile < 1:
            raise ValueError(
                f"tile_size is {self.tile_size}, expected {unit} or more: this backbone's smallest square"
            )
        overlap = self.tile_size // 8 if self.tile_overlap is None else self.tile_overlap
        units = math.ceil(overlap / unit)
        if units >= tile:
            if self.tile_overlap is not None:
                raise ValueError(
                    f"tile_overlap is {overlap}, which in squares of {unit} px leaves tiles of {self.tile_size} no "
                    "step; lower it or raise tile_size"
                )
            units = tile - 1
        return TileLayout.cover(rows, columns, tile, units)

    def with_tile(self, tile_size: int | None, unit: int) -> TilePlan:
        """With tiles that the caller did not ask for: an overlap that he did ask for must leave them a step."""
        overlap = self.tile_overlap
        if tile_size is not None and overlap is not None:
            overlap = min(overlap, (tile_size // unit - 1) * unit)
        return replace(self, tile_size=tile_size, tile_overlap=overlap)

    def smaller(self, height: int, width: int, unit: int) -> TilePlan | None:
        """What needs less memory: half as much at once, which leaves the pixels as they are, then tiles of half the
        size, of one unit at least; None when there is nothing left to halve, or nothing may be."""
        if not self.may_shrink:
            return None
        if self.at_once > 1:
            return replace(self, at_once=self.at_once // 2)
        tile = min(self.tile_size or math.inf, max(height, width))
        half = 2 ** math.floor(math.log2(tile - 1)) if self.tile_size is None else int(tile) // 2
        half = max(half, unit)
        if half < SMALLEST_TILE or half // unit >= tile // unit:
            return None
        overlap = None if self.tile_overlap is None else min(self.tile_overlap, half // 2)
        return replace(self, tile_overlap=overlap).with_tile(half, unit)


def auto_tile_size(
    height: int, width: int, bytes_per_pixel: float, free: float, *, unit: int = 1, longest: int | None = None
) -> int | None:
    """The largest of `AUTO_TILE_SIZES` whose tile fits into a share of the free memory; None: the whole image does.

    unit, longest: output pixels a side that the backbone needs, and can see, at once; a size outside gives way.
    """
    pixels = SHARE_OF_FREE * free / bytes_per_pixel
    longest = max(height, width) if longest is None else longest
    if height * width <= pixels and max(height, width) <= longest:
        return None
    fitting = (size for size in AUTO_TILE_SIZES if size**2 <= pixels)
    return max(unit, min(longest, next(fitting, AUTO_TILE_SIZES[-1])))


def tiles_at_once(wanted: int, pixels: int, bytes_per_pixel: float, free: float) -> int:
    """As many tiles or images of so many pixels as fit into a share of the free memory, at most `wanted`."""
    return min(wanted, max(1, int(SHARE_OF_FREE * free / (bytes_per_pixel * pixels))))


def bytes_per_pixel(device: torch.device, probe: Callable[[], int]) -> float:
    """Peak memory per output pixel: measured on a GPU while `probe`, which returns its number of pixels, runs."""
    if device.type != "cuda":
        return CPU_BYTES_PER_PIXEL
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    pixels = probe()
    return (torch.cuda.max_memory_allocated(device) - before) / pixels


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a GPU, or on this machine within the limits of its control groups.

    Processes that a launcher started on this machine share its memory evenly: each is told of its part.

    Raises:
        OSError: the machine does not say (only Linux does).
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun and accelerate
    return _free_on_machine() // processes


def _free_on_machine(root: Path = Path("/")) -> int:
    """The least of what the machine has and what each control group around this process leaves it.

    A job of SLURM or a unit of systemd sets its limit on a nested group, a container on its outermost.
    """
    free = int(_fields((root / "proc/meminfo").read_text().splitlines())["MemAvailable:"]) * 1024
    mount = root / "sys/fs/cgroup"
    left = [free]
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if not controllers:
            names = ("memory.max", "memory.current", "inactive_file")
            left += _left_in_groups(mount, group, *names)
        elif "memory" in controllers.split(","):  # version 1
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            left += _left_in_groups(mount / "memory", group, *names)
    return max(0, min(left))


def _left_in_groups(mount: Path, group: str, limit: str, usage: str, cached: str) -> list[int]:
    """Bytes below the limit of a group and of each one around it, where there is one."""
    folder = mount.joinpath(*(part for part in group.split("/") if part not in ("", "..")))
    left = []
    while folder.is_relative_to(mount):
        # outside of its own names a container sees groups that it has no files of
        numbers = [line for name in (limit, usage) for line in _lines(folder / name)]
        if len(numbers) == 2 and numbers[0] != "max":
            # files in the page cache count as used but make room when asked
            used = int(numbers[1]) - int(_fields(_lines(folder / "memory.stat")).get(cached, 0))
            left.append(int(numbers[0]) - used)
        folder = folder.parent
    return left


def _fields(lines: list[str]) -> dict[str, str]:
    """The first two words of each line."""
    return {words[0]: words[1] for line in lines if len(words := line.split()) > 1}


def _lines(path: Path) -> list[str]:
    """None for a file that is missing or may not be read: not every group, nor every machine, has a limit to tell."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a GPU or of the machine."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)
