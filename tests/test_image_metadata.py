"""EXIF, XMP and resolution: through every format, upright, and never in the way of the pixels."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from lucidnft.images import ImageMetadata, read_image, save_image

XMP = (
    b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" '
    b"tiff:Orientation=\"6\" tiff:ImageWidth = '8'><exif:PixelYDimension>6</exif:PixelYDimension>"
    b"<xmp:Thumbnails><rdf:Alt>AAAA</rdf:Alt></xmp:Thumbnails><dc:title>Gruesse</dc:title>"
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)
GPS = {1: "N", 2: (52.0, 31.0, 12.0)}
NAMED = ExifTags.Base


def camera_exif() -> Image.Exif:
    """What a phone writes: turned, with a place, a maker note and sides."""
    exif = Image.Exif()
    exif[NAMED.Make], exif[NAMED.ImageDescription], exif[NAMED.Orientation] = "Maker", "a cat", 6
    exif[NAMED.XResolution] = exif[NAMED.YResolution] = 300.0
    exif[NAMED.ResolutionUnit] = 2
    exif[ExifTags.IFD.Exif] = {
        NAMED.DateTimeOriginal: "2024:05:06 07:08:09", NAMED.ExifImageWidth: 8, NAMED.ExifImageHeight: 6,
        NAMED.ExposureTime: 0.01, NAMED.MakerNote: b"note" * 5, ExifTags.IFD.Interop: {1: "R98"},
    }  # fmt: skip
    exif[ExifTags.IFD.GPSInfo] = GPS
    return exif


def photograph(path: Path, **options: object) -> Path:
    """8 x 6 stored pixels that EXIF turns to 6 x 8."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def checked_exif(path: Path, width: int, height: int) -> Image.Exif:
    """The EXIF of a written file, checked to be that of camera_exif for an upright picture."""
    with Image.open(path) as image:
        assert image.size == (width, height)
        exif = image.getexif()
        exif.load(exif.tobytes())  # by value, while the file is open
    assert exif.get(NAMED.Orientation, 1) == 1 and exif.get_ifd(ExifTags.IFD.IFD1) == {}
    assert (exif[NAMED.Make], exif[NAMED.ImageDescription]) == ("Maker", "a cat")
    details = exif.get_ifd(ExifTags.IFD.Exif)
    assert (details[NAMED.ExifImageWidth], details[NAMED.ExifImageHeight]) == (width, height)
    assert details[NAMED.DateTimeOriginal] == "2024:05:06 07:08:09"
    assert details[NAMED.ExposureTime] == pytest.approx(0.01) and details[NAMED.MakerNote] == b"note" * 5
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    assert place[1] == "N" and [float(v) for v in place[2]] == [52, 31, 12]
    return exif


@pytest.mark.parametrize("source", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("target", ["png", "jpg", "webp", "tif"])
def test_metadata_goes_from_every_format_to_every_format(tmp_path, source, target):
    exif = camera_exif()
    if source == "tif":  # where Pillow loses the innermost directory
        exif[700] = XMP
        exif[ExifTags.IFD.Exif].pop(ExifTags.IFD.Interop)
    path = photograph(tmp_path / f"in.{source}", exif=exif.tobytes(), dpi=(300, 300), xmp=XMP)
    if source == "png":  # where Pillow writes no XMP
        save_image(
            path, torch.rand(3, 6, 8), metadata=ImageMetadata(camera_exif().tobytes()[6:], XMP, (300, 300))
        )
    loaded = read_image(path)
    assert loaded.metadata.problems == ()
    out = tmp_path / f"out.{target}"
    save_image(out, torch.rand(3, 20, 15), metadata=loaded.metadata)
    found = checked_exif(out, 15, 20)
    assert source == "tif" or found.get_ifd(ExifTags.IFD.Interop)[1] == "R98"
    with Image.open(out) as image:
        image.load()
        xmp = image.info["xmp"]
        if "webp" not in (source, target):
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.02)
    assert b'tiff:Orientation="6"' not in xmp and b"Thumbnails" not in xmp and b"Gruesse" in xmp
    assert b"tiff:ImageWidth = '15'" in xmp and b"<exif:PixelYDimension>20<" in xmp
    again = read_image(out)
    assert again.metadata.xmp == xmp and again.metadata.problems == ()


def test_the_picture_is_turned_and_not_turned_again(tmp_path):
    path = photograph(tmp_path / "a.png", exif=camera_exif())
    loaded = read_image(path)
    assert loaded.rgb.shape == (3, 8, 6)
    save_image(tmp_path / "b.png", loaded.rgb, metadata=loaded.metadata)
    assert torch.equal(read_image(tmp_path / "b.png").rgb, loaded.rgb)


