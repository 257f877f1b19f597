"""Image tensors and files: atomic writing, folder listing, resizing, rounding."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from lucidnft.images import (
    list_images,
    pixels_to_tensor,
    read_image,
    resize,
    save_image,
    tensor_to_uint8,
)

# Away from 0 and 255, where Pillow clips between its two passes and we do not.
PHOTO = np.random.default_rng(0).integers(80, 176, (24, 16, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    bit_depth=st.sampled_from([8, 16]),
    grey=st.booleans(),
    with_alpha=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_is_saved_is_read_back(tmp_path_factory, height, width, bit_depth, grey, with_alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.rand(1 if grey else 3, height, width, generator=generator).expand(3, -1, -1)
    alpha = torch.rand(1, height, width, generator=generator) if with_alpha else None
    path = tmp_path_factory.mktemp("round") / "a.png"
    save_image(path, rgb, alpha=alpha, grey=grey, bit_depth=bit_depth)
    loaded = read_image(path)
    half_step = 0.5 / (2**bit_depth - 1) + 1e-6
    assert (loaded.rgb - rgb).abs().max() <= half_step
    assert (loaded.alpha is None) == (alpha is None)
    if alpha is not None:
        assert (loaded.alpha - alpha).abs().max() <= half_step
    assert loaded.was_grey == grey
    assert loaded.bit_depth == bit_depth
    again = path.with_name("again.png")
    save_image(again, loaded.rgb, alpha=loaded.alpha, grey=grey, bit_depth=bit_depth)
    assert again.read_bytes() == path.read_bytes()


def test_rgb_profile_survives_a_round_trip_and_is_refused_for_grey(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(PHOTO).save(tmp_path / "in.png", icc_profile=profile)
    loaded = read_image(tmp_path / "in.png")
    assert loaded.icc_profile == profile
    for depth in (8, 16):
        save_image(tmp_path / "out.png", loaded.rgb, bit_depth=depth, icc_profile=profile)
        assert read_image(tmp_path / "out.png").icc_profile == profile
    with pytest.raises(ValueError, match=r"out\.png.*profile"):
        save_image(tmp_path / "out.png", loaded.rgb, grey=True, icc_profile=profile)


def test_list_images_by_extension_in_any_case(tmp_path):
    for name in ("b.PNG", "a.b.c.Jpeg", "c.TIFF", ".hidden.png", "notes.txt", "noextension"):
        (tmp_path / name).write_bytes(b"")
    for folder in ("sub", ".cache"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "d.webp").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == ["a.b.c.Jpeg", "b.PNG", "c.TIFF"]
    deep = [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path, recursive=True)]
    assert deep == ["a.b.c.Jpeg", "b.PNG", "c.TIFF", "sub/d.webp"]


def test_list_images_says_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere' does not exist"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no image file"):
        list_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.png' is a file"):
        list_images(tmp_path / "a.png")


def test_saving_refuses_what_it_cannot_write(tmp_path):
    image = torch.rand(3, 4, 4)
    cases = [
        ({"path": "a.gif", "rgb": image}, "not as '.gif'"),
        ({"path": "a.png", "rgb": image[:, :0]}, "expected .3, H, W. floats"),
        ({"path": "a.jpg", "rgb": image, "quality": 0}, "quality is 0"),
        ({"path": "a.png", "rgb": image[:1]}, "expected .3, H, W. floats"),
        ({"path": "a.png", "rgb": image * torch.nan}, "NaN"),
        ({"path": "a.png", "rgb": image, "bit_depth": 12}, "bit_depth is 12"),
        ({"path": "a.png", "rgb": image, "alpha": torch.rand(1, 4, 5)}, "alpha is"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            save_image(tmp_path / arguments.pop("path"), **arguments)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_is_divided_by_the_highest_and_the_pixels_stay(dtype):
    top = np.iinfo(dtype).max
    pixels = np.arange(int(top) + 1, dtype=dtype).reshape(16, -1, 2)[:, ::-1]  # a view that is not contiguous
    kept = pixels.copy()
    images = pixels_to_tensor(pixels)
    assert images.shape == (2, *pixels.shape[:2]) and images.is_contiguous()
    expected = torch.from_numpy(kept.astype(np.float32) / np.float32(top)).permute(2, 0, 1)
    assert torch.equal(images, expected)
    assert np.array_equal(pixels, kept)


def test_uint8_is_rounded_and_clamped():
    values = torch.tensor([-1.0, 0.0, 0.6 / 255, 1.4 / 255, 254.5001 / 255, 1.0, 2.0])
    assert tensor_to_uint8(values).tolist() == [0, 0, 1, 1, 255, 255, 255]


@pytest.mark.parametrize("size", [(12, 8), (48, 33), (7, 5)])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_antialiased_resize_agrees_with_pillow(size, mode):
    ours = tensor_to_uint8(resize(torch.from_numpy(PHOTO).permute(2, 0, 1)[None] / 255, size, mode))[0]
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    theirs = np.asarray(Image.fromarray(PHOTO).resize((size[1], size[0]), filters[mode]))
    assert np.abs(ours.permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1


def test_resize_stays_in_range_and_keeps_constants():
    checkerboard = (torch.arange(8)[:, None] + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8)
    for mode in ("bicubic", "bilinear", "area", "nearest"):
        out = resize(checkerboard, (21, 13), mode)
        assert out.shape == (1, 3, 21, 13) and out.min() >= 0 and out.max() <= 1
        flat = resize(torch.full((2, 3, 5, 7), 0.3), (3, 11), mode)
        assert torch.allclose(flat, torch.tensor(0.3), atol=1e-6)
    assert torch.equal(resize(checkerboard, (8, 8)), checkerboard)


def test_shrinking_far_keeps_the_picture():
    """CUDA's antialiased kernel refuses more than about 47 times: it goes in two steps from 32 on."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 400), torch.linspace(0, 1, 330), indexing="ij")
    image = torch.stack([rows, columns, 0.5 + 0.4 * torch.sin(7 * rows) * torch.cos(5 * columns)])[None]
    at_once = F.interpolate(image, size=(4, 7), mode="bicubic", align_corners=False, antialias=True)
    torch.testing.assert_close(resize(image, (4, 7)), at_once, atol=4e-3, rtol=0)
    assert torch.equal(resize(torch.full((1, 3, 400, 330), 0.25), (4, 7)), torch.full((1, 3, 4, 7), 0.25))
    assert resize(image, (1, 1)).shape == (1, 3, 1, 1)


def test_no_resize_asks_for_more_than_a_gpu_shrinks_at_once(monkeypatch):
    asked, real = [], F.interpolate

    def watched(images, size, **options):
        if options.get("antialias"):
            asked.append(max(old / new for old, new in zip(images.shape[-2:], size, strict=True)))
        return real(images, size=size, **options)

    monkeypatch.setattr(F, "interpolate", watched)
    for old, new in ((33, 1), (512, 1), (512, 16), (600, 17), (100, 300)):
        assert resize(torch.rand(1, 3, old, 40), (new, 30)).shape == (1, 3, new, 30)
    assert len(asked) == 5 and max(asked) <= 32
