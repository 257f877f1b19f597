"""Tensors and JSON on disk: safetensors with a JSON header, replaced atomically, nothing pickled.

A file is written to a temporary name beside its target, flushed to the disk and renamed, so a reader sees
the old file or the new one and never half of either.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

HEADER_KEY = "lucidnft"
"""The one metadata entry of our files, the header as JSON.  One only: several come in random order."""


class CheckpointWriteError(OSError):
    """A file could not be written; whatever stood under its name before is untouched."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors of any dtype and a JSON-able header to one safetensors file, atomically.

    Tensors may live anywhere, be views or share memory; each is stored whole, with its dtype.

    Raises:
        CheckpointWriteError: the disk refused (full, read-only, ...); an older file of this name survives.
        ValueError: the header is not JSON, or contains NaN or infinity.
    """
    path = Path(path)
    stored = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    _replace_file(path, tensors_to_bytes(stored, {HEADER_KEY: _to_json(path, dict(header), indent=None)}))


def load_tensors(
    path: str | Path,
    *,
    expected: Mapping[str, Tensor | Sequence[int]] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read (tensors, header) of a file written by `save_tensors`.

    expected: name -> tensor or shape that must be there, exactly; None takes the file as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a safetensors file, cut short, without our header, or its keys or shapes are not
            the expected ones (missing, extra and mis-shaped keys are counted, the first few are named).
    """
    path = Path(path)
    header = load_header(path)
    with opened(path, str(device)) as file:
        if expected is not None:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            check_shapes(path, shapes, expected)
        return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118


def load_header(path: str | Path) -> dict[str, Any]:
    """Read only the header of a file written by `save_tensors`; no tensor is loaded.

    Raises:
        FileNotFoundError, ValueError: as `load_tensors`.
    """
    path = Path(path)
    with opened(path, "cpu") as file:
        text = (file.metadata() or {}).get(HEADER_KEY)
    if text is None:
        raise ValueError(f"{path} has no '{HEADER_KEY}' header: it was not written by this library")
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: its header is not JSON ({error}); use another copy") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path} is damaged: its header is a {type(header).__name__}, not an object")
    return header


def save_json(path: str | Path, value: object) -> None:
    """Write a JSON file atomically.  Raises CheckpointWriteError or ValueError as `save_tensors`."""
    path = Path(path)
    _replace_file(path, (_to_json(path, value, indent=2) + "\n").encode())


def save_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file atomically.  Raises CheckpointWriteError as `save_tensors`."""
    _replace_file(Path(path), text.encode())


def load_json(path: str | Path) -> Any:
    """Read a JSON file.  Raises FileNotFoundError, or ValueError when it is cut short or damaged."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it is damaged or cut short") from error


def first_few(items: Iterable[str], shown: int = 3) -> str:
    """The first few of many, comma-separated, with the number left out."""
    items = list(items)
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(items[:shown]) + more


def check_shapes(
    source: Path | str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor | Sequence[int]]
) -> None:
    """Raise a ValueError unless names and shapes are exactly the expected ones; source starts its message."""
    wanted = {n: tuple(v.shape) if isinstance(v, Tensor) else tuple(v) for n, v in expected.items()}
    missing = [n for n in wanted if n not in found]
    extra = [n for n in found if n not in wanted]
    shaped = [f"{n} is {found[n]}, not {s}" for n, s in wanted.items() if n in found and found[n] != s]
    kinds = (("missing", missing), ("unexpected", extra), ("of another shape", shaped))
    problems = [f"{len(items)} {kind}: {first_few(items)}" for kind, items in kinds if items]
    if problems:
        raise ValueError(
            f"{source} does not fit, {len(wanted)} tensors were expected: {'; '.join(problems)}; "
            "it belongs to another model or configuration"
        )


@contextmanager
def opened(path: Path, device: str) -> Iterator[Any]:
    if not path.is_file():
        what = "is a folder, expected a .safetensors file" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            yield file
    except SafetensorError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} ({size} bytes) is not a readable safetensors file: {error}; it is damaged, cut short or "
            "of another format"
        ) from error


def _to_json(path: Path, value: object, indent: int | None) -> str:
    try:
        return json.dumps(value, allow_nan=False, indent=indent)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the header or value cannot be stored as JSON: {error}") from error


def _replace_file(path: Path, content: bytes) -> None:
    # A fixed temporary name: what a killed process leaves is overwritten by the next save.
    temporary = path.with_name(f".{path.name}.partial")
    with write_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_to_disk(path.parent)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointWriteError:
        raise
    except OSError as error:
        existing = next(p for p in (path, *path.absolute().parents) if p.is_dir() or p == p.parent)
        free = shutil.disk_usage(existing).free / 2**20
        raise CheckpointWriteError(
            error.errno,
            f"cannot write {path}: {error.strerror or error}; {free:.0f} MiB free there. What was saved "
            "before is intact: free some space or choose another output_dir, then resume",
        ) from error


def flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
