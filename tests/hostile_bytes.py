"""Image files byte by byte, for what no library writes: PNG of any depth, bombs, loops, and a CMYK profile."""

from __future__ import annotations

import struct
import zlib

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(tag: bytes, data: bytes) -> bytes:
    """A PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def png(
    samples: np.ndarray,
    colour: int,
    depth: int = 8,
    *,
    extra: bytes = b"",
    behind: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """(H, W, channels) integers below 2 ** depth as a PNG of a colour type; `extra` chunks come before the pixels."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    body = b"".join(_rows(samples[y::dy, x::dx], depth) for y, x, dy, dx in passes)
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], depth, colour, 0, 0, interlaced)
    return (
        PNG_SIGNATURE
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(body))
        + behind
        + chunk(b"IEND", b"")
    )


def _rows(samples: np.ndarray, depth: int) -> bytes:
    if samples.size == 0:
        return b""
    if depth < 8:
        bits = (samples[..., 0, None] >> np.arange(depth - 1, -1, -1)) & 1
        rows = np.packbits(bits.reshape(len(samples), -1).astype(np.uint8), axis=1)
    else:
        rows = samples.astype(">u2" if depth == 16 else np.uint8).reshape(len(samples), -1).view(np.uint8)
    return np.pad(rows, ((0, 0), (1, 0))).tobytes()


def png_header(width: int, height: int, *, content: bytes = b"\0" * 8) -> bytes:
    """A PNG that declares a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    )


def png_parts(content: bytes) -> list[int]:
    """Where the chunks of a PNG begin, and the middle of each."""
    cuts, position = [4], 8
    while position < len(content):
        (size,) = struct.unpack_from(">I", content, position)
        cuts += [position, position + (12 + size) // 2]
        position += 12 + size
    return cuts


def jpeg_parts(content: bytes) -> list[int]:
    """Where the segments of a JPEG begin, the middle of each, and some places in the scan."""
    cuts, position = [1], 2
    while content[position + 1] != 0xDA:
        (size,) = struct.unpack_from(">H", content, position + 2)
        cuts += [position, position + 2 + size // 2]
        position += 2 + size
    return [*cuts, position, position + 4, position + 14, (position + len(content)) // 2]


def riff_parts(content: bytes) -> list[int]:
    """Places in and between the chunks of a WebP."""
    return [4, 8, 12, 16, 20, 24, 30, len(content) // 2, len(content) - 9]


def bmp(
    width: int, height: int, bits: int, pixels: bytes, *, compression: int = 0, palette: bytes = b""
) -> bytes:
    """A BMP; a negative height says that its first row is the upper one."""
    start = 14 + 40 + len(palette)
    colours = len(palette) // 4
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, colours, 0)
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + info + palette + pixels


def tiff(entries: dict[int, tuple[int, int, int]], *, behind: bytes = b"", next_directory: int = 0) -> bytes:
    """A little-endian TIFF of one directory of {tag: (type, count, value)}."""
    rows = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + rows
        + struct.pack("<I", next_directory)
        + behind
    )


def grey_tiff(
    width: int = 4, height: int = 4, **changes: tuple[int, int, int]
) -> dict[int, tuple[int, int, int]]:
    """Entries of an 8-bit grey TIFF without compression whose pixels come at byte 200; changed by t<tag>=entry."""
    entries = {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 200),
        277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, width * height),
    }  # fmt: skip
    return {**entries, **{int(name[1:]): entry for name, entry in changes.items()}}


def cmyk_profile() -> bytes:
    """An ICC profile of a press whose inks are all grey: lightness 100 less 40 a colour ink, none with black."""
    inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    lightness = np.clip(255 - inks[:, :3].sum(axis=1) * 102 - inks[:, 3] * 255, 0, 255)
    table = np.stack([lightness, np.full(16, 128), np.full(16, 128)], axis=1).astype(np.uint8).tobytes()
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    a2b = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + table + ramp * 3
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text\0\0\0\0none\0\0\0\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(79)
    tags = {b"desc": description, b"cprt": text, b"wtpt": white, b"A2B0": a2b, b"A2B1": a2b}
    offset, directory, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        directory += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    head += (
        struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
        + b"acsp"
        + bytes(28)
        + struct.pack(">3i", 63190, 65536, 54061)
    )
    return head.ljust(128, b"\0") + directory + body
