"""key=value on the command line: what wins, and what is refused."""

from pathlib import Path

import pytest

from lucidnft.config import dump_config, load_config
from tests.run_files import GOOD, message, problems

SHIPPED = Path(__file__).resolve().parents[1] / "configs/tiny/nft.yaml"
TWO_NAMES = (
    "rollout.num_generations: num_generations is another name of group_size; "
    "remove one of the two, they differ, got 12 (int)"
)


def test_overrides_set_add_replace_and_come_in_order(run_file):
    config = load_config(
        run_file(),
        [
            "train.max_train_steps=5",
            "train.max_train_steps=6",
            "model.lora_rank=4",
            "data.folder=my photos=old",
            "rewards={only: {type: iqa, metric: niqe}}",
            "output_dir=${oc.env:HOME}/${task}",
        ],
    )
    assert config.train.max_train_steps == 6
    assert config.train.learning_rate == 1e-4
    assert config.model.lora_rank == 4
    assert config.data.folder == "my photos=old"
    assert list(config.rewards) == ["only"]
    assert config.output_dir.endswith("/nft")
    assert "$" not in config.output_dir


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        (["rollout.num_generations=12"], 12),
        (["rollout.num_generations=12", "rollout.num_generations=14"], 14),
        (["rollout.num_generations=12", "rollout.group_size=12"], 12),
        (["rollout={num_generations: 12}"], 12),
        (["rollout={num_generations: 12}", "rollout.num_generations=14"], 14),
        (["rollout={num_groups: 2}", "rollout.num_generations=14"], 14),
    ],
)
def test_an_override_by_the_other_name_wins_over_the_file(overrides, size):
    assert load_config(SHIPPED, overrides).rollout.group_size == size


def test_an_interpolation_of_either_name_sees_the_override():
    for name in ("group_size", "num_generations"):
        config = load_config(
            SHIPPED, ["rollout.num_generations=12", f"rollout.num_groups=${{rollout.{name}}}"]
        )
        assert config.rollout.num_groups == 12


def test_either_name_of_a_setting_in_the_file_gives_way_to_either_in_an_override(run_file):
    path = run_file(GOOD + "rollout: {num_generations: 6}\n")
    assert load_config(path).rollout.group_size == 6
    assert load_config(path, ["rollout.group_size=4"]).rollout.group_size == 4
    assert load_config(path, ["rollout.num_generations=4"]).rollout.group_size == 4
    assert load_config(run_file(dump_config(load_config(path)))) == load_config(path)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout.num_generations=12", "rollout.group_size=8"],
        ["rollout.group_size=8", "rollout.num_generations=12"],
        ["rollout={num_generations: 12}", "rollout.group_size=8"],
        ["rollout={num_generations: 12, group_size: 8}"],
    ],
)
def test_two_names_with_two_values_in_the_overrides_are_named(overrides):
    assert problems(SHIPPED, *overrides) == [TWO_NAMES]


def test_two_names_with_two_values_in_the_file_are_named(run_file):
    path = run_file(GOOD + "rollout: {num_generations: 12, group_size: 8, solver: eulr}\n")
    assert problems(path) == ["rollout.solver: 'eulr' is unknown; did you mean euler?", TWO_NAMES]


@pytest.mark.parametrize("override", ["train.max_train_steps", "=3", "", "a..b=3", ".=3", "a.=1"])
def test_malformed_overrides_are_named(run_file, override):
    assert message(run_file(), override).startswith(
        f"override {override!r} is not of the form key.path=value"
    )


@pytest.mark.parametrize("override", ["train.learning_rate=[1", "train.learning_rate={a"])
def test_overrides_that_are_no_yaml_are_named(run_file, override):
    text = message(run_file(), override)
    assert text.startswith(f"override {override!r} cannot be applied")
    assert "\n" not in text
