"""What a consistency head is trained from, checked before anything is embedded where that is possible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from lucidnft.data.sources import HrFolderConfig
from lucidnft.images import save_image
from lucidnft.rewards.consistency import load_consistency_network
from lucidnft.rewards.projection_head import ProjectionHead, save_head
from lucidnft.rewards.vision_towers import OpenClipEmbedderConfig
from lucidnft.training.head_settings import PairedConfig, PoolsConfig
from tests.training.small_heads import SMALL, pools


def photographs(folder: Path, *sides: int) -> Path:
    """A folder of square noise of these sides."""
    folder.mkdir()
    for number, side in enumerate(sides):
        noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(number))
        save_image(folder / f"{number}.png", noise)
    return folder


def test_training_can_start_from_a_head_and_refuses_one_of_another_width(tmp_path: Path) -> None:
    task = pools(tmp_path, head="tiny").build(seed=0)
    shipped = load_consistency_network("tiny").head
    assert torch.equal(task.module.second.weight, shipped.second.weight)
    assert all(p.requires_grad for p in task.module.parameters())
    save_head(ProjectionHead(8), tmp_path / "head.safetensors")
    config = PoolsConfig(
        embedder=OpenClipEmbedderConfig(), dimension=16, head=str(tmp_path / "head.safetensors"), images=SMALL
    )
    with pytest.raises(ValueError, match="takes 8 numbers, the embeddings have 16"):
        config.build(seed=0)


def test_a_wrong_dimension_is_said_before_anything_is_embedded(tmp_path: Path) -> None:
    task = pools(tmp_path, dimension=64).build(seed=0)
    with pytest.raises(ValueError, match=r"data.dimension is 64, but the embedder 'tiny' gives 128"):
        task.prepare(Accelerator(cpu=True))
    assert not list(tmp_path.rglob("shard*"))


def test_crops_of_several_sizes_are_refused(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photos", 160, 96, 160)
    images = HrFolderConfig(folder=str(folder), val_folder=str(folder), crop_size=32, val_crop_size=16)
    task = pools(tmp_path / "cache", images=images).build(seed=0)
    with pytest.raises(ValueError, match="crops must have one size"):
        task.prepare(Accelerator(cpu=True))


def test_too_few_held_out_crops_are_said_at_the_start(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photos", 160, 160, 160)
    images = HrFolderConfig(folder=str(folder), crop_size=16, val_crop_size=16, num_val_images=1)
    for config in (pools(tmp_path / "cache", images=images), PairedConfig(images=images)):
        with pytest.raises(ValueError, match=r"leaves 1 crop.*val_fraction \(it is 0.1\)"):
            config.build(seed=0)
    assert not (tmp_path / "cache").exists()
