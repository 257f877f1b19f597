"""Encoding pixels into image files, strip by strip; `lucidnft.images` is the door to it.

Departures from what Pillow does by itself: PNG and TIFF are written here, because Pillow has no 16-bit colour, and
with them no whole copy of the picture is made; JPEG keeps full colour resolution; WebP keeps colours under
transparent pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

from lucidnft.image_metadata import ImageMetadata

OUTPUT_FORMATS = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "bmp": ".bmp"}
"""What can be written, and the extension it gets."""

DEEP_FORMATS = ("png", "tiff")
"""Those that hold 16 bits a channel."""

_OTHER_EXTENSIONS = {".jpeg": "jpeg", ".tiff": "tiff"}
_LONGEST_SIDES = {"png": 2**31 - 1, "jpeg": 65500, "webp": 16383, "tiff": 2**31 - 1, "bmp": 2**31 - 1}
_IDAT_SIZE = 2**20
_JPEG_SEGMENT = 65533  # bytes
_TIFF_SIZE = 2**32 - 2**24  # bytes of compressed pixels: offsets have 32 bits
_TIFF_HEADER = b"II*\0\x08\0\0\0"


@dataclass(frozen=True)
class Picture:
    """What an encoder is given: pixels in strips of rows, and what goes beside them."""

    height: int
    width: int
    channels: int  # 1 to 4: grey or RGB, and alpha
    bit_depth: int  # 8 or 16
    strips: Iterable[
        np.ndarray
    ]  # (rows, width, channels) uint8 or uint16, all of one number of rows but the last
    strip_rows: int
    icc_profile: bytes | None
    metadata: ImageMetadata
    quality: int


def output_format(extension: str) -> str:
    """The format that an extension means, in any case, with its dot.

    Raises:
        ValueError: none that can be written.
    """
    extension = extension.lower()
    for name, usual in OUTPUT_FORMATS.items():
        if usual == extension or _OTHER_EXTENSIONS.get(extension) == name:
            return name
    raise ValueError(
        f"images are written as {' '.join([*OUTPUT_FORMATS.values(), *_OTHER_EXTENSIONS])}, not as '{extension}'"
    )


def check_format(extension: str, *, size: tuple[int, int], alpha: bool, bit_depth: int) -> None:
    """Refuse a picture that a format cannot hold.

    Args:
        extension: of the file to write, with its dot.
        size: (height, width).
        alpha: whether there is an alpha channel.
        bit_depth: 8 or 16.

    Raises:
        ValueError: no such format, or it cannot hold this picture; the message says what can.
    """
    name = output_format(extension)
    if alpha and name in ("jpeg", "bmp"):
        raise ValueError(f"{name} holds no alpha; write png, webp or tiff, or leave the alpha out")
    if bit_depth != 8 and name not in DEEP_FORMATS:
        raise ValueError(
            f"{name} holds 8 bits, not {bit_depth}; write {' or '.join(DEEP_FORMATS)}, or 8 bits"
        )
    if max(size) > _LONGEST_SIDES[name]:
        raise ValueError(
            f"{name} holds sides of up to {_LONGEST_SIDES[name]} pixels, this image is {size[1]} x {size[0]}; "
            "write png or tiff"
        )


def holds_grey(extension: str, *, alpha: bool, bit_depth: int) -> bool:
    """Whether grey is stored in one channel: not in WebP, nor in TIFF of 16 bits with alpha; they get three."""
    name = output_format(extension)
    return name != "webp" and not (name == "tiff" and alpha and bit_depth == 16)


def holds_profile(extension: str, *, grey: bool, alpha: bool = False, bit_depth: int = 8) -> bool:
    """Whether a colour profile can be written: not in BMP, nor one of grey where that is stored as RGB."""
    if output_format(extension) == "bmp":
        return False
    return not grey or holds_grey(extension, alpha=alpha, bit_depth=bit_depth)


def encode(file: BinaryIO, name: str, picture: Picture) -> None:
    """Write a picture into an open, empty file; `name` is a key of OUTPUT_FORMATS.

    Raises:
        ValueError: metadata or compressed pixels do not fit into the format.
        OSError: writing failed.
    """
    {"png": _png, "jpeg": _jpeg, "webp": _webp, "tiff": _tiff, "bmp": _bmp}[name](file, picture)


def _png(file: BinaryIO, picture: Picture) -> None:
    def chunk(tag: bytes, data: bytes) -> None:
        file.write(struct.pack(">I", len(data)) + tag)
        file.write(data)
        file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(tag))))

    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[picture.channels]
    file.write(b"\x89PNG\r\n\x1a\n")
    header = (picture.width, picture.height, picture.bit_depth, colour_type, 0, 0, 0)
    chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
    if picture.icc_profile:
        chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(picture.icc_profile))
    metadata = picture.metadata
    if metadata.dpi:
        across, down = (round(value / 0.0254) for value in metadata.dpi)  # per metre
        chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    if metadata.exif:
        chunk(b"eXIf", metadata.exif)
    if metadata.xmp:
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    waiting = bytearray()
    for part in _compressed_rows(picture):
        waiting += part
        if len(waiting) >= _IDAT_SIZE:
            chunk(b"IDAT", bytes(waiting))
            waiting.clear()
    if waiting:
        chunk(b"IDAT", bytes(waiting))
    chunk(b"IEND", b"")


def _compressed_rows(picture: Picture) -> Iterator[bytes]:
    """Each row less the one above it (PNG's filter 2), as one zlib stream."""
    stream = zlib.compressobj(6)
    above: np.ndarray | None = None
    for strip in picture.strips:
        big_endian = strip.astype(strip.dtype.newbyteorder(">"))
        rows = big_endian.reshape(len(strip), -1).view(np.uint8)
        filtered = np.full((len(rows), rows.shape[1] + 1), 2, np.uint8)
        filtered[:, 1:] = rows
        filtered[1:, 1:] -= rows[:-1]
        if above is not None:
            filtered[0, 1:] -= above
        above = rows[-1].copy()
        yield stream.compress(filtered.data)
    yield stream.flush()


def _tiff(file: BinaryIO, picture: Picture) -> None:
    """Deflated strips of horizontal differences, colours and alpha interleaved."""
    strips = []
    for strip in picture.strips:
        differences = strip.astype(strip.dtype.newbyteorder("<"))
        differences[:, 1:] -= strip[:, :-1]
        strips.append(zlib.compress(differences.data, 6))
    if sum(map(len, strips)) > _TIFF_SIZE:
        raise ValueError("the compressed picture is larger than the 4 GiB that tiff holds; write png")
    content = _tiff_directory(picture, [len(strip) for strip in strips]).tobytes(8)
    file.write(_TIFF_HEADER + content)
    file.writelines(strips)


def _tiff_directory(picture: Picture, strip_sizes: list[int]) -> ImageFileDirectory_v2:
    """The directory of a picture whose strips follow it; Pillow adds its end to StripOffsets when it is encoded."""
    metadata, channels = picture.metadata, picture.channels
    directory = ImageFileDirectory_v2(_TIFF_HEADER)
    for tag, value in metadata.tiff_tags().items():
        directory[tag] = value
    ends = np.cumsum([0, *strip_sizes]).tolist()
    directory[256], directory[257] = picture.width, picture.height
    directory[258] = (picture.bit_depth,) * channels  # BitsPerSample
    directory[259] = 8  # Compression: deflate
    directory[262] = 1 if channels < 3 else 2  # PhotometricInterpretation: black is zero, or RGB
    directory[273] = tuple(ends[:-1])  # StripOffsets
    directory[277] = channels  # SamplesPerPixel
    directory[278] = picture.strip_rows  # RowsPerStrip
    directory[279] = tuple(strip_sizes)  # StripByteCounts
    directory[284] = 1  # PlanarConfiguration: interleaved
    directory[317] = 2  # Predictor: horizontal differences
    if channels in (2, 4):
        directory[338] = (2,)  # ExtraSamples: straight alpha
    if metadata.dpi:
        directory[282], directory[283] = (IFDRational(value) for value in metadata.dpi)
        directory[296] = 2  # ResolutionUnit: inch
    for tag, kind, data in ((700, 1, metadata.xmp), (34675, 7, picture.icc_profile)):
        if data:
            directory.tagtype[tag] = kind
            directory[tag] = data
    return directory


def _jpeg(file: BinaryIO, picture: Picture) -> None:
    metadata = picture.metadata
    for name, data in (("EXIF", metadata.exif), ("XMP", metadata.xmp)):
        if data and len(data) > _JPEG_SEGMENT - 40:  # its header
            raise ValueError(
                f"{name} of {len(data)} bytes does not fit into jpeg, which holds {_JPEG_SEGMENT - 40}; write png, "
                "webp or tiff, or leave the metadata out"
            )
    options = {**_beside(picture), "quality": picture.quality, "subsampling": 0}
    if metadata.dpi:
        options["dpi"] = tuple(round(value) for value in metadata.dpi)
    _by_pillow(file, picture, "JPEG", options)


def _webp(file: BinaryIO, picture: Picture) -> None:
    options = {
        **_beside(picture),
        "quality": picture.quality,
        "lossless": picture.quality == 100,
        "exact": True,
    }
    _by_pillow(file, picture, "WEBP", options)


def _bmp(file: BinaryIO, picture: Picture) -> None:
    _by_pillow(file, picture, "BMP", {"dpi": picture.metadata.dpi} if picture.metadata.dpi else {})


def _beside(picture: Picture) -> dict[str, Any]:
    metadata = picture.metadata
    exif = b"Exif\0\0" + metadata.exif if metadata.exif else None
    options = {"icc_profile": picture.icc_profile, "exif": exif, "xmp": metadata.xmp}
    return {name: data for name, data in options.items() if data}


def _by_pillow(file: BinaryIO, picture: Picture, name: str, options: dict[str, Any]) -> None:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[picture.channels]
    image = Image.new(mode, (picture.width, picture.height))
    top = 0
    for strip in picture.strips:
        image.paste(Image.fromarray(strip[..., 0] if mode == "L" else strip), (0, top))
        top += len(strip)
    content = BytesIO()  # Pillow reports a full disk as an encoder's error
    image.save(content, name, **options)
    file.write(content.getbuffer())
