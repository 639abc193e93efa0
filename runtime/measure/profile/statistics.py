"""Statistics of run times: percentiles, drift and ratios, without assumptions about the distribution.

Run times have a lower bound and a long tail, so all decisions use medians and ranks. Means are only shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

SIGNIFICANCE = (
    0.05  # two-sided; at 1 %, 20 runs that become a quarter slower halfway are detected at most every other time
)
SMALLEST_DRIFT = 0.05  # change of the median from the first run to the last, below which there is no warning
LEAST_PAIRS = 6
"""Minimum number of pairs for a 95 % interval of a ratio; see `paired_ratio`."""


class Summary(Struct, frozen=True):
    """Summary of the seconds of one stage over the runs."""

    min: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    share: float  # of the mean of the whole run

    @classmethod
    def of(cls, seconds: Sequence[float], whole: Sequence[float]) -> Summary:
        """Summarise seconds. Percentiles between two samples are interpolated linearly."""
        values = np.asarray(seconds, dtype=np.float64)
        median, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
        mean, total = float(values.mean()), float(np.mean(whole))
        return cls(float(values.min()), mean, median, p90, p95, p99, mean / total if total else 0.0)


class Drift(Struct, frozen=True):
    """Whether runs became slower or faster from first to last."""

    change: float  # relative change of the median run from the first run to the last; positive: slower
    probability: float  # of a trend at least this strong if there is no drift
    judged: bool  # False: there are so few runs that even a steady rise would not be significant
    drifting: bool  # True: the figures should not be trusted


def drift(seconds: Sequence[float], groups: Sequence[int]) -> Drift:
    """Test run times, in order, for a trend: seasonal Mann-Kendall test (Hirsch, Slack and Smith, 1982) with its slope.

    Runs are compared only with runs of the same images, so that a slow image does not count as drift. Let S be the sum
    of sign(x_j - x_i) over all such pairs i < j, and n the number of runs of a group. A group without ties has

        Var S = n (n - 1) (2n + 5) / 18        (each tie of t runs subtracts t (t - 1) (2t + 5) / 18)

    and the variances of the groups are added. z = (S ∓ 1) / sqrt(Var S) is compared with the normal distribution,
    two-sided. The change is the median over the pairs of (x_j - x_i) / (j - i), divided by the group's median, times
    the number of steps. Runs drift if the probability is below 5 % and the change is at least 5 %. Single slow runs
    hardly affect the ranks.

    Args:
        seconds: seconds of each run.
        groups: a number for each run that identifies its images.
    """
    values, keys = np.asarray(seconds, dtype=np.float64), np.asarray(groups)
    score, variance, untied, pairs, slopes = 0.0, 0.0, 0.0, 0, [np.zeros(0)]
    for key in np.unique(keys):
        (places,) = np.nonzero(keys == key)
        x, n = values[places], len(places)
        first, second = np.triu_indices(n, 1)
        steps = x[second] - x[first]
        score += float(np.sign(steps).sum())
        ties = np.unique(x, return_counts=True)[1]
        untied += _ties(n) / 18
        variance += (_ties(n) - sum(_ties(int(t)) for t in ties)) / 18
        pairs += len(steps)
        slopes.append(steps / (places[second] - places[first]) / np.median(x))
    change = float(np.median(np.concatenate(slopes))) * (len(values) - 1) if pairs else 0.0
    probability, judged = _two_sided(score, variance), _two_sided(pairs, untied) < SIGNIFICANCE
    drifting = judged and probability < SIGNIFICANCE and abs(change) >= SMALLEST_DRIFT
    return Drift(change, probability, judged, drifting)


def _two_sided(score: float, variance: float) -> float:
    """Return the probability of a score at least this far from 0, with the continuity correction."""
    return math.erfc(max(abs(score) - 1, 0) / math.sqrt(2 * variance)) if variance > 0 else 1.0


def _ties(n: int) -> int:
    return n * (n - 1) * (2 * n + 5)


@dataclass(frozen=True, slots=True)
class Ratio:
    """The median of the ratios b/a, and the bounds of the true median."""

    median: float
    low: float | None  # None: too few pairs for the confidence
    high: float | None


def paired_ratio(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Return the median of b/a over pairs, with the interval of the sign test.

    The interval extends from the k-th smallest to the k-th largest ratio, where k is the largest number with
    P(Binomial(n, 1/2) < k) ≤ (1 - confidence) / 2. For 95 %, at least `LEAST_PAIRS` pairs are needed. The interval is
    valid for any distribution of independent pairs. It does not cover differences between two processes (memory
    placement, other load), so a change of a few per cent needs more than one profile of each.

    Raises:
        ValueError: there are no pairs, or the numbers of samples differ.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"ratios need pairs, found {len(a)} and {len(b)} samples")
    ratios = np.sort(np.asarray(b, dtype=np.float64) / np.asarray(a, dtype=np.float64))
    n, k, tail = len(ratios), 0, 0.0
    while k < n // 2:
        tail += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        if tail > (1 - confidence) / 2:
            break
        k += 1
    bounds = (float(ratios[k - 1]), float(ratios[n - k])) if k else (None, None)
    return Ratio(float(np.median(ratios)), *bounds)
