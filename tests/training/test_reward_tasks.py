"""Training tasks of the learned rewards: samples by (seed, step, row), losses that fall, files that load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lucidnft.data.bundled import photograph_paths
from lucidnft.data.defects import DEFECT_NAMES
from lucidnft.images import list_images, read_image, save_image
from lucidnft.rewards import LucidConsistency, QualityNet
from lucidnft.rewards.consistency import TinyConsistencyNetwork
from lucidnft.rewards.embedders import EmbedderArchitecture
from lucidnft.rewards.quality import QualityArchitecture, QualityNetwork
from lucidnft.training.consistency_task import WRONG_KINDS, ConsistencyTask, ConsistencyTaskConfig
from lucidnft.training.photographs import Photographs
from lucidnft.training.quality_task import RESTORED_SEVERITY, QualityTask, QualityTaskConfig

TRAIN, HELD_OUT = ("astronaut.png", "brick.png", "grass.png"), ("chelsea.png", "coffee.png")


def quality_task(seed: int = 0) -> QualityTask:
    torch.manual_seed(0)
    network = QualityNetwork(QualityArchitecture(widths=(16, 16, 16), depths=(1, 1, 1)))
    return QualityTask(
        Photographs(photograph_paths(TRAIN), crop_size=48),
        Photographs(photograph_paths(HELD_OUT), crop_size=48),
        seed=seed,
        network=network,
    )


def consistency_task(seed: int = 0) -> ConsistencyTask:
    torch.manual_seed(0)
    network = TinyConsistencyNetwork(
        EmbedderArchitecture(widths=(16, 16, 16), depths=(1, 1, 1), dimension=16)
    )
    return ConsistencyTask(
        Photographs(photograph_paths(TRAIN), crop_size=64),
        Photographs(photograph_paths(HELD_OUT), crop_size=64),
        seed=seed,
        network=network,
    )


def tensors_of(samples: object) -> list[Tensor]:
    return list(vars(samples).values())


@pytest.mark.parametrize("make", [quality_task, consistency_task])
def test_rows_do_not_depend_on_how_they_are_split(make: type) -> None:
    whole = tensors_of(make().batch(3, range(4), 4))
    task = make()
    task.batch(7, range(2), 4)
    parts = zip(
        tensors_of(task.batch(3, range(2), 4)), tensors_of(task.batch(3, range(2, 4), 4)), strict=True
    )
    for full, part in zip(whole, (torch.cat(p) for p in parts), strict=True):
        assert torch.equal(full, part)
    assert not torch.equal(tensors_of(make(seed=1).batch(3, range(4), 4))[0], whole[0])
    assert not torch.equal(tensors_of(make().batch(4, range(4), 4))[0], whole[0])


def test_quality_samples_are_ordered_by_severity() -> None:
    samples = quality_task().batch(0, range(6), 6)
    assert samples.images.shape == (6, 4, 3, 48, 48) and samples.severity_maps.shape == (6, 4, 6, 6)
    assert float(samples.images.min()) >= 0 and float(samples.images.max()) <= 1
    assert (samples.severity_maps[:, 0] == 0).all()
    assert (samples.severity_maps.mean(dim=(2, 3)).diff(dim=1) > -0.05).all()
    assert not samples.distinct.diagonal(dim1=1, dim2=2).any() and samples.distinct.any()


def test_consistency_samples_have_the_size_of_the_original() -> None:
    samples = consistency_task().batch(0, range(3), 3)
    assert samples.degraded.shape == (3, 2, 3, 64, 64) and samples.unfaithful.shape == (3, 3, 3, 64, 64)
    assert samples.unfaithfulness.shape == (3, 3, 16)
    assert ((samples.unfaithfulness >= 0) & (samples.unfaithfulness <= 1)).all()


@pytest.mark.parametrize("make", [quality_task, consistency_task])
def test_a_few_steps_lower_the_loss(make: type) -> None:
    task = make()
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=2e-3)
    samples = task.batch(0, range(4), 4)
    values = []
    for _ in range(12):
        losses, logs = task.loss(samples)
        assert losses.shape == (4,) and all(not value.requires_grad for value in logs.values())
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        values.append(losses.mean().item())
    assert values[-1] < 0.9 * values[0]


def test_quality_evaluation_reports_every_kind_and_repeats(tmp_path: Path) -> None:
    task = quality_task()
    metrics = task.evaluate().metrics
    assert {f"{g}/{kind}" for g in ("accuracy", "mild", "gap") for kind in DEFECT_NAMES} < set(metrics)
    assert metrics == task.evaluate().metrics and task.module.training
    task.export(str(tmp_path / "q.safetensors"), metrics=metrics)
    images = torch.rand(1, 3, 48, 48)
    assert torch.allclose(
        QualityNet.from_pretrained(tmp_path / "q.safetensors")(images), task.reward()(images), atol=2e-3
    )


def test_consistency_evaluation_reports_every_kind_and_repeats(tmp_path: Path) -> None:
    task = consistency_task()
    metrics = task.evaluate().metrics
    assert {f"{g}/{kind}" for g in ("accuracy", "region", "gap") for kind in WRONG_KINDS} < set(metrics)
    assert -1 <= metrics["mismatched"] <= 1 and metrics == task.evaluate().metrics
    task.export(str(tmp_path / "c.safetensors"), metrics=metrics)
    sr, lr = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 16, 16)
    loaded = LucidConsistency.from_pretrained(tmp_path / "c.safetensors")
    assert torch.allclose(loaded(sr, lr=lr), task.reward()(sr, lr=lr), atol=5e-3)


def test_configs_build_from_bundled_photographs_and_from_a_folder(tmp_path: Path) -> None:
    task = QualityTaskConfig(num_versions=3).build(seed=0)
    assert task.batch(0, range(1), 1).images.shape == (1, 3, 3, 64, 64)
    assert not set(task.photographs.names) & set(task.held_out.names)
    for index, name in enumerate(HELD_OUT + TRAIN):
        (tmp_path / f"{index}_{name}").write_bytes(photograph_paths([name])[0].read_bytes())
    other = tmp_path / "other"
    other.mkdir()
    for name in HELD_OUT:
        (other / name).write_bytes(photograph_paths([name])[0].read_bytes())
    config = ConsistencyTaskConfig(folder=str(tmp_path), val_folder=str(other), crop_size=64)
    built = config.build(seed=0)
    assert len(built.photographs) == 5 and built.held_out.names == ["chelsea", "coffee"]


def test_unusable_photographs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no photographs"):
        Photographs([], crop_size=48)
    with pytest.raises(ValueError, match="below crop_size 600"):
        Photographs(photograph_paths(TRAIN), crop_size=600)
    one, many = (Photographs(photograph_paths(n), crop_size=48) for n in (TRAIN[:1], TRAIN))
    for make in (QualityTask, ConsistencyTask):
        with pytest.raises(ValueError, match="two photographs"):
            make(one, many, seed=0)
    with pytest.raises(ValueError, match="multiples of 8"):
        QualityTask(Photographs(photograph_paths(TRAIN), crop_size=50), many, seed=0)
    with pytest.raises(ValueError, match="multiples of 16"):
        ConsistencyTask(Photographs(photograph_paths(TRAIN), crop_size=56), many, seed=0)


def write_photographs(folder: Path, names: tuple[str, ...], *, lighter: float = 0.0, side: int = 96) -> Path:
    folder.mkdir()
    for name in names:
        image = read_image(photograph_paths((f"{name}.png",))[0]).rgb[:, :side, :side]
        save_image(folder / f"{name}.png", (0.5 * image + lighter).clamp(0, 1))
    return folder


def test_a_restoration_is_cut_like_its_photograph(tmp_path: Path) -> None:
    names = ("astronaut", "coffee")
    plain = write_photographs(tmp_path / "hr", names)
    restored = write_photographs(tmp_path / "sr", names, lighter=0.25)
    photographs = Photographs(list_images(plain), crop_size=48, restored_folders=[restored])
    alone = Photographs(list_images(plain), crop_size=48)
    for draw in range(4):
        image, version = photographs.crop_with_restored(1, np.random.default_rng(draw))
        assert version is not None and version.shape == image.shape == (3, 48, 48)
        torch.testing.assert_close(version, image + 0.25, rtol=0, atol=0.01)
    image, version = alone.crop_with_restored(1, np.random.default_rng(0))
    assert version is None and torch.equal(image, alone.crop(1, np.random.default_rng(0)))


def test_a_missing_or_misshapen_restoration_is_refused(tmp_path: Path) -> None:
    plain = write_photographs(tmp_path / "hr", ("astronaut", "coffee"))
    fewer = write_photographs(tmp_path / "fewer", ("astronaut",))
    smaller = write_photographs(tmp_path / "smaller", ("astronaut", "coffee"), side=64)
    for folder, message in ((fewer, "no restoration of photograph 'coffee'"), (smaller, "64x64 px")):
        with pytest.raises(ValueError, match=message):
            Photographs(list_images(plain), crop_size=48, restored_folders=[folder])


def test_rows_from_restorations_keep_the_photograph_on_top(tmp_path: Path) -> None:
    names = ("astronaut", "coffee", "brick")
    plain = write_photographs(tmp_path / "hr", names)
    restored = write_photographs(tmp_path / "sr", names, lighter=0.25)
    network = QualityNetwork(QualityArchitecture(widths=(16, 16, 16), depths=(1, 1, 1)))
    photographs = Photographs(list_images(plain), crop_size=48, restored_folders=[restored])
    samples = QualityTask(photographs, photographs, seed=0, network=network).batch(0, range(16), 16)
    lighter = samples.images[:, 1].mean(dim=(1, 2, 3)) - samples.images[:, 0].mean(dim=(1, 2, 3)) > 0.2
    assert 2 <= int(lighter.sum()) <= 11  # about a third of the rows
    torch.testing.assert_close(
        samples.severity_maps[lighter][:, 1], torch.full((int(lighter.sum()), 6, 6), RESTORED_SEVERITY)
    )
    assert (samples.severity_maps[lighter].mean(dim=(2, 3)).diff(dim=1) >= 0).all()
