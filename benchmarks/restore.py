"""Restoring a folder: batches, files read and written beside the network, against one image after the other.

    python benchmarks/restore.py [--backbone tiny] [--num_images 16] [--size 64] [--repeats 3] [--device cpu]
    python benchmarks/restore.py --memory

Naive: read, restore one image one tile at a time (eager, float32), save, and then the next.  Ours: batches of equal
size, readers and writers in threads, precision and compilation as asked for.  Both take turns in one process on the
same files, so that a machine that slows down does so for both; the ratio of each round is printed with its spread.
The first round of each is a warm-up.  Peak memory is the process's high-water mark above where the round began, or what
was allocated on the GPU.  With --memory: peak bytes per output pixel of single large images in tiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from small_backbones import SMALL

from lucidnft.backbones.base import Backbone
from lucidnft.backbones.dit4sr_config import DiT4SRBackboneConfig
from lucidnft.backbones.lucidflux_config import LucidFluxBackboneConfig
from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.data.bundled import HELD_OUT_PHOTOGRAPHS, photograph_paths
from lucidnft.environment import git_commit
from lucidnft.images import read_image, resize, save_image
from lucidnft.inference import restore
from lucidnft.inference.batching import plan_batches
from lucidnft.inference.folder import RestoredImage, restore_files
from lucidnft.inference.jobs import RestoreJob
from lucidnft.inference.speed_settings import prepare_for_restoring

RESULTS = Path(__file__).parent / "results"
UPSCALE = 4
MEMORY_SIZES = ((1024, 1024), (2048, 2048), (2048, 4096))


def build(name: str, device: str) -> Backbone:
    """The tiny base, or a transformer in miniature ("small lucidflux")."""
    if name == "tiny":
        return TinyBackbone.from_pretrained().to(device)
    kind = name.removeprefix("small ")
    fields: dict[str, Any] = {"model_name_or_path": None, "architecture": SMALL[kind], "dtype": "float32"}
    if kind == "lucidflux":
        return LucidFluxBackboneConfig(**fields).build(seed=0).to(device)
    return DiT4SRBackboneConfig(**fields, lr_key="lr").build(seed=0).to(device)


def write_inputs(folder: Path, number: int, size: int) -> list[Path]:
    """Parts of the bundled photographs, size x size, as PNG files."""
    photographs = [read_image(path).rgb for path in photograph_paths(HELD_OUT_PHOTOGRAPHS)]
    files = []
    for index in range(number):
        whole = photographs[index % len(photographs)][None]
        scale = max(2.0, 2 * size / min(whole.shape[2:]))
        shrunk = resize(whole, (round(whole.shape[2] * scale / 2), round(whole.shape[3] * scale / 2)))
        top, left = (index * 7 % (side - size + 1) for side in shrunk.shape[2:])
        files.append(folder / f"{index:04d}.png")
        save_image(files[-1], shrunk[0, :, top : top + size, left : left + size])
    return files


def naive(backbone: Backbone, files: list[Path], output: Path, options: dict[str, Any]) -> None:
    for file in files:
        lr = read_image(file).rgb[None]
        sr = restore(backbone, lr, keys=[file.stem], batch_size=1, **options)
        save_image(output / file.name, sr[0].cpu())


def ours(
    backbone: Backbone, files: list[Path], output: Path, options: dict[str, Any], batch_size: int
) -> None:
    """What the command does with a folder of images of one size."""

    def restore_images(lr: torch.Tensor, keys: Sequence[str]) -> list[RestoredImage]:
        restored = restore(backbone, lr, keys=keys, batch_size=batch_size, **options)
        return [RestoredImage(sr) for sr in restored]

    jobs = [RestoreJob(file, output / file.name) for file in files]
    restore_files(plan_batches(jobs, batch_size), restore_images, progress=False)


def measure(call: Callable[[], None], device: torch.device) -> tuple[float, int]:
    """Seconds, and peak bytes above where it began."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = high_water()
    started = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    return seconds, (torch.cuda.max_memory_allocated(device) if on_gpu else high_water()) - before


