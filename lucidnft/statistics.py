"""Is a difference between two evaluations of the same images more than chance?  Bootstrap and signed ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lucidnft.rng import numpy_generator_for

Verdict = Literal["improved", "worse", "not distinguishable"]

FEWEST_PAIRS = 6
"""That can tell a difference from chance: the smallest p of a two-sided test of n signs is 2 / 2^n, .0625 for five."""

COUNTS_AT_ONCE = 2**18
"""Numbers of draws that a bootstrap holds at a time: 2 MiB, and as much again for their product."""

ROW_BLOCK = 64


@dataclass(frozen=True)
class PairedDifference:
    """Before and after of one score on the same n images, with an interval for the mean difference."""

    n: int
    before: float  # mean
    after: float  # mean
    difference: float  # mean of after - before
    low: float | None  # ends of the confidence interval; None for a single image
    high: float | None
    lower_is_better: bool = False

    @property
    def verdict(self) -> Verdict:
        """Improved or worse when the interval leaves out zero; not distinguishable with under FEWEST_PAIRS images.

        With so few, the interval leaves out zero whenever all differ in one direction, which happens by chance in
        more than one of twenty cases.  One score is judged here; nothing corrects for the number of scores.
        """
        if self.n < FEWEST_PAIRS or self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "not distinguishable"
        return "improved" if (self.difference > 0) is not self.lower_is_better else "worse"


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    seed: int = 0,
    key: str = "",
    lower_is_better: bool = False,
    confidence: float = 0.95,
    num_resamples: int = 10_000,
) -> PairedDifference:
    """Mean difference of n pairs, and its percentile bootstrap interval (Efron and Tibshirani, 1993, ch. 13).

    Images are drawn with replacement; both scores of an image stay together, so what is common to both
    (a hard photograph) cancels.  With few images (under about ten) the interval is a little too narrow.

    Args:
        before, after: n finite scores each, of the same images in the same order.
        seed, key: key the resampling, so that the same scores give the same interval.
        confidence: between 0 and 1.

    Raises:
        ValueError: no scores, different numbers of them, or a score that is not finite.
    """
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"paired scores have shapes {first.shape} and {second.shape}, expected (n,) twice, n >= 1"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("paired scores hold NaN or infinite values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected between 0 and 1, e.g. 0.95")
    differences = second - first
    low = high = None
    if differences.size > 1:
        means = bootstrap_means(differences, num_resamples, seed=seed, key=key)
        tail = (1 - confidence) / 2
        low, high = (float(v) for v in np.quantile(means, [tail, 1 - tail]))
    return PairedDifference(
        n=int(first.size),
        before=float(first.mean()),
        after=float(second.mean()),
        difference=float(differences.mean()),
        low=low,
        high=high,
        lower_is_better=lower_is_better,
    )


def bootstrap_means(values: np.ndarray, num_resamples: int, *, seed: int, key: str = "") -> np.ndarray:
    """(n,) values -> (num_resamples,) means of n values drawn with replacement, in memory for COUNTS_AT_ONCE."""
    draw = numpy_generator_for(seed, "bootstrap", key)
    size = values.size
    share = np.full(size, 1 / size)
    # BLAS takes rows in blocks and sums what is left over in another order: whole blocks give the bits of one product.
    rows = max(1, COUNTS_AT_ONCE // size // ROW_BLOCK) * ROW_BLOCK
    means = np.empty(num_resamples)
    for start in range(0, num_resamples, rows):
        part = means[start : start + rows]
        # How often each value is drawn is multinomial: a matrix product instead of n indices per resample.
        part[:] = draw.multinomial(size, share, size=part.size) @ values / size
    return means


def mean_interval(
    values: Sequence[float], *, key: str = "", confidence: float = 0.95, num_resamples: int = 10_000
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the mean of n values; None for fewer than two.  key: keys the resampling."""
    if len(values) < 2:
        return None
    means = bootstrap_means(np.asarray(values, dtype=np.float64), num_resamples, seed=0, key=key)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def signed_rank_sum(before: Sequence[float], after: Sequence[float]) -> float:
    """Ranks of the rises minus ranks of the falls of n pairs, by size of the difference; its sign is that of the test.

    It may differ from the sign of the mean difference, which a few large falls can turn.
    """
    from scipy.stats import rankdata

    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    differences = differences[differences != 0]
    return float(np.sum(np.sign(differences) * rankdata(np.abs(differences))))


def signed_rank_p(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test (Biometrics Bulletin 1, 1945) on n pairs.

    Pairs without a difference are left out; without any other p is 1.  Exact up to 50 pairs without ties among
    the sizes of the differences, and up to 13 with; else by the normal approximation.
    """
    from scipy.stats import PermutationMethod, wilcoxon

    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    differences = differences[differences != 0]
    if differences.size == 0:
        return 1.0
    tied = np.unique(np.abs(differences)).size < differences.size
    method: object = "exact" if not tied and differences.size <= 50 else "asymptotic"
    if tied and differences.size <= 13:
        method = PermutationMethod(n_resamples=2**13)  # all 2^13 signs, so exact
    return float(wilcoxon(differences, method=method).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of tests (Holm, Scandinavian Journal of Statistics 6, 1979), in order."""
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted
