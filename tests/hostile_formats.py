"""Hostile files of one format each: what PNG, JPEG, WebP, TIFF and BMP allow."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import tifffile
from PIL import Image

from tests.hostile_bytes import bmp, chunk, cmyk_profile, grey_tiff, png, tiff
from tests.hostile_pictures import (
    BIG,
    CUT,
    GREY,
    GREY16,
    GREY_ALPHA,
    GREY_ALPHA16,
    RGB,
    RGB16,
    RGBA,
    RGBA16,
    Hostile,
    encoded,
    holding,
    smooth,
)


def pngs() -> Iterator[Hostile]:
    for name, samples, colour in (
        ("rgb", RGB16, 2),
        ("rgba", RGBA16, 6),
        ("grey", GREY16, 0),
        ("la", GREY_ALPHA16, 4),
    ):
        for interlaced in (False, True):
            content = png(samples, colour, 16, interlaced=interlaced)
            yield Hostile(f"sixteen_{name}_{interlaced}.png", holding(content), samples)
    yield Hostile("interlaced.png", holding(png(RGB, 2, interlaced=True)), RGB)
    yield Hostile("grey_alpha.png", holding(png(GREY_ALPHA, 4)), GREY_ALPHA)
    key = chunk(b"tRNS", RGB[2, 3].astype(">u2").tobytes())
    yield Hostile("transparent_colour.png", holding(png(RGB, 2, extra=key)), _keyed(RGB, RGB[2, 3]))
    for depth in (1, 2, 4, 8, 16):
        values = (np.arange(63).reshape(7, 9, 1) * 37) % 2**depth
        scaled = (values * (65535 if depth == 16 else 255) // (2**depth - 1)).astype(
            "uint16" if depth == 16 else "uint8"
        )
        yield Hostile(f"bits_{depth}.png", holding(png(values, 0, depth)), scaled)
        key = chunk(b"tRNS", int(values[3, 3, 0]).to_bytes(2, "big"))
        yield Hostile(
            f"bits_{depth}_key.png", holding(png(values, 0, depth, extra=key)), _keyed(scaled, scaled[3, 3])
        )
    colours = np.array([[250, 10, 20], [0, 200, 30], [9, 8, 7], [255, 255, 0]], np.uint8)
    palette = chunk(b"PLTE", colours.tobytes())
    for depth in (2, 4, 8):
        indices = np.arange(63).reshape(7, 9, 1) % 4
        plain = colours[indices[..., 0]]
        yield Hostile(f"palette_{depth}.png", holding(png(indices, 3, depth, extra=palette)), plain)
        alphas = np.array([0, 128, 255, 255], np.uint8)
        content = png(indices, 3, depth, extra=palette + chunk(b"tRNS", alphas[:2].tobytes()))
        expected = np.concatenate([plain, alphas[indices]], axis=2)
        yield Hostile(f"palette_{depth}_alpha.png", holding(content), expected)
    flipped = bytearray(encoded(BIG, "PNG"))
    flipped[len(flipped) // 2] ^= 1
    yield Hostile("flipped_bit.png", holding(bytes(flipped)), reason="checksum|CRC|decoder|broken")
    yield Hostile(
        "no_pixels.png", holding(encoded(RGB, "PNG")[:33] + chunk(b"IEND", b"")), reason=f"{CUT}|no"
    )
    yield Hostile("no_palette.png", holding(png(GREY, 3)), reason=f"{CUT}|palette|convert|wrong|mode")
    for size in ((1, 1), (1, 300), (300, 1)):
        yield Hostile(
            f"line_{size[0]}_{size[1]}.png", holding(encoded(smooth(*size, 3), "PNG")), smooth(*size, 3)
        )


def _keyed(pixels: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Pixels with an alpha that is 0 where they have one colour."""
    top = np.iinfo(pixels.dtype).max
    opaque = (pixels != key).any(axis=2, keepdims=True)
    return np.concatenate([pixels, (opaque * top).astype(pixels.dtype)], axis=2)


