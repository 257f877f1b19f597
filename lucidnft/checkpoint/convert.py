"""Turn a released .pth, .pt, .ckpt or .bin file into safetensors, once.

    python -m lucidnft.checkpoint.convert lucidflux.pth lucidflux.safetensors

Nothing in the file is executed.  Dictionaries inside dictionaries become names joined with dots, which the settings
that take the file read as well; what a single dictionary "state_dict" holds keeps its own names.  Text and numbers
(a prompt, a step) go to the header.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from lucidnft.checkpoint.released_files import read_released_file
from lucidnft.checkpoint.tensor_files import HEADER_KEY, flush_to_disk, write_errors

_WRAPPING = "state_dict."


def convert(source: str | Path, target: str | Path) -> dict[str, Tensor]:
    """Write the tensors of `source` to the new file `target`, whole or not at all; returns them.

    Raises:
        FileNotFoundError: no such source.
        FileExistsError: the target is there already.
        ValueError: the source is damaged, holds no tensors, or anything but tensors, text and numbers; or the target
            is no .safetensors file.
        CheckpointWriteError: the disk refused.
    """
    source, target = Path(source), Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"{target}: the name of the new file must end with .safetensors")
    if target.exists():
        raise FileExistsError(f"{target} exists already; remove it or give another name")
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for name, value in _leaves(source, read_released_file(source), ""):
        if name in tensors or name in others:
            raise ValueError(f"{source} has two entries that would both be called {name}")
        if isinstance(value, Tensor):
            tensors[name] = value
        elif value is None or isinstance(value, str | int | float):
            others[name] = value
        else:
            raise ValueError(
                f"{source}: {name} is a {type(value).__name__}, expected a tensor; it is no file of weights alone"
            )
    if not tensors:
        raise ValueError(f"{source} holds no tensors")
    if all(name.startswith(_WRAPPING) for name in tensors):
        tensors = {name.removeprefix(_WRAPPING): value for name, value in tensors.items()}
    header = json.dumps({"converted_from": source.name, "others": others})
    _save(tensors, header, target)
    return tensors


def _leaves(source: Path, values: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{source}: an entry of {prefix or 'it'} is called {name!r}, no text; it is no file of weights alone"
            )
        if isinstance(value, Mapping):
            yield from _leaves(source, value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _save(tensors: Mapping[str, Tensor], header: str, target: Path) -> None:
    # Written piece by piece: the files are large, and save_tensors would hold them in memory twice more.
    partial = target.with_name(f".{target.name}.partial")
    with write_errors(target):
        try:
            separate = {name: value.contiguous().clone() for name, value in tensors.items()}
            save_file(separate, partial, {HEADER_KEY: header})
            flush_to_disk(partial)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        flush_to_disk(target.parent)


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Turn a released weight file into safetensors.")
    parser.add_argument("source", metavar="FILE", help=".pth, .pt, .ckpt or .bin; nothing in it is executed")
    parser.add_argument("target", metavar="NEW.safetensors")
    args = parser.parse_args(argv)
    try:
        tensors = convert(args.source, args.target)
    except (ValueError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    print(f"{args.target}: {len(tensors)} tensors, {sum(map(Tensor.numel, tensors.values()))} numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
