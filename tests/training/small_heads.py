"""Settings of a consistency head that trains on a few small crops."""

from __future__ import annotations

from pathlib import Path

from lucidnft.data.sources import HrFolderConfig
from lucidnft.training.head_settings import PoolsConfig

SMALL = HrFolderConfig(crop_size=16, val_crop_size=16, num_val_images=6)


def pools(folder: Path, **changes: object) -> PoolsConfig:
    """The recipe `pools` on eight crops of the bundled photographs, embeddings in folder."""
    settings = {"images": SMALL, "num_contents": 8, "cache_folder": str(folder), "pool_size": 2, **changes}
    return PoolsConfig(**settings)  # type: ignore[arg-type]