def jpegs() -> Iterator[Hostile]:
    near = {"tolerance": 6}
    for name, options in (("progressive", {"progressive": True}), ("optimised", {"optimize": True})):
        yield Hostile(
            f"{name}.jpg", holding(encoded(RGB, "JPEG", quality=100, subsampling=0, **options)), RGB, **near
        )
    yield Hostile("grey.jpg", holding(encoded(GREY, "JPEG", quality=100)), GREY, **near)
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 8:16, 0], inks[:, 16:24, :2], inks[:, 24:, 3] = 255, 255, 255
    image = Image.frombytes("CMYK", (32, 16), inks.tobytes())
    by_profile = np.repeat(np.repeat(np.array([255, 145, 48, 0], np.uint8), 8)[None, :, None], 16, axis=0)
    plain = (255 - inks[..., :3].astype(int) - inks[..., 3:]).clip(0, 255).astype(np.uint8)
    for name, options, expected, problems in (
        ("with_profile", {"icc_profile": cmyk_profile()}, np.repeat(by_profile, 3, axis=2), ""),
        ("without_profile", {}, plain, ""),
        ("bad_profile", {"icc_profile": cmyk_profile()[:200]}, plain, "colour profile was left out"),
    ):
        for kind, quality in (("JPEG", {"quality": 100, "subsampling": 0}), ("TIFF", {})):
            buffer = BytesIO()
            image.save(buffer, kind, **quality, **options)
            name_of = f"cmyk_{name}_{kind}.{'jpg' if kind == 'JPEG' else 'tif'}"
            yield Hostile(name_of, holding(buffer.getvalue()), expected, tolerance=6, problems=problems)
    # Grey as luma and chroma with a black plane (YCCK): the inks of this image, read as Y, Cb, Cr and K.
    planes = Image.new("CMYK", (16, 16), (155, 127, 127, 0))
    buffer = BytesIO()
    planes.save(buffer, "JPEG", quality=100)
    content = bytearray(buffer.getvalue())
    content[content.index(b"Adobe") + 11] = 2
    flat = np.full((16, 16, 3), 155, np.uint8)
    yield Hostile("ycck.jpg", holding(bytes(content)), flat, tolerance=2)


def webps() -> Iterator[Hostile]:
    yield Hostile("lossless.webp", holding(encoded(RGBA, "WEBP", lossless=True, exact=True)), RGBA)
    hidden = RGBA.copy()
    hidden[:4, :, 3] = 0
    yield Hostile("hidden_colours.webp", holding(encoded(hidden, "WEBP", lossless=True, exact=True)), hidden)
    yield Hostile("still.gif", holding(encoded(GREY, "GIF")), np.repeat(GREY, 3, axis=2))


