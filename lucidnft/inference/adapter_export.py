"""Trained adapters as others read them: PEFT folders, or the base with the adapter added in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lucidnft import __version__
from lucidnft.backbones.adapter_files import is_adapter_folder, write_adapter
from lucidnft.backbones.base import Backbone
from lucidnft.backbones.lora_names import Names
from lucidnft.backbones.lora_values import merge_
from lucidnft.backbones.merged_files import write_merged
from lucidnft.checkpoint import CheckpointWriteError, load_header, load_tensors
from lucidnft.checkpoint.tensor_files import check_shapes
from lucidnft.inference.checkpoints import BackboneConfig, build_base, find_weights, stored_adapter


def export_adapter(
    checkpoint: str | Path,
    output_dir: str | Path,
    *,
    names: Names = "release",
    merge: bool = False,
    model_name_or_path: str | Path | None = None,
    base: BackboneConfig | None = None,
) -> str:
    """Write an adapter's PEFT folders, or the merged base, into a new or empty folder; returns what was written.

    Without `merge` the base is not needed and not looked for.

    Args:
        checkpoint: as `load_policy` takes it.
        names: of the layers in PEFT folders, "release" or "diffusers".
        merge: write plain weights with the adapter added in, in float32 and then rounded to the base's dtype.
        model_name_or_path: the base's weights, if they have moved.
        base: the `model:` section of a run file, over what the adapter says.

    Raises:
        FileNotFoundError: the checkpoint or, to merge, the base is not there.
        ValueError: the output folder is not empty; or no adapter, or one for another base; or trained parameters
            (model.train_parameters) without `merge`.
        CheckpointWriteError: the folder could not be written.
    """
    output_dir = Path(output_dir).resolve()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} is not an empty folder; give a new one, nothing was written")
    trained = _trained_parameters(checkpoint)
    if trained is not None:
        if not merge:
            raise ValueError(
                f"{trained} holds parameters of the network itself (model.train_parameters), of which there are no "
                "PEFT folders; write the whole with --merge"
            )
        header = load_header(trained)
        backbone, section = _full_base(trained, header, model_name_or_path)
        tensors, _ = load_tensors(trained)
        _replace_(backbone.network, tensors, trained)
        _write(output_dir, backbone, {**section, "train_parameters": None}, header)
        return f"{backbone.name} with {len(tensors)} parameters replaced"
    stored = stored_adapter(checkpoint, base)
    if merge:
        backbone, section = _full_base(stored.path, stored.card, model_name_or_path)
        stored.check_base(backbone)
        merge_(backbone.network, stored.lora)
        _write(output_dir, backbone, section, stored.card)
        return f"{backbone.name} with {len(stored.lora)} layers merged"
    with _new_folder(output_dir) as folder:
        write_adapter(folder, stored, names)
        parts = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return f"LoRA of {len(stored.lora)} layers in {', '.join(parts)}"


def _trained_parameters(checkpoint: str | Path) -> Path | None:
    """The policy file of a run that trained parameters themselves; None for any other checkpoint."""
    if is_adapter_folder(Path(checkpoint)):
        return None
    file = find_weights(checkpoint)
    section = load_header(file).get("backbone")
    return file if isinstance(section, dict) and section.get("train_parameters") else None


def _full_base(
    file: Path, header: Mapping[str, Any], model_name_or_path: str | Path | None
) -> tuple[Backbone, dict[str, Any]]:
    """The base that a policy was trained on and its `model:` section, both with unquantised weights."""
    section = dict(header.get("backbone") or {})
    if "quantize" in section:
        section["quantize"] = "none"  # what was learned on rounded weights is added to the full ones
    backbone, config, _ = build_base(file, {**header, "backbone": section}, model_name_or_path)
    return backbone, config.model_dump(mode="json")


@torch.no_grad()
def _replace_(network: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    parameters = dict(network.named_parameters())
    expected = {name: parameters[name] for name in tensors if name in parameters}
    check_shapes(file, {name: tuple(value.shape) for name, value in tensors.items()}, expected)
    for name, parameter in expected.items():
        parameter.copy_(tensors[name])


def _write(
    output_dir: Path, backbone: Backbone, section: Mapping[str, Any], header: Mapping[str, Any]
) -> None:
    facts: dict[str, Any] = {
        "library_version": __version__,
        "base_fingerprint": header.get("base_fingerprint"),
        "step": header.get("step"),
    }
    with _new_folder(output_dir) as folder:
        write_merged(folder, backbone, section, **facts)


@contextmanager
def _new_folder(final: Path) -> Iterator[Path]:
    """A hidden folder to fill, which gets its name when it is whole; removed when the body raises."""
    partial = final.with_name(f".{final.name}.partial")
    try:
        if partial.exists():  # what a killed export left
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        yield partial
        os.replace(partial, final)  # over an empty folder too
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointWriteError(error.errno, f"cannot write {final}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
