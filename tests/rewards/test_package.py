"""Importing rewards is cheap, every reward is there by name, and heavy packages wait until one is built."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lucidnft.rewards as rewards

HEAVY = ("pyiqa", "open_clip", "transformers", "diffusers", "peft", "torchvision")


@pytest.mark.parametrize(
    "statement",
    [
        "import lucidnft.rewards",
        "from lucidnft.rewards import " + ", ".join(rewards.__all__),
        "from lucidnft.rewards import build_reward; build_reward('lr_fidelity'); build_reward('quality_net')",
    ],
)
def test_heavy_packages_are_not_loaded(statement: str) -> None:
    code = f"import sys\n{statement}\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_building_an_iqa_reward_does_load_pyiqa() -> None:
    """The guard above can fail: the same check sees pyiqa once it is used."""
    code = (
        "import sys\nfrom lucidnft.rewards import IQAReward\nIQAReward('psnr')\nprint('pyiqa' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("True")


def test_every_public_name_resolves_and_others_do_not() -> None:
    for name in rewards.__all__:
        assert getattr(rewards, name).__name__ == name
    assert set(rewards.__all__) == set(rewards._HOMES)
    with pytest.raises(AttributeError, match="NoSuchReward"):
        _ = rewards.NoSuchReward