def tiffs() -> Iterator[Hostile]:
    def by_tifffile(pixels: np.ndarray, **options: object) -> bytes:
        buffer = BytesIO()
        kind = "minisblack" if pixels.ndim == 2 else "rgb"
        tifffile.imwrite(buffer, pixels, **{"photometric": kind, "metadata": None, **options})
        return buffer.getvalue()

    big, deep = smooth(40, 50, 3), smooth(40, 50, 3, 16)
    for name, content, expected in (
        ("big_endian", by_tifffile(RGB16, byteorder=">"), RGB16),
        ("tiled", by_tifffile(big, tile=(16, 16)), big),
        ("tiled_deflate", by_tifffile(deep, tile=(16, 32), compression="zlib"), deep),
        ("planar", by_tifffile(np.ascontiguousarray(RGB.transpose(2, 0, 1)), planarconfig="separate"), RGB),
        ("bigtiff", by_tifffile(RGB, bigtiff=True), RGB),
        ("strips", by_tifffile(big, rowsperstrip=3, compression="zlib", predictor=True), big),
        ("alpha", by_tifffile(RGBA, extrasamples=["unassalpha"]), RGBA),
        ("lzw", encoded(RGB, "TIFF", compression="tiff_lzw"), RGB),
        ("packbits", encoded(RGB, "TIFF", compression="packbits"), RGB),
        ("white_is_zero", by_tifffile(255 - GREY[..., 0], photometric="miniswhite"), GREY),
    ):  # fmt: skip
        yield Hostile(f"tiff_{name}.tif", holding(content), expected)
    fax = BytesIO()
    bits = (np.indices((7, 9)).sum(0) % 3 == 0)[..., None]
    Image.fromarray(bits[..., 0]).save(fax, "TIFF", compression="group4")
    yield Hostile("tiff_fax.tif", holding(fax.getvalue()), bits.astype(np.uint8) * np.uint8(255))
    yield Hostile("tiff_lab.tif", lambda path: Image.new("LAB", (4, 4)).save(path), reason="pixel type")
    for name, pixels in (("float", np.ones((4, 4), np.float32)), ("signed", np.ones((4, 4), np.int16)),
                         ("signed_8", np.ones((4, 4), np.int8)),
                         ("wide", np.ones((4, 4), np.uint32)), ("double", np.ones((4, 4)))):  # fmt: skip
        yield Hostile(
            f"tiff_{name}.tif", holding(by_tifffile(pixels)), reason="pixel type|of a kind that is not read"
        )
    planes = np.ascontiguousarray(RGB16.transpose(2, 0, 1))
    yield Hostile(
        "tiff_planar_16.tif", holding(by_tifffile(planes, planarconfig="separate")), reason="pixel type"
    )
    for name, changes in (("one_strip", {"t278": (4, 1, 4)}), ("short_strip", {"t279": (4, 1, 16)})):
        content = tiff(grey_tiff(4, 8, **changes), behind=bytes(300))
        yield Hostile(
            f"tiff_{name}.tif", holding(content), reason="strips or tiles of its pixels are missing"
        )
    looping = tiff(grey_tiff(), next_directory=8, behind=b"\x55" * 300)
    yield Hostile("tiff_next_is_itself.tif", holding(looping), np.full((4, 4, 1), 0x55, np.uint8))
    broken = f"{CUT}|several|invalid|not|Invalid|must|int|tag"
    for name, entries, options in (
        ("many_strips", grey_tiff(t273=(4, 2**31, 200), t279=(4, 2**31, 200)), {}),
        ("strips_outside", grey_tiff(t273=(4, 1, 2**32 - 1)), {}),
        ("next_outside", grey_tiff(), {"next_directory": 2**32 - 2, "behind": bytes(300)}),
        ("no_width", grey_tiff(t256=(4, 1, 0)), {"behind": bytes(300)}),
        ("unknown_compression", grey_tiff(t259=(3, 1, 4242)), {"behind": bytes(300)}),
        ("ninety_channels", grey_tiff(t277=(3, 1, 90)), {"behind": bytes(300)}),
    ):
        yield Hostile(f"tiff_{name}.tif", holding(tiff(entries, **options)), reason=broken)


def bmps() -> Iterator[Hostile]:
    levels = np.arange(63, dtype=np.uint8).reshape(7, 9, 1) % 4
    colours = np.array([[250, 10, 20], [0, 200, 30], [9, 8, 7], [255, 255, 0]], np.uint8)
    palette = np.pad(colours[:, ::-1], ((0, 0), (0, 1))).tobytes()
    rows = np.pad(levels[..., 0], ((0, 0), (0, 3)))
    runs = (
        b"".join(b"".join(b"\1" + bytes([v]) for v in row) + b"\0\0" for row in levels[::-1, :, 0]) + b"\0\1"
    )
    plain = np.pad(RGB[..., ::-1].reshape(7, 27), ((0, 0), (0, 1)))
    expected = colours[levels[..., 0]]
    yield Hostile("palette.bmp", holding(bmp(9, 7, 8, rows[::-1].tobytes(), palette=palette)), expected)
    yield Hostile("rle8.bmp", holding(bmp(9, 7, 8, runs, compression=1, palette=palette)), expected)
    yield Hostile(
        "rle8_cut.bmp", holding(bmp(9, 7, 8, runs[:30], compression=1, palette=palette)), reason=CUT
    )
    yield Hostile("top_down.bmp", holding(bmp(9, -7, 24, plain.tobytes())), RGB)
    five = np.arange(63).reshape(7, 9) % 32
    pixels = np.pad(five * (1024 + 32 + 1), ((0, 0), (0, 1)))[::-1].astype("<u2").tobytes()
    scaled = np.repeat((five * 255 / 31).astype(np.uint8)[..., None], 3, axis=2)
    yield Hostile("fifteen_bits.bmp", holding(bmp(9, 7, 16, pixels)), scaled, tolerance=1)
    yield Hostile("no_colours.bmp", holding(bmp(9, 7, 7, bytes(99))), reason="BMP|pixel")