def test_the_thumbnail_is_dropped(tmp_path):
    thumbnail = BytesIO()
    Image.new("RGB", (4, 4), "red").save(thumbnail, "JPEG")
    block = bytearray(camera_exif().tobytes()[6:])
    order = {b"II": "<", b"MM": ">"}[bytes(block[:2])]
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, first)
    struct.pack_into(f"{order}I", block, first + 2 + 12 * count, len(block))
    start, size = len(block) + 2 + 24 + 4, len(thumbnail.getvalue())
    block += struct.pack(f"{order}HHHIIHHIII", 2, 513, 4, 1, start, 514, 4, 1, size, 0) + thumbnail.getvalue()
    path = photograph(tmp_path / "a.jpg", exif=b"Exif\0\0" + bytes(block))
    with Image.open(path) as image:
        assert 513 in image.getexif().get_ifd(ExifTags.IFD.IFD1)
    metadata = read_image(path).metadata
    assert thumbnail.getvalue()[:10] not in metadata.exif and metadata.problems == ()
    save_image(tmp_path / "b.jpg", torch.rand(3, 8, 6), metadata=metadata)
    checked_exif(tmp_path / "b.jpg", 6, 8)


def test_bmp_keeps_the_resolution_alone_and_nothing_is_invented(tmp_path):
    metadata = read_image(photograph(tmp_path / "a.jpg", exif=camera_exif(), dpi=(300, 300))).metadata
    save_image(tmp_path / "a.bmp", torch.rand(3, 8, 6), metadata=metadata)
    found = read_image(tmp_path / "a.bmp").metadata
    assert found.exif is None and found.dpi == pytest.approx((300, 300), abs=0.02)
    for name in ("plain.png", "plain.jpg", "plain.webp", "plain.tif"):
        assert read_image(photograph(tmp_path / name)).metadata == ImageMetadata()
    unresolved = Image.Exif()
    unresolved[NAMED.Make] = "Maker"
    assert read_image(photograph(tmp_path / "no_dpi.jpg", exif=unresolved)).metadata.dpi is None


def damaged_blocks() -> dict[str, bytes]:
    """EXIF blocks with something wrong; those that say an orientation say 6."""
    good = camera_exif().tobytes()[6:]
    turned = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    head = b"MM\0*\0\0\0\x08"

    def directory(*entries: bytes) -> bytes:
        return head + struct.pack(">H", len(entries)) + b"".join(entries) + b"\0\0\0\0"

    return {
        "random": b"\x93" * 64,
        "empty directory elsewhere": b"II*\0\xff\xff\xff\xff",
        "cut": good[: len(good) // 2],
        "value outside": directory(struct.pack(">HHII", 0x010E, 2, 2**31, 2**31), turned),
        "unknown type": directory(struct.pack(">HHII", 0x010E, 77, 1, 0), turned),
        "contains itself": directory(turned, struct.pack(">HHII", 0x8769, 4, 1, 8)),
        "place outside": directory(turned, struct.pack(">HHII", 0x8825, 4, 1, 2**32 - 1)),
        "many entries": head + b"\xff\xff" + turned,
        "header alone": b"MM\0*",
    }


@pytest.mark.parametrize("name", damaged_blocks())
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_damaged_exif_is_reported_and_the_pixels_are_read(tmp_path, name, suffix):
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    photograph(path, exif=b"Exif\0\0" + damaged_blocks()[name], **options)
    loaded = read_image(path)
    turned = name in ("cut", "value outside", "unknown type", "contains itself", "place outside")
    if name in ("unknown type", "value outside"):
        turned = False  # it stands behind what is damaged
    assert loaded.rgb.shape == ((3, 8, 6) if turned else (3, 6, 8))
    (problem,) = loaded.metadata.problems
    assert problem.startswith("EXIF was left out: ") and loaded.metadata.exif is None


def test_xmp_says_the_orientation_where_exif_does_not(tmp_path):
    turned = read_image(photograph(tmp_path / "a.jpg", xmp=XMP))
    assert turned.rgb.shape == (3, 8, 6) and b'tiff:Orientation="1"' in turned.metadata.xmp
    upright = Image.Exif()
    upright[NAMED.Orientation] = 1
    assert read_image(photograph(tmp_path / "b.jpg", xmp=XMP, exif=upright)).rgb.shape == (3, 6, 8)


def test_damaged_xmp_is_reported(tmp_path):
    loaded = read_image(photograph(tmp_path / "a.jpg", xmp=b"\xff\xfe<x:xmpmeta>"))
    assert loaded.metadata.xmp is None and loaded.metadata.problems == ("XMP was left out: it is not UTF-8",)
    unclosed = b"<xmp:Thumbnails" * 4000
    assert read_image(photograph(tmp_path / "b.jpg", xmp=unclosed)).metadata.xmp == unclosed


def test_metadata_that_does_not_fit_is_refused_with_what_to_do(tmp_path):
    exif = camera_exif()
    exif[NAMED.ImageDescription] = "x" * 70000
    metadata = read_image(photograph(tmp_path / "a.png", exif=exif)).metadata
    with pytest.raises(
        ValueError, match="EXIF of 7.... bytes does not fit into jpeg.*write png, webp or tiff"
    ):
        save_image(tmp_path / "b.jpg", torch.rand(3, 8, 6), metadata=metadata)
    assert not (tmp_path / "b.jpg").exists()
    save_image(tmp_path / "b.webp", torch.rand(3, 8, 6), metadata=metadata)
