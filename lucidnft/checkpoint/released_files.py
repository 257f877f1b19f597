"""Safetensors files that others wrote: no header of ours, sometimes in several pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lucidnft.checkpoint.tensor_files import check_shapes, first_few, load_json, opened


def load_released(
    path: str | Path,
    *,
    expected: Mapping[str, Tensor | Sequence[int]] | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Read a .safetensors file, or the one or the indexed several of a folder, whoever wrote them.

    expected: name -> tensor or shape that must be there, exactly; None takes what is there.

    Raises:
        FileNotFoundError: nothing is there, or a piece that the index names is missing.
        ValueError: not safetensors, cut short, more than one candidate in the folder, a name in two pieces, or keys or
            shapes other than expected (missing, extra and mis-shaped are counted, the first few named).
    """
    path = Path(path)
    pieces = _pieces(path) if path.is_dir() else [path]
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for piece in pieces:
        with opened(piece, str(device)) as file:
            for name in file.keys():  # noqa: SIM118
                if name in shapes:
                    raise ValueError(
                        f"{path} holds {name} in two pieces, one of them {piece.name}; download it again"
                    )
                shapes[name] = tuple(file.get_slice(name).get_shape())
    if expected is not None:
        check_shapes(path, shapes, expected)
    for piece in pieces:
        with opened(piece, str(device)) as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return tensors


def _pieces(folder: Path) -> list[Path]:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        index = load_json(indices[0])
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{indices[0]} has no weight_map; it is damaged, download it again")
        pieces = [folder / name for name in sorted(set(weight_map.values()))]
        missing = [piece.name for piece in pieces if not piece.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{folder} lacks {first_few(missing)}, which {indices[0].name} names; download it again"
            )
        return pieces
    if len(files) == 1 and not indices:
        return files
    if not files:
        raise FileNotFoundError(f"{folder} holds no .safetensors file")
    raise ValueError(
        f"{folder} holds {first_few(f.name for f in [*indices, *files])}: which is meant? Give one file instead"
    )
