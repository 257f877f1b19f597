"""The folder a run leaves behind: started clean, resumed in place, never written over."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from lucidnft import __version__
from lucidnft.checkpoint import save_json

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "accelerate",
    "transformers",
    "peft",
    "pyiqa",
    "scikit-image",
)


def start_run_folder(
    run_dir: Path, config_yaml: str, environment: dict[str, Any], *, resume_from: str | None
) -> list[str]:
    """Write config.yaml and env.json; returns what the user should know.  One process per run calls this.

    A fresh run moves an earlier one of the same name aside (to <name>.1, <name>.2, ...), so nothing is
    lost and logs never mix.  A resumed run says which settings differ from those it was started with.

    Raises:
        FileNotFoundError: the latest checkpoint of a run that was never started is asked for.
    """
    notes = []
    if resume_from == "latest" and not run_dir.is_dir():
        raise FileNotFoundError(
            f"there is no run in {run_dir} to resume; start without --resume_from_checkpoint, or check "
            "output_dir and run_name"
        )
    if resume_from is not None and (run_dir / "config.yaml").exists():
        changed = changed_settings((run_dir / "config.yaml").read_text(), config_yaml)
        notes += [f"resuming with another setting than before: {line}" for line in changed]
    elif resume_from is None and run_dir.exists() and any(run_dir.iterdir()):
        number = 1
        while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
            number += 1
        run_dir.rename(aside)
        notes.append(f"an earlier run in {run_dir} was moved to {aside}")
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(config_yaml)
    save_json(run_dir / "env.json", environment)
    return notes


def changed_settings(before: str, after: str) -> list[str]:
    """Settings that differ between two YAML dumps, one `path: old -> new` line each."""
    old, new = flat(yaml.safe_load(before)), flat(yaml.safe_load(after))
    return [
        f"{key}: {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted path: leaf}."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{path}.{key}".lstrip(".")).items()}


def environment(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Versions, commit, device and command of this process, for env.json."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "lucidnft": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": git_commit(),
        "device": f"{device} ({name})",
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def git_commit() -> str | None:
    """Commit of the source tree, with a plus sign when it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.stdout.strip() or None
