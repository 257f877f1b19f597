"""A run file for tests of the settings, and what loading says of a bad one."""

import pytest

from lucidnft.config import ConfigError, load_config

GOOD = """
task: nft
model: {type: tiny}
data: {type: lr_folder}
rewards:
  fidelity: {type: lr_fidelity, weight: 0.5}
  musiq: {type: iqa, metric: musiq}
train: {learning_rate: 1e-4, max_train_steps: 3}
"""


def problems(path, *overrides) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, list(overrides))
    first, *lines = str(error.value).split("\n")
    assert first == f"{len(lines)} problem(s) in {path}:"
    assert all(line.startswith("  ") for line in lines)
    return [line.strip() for line in lines]


def message(path, *overrides) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, list(overrides))
    return str(error.value)
