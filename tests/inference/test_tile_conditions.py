"""Conditions of tiles: neighbours agree where they overlap, on what an image's statistics and its draw decide."""

from contextlib import nullcontext

import pytest
import torch

from lucidnft.backbones.condition_cache import MemoryStore
from lucidnft.inference import restore, tile_conditions
from lucidnft.inference.group_norms import RecordedGroupNorms, pooled
from lucidnft.inference.tile_conditions import TileConditions
from lucidnft.inference.tile_memory import TilePlan
from tests.backbones.small_lucidflux import small_lucidflux
from tests.inference.test_tiled_restore import Normed, structure
from tests.small_dit4sr import small_dit4sr

pytestmark = pytest.mark.usefixtures("one_thread")
LR = structure(16, 36) * torch.linspace(0.2, 1, 36)  # 64 x 144 px, a dark end and a bright one
FIELDS = {"dit4sr": ("lr_latent", 2), "lucidflux": ("pre_restored", 16)}  # and its cells a unit


def in_tiles(backbone, tile=96):
    layout = TilePlan(tile, 16, 1).layout(64, 144, 16)
    assert len(layout) > 1
    return TileConditions(backbone, LR, native=4, unit=16, layout=layout)


@torch.no_grad()
def disagreement(backbone, tile=96):
    """Of horizontal neighbours where they overlap, and of the blended tiles with the untiled image: means, in stds."""
    name, cells = FIELDS[backbone.name]
    conditions = in_tiles(backbone, tile)
    fields = [conditions.encode([place])[name] for place in range(len(conditions.tiles))]
    whole = backbone.encode_condition(LR, upscale=4)[name]
    blended, tiles = torch.zeros_like(whole), conditions.layout.tiles(cells)
    for place, field in zip(tiles, fields, strict=True):
        place.add_(blended, field)
    steps = []
    for i in range(len(tiles) - 1):
        if tiles[i].rows == tiles[i + 1].rows:
            shared = tiles[i].columns.stop - tiles[i + 1].columns.start
            steps.append((fields[i][..., -shared:] - fields[i + 1][..., :shared]).abs().mean())
    assert steps
    return (torch.stack(steps).mean() / whole.std()).item(), (
        (blended - whole).abs().mean() / whole.std()
    ).item()


@pytest.mark.parametrize(
    ("posterior", "tile", "bounds"),
    [("mean", 96, (0.15, 0.06)), ("mean", 64, (0.32, 0.08)), ("sample", 96, (0.08, 0.03))],
)
def test_neighbours_agree_under_one_norm_and_one_draw(monkeypatch, posterior, tile, bounds):
    backbone = small_dit4sr(posterior=posterior)
    shared = disagreement(backbone, tile)
    assert shared[0] < bounds[0] and shared[1] < bounds[1]
    monkeypatch.setattr(tile_conditions, "GivenGroupNorms", lambda statistics: nullcontext())
    monkeypatch.setattr(backbone.autoencoder, "given_noise", lambda noise: nullcontext())
    separate = disagreement(backbone, tile)
    assert separate[0] > 1.5 * shared[0] and separate[1] > 2.5 * shared[1]


def test_a_pre_restorer_without_group_norms_agrees_as_it_is():
    overlap, to_whole = disagreement(small_lucidflux())
    assert overlap < 0.1 and to_whole < 0.05


@torch.no_grad()
def test_the_draw_is_the_untiled_image_s_cut_into_tiles(monkeypatch):
    backbone = small_dit4sr()
    backbone.vae.encoder.conv_out.weight.zero_()  # the posterior is the same everywhere: what differs is the draw
    whole = backbone.encode_condition(LR, upscale=4)["lr_latent"]
    assert whole.std(dim=(2, 3)).min() > 0.1
    conditions = in_tiles(backbone, 48)
    places = list(range(len(conditions.tiles)))
    both = conditions.encode(places)["lr_latent"]
    for tile, field in zip(conditions.layout.tiles(2), both, strict=True):
        assert torch.equal(field, tile.cut(whole)[0])
    conditions.release()
    assert torch.equal(conditions.encode(places[1:2])["lr_latent"], both[1:2])
    monkeypatch.setattr(backbone.autoencoder, "given_noise", lambda noise: nullcontext())
    assert not torch.allclose(in_tiles(backbone, 48).encode(places[:1])["lr_latent"], both[:1], atol=0.1)


def test_given_noise_of_another_size_is_refused_and_ends_with_its_region():
    autoencoder = small_dit4sr().autoencoder
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = autoencoder.encode(images)
    with (
        pytest.raises(ValueError, match=r"noise of \(1, 4, 3, 2\) was given for latents of \(1, 4, 2, 2\)"),
        autoencoder.given_noise(torch.zeros(1, 4, 3, 2)),
    ):
        autoencoder.encode(images)
    assert torch.equal(autoencoder.encode(images), before)


@torch.no_grad()
def test_a_store_neither_serves_nor_keeps_what_depends_on_the_whole_image():
    expected = in_tiles(small_dit4sr()).encode([0, 1])["lr_latent"]
    backbone = small_dit4sr()
    store = backbone.image_conditions.store = MemoryStore(2**20)
    conditions = in_tiles(backbone)
    part = conditions.tiles[1].cut(LR)
    alone = backbone.encode_condition(part, upscale=4)["lr_latent"]  # kept under the tile's pixels
    assert len(store._kept) == 1
    given = conditions.encode([0, 1])["lr_latent"]
    assert torch.equal(given, expected) and not torch.allclose(given[1:], alone, atol=0.1)
    assert backbone.image_conditions.store is store and len(store._kept) == 1
    assert torch.equal(backbone.encode_condition(part, upscale=4)["lr_latent"], alone)


@torch.no_grad()
def test_a_store_keeps_conditions_that_a_tile_alone_decides():
    backbone = small_lucidflux()
    store = backbone.image_conditions.store = MemoryStore(2**20)
    in_tiles(backbone).encode([0, 1])
    assert len(store._kept) == 2
    again = in_tiles(backbone).encode([0, 1])
    for place, tile in enumerate(in_tiles(backbone).tiles[:2]):
        alone = small_lucidflux().encode_condition(tile.cut(LR), upscale=4)
        for name, value in alone.fields.items():
            torch.testing.assert_close(again[name][place : place + 1], value)


@torch.no_grad()
def test_statistics_of_parts_are_those_of_the_whole_where_nothing_came_before():
    network, image = Normed(), structure(24, 16)
    network.first.kernel_size, network.first.padding = (1, 1), (0, 0)  # no pixel of another part
    network.first.weight = torch.nn.Parameter(network.first.weight[..., :1, :1])
    recorded = []
    for part in (image, image[:, :, :12], image[:, :, 12:]):
        with RecordedGroupNorms() as norms:
            network(part)
        recorded.append(norms.statistics)
    of_parts = pooled(recorded[1:])
    for got, want in zip(of_parts[0], recorded[0][0], strict=True):
        torch.testing.assert_close(got, want)
    assert len(of_parts) == 2


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_pixels_depend_neither_on_tiles_at_once_nor_on_kept_conditions(monkeypatch, posterior):
    backbone, lr = small_dit4sr(posterior=posterior), LR[..., :20]
    options = {"upscale": 4, "tile_size": 48, "num_inference_steps": 2}
    one = restore(backbone, lr, batch_size=1, **options)
    torch.testing.assert_close(restore(backbone, lr, batch_size=3, **options), one, atol=1e-5, rtol=0)
    monkeypatch.setattr("lucidnft.inference.tiled_images.CONDITION_BYTES", 0)
    torch.testing.assert_close(restore(backbone, lr, batch_size=1, **options), one, atol=1e-6, rtol=0)


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_the_draw_is_given_up_after_the_solve_and_counted_until_then(monkeypatch, posterior):
    counted, released = [], []

    def need(*args, draws_conditions, **options):
        counted.append(draws_conditions)
        return 0

    def release(self):
        released.append(self._noise is not None)
        original(self)
        released.append(self._noise is not None)

    original = TileConditions.release
    monkeypatch.setattr("lucidnft.inference.restoration.whole_image_bytes", need)
    monkeypatch.setattr(TileConditions, "release", release)
    backbone = small_dit4sr(posterior=posterior)
    restore(backbone, LR[..., :20], upscale=4, tile_size=48, num_inference_steps=1)
    draws = posterior == "sample"
    assert counted == [draws] and released == [draws, False]


@pytest.mark.parametrize("small", [small_dit4sr, small_lucidflux])
def test_a_vae_that_tiles_by_itself_does_not_tile_tiles(small):
    backbone = small()
    plain = restore(backbone, LR, upscale=4, tile_size=64, num_inference_steps=1, batch_size=2)
    backbone.vae.enable_tiling()
    backbone.vae.enable_slicing()
    backbone.vae.tile_sample_min_size, backbone.vae.tile_latent_min_size = (
        32,
        32 // backbone.latent_spec.downscale,
    )
    tiled = restore(backbone, LR, upscale=4, tile_size=64, num_inference_steps=1, batch_size=2)
    assert torch.equal(plain, tiled)
    assert backbone.vae.use_tiling and backbone.vae.use_slicing
