"""The consistency head on cached embeddings: what is drawn, what is learned, what is exported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from lucidnft.data.bundled import photograph_paths
from lucidnft.data.sources import HrFolderConfig, LrFolderConfig
from lucidnft.images import read_image, resize
from lucidnft.rewards import LucidConsistency
from lucidnft.rewards.consistency import LucidConsistencyConfig, load_consistency_network
from lucidnft.rewards.projection_head import load_head
from lucidnft.rewards.qwen3_vl import Qwen3VLEmbedderConfig
from lucidnft.rewards.vision_towers import OpenClipEmbedderConfig
from lucidnft.rng import numpy_generator_for
from lucidnft.training import head_settings
from lucidnft.training.head_contents import Crop, Crops, PairRecipe, PoolRecipe
from lucidnft.training.head_settings import PairedConfig, PoolsConfig
from lucidnft.training.head_task import Embedded, HeadTask, measure
from tests.rewards.small_qwen3_vl import WIDTH, save_small_checkpoint
from tests.training.small_heads import SMALL, pools


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> HeadTask:
    task = pools(tmp_path_factory.mktemp("embeddings")).build(seed=0)
    task.prepare(Accelerator(cpu=True))
    return task


@pytest.fixture(scope="module")
def crop() -> Crop:
    hr = read_image(photograph_paths(["chelsea.png"])[0]).rgb[:, 60:124, 100:164]
    return Crop(F.avg_pool2d(hr, 4), hr, "chelsea")


@pytest.fixture(scope="module")
def donor() -> Tensor:
    return read_image(photograph_paths(["coffee.png"])[0]).rgb[:, 60:124, 100:164]


def test_a_pool_holds_degradations_alterations_and_the_own_region(crop: Crop, donor: Tensor) -> None:
    recipe = PoolRecipe(("realesrgan", "light"), pool_size=3, num_altered=2, altered_area=(0.1, 0.3))
    images = recipe.draw(crop, lambda: donor, numpy_generator_for(0, "x"))
    assert images.lr.shape == (3, 3, 16, 16) and images.sr.shape == (2, 4, 3, 64, 64)
    assert torch.equal(images.lr[0], crop.lr) and torch.equal(images.sr[0, 0], crop.hr)
    assert len({float(lr.sum()) for lr in images.lr}) == 3
    changed = (images.sr[0] - images.sr[0, :1]).abs().mean(dim=(1, 2, 3))
    assert changed[0] == 0 and changed[1] > 0.003 and changed[2] > 0.003 and changed[3] < changed[1:3].min()
    assert images.shown.shape == (2, 4, 4)
    for shown in images.shown:
        assert 0.02 < float(shown.mean()) < 0.6
    again = recipe.draw(crop, lambda: donor, numpy_generator_for(0, "x"))
    assert torch.equal(again.sr, images.sr) and torch.equal(again.lr, images.lr)


def test_all_versions_go_through_one_degradation(crop: Crop, donor: Tensor) -> None:
    images = PoolRecipe(("bicubic",), 2, 1, (0.1, 0.2)).draw(crop, lambda: donor, numpy_generator_for(0, "x"))
    expected = resize(resize(images.sr[0], (16, 16)).mul(255).round().div(255), (64, 64))
    torch.testing.assert_close(images.sr[1], expected, atol=0.02, rtol=0)
    # versions differ in content alone: the own region is nearly the same after the same noise
    noisy = (
        PoolRecipe(("realesrgan",), 2, 1, (0.1, 0.2))
        .draw(crop, lambda: donor, numpy_generator_for(0, "x"))
        .sr
    )
    assert (noisy[1, 0] - noisy[1, 2]).abs().mean() < 0.5 * (noisy[1, 0] - noisy[0, 0]).abs().mean()


def test_a_configured_inpainting_model_fills_the_regions(crop: Crop, donor: Tensor) -> None:
    seeds = []

    def inpaint(image: Tensor, mask: Tensor, seed: int) -> Tensor:
        seeds.append(seed)
        return torch.where(mask, torch.zeros_like(image), image)

    recipe = PoolRecipe(("light",), 2, 2, (0.2, 0.3), inpaint=inpaint)
    images = recipe.draw(crop, lambda: donor, numpy_generator_for(0, "x"))
    assert len(set(seeds)) >= 2
    for altered in images.sr[0, 1:3]:
        assert 0.15 < float((altered == 0).all(dim=0).float().mean()) < 0.35


def test_a_pair_is_taken_as_it_is(crop: Crop) -> None:
    images = PairRecipe().draw(
        crop, lambda: pytest.fail("a pair wants no donor"), numpy_generator_for(0, "x")
    )
    assert torch.equal(images.lr[0], crop.lr) and torch.equal(images.sr[0, 0], crop.hr)
    assert images.shown.shape[0] == 0


def test_donors_come_from_other_photographs() -> None:
    data = SMALL.build(0, 4)
    for crops in (Crops(data.train, 12), Crops(data.held_out, 6)):
        photographs = {crops[i].hr.sum().item(): re.split("[#@]", crops[i].key)[0] for i in range(len(crops))}
        assert 1 < len(set(photographs.values())) < len(crops)
        for index in range(len(crops)):
            assert photographs[crops.donor(index).sum().item()] != photographs[crops[index].hr.sum().item()]
    with pytest.raises(ValueError, match="learns from HR images"):
        Crops(LrFolderConfig(crop_size=16).build(0, 4).train, 4)


def test_every_epoch_takes_every_content_once(prepared: HeadTask) -> None:
    loaded, _ = prepared._embeddings()
    ids = {tuple(row.flatten().tolist()[:8]): i for i, row in enumerate(loaded.lr.float())}
    assert len(ids) == 8

    def numbers(step: int, rows: range) -> list[int]:
        return [ids[tuple(row.flatten().tolist()[:8])] for row in prepared.batch(step, rows, 4).lr]

    epochs = [[*numbers(2 * epoch, range(4)), *numbers(2 * epoch + 1, range(4))] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(8)) and epochs[0] != epochs[1]
    assert numbers(1, range(4)) == [*numbers(1, range(2)), *numbers(1, range(2, 4))]


def test_cached_embeddings_are_those_of_the_images(prepared: HeadTask) -> None:
    loaded, _ = prepared._embeddings()
    images = prepared.train.images(5, prepared.recipe)
    embedder = load_consistency_network("tiny").embedder
    with torch.no_grad():
        expected = embedder.embed(images.sr.flatten(0, 1)).unflatten(0, (2, 4))
    torch.testing.assert_close(loaded.sr[5].float(), expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(loaded.shown[5], images.shown.flatten(1).half().float())


def test_the_probe_has_the_shapes_of_a_batch(prepared: HeadTask) -> None:
    probe, batch = prepared.probe(3), prepared.batch(0, range(3), 4)
    for name in ("lr", "sr", "shown"):
        assert getattr(probe, name).shape == getattr(batch, name).shape


def test_training_the_head_lowers_the_loss_and_tells_alterations(prepared: HeadTask) -> None:
    optimizer = torch.optim.Adam(prepared.module.parameters(), lr=3e-3)
    batch = prepared.batch(0, range(8), 8)
    first = float(prepared.loss(batch)[0].mean().detach())
    before = float(prepared.loss(batch)[1]["hinge"])
    for _ in range(40):
        optimizer.zero_grad()
        losses, logs = prepared.loss(batch)
        losses.mean().backward()
        optimizer.step()
    assert float(losses.mean().detach()) < 0.7 * first
    assert float(logs["hinge"]) < 0.8 * before


def test_a_second_build_reads_the_cache_and_needs_no_embedder(tmp_path: Path) -> None:
    config = pools(tmp_path, dimension=128)
    config.build(seed=0).prepare(Accelerator(cpu=True))
    again = config.build(seed=0)
    again.build_embedder = lambda: pytest.fail("the embedder was built")  # type: ignore[assignment]
    again.prepare(Accelerator(cpu=True))
    assert len(again.batch(0, range(2), 2).lr) == 2
    assert "1 of 1 shards" in again.describe()
    assert "0 of 1 shards" in pools(tmp_path, pool_size=3).build(seed=0).describe()
    assert "0 of 1 shards" in config.build(seed=1).describe()


def test_other_weights_of_the_shipped_embedder_are_another_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pools(tmp_path).build(seed=0).train.cache.folder
    other = load_consistency_network("tiny")
    monkeypatch.setattr(head_settings, "load_consistency_network", lambda name: other)
    with torch.no_grad():
        other.head.first.bias += 1  # the head is not what is cached
        assert pools(tmp_path).build(seed=0).train.cache.folder == folder
        other.embedder.fine.bias += 1
    assert pools(tmp_path).build(seed=0).train.cache.folder != folder


def test_the_exported_head_of_the_tiny_embedder_is_a_reward(prepared: HeadTask, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    prepared.export(str(path), step=3)
    reward = LucidConsistency.from_pretrained(path)
    assert reward.head is not None
    torch.testing.assert_close(reward.head.first.weight, prepared.module.first.weight, atol=1e-3, rtol=1e-3)
    embedder = load_consistency_network("tiny").embedder
    assert torch.equal(reward.embedder.stem.weight, embedder.stem.weight)  # type: ignore[attr-defined]


def test_the_exported_head_of_another_embedder_is_a_head(prepared: HeadTask, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    config = PoolsConfig(embedder=OpenClipEmbedderConfig(), dimension=128)
    config.save(prepared.module, str(path))
    torch.testing.assert_close(load_head(path).first.weight, prepared.module.first.weight)
    assert config.places == 1


@pytest.mark.parametrize("alignment", ["info_nce", "cosine"])
def test_pairs_alone_train_too(tmp_path: Path, alignment: str) -> None:
    config = PairedConfig(images=SMALL, num_contents=6, cache_folder=str(tmp_path), alignment=alignment)  # type: ignore[arg-type]
    task = config.build(seed=0)
    task.prepare(Accelerator(cpu=True))
    losses, logs = task.loss(task.batch(0, range(4), 4))
    assert losses.shape == (4,) and losses.requires_grad and 0 < float(logs["positive_cosine"]) <= 1
    metrics = task.evaluate().metrics
    assert metrics["auc"] > 0.9 and "found" not in metrics


def embedded(own: float, altered: float, spread: float = 0.0) -> Embedded:
    """Two contents at one place: the cosine of LR with its original is own, with its altered version altered."""
    axes = torch.eye(8)

    def at(cosine: float, content: int) -> Tensor:
        return cosine * axes[content] + (1 - cosine**2) ** 0.5 * axes[content + 4]

    lr = torch.stack([torch.stack([at(own, c), at(own - spread, c)]) for c in range(2)])[:, :, None]
    wrong = [0.0 * axes[0], *[axes[c] * (altered / own) for c in range(2)]]
    sr = torch.stack([torch.stack([axes[c], wrong[c + 1], axes[c]])[None, :, None] for c in range(2)])
    return Embedded(lr, sr, torch.full((2, 1, 1), 0.05))


def test_measure_in_closed_form() -> None:
    metrics = measure(embedded(0.8, 0.4, spread=0.2))
    assert metrics["matched"] == pytest.approx(0.7) and metrics["mismatched"] == pytest.approx(0)
    assert metrics["auc"] == 1 and metrics["spread"] == pytest.approx(0.2 / 2**0.5, rel=1e-5)
    assert metrics["found"] == metrics["found_small"] == 1 and metrics["own_drop"] == pytest.approx(
        0, abs=1e-6
    )
    worse = measure(embedded(0.8, 1.2))
    assert worse["found"] == 0


def test_the_reward_reads_what_the_task_wrote_for_any_embedder(prepared: HeadTask, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    prepared.export(str(path))
    reward = LucidConsistencyConfig(head=str(path)).build()
    lr = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sr = F.interpolate(lr, scale_factor=4, mode="bicubic").clamp(0, 1)
    assert reward(sr, lr=lr).min() > 0.5


def test_a_vision_language_embedder_from_photographs_to_a_reward(tmp_path: Path) -> None:
    embedder = Qwen3VLEmbedderConfig(
        model_name_or_path=str(save_small_checkpoint(tmp_path / "qwen3_vl")),
        dtype="float32",
        require_embedding_checkpoint=False,
    )
    images_of = HrFolderConfig(
        crop_size=64, val_crop_size=64, num_val_images=2
    )  # LR as large as the least it takes
    config = pools(tmp_path / "cache", embedder=embedder, num_contents=3, num_altered=1, images=images_of)
    task = config.build(seed=0)
    task.prepare(Accelerator(cpu=True))
    loaded, _ = task._embeddings()
    assert loaded.lr.shape == (3, 2, 1, WIDTH) and loaded.sr.shape == (3, 2, 3, 1, WIDTH)
    assert loaded.shown.shape == (3, 1, 1)
    images = task.train.images(1, task.recipe)
    assert images.lr.shape[2:] == (64, 64)  # LR is embedded at its own size
    expected = embedder.build().embed(images.lr)
    torch.testing.assert_close(loaded.lr[1].float(), expected, atol=2e-3, rtol=2e-3)
    losses, _ = task.loss(task.batch(0, range(3), 3))
    losses.mean().backward()
    assert task.module.first.weight.grad is not None

    path = tmp_path / "weights.safetensors"
    task.export(str(path))
    reward = LucidConsistencyConfig(embedder=embedder, head=str(path)).build()
    score = reward(images.sr[0, :1], lr=images.lr[:1])
    cosine = (task.module(loaded.lr[1, 0].float()) * task.module(loaded.sr[1, 0, 0].float())).sum()
    assert float(score) == pytest.approx(float(cosine.detach()), abs=2e-3)
