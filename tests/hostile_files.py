"""A folder of hostile image files, each with what must become of it: these pixels, or a refusal for this reason.

The expected pixels are the arrays that the files were made of, so no reader is trusted.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile_bytes import (
    bmp,
    chunk,
    grey_tiff,
    jpeg_parts,
    png,
    png_header,
    png_parts,
    riff_parts,
    tiff,
)
from tests.hostile_formats import bmps, jpegs, pngs, tiffs, webps
from tests.hostile_pictures import BIG, CUT, RGB, RGB16, Hostile, encoded, holding


def hostile_files() -> list[Hostile]:
    """All of them; names are unique, also without their extensions."""
    makers = (
        _names,
        _things,
        _truncated,
        pngs,
        _declared,
        jpegs,
        webps,
        tiffs,
        bmps,
        _several,
        _turned,
        _beside,
    )
    entries = [entry for make in makers for entry in make()]
    stems = [entry.name.rpartition(".")[0] for entry in entries]
    assert len(set(stems)) == len(stems), sorted({stem for stem in stems if stems.count(stem) > 1})
    return entries


def _names() -> Iterator[Hostile]:
    content = encoded(RGB, "PNG")
    for name in ("gr\u00f6\u00dfe \u5199\u771f \U0001f642.png", "new\nline.png", "-dash.png", "dots.in.the.name.png",
                 "UPPER.PNG", "sp ace .png", "n" * 251 + ".png", "quote'\"$(x);`.png", "percent%d{}.png"):  # fmt: skip
        yield Hostile(name, holding(content), RGB)
    yield Hostile(os.fsdecode(b"not_utf8_\xff\xfe.png"), holding(content), RGB)
    yield Hostile("wrong_extension.jpg", holding(content), RGB)
    yield Hostile("wrong_too.tif", holding(encoded(RGB, "BMP")), RGB)


def _things() -> Iterator[Hostile]:
    """What is no image file at all."""
    yield Hostile("pipe.png", os.mkfifo, reason="not a regular file")
    yield Hostile("dangling.png", lambda path: path.symlink_to("nowhere"), reason="No such file")
    yield Hostile("loop.png", lambda path: path.symlink_to(path.name), reason="Too many levels|symbolic")
    yield Hostile("endless.png", lambda path: path.symlink_to("/dev/zero"), reason="not a regular file")
    yield Hostile(
        "sparse.png", lambda path: (path.touch(), os.truncate(path, 2**42)), reason="bytes are more than"
    )
    unknown = "not PNG, JPEG, WebP, BMP, TIFF or GIF"
    yield Hostile("zero_bytes.png", holding(b""), reason="it is empty")
    for name, content in (
        ("one_byte", b"\x89"), ("text", b"not a picture"), ("pdf", b"%PDF-1.7\n"),
        ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"), ("svg", b"<svg width='9'/>"),
        ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), ("zip", b"PK\3\4" + bytes(64)), ("zeros", bytes(4096)),
        ("only_png_magic", b"\x89PNG\r\n\x1a\n"), ("only_jpeg_magic", b"\xff\xd8\xff"), ("only_bmp_magic", b"BM"),
        ("only_webp_magic", b"RIFF\0\0\0\0WEBP"), ("only_gif_magic", b"GIF89a"), ("only_tiff_magic", b"II*\0"),
    ):  # fmt: skip
        yield Hostile(f"{name}.png", holding(content), reason=f"{unknown}|{CUT}")
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        magic = encoded(BIG, kind)[:16]
        noise = np.random.default_rng(1).bytes(500)
        yield Hostile(
            f"noise_behind_{kind}.png",
            holding(magic + noise),
            reason=f"{unknown}|{CUT}|wrong|Unsupported|many",
        )


def _truncated() -> Iterator[Hostile]:
    made = {
        "png": encoded(BIG, "PNG"), "jpg": encoded(BIG, "JPEG"), "webp": encoded(BIG, "WEBP"),
        "bmp": encoded(BIG, "BMP"), "gif": encoded(BIG, "GIF"),
        "tif": encoded(BIG, "TIFF", compression="tiff_deflate"),
        "tiff": encoded(BIG, "TIFF"),
    }  # fmt: skip
    progressive = encoded(BIG, "JPEG", progressive=True)
    scans = [i for i in range(len(progressive)) if progressive[i : i + 2] == b"\xff\xda"]
    places = {
        "png": png_parts(made["png"]), "jpg": jpeg_parts(made["jpg"]), "webp": riff_parts(made["webp"]),
        "bmp": [8, 14, 20, 54, 60, len(made["bmp"]) - 1],
        "gif": [6, 13, 20, 400, 781, 790, 796, len(made["gif"]) // 2],
        "tif": [2, 4, 8, 9, 30, len(made["tif"]) // 2], "tiff": [8, 50, len(made["tiff"]) // 2],
    }  # fmt: skip
    for suffix, cuts in places.items():
        for cut in cuts:
            yield Hostile(f"cut_{suffix}_{cut:05}.{suffix}", holding(made[suffix][:cut]), reason=CUT)
    for cut in scans[1:]:
        yield Hostile(f"cut_progressive_{cut:05}.jpg", holding(progressive[:cut]), reason=CUT)


def _declared() -> Iterator[Hostile]:
    """Sizes that are not there, and data that swells."""
    many = "pixels are too many; if you trust the file, allow more with lucidnft.images.set_max_pixels"
    yield Hostile("declares_3600_million.png", holding(png_header(60000, 60000)), reason=many)
    yield Hostile("declares_170_million.png", holding(png_header(13000, 13000)), reason=CUT)
    yield Hostile(
        "declares_nothing.png", holding(png_header(0, 5)), reason=f"{CUT}|tile|size|zero|empty|invalid"
    )
    for name, rows in (
        ("one_row_more", png(RGB, 2)),
        ("one_row_more_interlaced", png(RGB, 2, interlaced=True)),
        ("one_row_more_16_bits", png(RGB16, 2, 16)),
    ):
        header = rows[16:20] + (8).to_bytes(4, "big") + rows[24:29]
        taller = rows[:8] + chunk(b"IHDR", header) + rows[33:]
        yield Hostile(f"{name}.png", holding(taller), reason="rows are missing|decoder|runcated")
    rows = png(RGB, 2)
    tall = rows[:8] + chunk(b"IHDR", rows[16:20] + (10**7).to_bytes(4, "big") + rows[24:29]) + rows[33:]
    yield Hostile("ten_million_rows_more.png", holding(tall), reason="bytes cannot hold an image of its size")
    yield Hostile("declares_most.png", holding(png_header(2**31 - 1, 2**31 - 1)), reason=f"{many}|{CUT}")
    yield Hostile("declares_bmp.bmp", holding(bmp(60000, 60000, 24, bytes(9))), reason=many)
    yield Hostile("declares_bmp_13000.bmp", holding(bmp(13000, 13000, 24, bytes(9))), reason=CUT)
    yield Hostile("declares_tiff.tif", holding(tiff(grey_tiff(60000, 60000))), reason=many)
    yield Hostile("declares_tiff_13000.tif", holding(tiff(grey_tiff(13000, 13000))), reason=CUT)
    bomb = b"x\0\0" + _deflated_zeros(2**26)
    for tag in (b"iCCP", b"zTXt", b"iTXt"):
        data = b"x\0\1\0\0\0" + bomb[3:] if tag == b"iTXt" else bomb
        content = png(RGB, 2, extra=chunk(tag, data))
        yield Hostile(f"bomb_{tag.decode()}.png", holding(content), reason="too large|exceeds|MAX_TEXT")
    frame = (
        b"\xff\xc0" + (17).to_bytes(2, "big") + b"\x08" + b"\xff\xdc\xff\xdc" + b"\3\1\x22\0\2\x11\1\3\x11\1"
    )
    jpeg = encoded(BIG, "JPEG")
    start = jpeg.index(b"\xff\xc0")
    yield Hostile("declares_jpeg.jpg", holding(jpeg[:start] + frame + jpeg[start + 19 :]), reason=many)


def _deflated_zeros(size: int) -> bytes:
    stream = zlib.compressobj(9)
    return b"".join(stream.compress(bytes(2**20)) for _ in range(size // 2**20)) + stream.flush()


def _several() -> Iterator[Hostile]:
    def save(path: Path, kind: str | None = None) -> None:
        first, *others = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
        first.save(path, kind, save_all=True, append_images=others)

    for name in ("animated_gif.gif", "animated_webp.webp", "animated_png.png", "pages.tif"):
        yield Hostile(name, save, reason="several frames or pages")
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 254
    yield Hostile("phone_mpo.jpg", lambda path: save(path, "MPO"), red, tolerance=2)


def _turned() -> Iterator[Hostile]:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16], upright[:8, 16:, 0], upright[8:, :16, 1], upright[8:, 16:, 2] = 255, 255, 255, 255
    turns = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }  # fmt: skip
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    for orientation, stored in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix, kind in (("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("tif", "TIFF")):
            content = encoded(np.ascontiguousarray(stored), kind, exif=exif, **options.get(suffix, {}))
            yield Hostile(f"turned_{orientation}_{suffix}.{suffix}", holding(content), upright, tolerance=3)


def _beside() -> Iterator[Hostile]:
    """Damage beside the pixels, which are whole."""
    left_out = "EXIF was left out"
    for suffix, kind in (("png", "PNG"), ("webp", "WEBP")):
        content = encoded(
            RGB, kind, exif=b"Exif\0\0" + b"\x93" * 99, **({"lossless": True} if kind == "WEBP" else {})
        )
        yield Hostile(f"bad_exif_{suffix}.{suffix}", holding(content), RGB, problems=left_out)
    content = encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", quality=100, subsampling=0)
    yield Hostile("bad_exif_jpg.jpg", holding(content), RGB, tolerance=6, problems=left_out)
    profile = b"\0" * 16 + b"RGB " + b"\x77" * 200
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF")):
        content = encoded(RGB, kind, icc_profile=profile)
        yield Hostile(
            f"bad_profile_{suffix}.{suffix}", holding(content), RGB, problems="colour profile was left out"
        )
    orientation = Image.Exif()
    orientation[0x0112] = 9
    yield Hostile("turned_by_nine.png", holding(encoded(RGB, "PNG", exif=orientation)), RGB)
    exif = Image.Exif()
    exif[0x0112] = 3
    behind = png(RGB, 2, behind=chunk(b"eXIf", exif.tobytes()[6:]))
    yield Hostile("turned_behind_its_pixels.png", holding(behind), RGB[::-1, ::-1])
