"""Reads mutated image files until a time is up: `python -m tests.fuzz_images FOLDER SEED SECONDS`.

Each must give an image with values in [0, 1] or be refused, in bounded time and memory.  A file that does not is left
in FOLDER, and the exit status is 1.
"""

from __future__ import annotations

import resource
import struct
import sys
import time
import traceback
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

from lucidnft.images import LoadedImage, UnreadableImageError, read_image, save_image
from tests.hostile_files import hostile_files

SECONDS_EACH = 5.0
SECONDS_A_PIXEL = 3e-7  # some small files rightly hold a hundred million
MEMORY = 8 * 2**30  # bytes of address space: the largest image that is read takes half of it
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def sources(folder: Path) -> list[bytes]:
    """The hostile files that can be read, and some of our own writing with everything beside the pixels."""
    contents = []
    for number, entry in enumerate(entry for entry in hostile_files() if entry.pixels is not None):
        path = folder / f"source{number}"
        entry.write(path)
        contents.append(path.read_bytes())
        if number % 10 == 0:
            image = read_image(path)
            for suffix in ("png", "tif", "webp"):
                out = path.with_suffix(f".{suffix}")
                save_image(out, image.rgb, icc_profile=image.icc_profile, metadata=image.metadata)
                contents.append(out.read_bytes())
    return contents


def mutated(content: bytes, others: list[bytes], draw: np.random.Generator) -> tuple[bytes, bool]:
    """A file changed in one to four places, and whether it was only cut off."""
    if draw.random() < 0.15:
        return content[: draw.integers(len(content))], True
    data = bytearray(content)
    for _ in range(draw.integers(1, 5)):
        at = int(draw.integers(max(1, min(len(data), 400 if draw.random() < 0.6 else len(data)))))
        kind = draw.integers(5)
        if kind == 0:
            data[at : at + 1] = bytes([data[at] ^ 1 << int(draw.integers(8))]) if data else b""
        elif kind == 1:
            form = ("<I", ">I", "<H", ">H", "<B")[draw.integers(5)]
            number = NUMBERS[draw.integers(len(NUMBERS))] & (256 ** struct.calcsize(form) - 1)
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        elif kind == 2:
            del data[at : at + int(draw.integers(1, 40))]
        elif kind == 3:
            data[at:at] = data[at : at + int(draw.integers(1, 40))]
        else:
            other = others[draw.integers(len(others))]
            start = int(draw.integers(len(other)))
            data[at : at + 60] = other[start : start + 60]
    if data.startswith(b"\x89PNG") and draw.random() < 0.8:
        _fix_checksums(data)
    return bytes(data), False


def _fix_checksums(data: bytearray) -> None:
    """Make the checksums of a PNG right again, so that the change gets further than to them."""
    position = 8
    while position + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, position)
        end = position + 8 + size
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(data[position + 4 : end]))
        position = end + 4


def wrong(path: Path, whole: LoadedImage | None) -> str:
    """What is wrong about reading a file; "" if nothing.  Cut off, it may only give the whole image."""
    started = time.process_time()
    try:
        image = read_image(path)
    except UnreadableImageError:
        image = None
    except BaseException:
        return traceback.format_exc()
    pixels = 0 if image is None else image.rgb[0].numel()
    if time.process_time() - started > SECONDS_EACH + pixels * SECONDS_A_PIXEL:
        return f"took {time.process_time() - started:.1f} s"
    if image is None:
        return ""
    for plane in (image.rgb, image.alpha):
        if plane is not None and not (plane.min() >= 0 and plane.max() <= 1):
            return "values outside [0, 1]"
    if whole is not None and not torch.equal(image.rgb, whole.rgb):
        return "cut off, it gives another picture"
    return ""


def main(folder: Path, seed: int, seconds: float) -> int:
    """Print how many files were read; returns the number of bad ones."""
    warnings.simplefilter("ignore")  # Pillow's, about metadata
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    contents = sources(folder)
    draw = np.random.default_rng(seed)
    path, end, bad, count = folder / "mutated", time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        source = contents[draw.integers(len(contents))]
        whole = None
        data, cut = mutated(source, contents, draw)
        if cut:
            path.write_bytes(source)
            whole = read_image(path)
        path.write_bytes(data)
        problem = wrong(path, whole)
        count += 1
        if problem:
            bad += 1
            (folder / f"bad{count}").write_bytes(data)
            print(f"bad{count}: {problem}", flush=True)
    print(f"{count} files, {bad} bad, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} kB")
    return bad


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
