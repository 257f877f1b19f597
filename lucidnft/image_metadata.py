"""What an image file says about its picture besides the pixels: EXIF, XMP and resolution.

It comes from strangers and never decides whether the pixels can be read: what is damaged is left out and named in
`problems`.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, replace
from typing import Any

from PIL import ExifTags, Image, ImageFile

_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, AttributeError,
    AssertionError, ZeroDivisionError, RuntimeError, struct.error,
)  # fmt: skip
_PREFIX = b"Exif\0\0"
_ORIENTATION = 0x0112
_SUB_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
_TIFF_RESOLUTION = {282, 283, 296}
_SIDES = {0xA002: 0, 0xA003: 1}  # of the picture, in the Exif directory: width, height
# Of the first directory only what describes the picture: in a TIFF it also says where the pixels are.
_DESCRIPTIVE = frozenset(
    {
        0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C,  # description ... host
        0x4746, 0x4749, 0x8298, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F,  # rating, copyright, Windows' titles
    }
)  # fmt: skip
_VALUE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # by type


@dataclass(frozen=True)
class ImageMetadata:
    """Metadata of an upright picture: no orientation and no thumbnail."""

    exif: bytes | None = None  # a TIFF block (begins with II or MM)
    xmp: bytes | None = None  # UTF-8
    dpi: tuple[float, float] | None = None  # horizontal, vertical
    problems: tuple[str, ...] = ()  # what was damaged in the file and is missing here

    def for_size(self, height: int, width: int) -> ImageMetadata:
        """The same with the sides of the picture, where they are given, set to these."""
        exif, xmp = self.exif, self.xmp
        if exif is not None:
            exif = _rebuilt(_parsed(exif), (width, height))
        for names, side in ((("PixelXDimension", "ImageWidth"), width),
                            (("PixelYDimension", "ImageLength"), height)):  # fmt: skip
            for name in names:
                xmp = _with_number(xmp, name, side)
        return replace(self, exif=exif, xmp=xmp)

    def tiff_tags(self) -> dict[int, Any]:
        """The EXIF block by tag, sub-directories as dictionaries, to go into the directory of a TIFF file."""
        if self.exif is None:
            return {}
        exif = _parsed(self.exif)
        return {tag: _sub_directory(exif, tag) if tag in _SUB_DIRECTORIES else exif[tag] for tag in exif}


def read_metadata(image: ImageFile.ImageFile) -> tuple[int, ImageMetadata]:
    """The orientation by EXIF, or else by XMP, 1 if the file gives none that is valid; and the metadata.

    For an image whose pixels were loaded: PNG may keep its EXIF behind them.
    """
    problems: list[str] = []
    orientation, exif = 0, None
    try:
        block = _exif_block(image)
        if block is not None:
            orientation, damage = _inspect(block)
            if damage:
                problems.append(f"EXIF was left out: {damage}")
            else:
                exif = _rebuilt(_parsed(block))
        elif image.format == "TIFF":
            exif = _rebuilt(image.getexif())
    except _ERRORS as error:
        problems.append(f"EXIF was left out: {error} ({type(error).__name__})")
    xmp = image.info.get("xmp")
    if not isinstance(xmp, bytes) or not xmp:
        xmp = None
    elif not _is_utf8(xmp):
        problems.append("XMP was left out: it is not UTF-8")
        xmp = None
    elif not orientation and (found := re.search(_number("Orientation"), xmp)):
        orientation = int(found[2])
    xmp = _with_number(_without_thumbnails(xmp), "Orientation", 1)
    return orientation or 1, ImageMetadata(exif, xmp, _resolution(image), tuple(problems))


def _exif_block(image: ImageFile.ImageFile) -> bytes | None:
    block = image.info.get("exif")
    if block is None and isinstance(
        text := image.info.get("Raw profile type exif"), str
    ):  # ImageMagick, in PNG
        block = bytes.fromhex("".join(text.split("\n")[3:]))
    if not isinstance(block, bytes):
        return None
    while block.startswith(_PREFIX):
        block = block[len(_PREFIX) :]
    return block or None


def _inspect(block: bytes) -> tuple[int, str]:
    """The orientation of an EXIF block, 0 if there is none, and what is wrong with its directories, "" if nothing."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return 0, f"it begins with {block[:4]!r}"
    orientation = 0
    waiting, seen = [struct.unpack(f"{order}I", block[4:8])[0]], set()
    while waiting:
        start = waiting.pop()
        if start in seen:
            return orientation, f"its directory at byte {start} contains itself"
        seen.add(start)
        if start + 2 > len(block):
            return orientation, f"a directory should be at byte {start} of {len(block)}"
        (count,) = struct.unpack_from(f"{order}H", block, start)
        if start + 2 + 12 * count > len(block):
            return orientation, f"its directory at byte {start} is cut off"
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHII", block, entry)
            size = _VALUE_SIZES.get(kind, 0) * number
            if kind not in _VALUE_SIZES or (size > 4 and value + size > len(block)):
                return orientation, f"entry {tag:#06x} is of no known type or lies outside"
            if tag == _ORIENTATION and kind == 3 and len(seen) == 1:
                (orientation,) = struct.unpack_from(f"{order}H", block, entry + 8)
            elif tag in (*_SUB_DIRECTORIES, ExifTags.IFD.Interop) and number == 1:
                waiting.append(value)
    return orientation, ""


