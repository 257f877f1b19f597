"""The paired bootstrap: closed forms, coverage and direction."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucidnft.rng import numpy_generator_for
from lucidnft.statistics import (
    bootstrap_means,
    holm,
    mean_interval,
    paired_difference,
    signed_rank_p,
    signed_rank_sum,
)

scores = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


def test_means_of_resamples_have_the_mean_and_spread_of_theory():
    values = np.random.default_rng(0).normal(3, 2, 25)
    means = bootstrap_means(values, 40_000, seed=0)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(values.std(ddof=0) / 5, rel=0.02)
    assert means.min() >= values.min() and means.max() <= values.max()


def test_resamples_of_many_images_are_made_in_parts_and_are_the_same():
    values = np.arange(3000.0)  # whole numbers, whose sums have no rounding
    tracemalloc.start()
    means = bootstrap_means(values, 1000, seed=3, key="a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20 < 8 * 1000 * 3000  # bytes: of the parts, and of the whole
    whole = numpy_generator_for(3, "bootstrap", "a").multinomial(3000, np.full(3000, 1 / 3000), size=1000)
    assert np.array_equal(means, whole @ values / 3000)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(1)
    covered = 0
    for trial in range(300):
        before = draw.normal(0, 5, 40)
        after = before + draw.normal(0.3, 1, 40)
        found = paired_difference(before, after, key=str(trial), num_resamples=1000)
        covered += found.low <= 0.3 <= found.high
    assert 0.90 <= covered / 300 <= 0.98


def test_pairing_removes_what_images_have_in_common():
    before = np.random.default_rng(2).normal(0, 100, 12)
    after = before + 0.1 + np.random.default_rng(3).normal(0, 0.01, 12)
    found = paired_difference(before, after)
    assert found.verdict == "improved"
    assert found.high - found.low < 0.05


@settings(max_examples=25)
@given(scores, st.floats(-10, 10))
def test_the_interval_surrounds_the_mean_and_moves_with_a_constant(values, shift):
    other = [v * 0.5 for v in values]
    found = paired_difference(values, other, num_resamples=400)
    slack = 1e-6 + 1e-9 * max(map(abs, values))
    differences = np.subtract(other, values)
    assert differences.min() - slack <= found.low <= found.high <= differences.max() + slack
    moved = paired_difference(values, [v + shift for v in other], num_resamples=400)
    assert moved.low == pytest.approx(found.low + shift, abs=1e-6)
    assert moved.difference == pytest.approx(found.difference + shift, abs=1e-6)


def test_verdicts_by_direction():
    low, high = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 3.1, 4.0, 5.2, 6.0, 7.1]
    assert paired_difference(low, high).verdict == "improved"
    assert paired_difference(high, low).verdict == "worse"
    assert paired_difference(low, high, lower_is_better=True).verdict == "worse"
    assert paired_difference(high, low, lower_is_better=True).verdict == "improved"
    assert paired_difference(low, low).verdict == "not distinguishable"
    assert paired_difference([0.0] * 6, [1.0, -1.0, 0.5, -0.5, 1.0, -0.5]).verdict == "not distinguishable"


def test_fewer_pairs_than_could_differ_by_chance_once_in_twenty_have_no_verdict():
    rising = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    five, six = (paired_difference([0.0] * n, rising[:n]) for n in (5, 6))
    assert five.low > 0 and five.verdict == "not distinguishable"  # 2 / 2^5 > 0.05
    assert signed_rank_p([0.0] * 5, rising[:5]) > 0.05 > signed_rank_p([0.0] * 6, rising)
    assert six.verdict == "improved"


def test_one_image_has_no_interval():
    found = paired_difference([1.0], [2.0])
    assert (found.n, found.difference, found.low, found.high) == (1, 1.0, None, None)
    assert found.verdict == "not distinguishable"


def test_the_same_scores_give_the_same_interval_whatever_was_drawn_before():
    values, other = np.random.default_rng(5).normal(0, 1, (2, 30))
    first = paired_difference(values, other, seed=3, key="a")
    np.random.seed(99)
    assert paired_difference(values, other, seed=3, key="a") == first
    assert paired_difference(values, other, seed=4, key="a") != first
    assert paired_difference(values, other, seed=3, key="b") != first


def test_more_confidence_is_wider():
    values, other = [1.0, 5.0, 2.0, 8.0], [2.0, 5.5, 1.0, 9.0]
    wide, narrow = (paired_difference(values, other, confidence=c) for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("before", "after", "options", "message"),
    [
        ([], [], {}, "n >= 1"),
        ([1.0], [1.0, 2.0], {}, r"shapes \(1,\) and \(2,\)"),
        ([1.0, float("nan")], [1.0, 2.0], {}, "NaN"),
        ([1.0], [2.0], {"confidence": 95}, "confidence is 95.*0.95"),
    ],
)
def test_unusable_scores_are_refused(before, after, options, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(before, after, **options)


def test_signed_rank_p_has_its_closed_forms():
    base = [0.0] * 10
    assert signed_rank_p(base, [float(i) for i in range(1, 11)]) == pytest.approx(2 / 2**10)  # all rise
    assert signed_rank_p(base[:5], [-1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(4 / 2**5)  # rank sums 0 and 1
    assert signed_rank_p(base[:4], [1.0, 1.0, 1.0, 1.0]) == pytest.approx(2 / 2**4)  # ties, still exact
    assert signed_rank_p(base, base) == 1.0
    same = [0.0] * 20  # pairs that say nothing
    assert signed_rank_p(same + base[:5], [*same, -1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(4 / 2**5)


def test_the_sum_of_signed_ranks_has_the_direction_of_the_test():
    assert signed_rank_sum([0.0] * 4, [-1.0, 2.0, 3.0, 0.0]) == -1 + 2 + 3
    assert signed_rank_sum([0.0] * 3, [1.0, 1.0, -1.0]) == 2 + 2 - 2  # ties share their ranks
    assert signed_rank_sum([1.0] * 5, [2.0, 2.0, 2.0, 2.0, -99.0]) > 0  # though the mean falls
    assert signed_rank_sum([1.0], [1.0]) == 0


def test_holm_adjusts_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_the_interval_of_a_mean_shrinks_with_the_root_of_n():
    values = [float(i % 2) for i in range(400)]  # mean 0.5, standard deviation 0.5
    low, high = mean_interval(values)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.005)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.05)
    assert mean_interval([1.0]) is None
    narrow = mean_interval(values, confidence=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.6745 * 0.5 / 20, rel=0.08)
