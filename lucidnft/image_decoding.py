"""Decoding image files into integers, faithfully; `lucidnft.images` is the door to it.

Departures from what Pillow does by itself: 16-bit colour is not reduced to 8 bits, 16-bit grey does not
turn white, the EXIF orientation is applied, and animated files or pixels of other types are refused.
"""

from __future__ import annotations

import re
import stat
import struct
import sys
import zlib
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from lucidnft.image_metadata import ImageMetadata, read_metadata
from lucidnft.image_profiles import cmyk_to_rgb, profile_damage
from lucidnft.png_checks import check_png, check_png_rows, is_interlaced

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")  # JPEG includes MPO
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError,
    AssertionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_FEW_BITS = {"1": 255, "L;2": 85, "L;4": 17}  # how Pillow names them, and what it multiplies by
_BYTES_BESIDE = 2**26  # metadata, profile and structure of a file
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES, _TIFF_PLANES = 258, 262, 277, 284  # tags
_TIFF_STRIP_SIZES, _TIFF_TILE_SIZES, _TIFF_SAMPLE_FORMAT = 279, 325, 339
# How Pillow names what a file stores.  Others with more than 8 bits (12-bit, signed, premultiplied) it reads wrongly.
_GREY_16 = re.compile(r"I;16[LBN]?|LA;16B")
_COLOUR_16 = re.compile(r"RGB[AX]?;16[LBN]")


class UnreadableImageError(ValueError):
    """A file that cannot be decoded faithfully.  The message names the file and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"cannot read image '{path}': {reason}")
        self.path = Path(path)
        self.reason = reason


@dataclass(frozen=True)
class DecodedPixels:
    """A decoded file, still in integers: what a cache should hold."""

    rgb: np.ndarray  # (H, W, 3) uint8 or uint16; grey images repeat their channel
    alpha: np.ndarray | None  # (H, W) of the same type, straight (not premultiplied)
    was_grey: bool
    icc_profile: bytes | None
    file_format: str  # "png", "jpeg", "webp", "bmp", "tiff" or "gif"
    metadata: ImageMetadata

    @property
    def bit_depth(self) -> int:
        """8 or 16."""
        return 8 if self.rgb.dtype == np.uint8 else 16


def decode_pixels(path: str | Path) -> DecodedPixels:
    """Read PNG, JPEG, WebP, BMP, TIFF or GIF into integers, upright (EXIF orientation applied).

    CMYK is converted to sRGB by its profile, or without one, and its profile is dropped.  Of an MPO file (a JPEG of
    some phones with a second picture behind it) the first picture is read.  Damage that leaves the pixels alone, in
    EXIF, XMP or a profile, is named in the `problems` of the metadata.

    Raises:
        UnreadableImageError: missing, no regular file, truncated, not an image, animated or multi-page, larger than
            `set_max_pixels` allows, or with pixels that do not fit 8 or 16 bits.
    """
    try:
        # From memory: Pillow maps uncompressed TIFFs with their upright size onto pixels stored on their side.
        content = _content(path)
        with _open(BytesIO(content)) as image:
            _refuse_unsupported(image, path)
            _refuse_missing_strips(image, path)
            if image.format == "PNG":
                check_png(content)
            array, has_alpha, was_grey, damage = _to_array(image, content)
            if image.format == "PNG" and (is_interlaced(content) or (array[-1] == array[-1, 0]).all()):
                check_png_rows(content)  # Pillow leaves rows that are not there at zero
            orientation, metadata = read_metadata(image)
            if image.format != "TIFF":  # which Pillow turns upright itself
                array = _upright(array, orientation)
            file_format = {"MPO": "jpeg"}.get(image.format or "", str(image.format).lower())
            icc_profile = image.info.get("icc_profile")
    except UnreadableImageError:
        raise
    except _DECODER_ERRORS as error:
        raise UnreadableImageError(path, _reason(error)) from error
    alpha = np.ascontiguousarray(array[..., -1]) if has_alpha else None
    colour = array[..., :-1] if has_alpha else array
    if colour.shape[2] == 1:
        colour = np.repeat(colour, 3, axis=2)
    if icc_profile and icc_profile[16:20] in (b"GRAY", b"RGB "):
        damage = profile_damage(icc_profile)
    if damage:
        problems = (*metadata.problems, f"the colour profile was left out: {damage}")
        metadata = replace(metadata, problems=problems)
    if damage or not icc_profile or icc_profile[16:20] != (b"GRAY" if was_grey else b"RGB "):
        icc_profile = None
    return DecodedPixels(np.ascontiguousarray(colour), alpha, was_grey, icc_profile, file_format, metadata)


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) from the header alone, before EXIF rotation.  Refuses what `decode_pixels` does.

    A file cut off behind its header passes here and fails when decoded.
    """
    try:
        _check_file(path)
        with _open(path) as image:
            _refuse_unsupported(image, path)
            return image.height, image.width
    except UnreadableImageError:
        raise
    except _DECODER_ERRORS as error:
        raise UnreadableImageError(path, _reason(error)) from error


