"""Damage in PNG files that Pillow reads over: wrong checksums of pixels, and rows that are not there."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_DECIDE_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
_LARGEST_RATIO = 1032  # of deflate: 258 bytes for 2 bits
_STEP = 2**20


def check_png(content: bytes) -> None:
    """Check the chunks of a PNG, and that its size could be in there.  OSError says what is wrong."""
    pixels = 0
    for tag, position, data in _chunks(content):
        (expected,) = struct.unpack_from(">I", content, position + 8 + len(data))
        if tag in _DECIDE_PIXELS and zlib.crc32(data, zlib.crc32(tag)) != expected:
            raise OSError(f"the checksum of chunk {tag.decode('ascii')} at byte {position} is wrong")
        pixels += len(data) if tag == b"IDAT" else 0
    if _size_of_rows(content) > pixels * _LARGEST_RATIO:
        raise OSError(f"image file is truncated: {pixels} bytes cannot hold an image of its size")


def is_interlaced(content: bytes) -> bool:
    """Whether the rows come in seven passes."""
    return content[28] == 1


def check_png_rows(content: bytes) -> None:
    """Inflate the pixels of a PNG to see that all rows are there, which takes about as long as decoding it."""
    missing = _size_of_rows(content)
    stream = zlib.decompressobj()
    for tag, _, data in _chunks(content):
        piece: bytes | memoryview = data if tag == b"IDAT" else b""
        while piece and missing > 0:
            missing -= len(stream.decompress(piece, _STEP))
            piece = stream.unconsumed_tail
    if missing > 0:
        raise OSError(f"image file is truncated: {missing} bytes of its rows are missing")


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, memoryview]]:
    """Tag, place and data of each chunk up to the last."""
    view, position, tag = memoryview(content), 8, b""
    while tag != b"IEND":
        if position + 12 > len(content):
            raise OSError("image file is truncated: its last chunk is missing")
        size, tag = struct.unpack_from(">I4s", content, position)
        end = position + 8 + size
        if end + 4 > len(content):
            raise OSError(f"image file is truncated in chunk {tag.decode('ascii', 'replace')}")
        yield tag, position, view[position + 8 : end]
        position = end + 4


def _size_of_rows(content: bytes) -> int:
    """Bytes of the rows of a PNG, inflated, as its header says."""
    width, height, depth, colour = struct.unpack_from(">IIBB", content, 16)
    bits = depth * _CHANNELS.get(colour, 1)
    passes = _PASSES if is_interlaced(content) else ((0, 0, 1, 1),)
    total = 0
    for top, left, down, across in passes:
        rows, columns = -(-(height - top) // down), -(-(width - left) // across)
        if rows > 0 and columns > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total
