"""Weight files that others released: read without executing anything, loaded with every key accounted for."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lucidnft.checkpoint.tensor_files import check_shapes

_PICKLED = (".pt", ".pth", ".bin", ".ckpt")


def read_released_file(path: str | Path) -> dict[str, Any]:
    """The dictionary in a .safetensors file, or in a .pth, .pt, .ckpt or .bin file (read weights-only).

    Tensors are on the CPU.  A pickled file may hold dictionaries of tensors inside dictionaries.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another kind of file, damaged, holding more than tensors, or not a dictionary.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, expected a weight file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"weight file {path} {what}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if path.suffix in _PICKLED:
            # the older format of torch.save cannot be mapped
            mapped = zipfile.is_zipfile(path)
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        else:
            raise ValueError(
                f"{path}: weights are read from .safetensors, {', '.join(_PICKLED)} files, not {path.suffix!r}"
            )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        # torch's first lines advise to execute what is in the file
        reason = next((line.strip() for line in lines if "Unsupported" in line), lines[0])
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
