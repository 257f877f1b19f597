"""The suite and the protocol: needs, ranges, and a score that is not finite names its reward and image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lucidnft.records import ImageBatch
from lucidnft.rewards import LRFidelity, Reward, RewardCard, RewardSuite
from lucidnft.rewards.base import Reference


class Fixed(Reward):
    """Scores the mean of the image, except where told otherwise."""

    card = RewardCard(name="fixed")

    def __init__(self, wrong: float | None = None, at: int = 0) -> None:
        self.wrong, self.at, self.calls = wrong, at, 0

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        scores = sr.mean(dim=(1, 2, 3))
        if self.wrong is not None and self.calls == self.at // 4:
            scores[self.at % 4] = self.wrong
        self.calls += 1
        return scores


def batch(groups: int = 2) -> ImageBatch:
    return ImageBatch(
        lr=torch.rand(groups, 3, 8, 8),
        keys=tuple(f"image{g}" for g in range(groups)),
        group_ids=tuple(range(groups)),
    )


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_not_finite_names_the_reward_and_the_image(wrong: float) -> None:
    suite = RewardSuite({"good": Fixed(), "broken": Fixed(wrong, at=5)}, chunk_size=4)
    with pytest.raises(
        ValueError, match=rf"'broken' is not finite for 1 of 6.*image1 \(rollout 2\) = {wrong}"
    ):
        suite.score(torch.rand(2, 3, 3, 32, 32), batch())


def test_scores_are_stacked_by_group_rollout_and_reward() -> None:
    images = torch.rand(2, 3, 3, 32, 32)
    output = RewardSuite({"mean": Fixed(), "fidelity": LRFidelity()}, chunk_size=4).score(images, batch())
    assert output.names == ("mean", "fidelity") and output.stacked.shape == (2, 3, 2)
    assert torch.allclose(output.by_name()["mean"], images.mean(dim=(2, 3, 4)))


class Columns(Fixed):
    """The same score, column by column."""

    def score_map(self, sr: Tensor, reference: Reference) -> Tensor:
        return sr.mean(dim=(1, 2))[:, None]


def test_places_are_scored_by_the_rewards_that_have_a_map_and_share_the_score_of_the_others() -> None:
    images, given = torch.rand(2, 3, 3, 32, 48), batch()
    given = ImageBatch(lr=torch.rand(2, 3, 8, 12), keys=given.keys, group_ids=given.group_ids)
    suite = RewardSuite({"columns": Columns(), "whole": Fixed()}, chunk_size=4)
    output = suite.score(images, given, cell=16)
    assert output.places is not None and output.places.shape == (2, 3, 2, 2, 3)
    assert torch.allclose(output.stacked, suite.score(images, given).stacked, atol=1e-6)
    columns = images.mean(dim=(2, 3)).unflatten(-1, (3, 16)).mean(dim=-1)
    assert torch.allclose(output.places[:, :, 0], columns[:, :, None].expand(-1, -1, 2, -1), atol=1e-6)
    assert torch.equal(output.places[:, :, 1], output.stacked[..., 1, None, None].expand(-1, -1, 2, 3))


def test_places_to_compare_need_a_reward_that_tells_them_apart() -> None:
    RewardSuite({"columns": Columns(), "whole": Fixed()}).check_places(16)
    RewardSuite({"whole": Fixed()}).check_places(None)
    with pytest.raises(ValueError, match=r"advantage_cell is 16 but no reward .*\(one, two\).*=null"):
        RewardSuite({"one": Fixed(), "two": Fixed()}).check_places(16)


def test_a_cell_larger_than_the_image_is_the_image() -> None:
    output = RewardSuite({"columns": Columns()}).score(torch.rand(2, 3, 3, 32, 32), batch(), cell=100)
    assert output.places is not None
    assert torch.allclose(output.places[..., 0, 0], output.stacked, atol=1e-6)


def test_chunking_changes_nothing() -> None:
    images, given = torch.rand(2, 5, 3, 32, 32), batch()
    scores = [
        RewardSuite({"f": LRFidelity()}, chunk_size=c).score(images, given).stacked for c in (1, 3, 100)
    ]
    assert torch.allclose(scores[0], scores[1], atol=1e-6) and torch.allclose(scores[0], scores[2], atol=1e-6)


def test_needs_are_checked_at_the_start() -> None:
    suite = RewardSuite({"fidelity": LRFidelity()})
    suite.check_needs({"lr", "hr"}, "pairs")
    with pytest.raises(ValueError, match="'fidelity' needs lr but data 'blank' provides hr only"):
        suite.check_needs({"hr"}, "blank")
    with pytest.raises(ValueError, match="at least one reward"):
        RewardSuite({})


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 8, 8), "expected"),
        (torch.rand(1, 1, 8, 8), "expected"),
        (torch.rand(1, 3, 8, 8) * 255, r"expected \[0, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), r"expected \[0, 1\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "uint8"),
    ],
)
def test_images_out_of_convention_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fixed()(images)
