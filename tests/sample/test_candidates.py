"""Choosing among candidates: the best in the fused sense, whatever the rewards' scales, and never in silence."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from lucidnft.data.bundled import photograph_paths
from lucidnft.images import read_image
from lucidnft.inference import load_policy, restore
from lucidnft.inference.restore import keyed_noise
from lucidnft.rewards import LRFidelity, QualityNet, Reward, RewardCard
from lucidnft.rewards.base import Reference
from lucidnft.sample import candidates as module
from lucidnft.sample.candidates import Candidates, build_candidates, parse_choice

LR = torch.full((3, 4, 4), 0.5)


class Channel(Reward):
    """The mean of one colour, scaled and shifted; notes how many images it saw at a time."""

    def __init__(self, channel: int, scale: float = 1.0, shift: float = 0.0, **card: object) -> None:
        self.card = RewardCard(name=f"channel {channel}", **card)  # type: ignore[arg-type]
        self.channel, self.scale, self.shift = channel, scale, shift
        self.seen: list[int] = []

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        self.seen.append(len(sr))
        assert sr.untyped_storage().nbytes() == sr.nbytes, "a part of a copy of all candidates"
        return self.shift + self.scale * sr[:, self.channel].mean(dim=(1, 2))


def images(*colours: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colours)[:, :, None, None].expand(-1, 3, 8, 8)


def choice_of(rewards, candidates, weights=None):
    rewards = {str(i): reward for i, reward in enumerate(rewards)}
    weights = dict(zip(rewards, weights or [1.0] * len(rewards), strict=True))
    return Candidates(rewards, weights, num_samples=len(candidates)).choose(LR, candidates)


def test_the_best_is_chosen_and_the_scores_are_those_of_the_rewards():
    pictures = images((0.1, 0.9, 0), (0.8, 0.7, 0), (0.9, 0.2, 0))
    choice = choice_of([Channel(0), Channel(1)], pictures)
    assert choice.index == 1  # neither reward's favourite, but good for both
    assert choice.scores == {"0": pytest.approx([0.1, 0.8, 0.9]), "1": pytest.approx([0.9, 0.7, 0.2])}
    assert max(choice.advantages) == choice.advantages[1] and sum(choice.advantages) == pytest.approx(
        0, abs=1e-5
    )
    assert choice_of([Channel(0)], pictures).index == 2
    assert choice_of([Channel(1)], pictures).index == 0


def test_scale_and_shift_of_a_reward_change_nothing():
    pictures = images((0.1, 0.9, 0), (0.8, 0.7, 0), (0.9, 0.2, 0), (0.5, 0.75, 0))
    plain = choice_of([Channel(0), Channel(1)], pictures)
    for scale, shift in ((1000.0, 0.0), (0.001, 0.0), (1.0, -7.0), (50.0, 30.0)):
        other = choice_of([Channel(0, scale, shift), Channel(1)], pictures)
        assert other.index == plain.index
        assert other.advantages == pytest.approx(plain.advantages, abs=1e-3)


def test_weights_decide_between_rewards_that_disagree():
    pictures = images((1.0, 0.0, 0), (0.0, 1.0, 0))
    rewards = [Channel(0), Channel(1)]
    assert choice_of(rewards, pictures, [2.0, 1.0]).index == 0
    assert choice_of(rewards, pictures, [1.0, 2.0]).index == 1


def test_the_first_of_equals_is_chosen():
    assert choice_of([Channel(0)], images((0.2, 0, 0), (0.7, 0, 0), (0.7, 1, 1), (0.1, 0, 0))).index == 1
    level = choice_of([Channel(0)], images(*[(0.4, 0, 0)] * 5))
    assert level.index == 0 and level.advantages == [0.0] * 5
    # Every colour is the best once: all are equal in the fused sense.
    assert choice_of([Channel(0), Channel(1)], images((1, 0, 0), (0, 1, 0)), [1.0, 1.0]).index == 0


def test_one_candidate_is_itself():
    choice = choice_of([Channel(0)], images((0.3, 0, 0)))
    assert (choice.index, choice.advantages) == (0, [0.0])
    assert choice.scores["0"] == pytest.approx([0.3])


def test_few_candidates_are_scored_at_a_time_and_one_of_a_large_image(monkeypatch):
    pictures = images(*[(value / 10, 0, 0) for value in (1, 2, 9, 3, 4)])
    whole, parts, singles = Channel(0), Channel(0), Channel(0)
    indices = [choice_of([whole], pictures).index]
    monkeypatch.setattr(module, "PIXELS_AT_A_TIME", 2 * 64)
    indices.append(choice_of([parts], pictures).index)
    monkeypatch.setattr(module, "PIXELS_AT_A_TIME", 63)
    indices.append(choice_of([singles], pictures).index)
    assert indices == [2, 2, 2]
    assert (whole.seen, parts.seen, singles.seen) == ([5], [2, 2, 1], [1] * 5)


def test_the_first_key_is_the_plain_one_and_more_candidates_leave_the_others():
    def keys(number):
        return Candidates({"a": Channel(0)}, {"a": 1.0}, num_samples=number).keys("cat.1")

    assert keys(1) == ["cat.1"]
    assert keys(3) == ["cat.1", "cat.1#1", "cat.1#2"] == keys(5)[:3]
    noises = [keyed_noise((3, 4, 4), 0, key) for key in keys(3)]
    assert not any(torch.equal(noises[i], noises[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_metric_that_draws_gives_the_same_choice_every_time_and_leaves_the_generator():
    class Drawing(Channel):
        def score(self, sr: Tensor, reference: Reference) -> Tensor:
            return torch.rand(len(sr))

    pictures = images(*[(0.5, 0.5, 0.5)] * 6)
    before = torch.get_rng_state()
    first = choice_of([Drawing(0)], pictures)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert choice_of([Drawing(0)], pictures) == first


def test_weights_are_read_from_the_text():
    assert parse_choice("lucid_consistency,musiq") == {"lucid_consistency": 1.0, "musiq": 1.0}
    assert parse_choice(" musiq = 0.5 ,lr_fidelity=2") == {"musiq": 0.5, "lr_fidelity": 2.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lucid_consistancy", ["did you mean lucid_consistency"]),
        ("musiqq,qualty_net=2", ["'musiqq' is unknown; did you mean musiq", "did you mean quality_net"]),
        ("musiq,musiq=2", ["reward 'musiq' stands twice"]),
        ("musiq=0", ["weight of 'musiq' is '0', expected a number above 0"]),
        ("musiq=-1,piqe=nan,niqe=much,fsim=", ["'-1'", "'nan'", "'much'", "''"]),
        ("", ["a name is missing"]),
        ("musiq,", ["a name is missing in 'musiq,'"]),
        ("iqa", ["'iqa' is unknown"]),
    ],
)
def test_what_cannot_be_meant_is_refused(text, words):
    with pytest.raises(ValueError, match="^select_by: ") as caught:
        parse_choice(text)
    assert all(word in str(caught.value) for word in words)
    assert "did you mean iqa" not in str(caught.value)


def test_rewards_that_need_more_than_the_input_are_refused_at_the_start():
    with pytest.raises(ValueError, match="'psnr' needs hr; candidates have nothing but the input image"):
        build_candidates("lr_fidelity,psnr", 4)
    with pytest.raises(ValueError, match="'a' needs hr and prompt"):
        Candidates({"a": Channel(0, needs=frozenset({"hr", "lr", "prompt"}))}, {"a": 1.0}, num_samples=2)
    with pytest.raises(ValueError, match="num_samples is 0"):
        build_candidates("lr_fidelity", 0)


def test_missing_packages_and_weights_say_so_at_the_start(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)

    def unreachable(metric, **options):
        raise OSError("no route to the hub")

    monkeypatch.setattr("pyiqa.create_metric", unreachable)
    with pytest.raises(ValueError, match="^select_by: ") as caught:
        build_candidates("clip_similarity,lr_fidelity,musiq", 2)
    assert "lucidnft[clip]" in str(caught.value)
    assert "'musiq' could not get its weights" in str(caught.value) and "huggingface.co" in str(caught.value)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ValueError, match="pyiqa metrics are not available"):
        parse_choice("musiq")
    assert parse_choice("lr_fidelity") == {"lr_fidelity": 1.0}  # which needs no package


def test_too_small_images_fail_by_name_before_and_after_they_are_drawn():
    rewards = {"a": Channel(0), "quality": QualityNet.from_pretrained("tiny")}
    candidates = Candidates(rewards, {"a": 1.0, "quality": 1.0}, num_samples=2)
    candidates.check_size((32, 40))
    message = "'quality_net' scores images of at least 32 px a side, got 8x40.* choose without 'quality', or enlarge"
    with pytest.raises(ValueError, match=message):
        candidates.check_size((8, 40))
    with pytest.raises(ValueError, match="at least 32 px .* choose without 'quality'"):
        candidates.choose(LR, images((0, 0, 0), (1, 1, 1)))


def test_bad_scores_and_shapes_name_the_image_and_the_reward():
    candidates = Candidates({"red": Channel(0, scale=float("nan"))}, {"red": 1.0}, num_samples=2)
    with pytest.raises(ValueError, match=r"'red' is not finite .*cat.png \(rollout 0\)"):
        candidates.choose(LR, images((0, 0, 0), (1, 1, 1)), key="cat.png")
    overshoot = choice_of([Channel(0)], images((1.0, 0, 0), (1.5, 0, 0)))
    assert overshoot.scores["0"] == [1.0, 1.0] and overshoot.index == 0  # as they will be saved
    with pytest.raises(ValueError, match=r"expected \(3, h, w\) and \(2, 3, H, W\)"):
        candidates.choose(LR, images((0, 0, 0)))


def test_on_photographs_the_chosen_one_is_at_least_as_good_as_the_plain_restoration():
    policy = load_policy("base")
    candidates = build_candidates("lucid_consistency,quality_net=2,lr_fidelity", 3)
    better = 0
    for path in photograph_paths(["chelsea.png", "coffee.png"]):
        lr = read_image(path).rgb[:, 80:92, 120:132]
        drawn = restore(
            policy, lr.expand(3, -1, -1, -1), keys=candidates.keys(path.stem), num_inference_steps=2
        )
        plain = restore(policy, lr[None], keys=[path.stem], num_inference_steps=2)
        torch.testing.assert_close(drawn[:1], plain, atol=1e-5, rtol=0)
        choice = candidates.choose(lr, drawn)
        assert choice.advantages[choice.index] >= choice.advantages[0]
        fidelity = LRFidelity()(drawn, lr=lr.expand(3, -1, -1, -1))
        assert choice.scores["lr_fidelity"] == pytest.approx(fidelity.tolist())
        better += choice.index != 0
    assert better > 0