def _parsed(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(_PREFIX + block)
    return exif


def _sub_directory(exif: Image.Exif, tag: int) -> dict[int, Any]:
    content = dict(exif.get_ifd(tag))
    if ExifTags.IFD.Interop in content:
        content[ExifTags.IFD.Interop] = dict(exif.get_ifd(ExifTags.IFD.Interop))
    return content


def _rebuilt(exif: Image.Exif, sides: tuple[int, int] | None = None) -> bytes | None:
    """The EXIF block anew, without orientation and thumbnail; `sides` (width, height) where it gives any."""
    kept = Image.Exif()
    kept.endian = exif.endian  # maker notes follow it
    for tag in exif:
        if tag in _DESCRIPTIVE:
            kept[tag] = exif[tag]
        elif tag in _SUB_DIRECTORIES:
            kept[tag] = _sub_directory(exif, tag)
    if sides is not None and ExifTags.IFD.Exif in kept:
        content = kept[ExifTags.IFD.Exif]
        content.update({tag: sides[axis] for tag, axis in _SIDES.items() if tag in content})
    return kept.tobytes()[len(_PREFIX) :] if len(kept) else None


def _without_thumbnails(xmp: bytes | None) -> bytes | None:
    closing = b"</xmp:Thumbnails>"
    while xmp is not None:
        start = xmp.find(b"<xmp:Thumbnails")
        end = xmp.find(closing, start)
        if start < 0 or end < 0:
            return xmp
        xmp = xmp[:start] + xmp[end + len(closing) :]
    return None


def _with_number(xmp: bytes | None, name: str, number: int) -> bytes | None:
    """An XMP packet with the values of tiff:name and exif:name replaced, as attributes or as elements."""
    if xmp is None:
        return None
    return re.sub(_number(name), rb"\g<1>%d" % number, xmp)


def _number(name: str) -> bytes:
    return rb"(\b(?:tiff|exif):%b(?:\s{0,9}=\s{0,9}[\"']|>))(\d{1,9})(?=[\"'<])" % name.encode()


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _resolution(image: ImageFile.ImageFile) -> tuple[float, float] | None:
    if image.format in ("JPEG", "MPO") and not image.info.get("jfif_unit"):
        return None  # Pillow makes 72 up where EXIF has none, and 1 for TIFF
    if image.format == "TIFF" and _TIFF_RESOLUTION - set(getattr(image, "tag_v2", {})):
        return None
    dpi = image.info.get("dpi")
    try:
        across, down = (float(value) for value in dpi)  # type: ignore[union-attr]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return (across, down) if all(math.isfinite(v) and 1 <= v <= 32767 for v in (across, down)) else None
