"""Where the weights of a learned reward are: a shipped name or a file, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lucidnft.checkpoint import load_header, load_tensors


def weight_file(path_or_name: str | Path, shipped: Mapping[str, str], reward: str) -> Path:
    """The file of a shipped name (a key of `shipped`) or the path itself.

    Raises:
        ValueError: neither a shipped name nor a file.
    """
    if str(path_or_name) in shipped:
        return Path(str(resources.files("lucidnft") / "assets" / shipped[str(path_or_name)]))
    path = Path(path_or_name)
    if not path.is_file():
        names = f" or one of the shipped names: {', '.join(shipped)}" if shipped else ""
        raise ValueError(
            f"reward '{reward}': no weights '{path_or_name}'; give the path of a weight file{names}"
        )
    return path


def read_header(path: Path, kind: str) -> dict[str, Any]:
    """The JSON header of a weight file whose `type` must be `kind`.  Raises ValueError otherwise."""
    header = load_header(path)
    if header.get("type") != kind:
        raise ValueError(f"{path} holds weights of type {header.get('type')!r}, expected {kind!r}")
    return header


def load_weights_(module: nn.Module, path: Path) -> None:
    """Fill a module in place; half-precision files become float32.

    Raises:
        ValueError: missing, extra or mis-shaped keys; the first few are named.
    """
    tensors, _ = load_tensors(path, expected=module.state_dict())
    module.load_state_dict({name: value.float() for name, value in tensors.items()})


def half_precision(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as float16, for shipping."""
    return {name: value.detach().half() for name, value in module.state_dict().items()}
