"""Trained adapters as others read them: PEFT folders, or the base with the adapter added in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lucidnft import __version__
from lucidnft.backbones.adapter_files import write_adapter
from lucidnft.backbones.lora_names import Names
from lucidnft.backbones.lora_values import merge_
from lucidnft.backbones.merged_files import write_merged
from lucidnft.checkpoint import CheckpointWriteError
from lucidnft.inference.checkpoints import BackboneConfig, build_base, stored_adapter


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
        ValueError: the output folder is not empty; or no adapter, or one for another base.
        CheckpointWriteError: the folder could not be written.
    """
    output_dir = Path(output_dir).resolve()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} is not an empty folder; give a new one, nothing was written")
    stored = stored_adapter(checkpoint, base)
    facts: dict[str, Any] = {
        "library_version": __version__,
        "base_fingerprint": stored.card.get("base_fingerprint"),
        "step": stored.card.get("step"),
    }
    if merge:
        backbone, config, _ = build_base(stored.path, stored.card, model_name_or_path)
        stored.check_base(backbone)
        merge_(backbone.network, stored.lora)
        section = config.model_dump(mode="json")
        with _new_folder(output_dir) as folder:
            write_merged(folder, backbone, section, **facts)
        return f"{backbone.name} with {len(stored.lora)} layers merged"
    with _new_folder(output_dir) as folder:
        write_adapter(folder, stored, names)
        parts = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    return f"LoRA of {len(stored.lora)} layers in {', '.join(parts)}"


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
