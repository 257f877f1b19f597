"""Training times of flow matching: functions of (seed, step, row), spread over the whole step if asked to be."""

from itertools import pairwise

import pytest
import torch

from lucidnft.backbones.tiny import TinyBackbone
from lucidnft.records import ImageBatch
from lucidnft.training.flow_matching_task import FlowMatchingTask
from lucidnft.training.settings import EvalConfig, FlowMatchingTrainConfig
from tests.small_backbone import SMALL


class Grey:
    """Grey HR images; only the times matter here."""

    name = "grey"
    provides = frozenset({"lr", "hr"})

    def batch(self, step, num_groups, rows):
        ids = tuple(step * num_groups + row for row in rows)
        hr = torch.full((len(ids), 3, 16, 16), 0.5)
        return ImageBatch(lr=hr[..., ::4, ::4], hr=hr, keys=tuple(map(str, ids)), group_ids=ids)


@pytest.fixture
def times():
    """(sampling, step, rows, num_rows) -> the times of these rows."""
    backbone = TinyBackbone.initialise(SMALL, seed=0)

    def draw(sampling, step, rows, num_rows, seed=1):
        train = FlowMatchingTrainConfig(timestep_sampling=sampling)
        task = FlowMatchingTask(backbone, Grey(), Grey(), train, EvalConfig(), seed=seed)
        return task.batch(step, rows, num_rows).t

    return draw


@pytest.mark.parametrize("cuts", [[], [4], [1, 2, 3, 4, 5, 6], [2, 3]])
def test_stratified_times_cover_each_span_once_however_a_step_is_cut(times, cuts):
    steps = []
    for step in range(20):
        parts = [times("stratified", step, range(*ends), 7) for ends in pairwise([0, *cuts, 7])]
        steps.append(torch.cat(parts))
        assert torch.equal(steps[-1], times("stratified", step, range(7), 7))
    spans = ((torch.stack(steps) - 1e-3) / (1 - 1e-3) * 7).floor()  # [0.001, 1], as sample_times divides it
    assert torch.equal(spans.sort(dim=1).values, torch.arange(7.0).expand(20, 7))
    assert all(len(row.unique()) > 1 for row in spans.T)  # a row is not bound to a span


def test_stratified_times_depend_on_seed_and_step(times):
    drawn = [times("stratified", step, range(5), 5, seed) for seed, step in ((1, 0), (1, 1), (2, 0), (1, 0))]
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("sampling", ["uniform", "logit_normal"])
def test_independent_times_depend_on_the_row_and_not_on_how_many_there_are(times, sampling):
    assert torch.equal(times(sampling, 3, range(2, 4), 4), times(sampling, 3, range(8), 8)[2:4])
