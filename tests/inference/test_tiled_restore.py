"""Restoring in tiles: what a whole image gives, whatever the layout, the batch and the memory."""

import math

import pytest
import torch

from lucidnft.images import resize
from lucidnft.inference import restore, tiled_images
from lucidnft.inference.tile_memory import (
    AUTO_TILE_SIZES,
    TilePlan,
    auto_tile_size,
    free_memory,
    tiles_at_once,
)
from lucidnft.records import Condition
from tests.small_backbone import moved_policy, small_backbone
from tests.small_decoder import Normed
from tests.small_dit4sr import small_dit4sr


def structure(height, width):
    """An LR image of stripes, blobs and flat parts: (1, 3, height, width)."""
    y, x = torch.meshgrid(torch.arange(height) / 7, torch.arange(width) / 5, indexing="ij")
    waves = torch.stack([torch.sin(x * y / 3), torch.cos(x + 2 * y), torch.sin(2 * x).clamp(min=0)])
    return (0.5 + 0.4 * waves)[None]


class PixelBackbone:
    """A flow whose velocity at a pixel depends on that pixel alone: tiles must not show at all."""

    name = "pixel"
    default_num_steps = 3
    pre_restores = True
    fails_above = math.inf  # output pixels in one call

    def __init__(self):
        inner = small_backbone()
        self.module, self.latent_spec, self.upscale = inner.module, inner.latent_spec, inner.upscale
        self.device, self.default_time_grid = inner.device, inner.default_time_grid
        self.calls, self.encoded = [], 0

    def encode_condition(self, lr, *, upscale, prompts=None):
        self.encoded += 1
        up = resize(lr, (lr.shape[2] * upscale, lr.shape[3] * upscale), "nearest")
        return Condition({"up": up, "pre_restored": 1 - 2 * up})

    def velocity(self, x_t, t, condition):
        self.calls.append(tuple(x_t.shape))
        if x_t.shape[0] * x_t.shape[2] * x_t.shape[3] > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x_t * (1 + t.view(-1, 1, 1, 1)) - condition["up"]

    def decode(self, x_0):
        return x_0.sigmoid()


@pytest.mark.parametrize("solver", ["euler", "heun", "dpm2"])
def test_tiles_of_a_pixelwise_flow_do_not_show(solver):
    lr = structure(19, 26)
    whole = restore(PixelBackbone(), lr, solver=solver)
    for options in (
        {"tile_size": 48},
        {"tile_size": 16, "tile_overlap": 0},
        {"tile_size": 40, "tile_overlap": 32},
    ):
        tiled = restore(PixelBackbone(), lr, solver=solver, **options)
        torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)


def test_pixels_do_not_depend_on_how_many_tiles_go_at_once():
    lr, policy = structure(20, 26), moved_policy(small_backbone())
    options = {"tile_size": 48, "num_inference_steps": 2, "fidelity": 0.3}
    one = restore(policy, lr, batch_size=1, **options)
    for at_once in (2, 5, 64):
        torch.testing.assert_close(restore(policy, lr, batch_size=at_once, **options), one, atol=2e-6, rtol=0)
    exact = PixelBackbone()
    assert torch.equal(
        restore(exact, lr, tile_size=48, batch_size=1), restore(exact, lr, tile_size=48, batch_size=5)
    )


def test_images_in_tiles_are_those_of_each_alone(backbone):
    lr = torch.cat([structure(8, 12), structure(8, 12).flip(3)])
    both = restore(backbone, lr, keys=["a", "b"], tile_size=32, num_inference_steps=1)
    alone = restore(backbone, lr[1:], keys=["b"], tile_size=32, num_inference_steps=1)
    torch.testing.assert_close(both[1:], alone, atol=1e-6, rtol=0)


def test_noise_is_drawn_once_for_the_whole_image_whatever_the_tiles():
    shapes = []

    def noise_fn(shape, seed, key):
        shapes.append(shape)
        return torch.zeros(shape)

    for tile_size in (None, 64, 16):
        restore(PixelBackbone(), structure(9, 26), tile_size=tile_size, noise_fn=noise_fn)
    assert shapes == [(3, 40, 104)] * 3


