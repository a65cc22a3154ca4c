"""Paired comparisons: bootstrap over seeds and pictures, and Holm's correction."""

import math
from collections.abc import Sequence

import numpy as np

DRAWS = 10_000


def resampled_means(
    differences: np.ndarray, groups: np.ndarray, rng: np.random.Generator, draws: int = DRAWS
) -> np.ndarray:
    """Means of paired differences under the bootstrap.

    Seeds and groups of images are drawn anew together, each with replacement: a draw takes every
    drawn group under every drawn seed. Drawing S of S seeds anew understates their variance by
    (S - 1)/S, much for a handful: the draws' distances from the mean are widened by its root.

    Args:
      differences: float [S, N], by seed and image; NaN where an image has no such measure.
      groups: int [N], equal for images that are not independent.
      rng: the source of chance.
      draws: how many.

    Returns:
      float64 [draws].

    >>> rng = np.random.default_rng(0)
    >>> resampled_means(np.full((2, 3), 0.5), np.arange(3), rng, draws=2).tolist()
    [0.5, 0.5]
    """
    seeds, _ = differences.shape
    known = np.isfinite(differences)
    member = np.unique(groups, return_inverse=True)[1]
    count = member.max() + 1
    sums = np.stack([np.bincount(member, d, count) for d in np.where(known, differences, 0.0)])
    numbers = np.stack([np.bincount(member, k, count) for k in known.astype(float)])
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), draws).astype(float)
    of_groups = rng.multinomial(count, np.full(count, 1 / count), draws).astype(float)
    total = np.einsum("ds,sg,dg->d", of_seeds, sums, of_groups, optimize=True)
    number = np.einsum("ds,sg,dg->d", of_seeds, numbers, of_groups, optimize=True)
    # With a handful of images a draw may hold none that has the measure: it tells nothing new.
    centre = np.nanmean(differences)
    means = np.where(number > 0, total / np.maximum(number, 1), centre)
    widened: np.ndarray = centre + math.sqrt(seeds / max(seeds - 1, 1)) * (means - centre)
    return widened


def interval(means: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The middle ``level`` of the draws.

    >>> interval(np.arange(101.0), level=0.5)
    (25.0, 75.0)
    """
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(means: np.ndarray) -> float:
    """Two-sided, that the difference is zero: twice the draws' share on the rarer side of 0.

    The observed sample counts as one more draw, so the least value is 2 / (draws + 1).

    >>> p_value(np.array([1.0, 2.0, 3.0]))
    0.5
    """
    rarer = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2.0 * (rarer + 1) / (len(means) + 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979), in the given order.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