def set_max_pixels(number: int) -> int:
    """Read images of up to this many pixels, in this process; it sets Pillow's `Image.MAX_IMAGE_PIXELS`.

    Without it the number is 178956970, so that a small file cannot fill the memory.  Returns the one before.  Raises
    ValueError below 1.
    """
    if number < 1:
        raise ValueError(f"max_pixels is {number}, expected 1 or more")
    before = 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)
    Image.MAX_IMAGE_PIXELS = -(-number // 2)  # Pillow warns from there, and refuses from twice that
    return before


def _content(path: str | Path) -> bytes:
    _check_file(path)
    return Path(path).read_bytes()


def _check_file(path: str | Path) -> None:
    """Refuse what would be waited for or read without end: pipes, devices, and files larger than any image."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise UnreadableImageError(path, f"it is {kind}")
    if status.st_size == 0:
        raise UnreadableImageError(path, "it is empty")
    limit = _BYTES_BESIDE + 16 * (Image.MAX_IMAGE_PIXELS or sys.maxsize)  # 8 bytes a pixel
    if status.st_size > limit:
        raise UnreadableImageError(
            path, f"its {status.st_size} bytes are more than any image of the largest size that is read has"
        )


def _open(path: str | Path | BytesIO) -> ImageFile.ImageFile:
    """Only formats this library promises: Pillow's others include interpreters such as PostScript."""
    Image.init()
    return Image.open(path, formats=_FORMATS)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return (
            "the content is not PNG, JPEG, WebP, BMP, TIFF or GIF, or its header is damaged or of a kind that is not "
            "read"
        )
    if isinstance(error, Image.DecompressionBombError):
        numbers = re.findall(r"\d+", str(error))
        return (
            f"its {' of at most '.join(numbers[:2])} pixels are too many; if you trust the file, allow more with "
            "lucidnft.images.set_max_pixels"
        )
    # of Pillow, without a reason
    if isinstance(error, AssertionError) or "cannot load this image" in str(error):
        return f"it has a header but no usable pixels behind it; it is damaged ({type(error).__name__})"
    return f"{error} ({type(error).__name__})"


def _refuse_unsupported(image: ImageFile.ImageFile, path: str | Path) -> None:
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise UnreadableImageError(
            path, "it holds several frames or pages; save the one you want as a single image"
        )
    raw, tags = _raw_mode(image), getattr(image, "tag_v2", {})
    deep = bool(_GREY_16.fullmatch(raw) or _COLOUR_16.fullmatch(raw))
    if image.format == "TIFF" and max(tags.get(_TIFF_BITS, (1,))) > 8:
        odd = not deep or tags.get(_TIFF_PLANES, 1) == 2
    else:
        odd = image.mode in ("I", "F", "LAB") and not deep
    odd = odd or not {1, 4}.issuperset(tags.get(_TIFF_SAMPLE_FORMAT, (1,)))  # unsigned or not said
    if odd:
        raise UnreadableImageError(
            path,
            f"its pixel type ({image.mode}, stored as {raw or 'unknown'}) is not 8 or 16-bit grey or interleaved "
            "RGB; convert it",
        )


def _refuse_missing_strips(image: ImageFile.ImageFile, path: str | Path) -> None:
    """Pillow leaves zero what an uncompressed TIFF has no strips for, or reads on behind its last strip."""
    tags = getattr(image, "tag_v2", {})
    if image.format != "TIFF" or not image.tile or image.tile[0].codec_name != "raw":
        return
    layers = tags.get(_TIFF_SAMPLES, 1) if tags.get(_TIFF_PLANES, 1) == 2 else 1
    boxes = [tile.extents or (0, 0, 0, 0) for tile in image.tile]
    covered = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    row = (image.width * sum(tags.get(_TIFF_BITS, (1,))) + 7) // 8
    counts = tags.get(_TIFF_STRIP_SIZES, tags.get(_TIFF_TILE_SIZES, (0,)))
    if covered < layers * image.width * image.height or (
        min(counts) > 0 and sum(counts) < image.height * row
    ):
        raise UnreadableImageError(path, "image file is truncated: strips or tiles of its pixels are missing")


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """How the file stores a pixel, e.g. "RGB;16B"; empty when the format does not say."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _to_array(image: ImageFile.ImageFile, content: bytes) -> tuple[np.ndarray, bool, bool, str]:
    """(H, W, channels) integers, whether the last is alpha, whether the colour is grey, what a CMYK profile lacks."""
    raw, mode = _raw_mode(image), image.mode
    was_grey = mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L") or raw.startswith("LA;")
    if raw.startswith("LA;16"):
        array = _grey_alpha_16(content)
    elif _COLOUR_16.fullmatch(raw):
        array = _colour_16(content)
    elif _GREY_16.fullmatch(raw):
        array = np.atleast_3d(np.asarray(image).astype(np.uint16))
        if getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0:  # white is zero
            array = np.uint16(65535) - array
    else:
        return _eight_bits(image, raw, was_grey)
    key = image.info.get("transparency")
    if mode not in ("LA", "RGBA") and key is not None:
        opaque = (array != np.asarray(key, dtype=np.uint16)).any(axis=2, keepdims=True)
        return np.concatenate([array, opaque * np.uint16(65535)], axis=2), True, was_grey, ""
    return array, mode in ("LA", "RGBA"), was_grey, ""


def _eight_bits(image: ImageFile.ImageFile, raw: str, was_grey: bool) -> tuple[np.ndarray, bool, bool, str]:
    """As `_to_array`, for what Pillow reads into 8 bits."""
    if image.mode == "CMYK":
        converted, damage = cmyk_to_rgb(image, image.info.get("icc_profile"))
        return np.asarray(converted), False, False, damage
    key = image.info.get("transparency")
    if raw in _FEW_BITS and isinstance(key, int):  # Pillow scales the pixels but not the transparent grey
        image.info["transparency"] = key * _FEW_BITS[raw]
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return (rgba[..., [0, 3]] if was_grey else rgba), True, was_grey, ""
    return np.atleast_3d(np.asarray(image.convert("L" if was_grey else "RGB"))), False, was_grey, ""


def _colour_16(content: bytes) -> np.ndarray:
    """A 16-bit RGB or RGBA file, every bit of it.

    Pillow keeps one byte of each two; decoding twice, once with the byte order reversed, gets both.
    """
    native = "L" if sys.byteorder == "little" else "B"
    halves = []
    for reverse in (False, True):
        with _open(BytesIO(content)) as image:
            tiles = []
            for tile in image.tile:
                raw, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
                order = native if raw.endswith("N") else raw[-1]
                order = {"L": "B", "B": "L"}[order] if reverse else order
                tiles.append(tile._replace(args=(raw[:-1] + order, *others)))
            image.tile = tiles
            halves.append(np.asarray(image).astype(np.uint16))
    return halves[0] << 8 | halves[1]


def _grey_alpha_16(content: bytes) -> np.ndarray:
    """A 16-bit grey PNG with alpha: four bytes a pixel, so it is decoded as if it were 8-bit RGBA."""
    patched = bytearray(content)
    patched[24:26] = bytes([8, 6])
    patched[29:33] = zlib.crc32(patched[12:29]).to_bytes(4, "big")
    with _open(BytesIO(patched)) as image:
        parts = np.asarray(image).astype(np.uint16)
    return parts[..., 0::2] << 8 | parts[..., 1::2]


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation 1..8 on (H, W, C); any other value means none, as the standard reserves it."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    rows, columns = {2: (1, -1), 3: (-1, -1), 4: (-1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}.get(
        orientation, (1, 1)
    )
    return array[::rows, ::columns]