def high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turn."""
    device = torch.device(args.device)
    plain, fast = build(args.backbone, args.device), build(args.backbone, args.device)
    prepare_for_restoring(fast, dtype=args.dtype, compile=args.compile)
    options = {
        "upscale": UPSCALE, "num_inference_steps": args.num_inference_steps, "align_method": "wavelet",
        "tile_size": args.tile_size,
    }  # fmt: skip
    rounds: dict[str, list[tuple[float, int]]] = {"naive": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("lr", "naive", "ours"):
            (folder / part).mkdir()
        files = write_inputs(folder / "lr", args.num_images, args.size)
        ways: dict[str, Callable[[], None]] = {
            "naive": lambda: naive(plain, files, folder / "naive", options),
            "ours": lambda: ours(fast, files, folder / "ours", options, args.batch_size),
        }
        for number in range(args.repeats + 1):
            for way, call in ways.items():
                measured = measure(call, device)
                if number:
                    rounds[way].append(measured)
        pairs = [[read_image(folder / way / f.name).rgb for way in ways] for f in files]
    ratios = sorted(n[0] / o[0] for n, o in zip(rounds["naive"], rounds["ours"], strict=True))
    return {
        "images_per_second": {w: args.num_images / min(r[0] for r in rs) for w, rs in rounds.items()},
        "seconds": {way: [r[0] for r in rs] for way, rs in rounds.items()},
        "peak_bytes": {way: max(r[1] for r in rs) for way, rs in rounds.items()},
        "ratio": {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]},
        "largest_difference_in_levels": max(round(float((a - b).abs().max()) * 255) for a, b in pairs),
    }


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak bytes of large images in tiles, one solver step each."""
    backbone, device = build(args.backbone, args.device), torch.device(args.device)
    found = {}
    for height, width in MEMORY_SIZES:
        small = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        lr = small.repeat(1, 1, height // 4 // 64, width // 4 // 64)

        def call(lr: torch.Tensor = lr) -> None:
            restore(
                backbone, lr, upscale=UPSCALE, num_inference_steps=1, align_method="wavelet", batch_size=1,
                tile_size=args.tile_size or 512,
            )  # fmt: skip

        seconds, peak = measure(call, device)
        pixels = height * width
        found[f"{height}x{width}"] = {"seconds": seconds, "peak_bytes": peak, "per_pixel": peak / pixels}
        print(f"{height}x{width}: {peak / 1e6:.0f} MB, {peak / pixels:.0f} bytes per pixel, {seconds:.1f} s")
    return found


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--backbone", choices=("tiny", "small lucidflux", "small dit4sr"), default="tiny")
    add("--device", default="cpu")
    add("--num_images", type=int, default=16)
    add("--size", type=int, default=64, help="pixels a side of the LR images")
    add("--batch_size", type=int, default=8)
    add("--tile_size", type=int)
    add("--num_inference_steps", type=int)
    add("--repeats", type=int, default=3)
    add("--dtype", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    add("--compile", action="store_true")
    add("--memory", action="store_true", help="peak bytes of large images instead")
    add("--output", type=Path, help="default: results/restore[_memory].json")
    args = parser.parse_args(argv)
    args.output = args.output or RESULTS / ("restore_memory.json" if args.memory else "restore.json")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    result = memory(args) if args.memory else compare(args)
    if not args.memory:
        for way, rate in result["images_per_second"].items():
            print(f"{way:<6}{rate:8.3f} images/s, {result['peak_bytes'][way] / 1e6:8.0f} MB")
        ratio = result["ratio"]
        print(f"ratio {ratio['median']:.2f} ({ratio['least']:.2f} .. {ratio['most']:.2f}); aim 2")
        print(f"largest difference: {result['largest_difference_in_levels']} of 255")
    report = {
        "commit": git_commit(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "settings": {name: value for name, value in vars(args).items() if name != "output"},
        "result": result,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
