"""Writing image files: every format against other readers, what is refused, memory, and a full disk."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from lucidnft.images import OUTPUT_FORMATS, check_format, holds_profile, read_image, save_image

RNG = np.random.default_rng(0)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GREY_PROFILE = PROFILE[:16] + b"GRAY" + PROFILE[20:]


def noise(height: int, width: int, channels: int, depth: int = 8) -> np.ndarray:
    return RNG.integers(0, 2**depth, (height, width, channels)).astype(f"uint{depth}")


def tensors(pixels: np.ndarray) -> dict[str, object]:
    """Arguments of save_image for (H, W, 1 to 4) integers."""
    top = np.iinfo(pixels.dtype).max
    planes = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float64) / top)
    colours = planes[: 1 if len(planes) < 3 else 3]
    return {
        "rgb": colours.expand(3, -1, -1),
        "alpha": planes[-1:] if len(planes) in (2, 4) else None,
        "grey": len(planes) < 3,
        "bit_depth": 8 * pixels.itemsize,
    }


def by_others(path: Path) -> np.ndarray:
    """A file as readers other than ours see it, (H, W, channels)."""
    if path.suffix in (".tif", ".tiff"):
        with tifffile.TiffFile(path) as file:
            (page,) = file.pages
            assert page.compression == 8
            return page.asarray().reshape(page.imagelength, page.imagewidth, -1)
    with Image.open(path) as image:
        assert image.size == (np.asarray(image).shape[1], np.asarray(image).shape[0])
        return np.atleast_3d(np.asarray(image))


def encoded_at_once(pixels: np.ndarray) -> bytes:
    """The PNG of (H, W, C) integers, encoded without strips."""
    height, width, channels = pixels.shape
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(height, -1).view(np.uint8)
    filtered = np.full((height, rows.shape[1] + 1), 2, np.uint8)
    filtered[:, 1:] = rows
    filtered[1:, 1:] -= rows[:-1]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 6)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (6, 1), (5, 9)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.TIFF", "a.bmp"])
def test_eight_bits_survive_in_every_lossless_format(tmp_path, name, channels, size):
    if name == "a.bmp" and channels in (2, 4):
        return
    pixels = noise(*size, channels)
    if channels in (2, 4):
        pixels[0, 0, -1] = 0  # the colours under it are kept
    save_image(tmp_path / name, **tensors(pixels), quality=100)
    found = by_others((tmp_path / name).rename(tmp_path / name.lower()))
    if name == "a.webp" and channels < 3:
        pixels = np.concatenate([np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1:]], axis=2)
    assert found.dtype == np.uint8 and np.array_equal(found, pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("strip", [4, 2**16])
def test_sixteen_bits_survive(tmp_path, monkeypatch, suffix, channels, strip):
    monkeypatch.setattr("lucidnft.images._STRIP_SIZE", strip)
    expected = noise(5, 3, channels, 16)
    path = tmp_path / f"a.{suffix}"
    save_image(path, **tensors(expected))
    if suffix == "png":
        assert path.read_bytes() == encoded_at_once(expected)
    else:  # of grey with alpha, which Pillow cannot read from TIFF, RGB was made
        assert np.array_equal(by_others(path), expected[..., [0, 0, 0, 1]] if channels == 2 else expected)
    loaded = read_image(path)
    planes = torch.cat(
        [loaded.rgb[: 1 if channels < 3 else 3], *([loaded.alpha] if channels in (2, 4) else [])]
    )
    assert np.array_equal(planes.mul(65535).round().numpy().transpose(1, 2, 0), expected)
    assert loaded.bit_depth == 16 and loaded.file_format == {"png": "png", "tif": "tiff"}[suffix]


def test_strips_make_the_png_that_one_piece_makes(tmp_path, monkeypatch):
    monkeypatch.setattr("lucidnft.images._STRIP_SIZE", 70)
    pixels = (np.mgrid[0:64, 0:33].sum(0)[..., None] * [1, 2, 3] % 256).astype(np.uint8)
    save_image(tmp_path / "a.png", **tensors(pixels))
    assert (tmp_path / "a.png").read_bytes() == encoded_at_once(pixels)
    monkeypatch.setattr("lucidnft.image_encoding._IDAT_SIZE", 100)
    pixels = noise(300, 99, 3)
    save_image(tmp_path / "b.png", **tensors(pixels))
    assert (tmp_path / "b.png").read_bytes().count(b"IDAT") > 3
    assert np.array_equal(by_others(tmp_path / "b.png"), pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "bmp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_in_strips_is_the_picture(tmp_path, monkeypatch, suffix, channels):
    monkeypatch.setattr("lucidnft.images._STRIP_SIZE", 40 * 7)
    y, x = np.mgrid[0:61, 0:40]
    pixels = np.stack([x * 4 + y, 200 - x - y, y * 3], axis=2)[..., :channels].astype(np.uint8)
    save_image(tmp_path / f"a.{suffix}", **tensors(pixels), quality=100)
    found = by_others(tmp_path / f"a.{suffix}").astype(int)
    assert found.shape[:2] == (61, 40)
    assert np.abs(found - pixels).max() <= (4 if suffix == "jpg" else 0)


def test_quality_and_full_colour_resolution(tmp_path):
    coarse, fine = (tmp_path / f"{name}.jpeg" for name in ("coarse", "fine"))
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, ::2, 0], pixels[:, 1::2, 2] = 255, 255  # red and blue columns, which halved chroma mixes
    save_image(coarse, **tensors(pixels), quality=30)
    save_image(fine, **tensors(pixels))
    assert coarse.stat().st_size < fine.stat().st_size
    assert np.abs(by_others(fine).astype(int) - pixels).max() < 20
    save_image(tmp_path / "lossy.webp", **tensors(noise(64, 64, 3)), quality=50)
    save_image(tmp_path / "exact.webp", **tensors(noise(64, 64, 3)), quality=100)
    assert (tmp_path / "lossy.webp").stat().st_size < (tmp_path / "exact.webp").stat().st_size


def test_a_profile_is_kept_where_the_format_has_a_place_for_it(tmp_path):
    pixels = noise(4, 4, 3)
    for suffix in OUTPUT_FORMATS.values():
        path = tmp_path / f"a{suffix}"
        if holds_profile(suffix, grey=False):
            save_image(path, **tensors(pixels), icc_profile=PROFILE)
            with Image.open(path) as image:
                assert image.info["icc_profile"] == PROFILE
            assert read_image(path).icc_profile == PROFILE
        else:
            with pytest.raises(ValueError, match="no profile can be kept"):
                save_image(path, **tensors(pixels), icc_profile=PROFILE)
    assert [s for s in OUTPUT_FORMATS.values() if not holds_profile(s, grey=False)] == [".bmp"]
    for suffix in (".png", ".jpg", ".tif"):
        save_image(tmp_path / f"g{suffix}", **tensors(noise(4, 4, 1)), icc_profile=GREY_PROFILE)
        assert read_image(tmp_path / f"g{suffix}").icc_profile == GREY_PROFILE
    with pytest.raises(ValueError, match=r"g\.webp.*grey pixels"):
        save_image(tmp_path / "g.webp", **tensors(noise(4, 4, 1)), icc_profile=GREY_PROFILE)


def test_a_grey_profile_is_not_written_beside_grey_that_became_rgb(tmp_path):
    for alpha, bit_depth in ((False, 8), (False, 16), (True, 8), (True, 16)):
        held = holds_profile(".tif", grey=True, alpha=alpha, bit_depth=bit_depth)
        assert held == (not (alpha and bit_depth == 16))
        assert holds_profile(".tif", grey=False, alpha=alpha, bit_depth=bit_depth)
        path = tmp_path / f"{alpha}{bit_depth}.tif"
        picture = {
            "rgb": torch.rand(1, 4, 4).expand(3, 4, 4), "alpha": torch.rand(1, 4, 4) if alpha else None,
            "grey": True, "bit_depth": bit_depth,
        }  # fmt: skip
        if held:
            save_image(path, **picture, icc_profile=GREY_PROFILE)
            assert read_image(path).icc_profile == GREY_PROFILE
            continue
        with pytest.raises(ValueError, match="no profile can be kept in this format for grey pixels"):
            save_image(path, **picture, icc_profile=GREY_PROFILE)
        save_image(path, **picture)
        assert read_image(path).bit_depth == 16


@pytest.mark.parametrize(
    "extension, wish, message",
    [
        (".jpg", {"alpha": True}, "jpeg holds no alpha; write png, webp or tiff"),
        (".bmp", {"alpha": True}, "bmp holds no alpha"),
        (".jpeg", {"bit_depth": 16}, "jpeg holds 8 bits, not 16; write png or tiff"),
        (".webp", {"bit_depth": 16}, "webp holds 8 bits"),
        (".bmp", {"bit_depth": 16}, "bmp holds 8 bits"),
        (".webp", {"size": (1, 16384)}, "webp holds sides of up to 16383 pixels, this image is 16384 x 1;"),
        (".jpg", {"size": (65501, 1)}, "jpeg holds sides of up to 65500 pixels, this image is 1 x 65501;"),
        (".gif", {}, "not as '.gif'"),
        ("", {}, "not as ''"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_and_while_writing(tmp_path, extension, wish, message):
    facts = {"size": (2, 2), "alpha": False, "bit_depth": 8, **wish}
    with pytest.raises(ValueError, match=message):
        check_format(extension, **facts)
    rgb, alpha = torch.rand(3, *facts["size"]), torch.rand(1, *facts["size"]) if facts["alpha"] else None
    with pytest.raises(ValueError, match=message):
        save_image(tmp_path / f"a{extension}", rgb, alpha=alpha, bit_depth=facts["bit_depth"])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "suffix, side", [(".webp", 16383), (".jpg", 65500), (".png", 70000), (".tif", 70000)]
)
def test_the_longest_sides_can_be_written(tmp_path, suffix, side):
    for size in ((1, side), (side, 1)):
        check_format(suffix, size=size, alpha=False, bit_depth=8)
        save_image(tmp_path / f"a{suffix}", torch.full((3, *size), 0.5))
        with Image.open(tmp_path / f"a{suffix}") as image:
            assert image.size == (size[1], size[0]) and image.load()[0, 0] is not None


@pytest.mark.parametrize("suffix", OUTPUT_FORMATS.values())
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    save_image(path, torch.zeros(3, 8, 8))
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_image(path, torch.rand(3, 64, 64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_bad_pixels_in_the_last_strip_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("lucidnft.images._STRIP_SIZE", 8)
    rgb = torch.rand(3, 16, 8)
    rgb[1, 15, 7] = torch.nan
    for suffix in OUTPUT_FORMATS.values():
        with pytest.raises(ValueError, match="NaN or infinite"):
            save_image(tmp_path / f"a{suffix}", rgb)
    assert os.listdir(tmp_path) == []


def test_writing_takes_little_more_memory_than_the_encoded_picture(tmp_path):
    # The input has 12 bytes a pixel.  Pillow keeps 4 a pixel; PNG and TIFF only what is compressed already.
    code = """
        import sys, torch
        from lucidnft.images import save_image

        def kilobytes(name):
            with open("/proc/self/status") as file:
                return int(next(line for line in file if line.startswith(name)).split()[1])

        torch.set_num_threads(1)
        side = 2000
        rgb = (torch.arange(side)[:, None] + torch.arange(side)).remainder(97).div(97).expand(3, -1, -1).clone()
        for suffix, depth in (("png", 8), ("png", 16), ("tif", 8), ("tif", 16), ("jpg", 8), ("bmp", 8)):
            save_image(f"{sys.argv[1]}/small.{suffix}", rgb[:, :50, :50], bit_depth=depth)
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # forget the peak
            before = kilobytes("VmRSS")
            save_image(f"{sys.argv[1]}/a.{suffix}", rgb, bit_depth=depth)
            print(suffix, depth, (kilobytes("VmHWM") - before) * 1024 / side**2)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    used = {tuple(line.split()[:2]): float(line.split()[2]) for line in answer.stdout.splitlines()}
    assert len(used) == 6
    strip = 40 * 2**16 / 2000**2  # bytes a pixel: float64 and its copies
    for (suffix, _), per_pixel in used.items():
        allowed = {"jpg": 5, "bmp": 4 + 3 + 3}.get(suffix, 2) + strip
        assert per_pixel < allowed, used
