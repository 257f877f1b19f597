"""Weight files that others released: read without executing anything, loaded with every key accounted for."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft.checkpoint.tensor_files import check_shapes, first_few, load_json, opened

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def read_released_file(path: str | Path) -> dict[str, Any]:
    """The dictionary in a .safetensors file, or in a .pth, .pt, .ckpt or .bin file (read weights-only).

    Tensors are on the CPU.  A pickled file may hold dictionaries of tensors inside dictionaries.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, damaged, holding more than tensors, or not a dictionary.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return load_released(path)
    if not path.is_file():
        what = "is a folder, expected a weight file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"weight file {path} {what}")
    if path.suffix not in _PICKLED:
        raise ValueError(
            f"{path}: weights are read from .safetensors, {', '.join(_PICKLED)} files, not {path.suffix!r}"
        )
    try:
        # the older format of torch.save cannot be mapped
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # torch's own lines advise to execute what is in the file
        lines = [line.strip() for line in str(error).splitlines() if "weights_only" not in line]
        telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
        reason = next(iter(telling + lines), type(error).__name__)
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read as weights: {reason}; it is damaged, cut short, "
            "or holds objects other than tensors, which are never executed"
        ) from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds a {type(contents).__name__}, expected a dictionary of tensors")
    return contents


def load_strictly_(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, *, dtype: torch.dtype | None = None
) -> None:
    """Put tensors into a module, which may live on the meta device; they are taken over, not copied.

    source: what the tensors are and where they come from, the start of a message.
    dtype: of the loaded floating-point tensors; None keeps the file's.

    Raises:
        ValueError: names or shapes are not exactly the module's; the first few are named.
    """
    check_shapes(
        f"{source}:", {name: tuple(value.shape) for name, value in tensors.items()}, module.state_dict()
    )
    converted = {
        name: value.to(dtype) if dtype is not None and value.is_floating_point() else value
        for name, value in tensors.items()
    }
    module.load_state_dict(converted, assign=True)


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
