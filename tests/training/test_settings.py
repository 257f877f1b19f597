"""Settings that would be read by nothing are refused, and what a run writes down loads again."""

from pathlib import Path

import pytest

from lucidnft.config import ConfigError, dump_config, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs/tiny"


@pytest.mark.parametrize("sampling", ["all", "grid"])
def test_flow_matching_takes_no_times_of_a_grid_it_does_not_have(sampling):
    with pytest.raises(
        ConfigError,
        match=f"train.timestep_sampling: '{sampling}' is unknown; expected one of uniform, logit_normal, strat",
    ):
        load_config(CONFIGS / "flow_matching.yaml", [f"train.timestep_sampling={sampling}"])


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal", "stratified"])
def test_flow_matching_takes_every_sampling_that_needs_no_grid(sampling):
    config = load_config(CONFIGS / "flow_matching.yaml", [f"train.timestep_sampling={sampling}"])
    assert config.train.timestep_sampling == sampling


def test_numbers_of_the_old_policy_need_the_schedule_that_reads_them():
    numbers = "flat_steps: 75, ramp_rate: 0.0075, max_decay: 0.999"
    with pytest.raises(ConfigError) as error:
        load_config(CONFIGS / "nft.yaml", [f"train.old_policy={{{numbers}}}"])
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        f"train.old_policy.{name}: is read only with schedule: custom, not with linear_to_0_5; "
        f"set schedule: custom or remove it; got {value}"
        for name, value in (
            ("flat_steps", "75 (int)"),
            ("ramp_rate", "0.0075 (float)"),
            ("max_decay", "0.999 (float)"),
        )
    ]
    with pytest.raises(ConfigError, match=r"train\.old_policy\.max_decay: .* not with copy"):
        load_config(CONFIGS / "nft.yaml", ["train.old_policy.max_decay=0.9"])
    custom = load_config(CONFIGS / "nft.yaml", [f"train.old_policy={{schedule: custom, {numbers}}}"])
    assert custom.train.old_policy.max_decay == 0.999


@pytest.mark.parametrize(
    "old_policy",
    [
        "{}",
        "{schedule: copy}",
        "{schedule: delayed_linear_to_0_999}",
        "{schedule: custom, flat_steps: 2, ramp_rate: 0.1}",
    ],
)
def test_a_resolved_old_policy_loads_again_unchanged(tmp_path, old_policy):
    config = load_config(CONFIGS / "nft.yaml", [f"train.old_policy={old_policy}"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert "max_decay:" in path.read_text()
    assert load_config(path) == config


def test_an_unknown_schedule_is_the_only_problem_of_its_numbers():
    with pytest.raises(
        ConfigError, match=r"1 problem\(s\)(.|\n)*schedule: 'custm' is unknown; did you mean cus"
    ):
        load_config(CONFIGS / "nft.yaml", ["train.old_policy={schedule: custm, max_decay: 0.9}"])


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        *[("quality", f"train.{name}") for name in ("mixed_precision=bf16", "gradient_checkpointing=true")],
        *[
            ("consistency", f"eval.{name}")
            for name in ("solver=heun", "num_inference_steps=4", "max_images=2")
        ],
        *[(task, "log.num_grid_images=3") for task in ("quality", "consistency")],
    ],
)
def test_settings_that_a_task_does_not_read_are_refused(task, setting):
    with pytest.raises(ConfigError, match=f"{setting.split('=')[0]}: unknown key"):
        load_config(CONFIGS / f"{task}.yaml", [setting])
