"""The photographs that come inside the scikit-image package: data that needs no download.

Whole photographs are held out, so evaluation never sees a scene that was trained on (the two motorcycle
pictures show one scene and are both for training).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "coffee.png",
    "grass.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
)
HELD_OUT_PHOTOGRAPHS = (
    "camera.png",
    "chelsea.png",
    "coins.png",
    "gravel.png",
    "rocket.jpg",
)


def photograph_folder() -> Path:
    """Where scikit-image keeps its pictures.  Raises ValueError when it is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "the bundled photographs come with scikit-image, which is not installed; "
            "pip install scikit-image, or set data.folder"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def photograph_paths(names: Sequence[str]) -> list[Path]:
    """Paths of bundled photographs.  Raises ValueError naming those this scikit-image lacks."""
    folder = photograph_folder()
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"this scikit-image ({folder}) lacks {', '.join(missing)}; reinstall it, or set data.folder"
        )
    return [folder / name for name in names]
