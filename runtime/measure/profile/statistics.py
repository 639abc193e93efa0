"""What samples say: percentiles, drift and ratios, without assuming a distribution.

Times have a floor and a long tail, so medians and ranks are used throughout, and means only shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

SIGNIFICANCE = (
    0.05  # two-sided; at 1 % a quarter slower from the middle on is seen in 20 runs no more than every other time
)
SMALLEST_DRIFT = 0.05  # of the median, from the first run to the last: less is not worth a warning
LEAST_PAIRS = 6
"""Pairs below which a ratio has no interval of 95 %; see `paired_ratio`."""


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
        """Summarise; percentiles between two samples are interpolated linearly."""
        values = np.asarray(seconds, dtype=np.float64)
        median, p90, p95, p99 = (float(value) for value in np.percentile(values, (50, 90, 95, 99)))
        mean, total = float(values.mean()), float(np.mean(whole))
        return cls(float(values.min()), mean, median, p90, p95, p99, mean / total if total else 0.0)


class Drift(Struct, frozen=True):
    """Whether runs got slower or faster from first to last."""

    change: float  # of the median run, from the first run to the last; + is slower
    probability: float  # of a trend at least this strong in runs without one
    judged: bool  # False: too few runs for even a steady rise to be significant
    drifting: bool  # whether the figures should not be trusted


def drift(seconds: Sequence[float], groups: Sequence[int]) -> Drift:
    """Seasonal Mann-Kendall test (Hirsch, Slack and Smith, 1982) with its slope, on run times in order.

    Runs are compared only with runs of the same images, so that a slow image is no drift. With S the sum, over all
    such pairs i < j, of sign(x_j - x_i), and n the runs of a group, a group without ties has

        Var S = n (n - 1) (2n + 5) / 18        (ties of t runs take t (t - 1) (2t + 5) / 18 off)

    and groups add up. z = (S ∓ 1) / sqrt(Var S) is compared with the normal distribution, two-sided. The change is
    the median over the pairs of (x_j - x_i) / (j - i), by the group's median, times the number of steps. Runs drift
    when the probability is below 5 % and the change at least 5 %. Ranks don't mind single slow runs.

    Args:
        seconds: of each run.
        groups: which images each run had, as any number.
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
    """Probability of a score at least this far from 0, with the continuity correction."""
    return math.erfc(max(abs(score) - 1, 0) / math.sqrt(2 * variance)) if variance > 0 else 1.0


def _ties(n: int) -> int:
    return n * (n - 1) * (2 * n + 5)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long b took, and between which bounds the true median lies."""

    median: float
    low: float | None  # None: too few pairs for the confidence
    high: float | None


def paired_ratio(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Median of b/a over pairs, with the interval that the sign test gives.

    The interval runs from the k-th smallest to the k-th largest ratio, k being the largest number with
    P(Binomial(n, 1/2) < k) ≤ (1 - confidence) / 2; `LEAST_PAIRS` are the fewest for 95 %. It holds for any distribution
    of independent pairs. What differs between two processes (memory placement, other load) it cannot see: a change of
    a few per cent needs more than one profile of each.

    Raises:
        ValueError: no pairs, or a different number of each.
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
