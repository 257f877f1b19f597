"""Strict loading: every problem at once with its place and the nearest name, and exact round trips."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lucidnft.config import dump_config, load_config, parse_config
from tests.run_files import GOOD, message, problems


def test_a_good_file_becomes_typed_frozen_settings(run_file):
    config = load_config(run_file(), ["train.nft_beta=0.5"])
    assert config.task == "nft"
    assert config.train.learning_rate == 1e-4
    assert config.train.nft_beta == 0.5
    assert list(config.rewards) == ["fidelity", "musiq"]
    assert config.rewards["fidelity"].weight == 0.5
    assert config.rewards["musiq"].metric == "musiq"
    with pytest.raises(ValidationError, match="frozen"):
        config.train.learning_rate = 1.0


def test_data_settings_that_do_not_fit_a_task_are_named(run_file):
    path = run_file("task: quality\ndata: {type: consistency, num_version: 3}")
    assert problems(path) == [
        "data.type: 'consistency' is unknown; expected one of quality",
        "data.num_version: unknown key; did you mean num_versions?",
    ]


def test_all_problems_come_at_once_in_the_documented_form(run_file):
    path = run_file(
        """
        task: nft
        modle: 3
        seed: 1.5
        data: {type: lr_foldr}
        rollout: {group_size: many, solver: eulr}
        rewards:
          musiq: {type: iqaa, metric: musiq}
          sem: {type: iqa, metric: musiq, wieght: 2}
          short: {type: iqa}
          flat: 3
          none: {metric: musiq}
        train: {learning_rate: fast, nft_beta: -1, old_policy: {schedul: copy}, use_ema: 3}
        eval: 7
        """
    )
    found = problems(path)
    assert set(found) == {
        "seed: expected int, got 1.5 (float)",
        "model: missing; add this section",
        "modle: unknown key; did you mean model?",
        "data.type: 'lr_foldr' is unknown; did you mean lr_folder?",
        "rollout.group_size: expected int, got 'many' (str)",
        "rollout.solver: 'eulr' is unknown; did you mean euler?",
        "rewards.musiq.type: 'iqaa' is unknown; did you mean iqa?",
        "rewards.sem.wieght: unknown key; did you mean weight?",
        "rewards.short.metric: missing; expected str",
        "rewards.flat: expected a section of key: value lines, got 3 (int)",
        next(line for line in found if line.startswith("rewards.none.type: missing; expected one of iqa, ")),
        "train.learning_rate: expected float, got 'fast' (str)",
        "train.nft_beta: expected greater than 0, got -1 (int)",
        "train.old_policy.schedul: unknown key; did you mean schedule?",
        "train.use_ema: expected bool (true or false), got 3 (int)",
        "eval: expected a section of key: value lines, got 7 (int)",
    }
    assert len(found) == 16


@pytest.mark.parametrize("written", ["1e-4", "'1e-4'", "1E-4", "0.0001", "1.0e-4"])
def test_every_spelling_of_a_float_is_a_float(run_file, written):
    path = run_file(GOOD.replace("1e-4", written))
    assert load_config(path).train.learning_rate == 1e-4
    assert load_config(path, [f"train.kl_beta={written}"]).train.kl_beta == 1e-4


@pytest.mark.parametrize("value", ["yes", "true", "no"])
def test_truth_values_are_not_numbers(run_file, value):
    assert problems(run_file(), f"train.kl_beta={value}", f"train.max_train_steps={value}") == [
        f"train.max_train_steps: expected int, got {value != 'no'} (bool)",
        f"train.kl_beta: expected float, got {value != 'no'} (bool)",
    ]


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_numbers_are_finite(run_file, value):
    assert problems(run_file(), f"train.kl_beta={value}") == [
        f"train.kl_beta: expected a finite number, got {value[1:]} (float)"
    ]


def test_a_number_where_a_name_belongs_is_explained(run_file):
    assert problems(run_file(), "run_name=7") == ["run_name: expected str, got 7 (int); put it in quotes"]


def test_a_key_without_a_near_name_gets_the_list(run_file):
    (line,) = problems(run_file(), "rewards.musiq.zzz=1")
    assert line == "rewards.musiq.zzz: unknown key; expected one of type, metric, weight"


@pytest.mark.parametrize(
    ("task", "sentence"), [("nfft", "'nfft' is unknown; did you mean nft?"), ("null", "missing;")]
)
def test_the_task_is_asked_for_first(run_file, task, sentence):
    (line,) = problems(run_file(), f"task={task}")
    assert line.startswith(f"task: {sentence}")


def test_interpolations_are_resolved(run_file):
    config = load_config(run_file(GOOD + "seed: 7\noutput_dir: out/${seed}\neval: {seed: '${seed}'}\n"))
    assert (config.output_dir, config.eval.seed) == ("out/7", 7)


def test_files_that_cannot_be_read_are_one_clear_message(run_file, tmp_path):
    assert message(tmp_path / "no.yaml") == f"config file {tmp_path / 'no.yaml'} does not exist"
    assert "is a folder" in message(tmp_path)
    assert "is not valid YAML: while parsing" in message(run_file("train: {a: 1"))
    assert "found duplicate key" in message(run_file("task: nft\ntask: nft\n"))
    assert "holds a list" in message(run_file("- a\n- b\n"))
    assert "task: missing; expected one of nft" in message(run_file(""))
    assert "model: Missing mandatory value" in message(run_file(GOOD.replace("{type: tiny}", "???")))
    path = run_file()
    path.write_bytes(b"\xff\xfe\x00")
    assert "is not valid YAML" in message(path)


def test_a_broken_interpolation_is_named(run_file):
    assert problems(run_file(), "output_dir=${nowhere}") == [
        "output_dir: Interpolation key 'nowhere' not found"
    ]


def test_sections_have_to_suit_the_task(run_file):
    assert problems(run_file(), "rewards={}") == [
        "rewards: task nft learns from rewards and has none; add one, like quality: {type: quality_net}"
    ]
    assert problems(run_file(), "task=flow_matching", "train={}") == [
        "data: task flow_matching needs HR images but data type lr_folder provides LR only; "
        "use type hr_folder or paired_folder",
        "rewards: task flow_matching has no such section (only nft); remove it or change the task",
    ]
    assert problems(run_file("task: quality\nmodel: {type: tiny}\nrollout: {}\n")) == [
        "model: task quality has no such section (only nft, flow_matching); remove it or change the task",
        "rollout: task quality has no such section (only nft); remove it or change the task",
    ]
    assert problems(run_file(), "rewards.a b={type: lr_fidelity}") == [
        "rewards: reward names go into log names: ['a b'] may have only letters, digits and _.+-"
    ]


def test_checks_of_a_component_speak_for_themselves(run_file):
    (line,) = problems(run_file(), "data={type: paired_folder, lr_folder: a}")
    assert line == "data: lr_folder and hr_folder belong together; set hr_folder too"


NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
AWKWARD = st.sampled_from(
    ["1e-4", "yes", "null", "${task}", r"a\${b}", "a: b", "# x", "007", "", "'", " ", "{a}"]
)
POSITIVE = st.floats(min_value=1e-300, max_value=1e300)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**62),
    names=st.lists(
        st.from_regex(r"[A-Za-z0-9_.+\-]{1,8}", fullmatch=True), min_size=1, max_size=4, unique=True
    ),
    weights=st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4),
    folder=st.none() | NAMES | AWKWARD,
    metric=NAMES | AWKWARD,
    learning_rate=POSITIVE,
    num_train_timesteps=st.none() | st.integers(1, 50),
)
def test_dumped_yaml_loads_to_an_equal_config(
    tmp_path_factory, seed, names, weights, folder, metric, learning_rate, num_train_timesteps
):
    config = parse_config(
        {
            "task": "nft",
            "seed": seed,
            "model": {"type": "tiny"},
            "data": {"type": "lr_folder", "folder": folder},
            "rewards": {
                n: {"type": "iqa", "metric": metric, "weight": w}
                for n, w in zip(names, weights, strict=False)
            },
            "train": {"learning_rate": learning_rate, "num_train_timesteps": num_train_timesteps},
        }
    )
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == dump_config(config)


@pytest.mark.parametrize(("task", "data"), [("quality", "quality"), ("consistency", "pools")])
def test_tasks_with_defaults_only_load_and_round_trip(run_file, task, data):
    config = load_config(run_file(f"task: {task}"))
    assert config.run_name == config.task == task and config.data.type == data
    assert load_config(run_file(dump_config(config))) == config


def test_the_dump_is_complete(run_file):
    text = dump_config(load_config(run_file()))
    for key in (
        "seed:",
        "old_policy:",
        "max_decay:",
        "checkpoints_total_limit:",
        "num_val_images:",
        "lora_rank:",
    ):
        assert key in text
