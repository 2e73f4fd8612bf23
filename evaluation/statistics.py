"""The uncertainty of a mean, and the difference of two runs: bootstrap interval and paired permutation test, both by SciPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from research_rl.errors import DataError, missing_extra

try:
    import numpy as np
    from scipy import stats
except ModuleNotFoundError as error:
    raise missing_extra(error.name or "scipy", "eval") from error

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """The mean of b − a over questions, its 95 % interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def estimate(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the mean with a percentile bootstrap interval over questions; the same for the same seed.

    Raises:
        DataError: there is no value.
    """
    if not values:
        raise DataError("no value to take a mean of")
    sample = np.asarray(values, dtype=float)
    mean = float(sample.mean())
    if len(sample) < 2 or np.all(sample == sample[0]):
        return Estimate(mean, mean, mean)
    interval = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        batch=500,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high))


def paired(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Difference:
    """Compare two runs on the same questions, in the same order, by the mean difference b − a.

    The p-value is that of a permutation test that swaps the runs question by question (all swaps if there are few, else `RESAMPLES`).

    Raises:
        DataError: the runs have different numbers of questions, or none.
    """
    if len(a) != len(b):
        raise DataError(f"a paired test needs the same questions: {len(a)} and {len(b)} were given")
    difference = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    mean, low, high = estimate(list(difference), seed)
    if not np.any(difference):
        return Difference(mean, low, high, 1.0)
    test = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        vectorized=True,
        batch=500,
        rng=np.random.default_rng(seed),
    )
    return Difference(mean, low, high, float(test.pvalue))