def test_the_tile_is_never_larger_than_asked_for_and_never_larger_than_the_image():
    backbone = PixelBackbone()
    restore(backbone, structure(5, 60), tile_size=100, tile_overlap=10)  # in units of 8: 96, 16
    assert {shape[2:] for shape in backbone.calls} == {(24, 96)}


def seam_steps(tiled, whole, borders):
    """Mean step of the difference from column to column at tile borders, and elsewhere where it is not zero."""
    steps = (tiled - whole).diff(dim=3).abs().mean(dim=(0, 1, 2))
    at = torch.zeros(steps.numel(), dtype=torch.bool)
    at[[b - 1 for b in borders]] = True
    return float(steps[at].mean()), float(steps[~at & (steps > 1e-6)].mean())


def test_nothing_jumps_where_a_tile_begins_or_ends(monkeypatch):
    from lucidnft.backbones.tiny import TinyBackbone

    lr, backbone = structure(24, 72), TinyBackbone.from_pretrained()
    options = {"num_inference_steps": 2}
    whole = restore(backbone, lr, **options)
    tiled = restore(backbone, lr, tile_size=128, **options)  # three tiles of 96 x 128, 0 .. 288
    borders = [80, 128, 160, 208]
    at_seams, elsewhere = seam_steps(tiled, whole, borders)
    assert 0 < elsewhere < 4 / 255
    assert at_seams <= elsewhere
    # and the test sees a seam where there is one
    monkeypatch.setattr(
        "lucidnft.inference.tiling._rise", lambda overlap, length: torch.ones(length).double()
    )
    at_seams, elsewhere = seam_steps(restore(backbone, lr, tile_size=128, **options), whole, borders)
    assert at_seams > 1.5 * elsewhere


def test_conditions_beyond_the_budget_are_encoded_again_and_change_nothing(monkeypatch):
    kept, anew = PixelBackbone(), PixelBackbone()
    lr = structure(16, 16)
    expected = restore(kept, lr, tile_size=32, batch_size=2)
    monkeypatch.setattr(tiled_images, "CONDITION_BYTES", 0)
    assert torch.equal(restore(anew, lr, tile_size=32, batch_size=2), expected)
    # chunks of two of nine tiles, three solver steps; and, in both, the first tile once for its group norms
    assert kept.encoded == 1 + 5 and anew.encoded == 1 + 3 * 5


def quiet(shape, seed, key):
    return torch.zeros(shape)


def test_out_of_memory_halves_the_tile_and_gives_the_pixels_of_that_tile():
    lr, small = structure(64, 40), PixelBackbone()  # 256 x 160
    small.fails_above = 128 * 128
    with pytest.warns(UserWarning) as warned:
        given = restore(small, lr, keys=["cat"], tile_size=256, batch_size=2, noise_fn=quiet)
    said = [str(w.message) for w in warned]
    assert said == [
        "cat: out of memory with tiles of 256 px, 2 at once; going on with tiles of 256 px, 1 at once",
        "cat: out of memory with tiles of 256 px, 1 at once; going on with tiles of 128 px, 1 at once",
    ]
    assert torch.equal(given, restore(PixelBackbone(), lr, tile_size=128, batch_size=1, noise_fn=quiet))


def test_the_memory_given_back_is_that_of_the_backbone_s_device(monkeypatch):
    small, given_back = PixelBackbone(), []
    small.fails_above, small.device = 128 * 128, torch.device("cpu:0")
    monkeypatch.setattr("lucidnft.inference.restoration.give_back_memory", given_back.append)
    with pytest.warns(UserWarning, match="going on with tiles of 128 px"):
        restore(small, structure(64, 40), tile_size=256, batch_size=1, storage="cpu", num_inference_steps=1)
    assert given_back == [small.device] != [torch.device("cpu")]


