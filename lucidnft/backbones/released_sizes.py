"""Sizes of a network from the config.json beside its weights, where that is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from lucidnft.checkpoint import load_json
from lucidnft.schema import ConfigModel

Sizes = TypeVar("Sizes", bound=ConfigModel)


def sizes_in(folder: str | Path | None, sizes: Sizes) -> Sizes:
    """`sizes`, with the values that config.json in a local folder has for them; unchanged without that file.

    The image side of a model of images and text is read from its `vision_config`.
    """
    file = None if folder is None else Path(folder) / "config.json"
    if file is None or not file.is_file():
        return sizes
    fields = load_json(file)
    fields = fields.get("vision_config", fields)
    known = {name: fields[name] for name in type(sizes).model_fields if name in fields}
    return type(sizes).model_validate({**sizes.model_dump(), **known})
