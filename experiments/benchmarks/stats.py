"""Medians and spread, of times and of paired ratios."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Summary:
    """Order statistics of repeated measurements; quartiles by linear interpolation.

    Attributes:
      median: half of the values lie below it.
      q1: the first quartile.
      q3: the third quartile.
      least: the smallest value.
      count: number of values.
    """

    median: float
    q1: float
    q3: float
    least: float
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """The order statistics of one value or more.

    >>> summarise([4.0, 1.0, 2.0, 3.0, 100.0])
    Summary(median=3.0, q1=2.0, q3=4.0, least=1.0, count=5)
    """
    if not len(values):
        raise ValueError("no measurements")
    q1, median, q3 = np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75])
    return Summary(float(median), float(q1), float(q3), float(min(values)), len(values))


def ratios(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Round by round, value / reference: what slows a whole round down cancels.

    >>> ratios([2.0, 30.0], [1.0, 10.0])
    [2.0, 3.0]
    """
    return [a / b for a, b in zip(values, reference, strict=True)]