def test_an_image_that_does_not_fit_leaves_its_neighbours_as_they_are():
    lr, small = structure(64, 40).repeat(3, 1, 1, 1), PixelBackbone()
    small.fails_above = 256 * 160
    with pytest.warns(
        UserWarning, match="0, 1: out of memory.*2 at once; going on with tiles of 512 px, 1 at once"
    ):
        given = restore(small, lr, tile_size=512, batch_size=2)
    assert torch.equal(given, restore(PixelBackbone(), lr, tile_size=512, batch_size=1))


@pytest.mark.parametrize("tile_size", [None, 256])
def test_memory_that_suffices_for_nothing_is_an_error(tile_size):
    small = PixelBackbone()
    small.fails_above = 100
    with pytest.raises(torch.OutOfMemoryError), pytest.MonkeyPatch.context() as patched:
        patched.setattr("warnings.warn", lambda *args, **options: None)
        restore(small, structure(64, 40), tile_size=tile_size, batch_size=1)
    assert len(small.calls) == (1 if tile_size is None else 2)  # 256, 128


def test_a_fault_that_is_no_lack_of_memory_is_not_tried_again():
    broken = PixelBackbone()
    broken.velocity = lambda *_: (_ for _ in ()).throw(RuntimeError("mat1 and mat2"))
    with pytest.raises(RuntimeError, match="mat1"):
        restore(broken, structure(64, 40), tile_size=256)


def test_auto_takes_the_whole_image_when_it_fits_and_the_largest_tile_otherwise(monkeypatch):
    assert auto_tile_size(1000, 1000, 100.0, 1e9) is None
    assert auto_tile_size(4000, 4000, 100.0, 1e9) == 2048  # 7e6 pixels fit
    assert auto_tile_size(4000, 4000, 100.0, 10.0) == AUTO_TILE_SIZES[-1]
    assert tiles_at_once(8, 2048**2, 100.0, 2e9) == 3 and tiles_at_once(8, 2048**2, 100.0, 10.0) == 1
    assert tiles_at_once(8, 256**2, 100.0, 2e9) == 8
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50
    lr = structure(70, 100)  # 280 x 400
    monkeypatch.setattr("lucidnft.inference.restoration.free_memory", lambda device: 4096 * 256 * 256 / 0.69)
    given = restore(PixelBackbone(), lr, tile_size="auto", noise_fn=quiet)
    assert torch.equal(given, restore(PixelBackbone(), lr, tile_size=256, batch_size=1, noise_fn=quiet))
    monkeypatch.undo()
    given = restore(PixelBackbone(), lr, tile_size="auto", noise_fn=quiet)
    assert torch.equal(given, restore(PixelBackbone(), lr, noise_fn=quiet))


def large_unit():
    """At factor 33, squares of 264 px hold whole LR pixels and what the backbone takes: more than auto's least."""
    backbone = PixelBackbone()
    backbone.upscale = None
    return backbone, {"upscale": 33, "batch_size": 1, "num_inference_steps": 1, "noise_fn": quiet}


@pytest.mark.parametrize("overlap", [None, 64])
def test_auto_takes_no_less_than_what_the_backbone_needs_at_once(monkeypatch, overlap):
    backbone, options = large_unit()
    lr = structure(10, 9)  # 330 x 297
    with pytest.raises(ValueError, match="tile_size is 256, expected 264 or more"):
        restore(backbone, lr, tile_size=256, **options)
    monkeypatch.setattr("lucidnft.inference.restoration.free_memory", lambda device: 100)
    given = restore(backbone, lr, tile_size="auto", tile_overlap=overlap, **options)
    assert torch.equal(given, restore(large_unit()[0], lr, tile_size=264, **options))
    assert {shape[2:] for shape in backbone.calls} == {(264, 264)}


def test_halving_ends_at_what_the_backbone_needs_at_once():
    lr, (backbone, options) = structure(10, 25), large_unit()  # 330 x 825
    backbone.fails_above = 264 * 264
    with pytest.warns(UserWarning, match="tiles of 528 px, 1 at once; going on with tiles of 264 px"):
        given = restore(backbone, lr, tile_size=528, tile_overlap=200, **options)
    assert torch.equal(given, restore(large_unit()[0], lr, tile_size=264, tile_overlap=0, **options))
    backbone.fails_above, backbone.calls = 100, []
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="out of memory"):
        restore(backbone, lr, tile_size=528, **options)
    assert [shape[2:] for shape in backbone.calls] == [(528, 528), (264, 264)]


