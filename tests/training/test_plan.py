"""Reasons why a run could not learn."""

import pytest

from lucidnft.rollout import RolloutConfig
from lucidnft.training.plan import check_can_learn
from lucidnft.training.settings import NFTTrainConfig


@pytest.mark.parametrize(
    ("rollout", "train", "weights", "processes", "words"),
    [
        ({"group_size": 1}, {}, [1.0], 1, "at least 2"),
        ({"num_groups": 3}, {}, [1.0], 2, "not a multiple of 2 processes"),
        ({"num_groups": 1, "group_size": 2}, {"gradient_steps_per_epoch": 3}, [1.0], 1, "3 for 2 rollouts"),
        ({}, {}, [0.0, 0.0], 1, "weight 0"),
        ({"num_inference_steps": 4}, {"num_train_timesteps": 5}, [1.0], 1, "draws from the 4 times"),
    ],
)
def test_settings_that_cannot_learn_are_refused_before_the_start(rollout, train, weights, processes, words):
    with pytest.raises(ValueError, match=words):
        check_can_learn(
            RolloutConfig.model_validate(rollout),
            NFTTrainConfig.model_validate(train),
            weights,
            num_processes=processes,
        )
