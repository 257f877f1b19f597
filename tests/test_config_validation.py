"""Components that come from outside the package, by import path."""

import sys

import pytest

from lucidnft.config import dump_config, load_config
from tests.run_files import GOOD, problems

OUTSIDE = """
from lucidnft.schema import ConfigModel


class SharpConfig(ConfigModel):
    strength: float
    weight: float = 1.0

    def build(self):
        return None


class Plain:
    pass
"""


@pytest.fixture
def outside_module(tmp_path, monkeypatch):
    (tmp_path / "outside_rewards.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "outside_rewards"
    sys.modules.pop("outside_rewards", None)


def test_a_class_from_outside_needs_no_change_here(run_file, outside_module):
    path = run_file(GOOD + f"  # comment\nseed: 3\nrun_name: {outside_module}\n")
    added = f"rewards.sharp={{type: '{outside_module}:SharpConfig', strength: 2}}"
    config = load_config(path, [added])
    assert type(config.rewards["sharp"]).__name__ == "SharpConfig"
    assert config.rewards["sharp"].strength == 2.0
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            "{type: 'nowhere_xyz.a:B'}",
            "type: 'nowhere_xyz.a:B' cannot be imported: No module named 'nowhere_xyz'",
        ),
        (
            "{type: 'outside_rewards:B'}",
            "type: 'outside_rewards:B' cannot be imported: module 'outside_rewards' has",
        ),
        (
            "{type: 'outside_rewards:Plain'}",
            "type: 'outside_rewards:Plain' is not a subclass of lucidnft.schema",
        ),
        ("{type: 'outside_rewards:SharpConfig'}", "strength: missing; expected float"),
        (
            "{type: 'outside_rewards:SharpConfig', strength: 1, strenght: 2}",
            "strenght: unknown key; did you mean strength?",
        ),
    ],
)
def test_problems_with_a_class_from_outside_are_named(run_file, outside_module, settings, sentence):
    (line,) = problems(run_file(), f"rewards.sharp={settings}")
    assert line.startswith(f"rewards.sharp.{sentence}")