def test_auto_takes_no_more_than_the_backbone_can_see_at_once(one_thread):
    backbone = small_dit4sr()
    assert backbone.latent_spec.longest == 160
    lr, options = structure(8, 45), {"upscale": 4, "num_inference_steps": 1}  # 32 x 180
    for tile_size in (None, 4096):
        with pytest.raises(ValueError, match="above the 160 px per side"):
            restore(backbone, lr, tile_size=tile_size, **options)
    given = restore(backbone, lr, tile_size="auto", **options)
    assert torch.equal(given, restore(backbone, lr, tile_size=160, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile_size": 0}, "tile_size is 0"),
        ({"tile_size": 7}, "tile_size is 7, expected 8 or more"),
        ({"tile_size": "large"}, "tile_size is 'large', expected pixels, 'auto' or None"),
        ({"tile_size": 16, "tile_overlap": 16}, "tile_overlap is 16.*no step"),
        ({"tile_size": 16, "tile_overlap": -1}, "tile_overlap is -1"),
        ({"tile_overlap": 8}, "tile_overlap is 8, but without tile_size"),
        ({"process_size": 0}, "process_size is 0"),
        ({"fidelity": 1.1}, "fidelity is 1.1"),
        ({"fidelity": float("nan")}, "fidelity is nan"),
        ({"align_to": "hr"}, "align_to is 'hr', expected one of lr, pre_restored"),
        ({"align_to": "pre_restored"}, "align_to is 'pre_restored', but align_method 'nofix'"),
        ({"align_to": "pre_restored", "align_method": "adain"}, "backbone 'tiny' has no pre-restorer"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(backbone, options, message):
    with pytest.raises(ValueError, match=message):
        restore(backbone, structure(4, 4), **options)


def test_overlap_of_tiles_too_small_for_an_eighth():
    assert len(TilePlan(8, None, 1).layout(24, 8, 8)) == 3  # one unit a tile: nothing to share
    assert TilePlan(64, None, 1).layout(8 * 15, 64, 8).row_starts == (0, 7)  # 56 px apart


def test_colours_are_matched_once_on_the_whole_image():
    from lucidnft.inference.color_fix import adain_color_fix, wavelet_color_fix

    lr = structure(20, 26)
    plain = restore(PixelBackbone(), lr, tile_size=32)
    up = resize(lr, (80, 104))
    fixed = restore(PixelBackbone(), lr, tile_size=32, align_method="adain")
    torch.testing.assert_close(fixed, adain_color_fix(plain, up).clamp(0, 1), atol=1e-5, rtol=0)
    fixed = restore(PixelBackbone(), lr, tile_size=32, align_method="wavelet", align_to="pre_restored")
    pre_restored = 1 - resize(lr, (80, 104), "nearest")  # PixelBackbone's field: 1 - 2 up, in [-1, 1]
    torch.testing.assert_close(fixed, wavelet_color_fix(plain, pre_restored).clamp(0, 1), atol=1e-5, rtol=0)


def test_an_autoencoder_s_tiles_are_decoded_under_one_norm(monkeypatch):
    backbone, network = PixelBackbone(), Normed()
    backbone.decode = lambda x_0: network(x_0).sigmoid()
    lr = structure(32, 64) * torch.linspace(0, 1, 64)  # a dark end and a bright one
    options = {"noise_fn": quiet, "num_inference_steps": 1}
    whole = restore(backbone, lr, **options)
    shared = (restore(backbone, lr, tile_size=64, **options) - whole).abs().mean()
    monkeypatch.setattr(tiled_images, "GivenGroupNorms", lambda statistics: torch.no_grad())
    separate = (restore(backbone, lr, tile_size=64, **options) - whole).abs().mean()
    assert shared < 0.25 * separate
