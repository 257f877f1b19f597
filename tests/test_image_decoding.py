"""Decoding hostile image files: every depth, mode, orientation and kind of damage."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from lucidnft.images import UnreadableImageError, read_image, read_size, set_max_pixels

RNG = np.random.default_rng(0)
COLOUR_16 = RNG.integers(0, 65536, (7, 5, 3), dtype=np.uint16)


def integers(images: torch.Tensor, depth: int) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, C) integers, checking that they lie on the grid of the depth."""
    scaled = images.double().numpy().transpose(1, 2, 0) * (2**depth - 1)
    assert np.abs(scaled - np.round(scaled)).max() < 0.01
    return np.round(scaled).astype(np.int64)


def write_png(path: Path, pixels: np.ndarray, colour_type: int, *, extra: bytes = b"") -> None:
    """An encoder of our own for 16-bit pixels, using all five row filters in turn."""
    height, width, channels = pixels.shape
    rows = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, -1).astype(int)
    step = 2 * channels
    body = bytearray()
    for y in range(height):
        body.append(y % 5)
        for x in range(rows.shape[1]):
            left = rows[y, x - step] if x >= step else 0
            up = rows[y - 1, x] if y else 0
            corner = rows[y - 1, x - step] if y and x >= step else 0
            estimate = left + up - corner
            paeth = min((left, up, corner), key=lambda v: abs(estimate - v))
            body.append((rows[y, x] - (0, left, up, (left + up) // 2, paeth)[y % 5]) % 256)

    def chunk(tag: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
    transparency = chunk(b"tRNS", extra) if extra else b""
    content = header + transparency + chunk(b"IDAT", zlib.compress(bytes(body))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_every_level_and_does_not_turn_white(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 96).round().astype(np.uint16).reshape(8, 12)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    loaded = read_image(tmp_path / f"ramp.{suffix}")
    assert (loaded.bit_depth, loaded.was_grey, loaded.alpha) == (16, True, None)
    assert np.array_equal(integers(loaded.rgb, 16), np.repeat(ramp[..., None], 3, axis=2))


def test_16_bit_colour_png_is_not_reduced(tmp_path):
    write_png(tmp_path / "a.png", COLOUR_16, 2)
    loaded = read_image(tmp_path / "a.png")
    assert (loaded.bit_depth, loaded.was_grey) == (16, False)
    assert np.array_equal(integers(loaded.rgb, 16), COLOUR_16)


def test_a_dark_16_bit_image_is_still_16_bit(tmp_path):
    write_png(tmp_path / "a.png", COLOUR_16 % 200, 2)
    loaded = read_image(tmp_path / "a.png")
    assert np.array_equal(integers(loaded.rgb, 16), COLOUR_16 % 200)


def test_16_bit_png_with_alpha_and_with_a_transparent_colour(tmp_path):
    rgba = RNG.integers(0, 65536, (6, 4, 4), dtype=np.uint16)
    write_png(tmp_path / "rgba.png", rgba, 6)
    loaded = read_image(tmp_path / "rgba.png")
    assert np.array_equal(integers(torch.cat([loaded.rgb, loaded.alpha]), 16), rgba)
    grey_alpha = RNG.integers(0, 65536, (6, 4, 2), dtype=np.uint16)
    write_png(tmp_path / "la.png", grey_alpha, 4)
    loaded = read_image(tmp_path / "la.png")
    assert loaded.was_grey
    assert np.array_equal(integers(torch.cat([loaded.rgb[:1], loaded.alpha]), 16), grey_alpha)
    write_png(tmp_path / "key.png", COLOUR_16, 2, extra=COLOUR_16[2, 3].astype(">u2").tobytes())
    alpha = integers(read_image(tmp_path / "key.png").alpha, 16)[..., 0]
    assert alpha[2, 3] == 0 and np.count_nonzero(alpha == 65535) == alpha.size - 1


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_colour_tiff_is_not_reduced(tmp_path, byteorder, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, COLOUR_16, photometric="rgb", byteorder=byteorder, compression=compression)
    loaded = read_image(path)
    assert loaded.bit_depth == 16
    assert np.array_equal(integers(loaded.rgb, 16), COLOUR_16)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "p.png", transparency=1)
    loaded = read_image(tmp_path / "p.png")
    assert integers(loaded.rgb, 8)[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert integers(loaded.alpha, 8)[0].ravel().tolist() == [255, 0, 255]


def test_rgba_keeps_straight_colours_and_alpha(tmp_path):
    pixels = RNG.integers(0, 256, (4, 5, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = read_image(tmp_path / "a.png")
    assert np.array_equal(integers(torch.cat([loaded.rgb, loaded.alpha]), 8), pixels)


def test_cmyk_jpeg_becomes_rgb_and_loses_its_profile(tmp_path):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red.save(tmp_path / "c.jpg", quality=100, icc_profile=b"\0" * 16 + b"CMYK" + b"\0" * 108)
    loaded = read_image(tmp_path / "c.jpg")
    assert (loaded.rgb.mean(dim=(1, 2)) - torch.tensor([1.0, 0, 0])).abs().max() < 0.02
    assert loaded.icc_profile is None and not loaded.was_grey


def test_one_bit_and_one_pixel(tmp_path):
    Image.new("1", (1, 1), 1).save(tmp_path / "one.png")
    loaded = read_image(tmp_path / "one.png")
    assert loaded.was_grey and loaded.bit_depth == 8
    assert loaded.rgb.tolist() == [[[1.0]], [[1.0]], [[1.0]]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    # Corners of the upright picture: white, red / green, blue.
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24], upright[:16, 24:, 0], upright[16:, :24, 1], upright[16:, 24:, 2] = 255, 255, 255, 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"o.{suffix}"
    options = {"quality": 100} if suffix in ("jpg", "webp") else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)
    loaded = read_image(path)
    assert loaded.rgb.shape == (3, 32, 48)
    centres = loaded.rgb[:, [8, 8, 24, 24], [12, 36, 12, 36]].T
    expected = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    assert (centres - expected).abs().max() < 0.05
    assert sorted(read_size(path)) == [32, 48]


def _turned(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The stored pixels that an EXIF orientation makes `upright` of."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    return np.ascontiguousarray(turned)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_tiff_is_turned_once_whatever_its_pixels(tmp_path, orientation, compression, depth, channels):
    upright = RNG.integers(0, 2**depth, (6, 8, channels)).astype(f"uint{depth}")
    stored = _turned(upright[..., 0] if channels == 1 else upright, orientation)
    path = tmp_path / "o.tif"
    tifffile.imwrite(
        path, stored, compression=compression, metadata=None,
        photometric="minisblack" if channels == 1 else "rgb",
        extrasamples=["unassalpha"] if channels == 4 else None,
        extratags=[(0x0112, "H", 1, orientation, True)],
    )  # fmt: skip
    loaded = read_image(path)
    assert loaded.bit_depth == depth
    parts = [loaded.rgb[:channels]] if loaded.alpha is None else [loaded.rgb, loaded.alpha]
    assert np.array_equal(integers(torch.cat(parts), depth), upright)


def test_16_bit_grey_where_white_is_zero_is_inverted(tmp_path):
    ramp = np.linspace(0, 65535, 12).round().astype(np.uint16).reshape(3, 4)
    tifffile.imwrite(tmp_path / "w.tif", ramp, photometric="miniswhite", metadata=None)
    assert np.array_equal(integers(read_image(tmp_path / "w.tif").rgb, 16)[..., 0], 65535 - ramp.astype(int))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pixels_that_would_be_misread_are_refused(tmp_path, compression):
    planes = RNG.integers(0, 65536, (3, 6, 8), dtype=np.uint16)
    tifffile.imwrite(
        tmp_path / "planar.tif", planes, photometric="rgb", planarconfig="separate", compression=compression
    )
    tifffile.imwrite(
        tmp_path / "signed.tif", np.array([[-1, 0], [100, 32767]], np.int16), compression=compression
    )
    tifffile.imwrite(tmp_path / "float.tif", np.ones((4, 4), np.float32), compression=compression)
    tifffile.imwrite(tmp_path / "wide.tif", np.ones((4, 4), np.uint32), compression=compression)
    for name in ("planar", "signed", "float", "wide"):
        for read in (read_image, read_size):
            with pytest.raises(UnreadableImageError, match=rf"{name}\.tif.*pixel type.*convert it"):
                read(tmp_path / f"{name}.tif")


def test_12_bit_grey_is_refused(tmp_path):
    # two pixels of 12 bits in three bytes: Pillow reads each of them as its lower byte, twice
    header = b"II*\0" + struct.pack("<I", 8)
    tags = [
        (256, 4, 2),
        (257, 4, 1),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 110),
        (277, 3, 1),
        (279, 4, 3),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    (tmp_path / "t.tif").write_bytes((header + directory).ljust(110, b"\0") + b"\x40\x08\x00")
    with pytest.raises(UnreadableImageError, match="pixel type"):
        read_image(tmp_path / "t.tif")


def test_a_5_6_5_bit_bmp_is_read_as_8_bit(tmp_path):
    # one white and one red pixel, bottom-up, rows padded to four bytes, masks of 5, 6 and 5 bits
    info = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + struct.pack(
        "<III", 0xF800, 0x07E0, 0x001F
    )
    start = 14 + len(info)
    pixels = struct.pack("<HH", 0xFFFF, 0xF800)
    (tmp_path / "a.bmp").write_bytes(struct.pack("<2sIHHI", b"BM", start + 4, 0, 0, start) + info + pixels)
    loaded = read_image(tmp_path / "a.bmp")
    assert loaded.bit_depth == 8
    assert integers(loaded.rgb, 8).tolist() == [[[255, 255, 255], [255, 0, 0]]]


def test_first_picture_of_a_phone_mpo_is_read(tmp_path):
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_image(tmp_path / "a.jpg").rgb[:, 4, 4].round().tolist() == [1, 0, 0]


def _animated(path: Path, **options: object) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_animated_and_multi_page_files_are_refused(tmp_path, name):
    _animated(tmp_path / name)
    for read in (read_image, read_size):
        with pytest.raises(UnreadableImageError, match=rf"{name}.*several frames or pages"):
            read(tmp_path / name)


def test_a_still_gif_is_read(tmp_path):
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "a.gif")
    assert read_image(tmp_path / "a.gif").rgb[:, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    buffer = BytesIO()
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    noise.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    for share in (0.0, 0.02, 0.3, 0.9):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(buffer.getvalue()[: int(buffer.tell() * share)])
        with pytest.raises(UnreadableImageError, match=rf"cut\.{suffix}") as caught:
            read_image(path)
        assert caught.value.reason and caught.value.path == path


def test_things_that_are_not_images_are_refused(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((4, 4), np.float32))
    tifffile.imwrite(tmp_path / "int.tif", np.zeros((4, 4), np.int32))
    for name in ("text.png", "folder.png", "float.tif", "int.tif", "missing.png"):
        with pytest.raises(UnreadableImageError, match=name):
            read_image(tmp_path / name)
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(UnreadableImageError, match="not PNG"):
        read_image(tmp_path / "script.jpg")


def test_the_number_of_pixels_is_limited_and_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    for read in (read_image, read_size):
        with pytest.raises(
            UnreadableImageError, match="its 25 of at most 20 pixels are too many; .*set_max_pixels"
        ):
            read(tmp_path / "a.png")
    assert set_max_pixels(25) == 20
    assert read_image(tmp_path / "a.png").rgb.shape == (3, 5, 5)
    with pytest.raises(ValueError, match="max_pixels is 0"):
        set_max_pixels(0)


def test_the_format_of_the_file_is_kept(tmp_path):
    for suffix, name in (
        ("png", "png"),
        ("jpg", "jpeg"),
        ("webp", "webp"),
        ("tif", "tiff"),
        ("bmp", "bmp"),
        ("gif", "gif"),
    ):
        Image.new("RGB", (4, 4)).save(tmp_path / f"a.{suffix}")
        assert read_image((tmp_path / f"a.{suffix}").rename(tmp_path / "a.png")).file_format == name
    Image.new("RGB", (4, 4)).save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))]
    )
    assert read_image(tmp_path / "a.jpg").file_format == "jpeg"
