"""What a run ran on: versions, commit, device and command, for its record."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lucidnft import __version__

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


def environment(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Versions, commit, device and command of this process, for env.json."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "lucidnft": __version__,
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
        "git_commit": git_commit(),
        "device": f"{device} ({name})",
        "num_processes": num_processes,
        "num_threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def package_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package; None for those that are not there."""
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def git_commit() -> str | None:
    """Commit of the source tree, with a plus sign when it has changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.stdout.strip() or None
