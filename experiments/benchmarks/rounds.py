"""Interleaved rounds, medians and ratios.

Noise of the machine (other processes, clock speed, temperature) drifts over seconds. Contestants
that run one after the other would meet different machines; in rounds all meet the same ones, and
ratios within a round lose what they have in common.
"""

import dataclasses
import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Call = Callable[[int], float]
"""Does the work n times and returns the seconds that all of it took."""

_MOST_REPETITIONS = 100_000

_PAUSE = 0.005
"""Seconds before the untimed call: threads of a pool (OpenMP's) spin for some milliseconds after
their work, and would take a core from the next contestant."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """Median and quartiles (by linear interpolation) of repeated measurements."""

    median: float
    q1: float
    q3: float
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """The order statistics of one value or more.

    >>> summarise([4.0, 1.0, 2.0, 3.0, 100.0])
    Summary(median=3.0, q1=2.0, q3=4.0, count=5)
    """
    q1, median, q3 = np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75]).tolist()
    return Summary(median, q1, q3, len(values))


def ratios(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Round by round, value / reference: what slows a whole round down cancels.

    >>> ratios([2.0, 30.0], [1.0, 10.0])
    [2.0, 3.0]
    """
    return [a / b for a, b in zip(values, reference, strict=True)]


def repetitions(call: Call, least_seconds: float) -> int:
    """How often the work is repeated for a sample of at least that many seconds.

    Calls it, so that it is warm afterwards.
    """
    call(1)
    count = 1
    while True:
        seconds = call(count)
        if seconds >= least_seconds or count >= _MOST_REPETITIONS:
            return count
        # A tenth more, for the next sample may be a little faster.
        wanted = math.ceil(1.1 * count * least_seconds / max(seconds, 1e-9))
        count = min(max(wanted, count + 1), 100 * count, _MOST_REPETITIONS)


def run(
    calls: Mapping[str, Call], rounds: int, least_seconds: float, seed: int
) -> dict[str, list[float]]:
    """Warms everything up, then measures every contestant once per round, in a changing order.

    An untimed call comes before each sample, to find caches, thread pools and allocators as its
    own work leaves them, not as another contestant did.

    Args:
      calls: the contestants by name.
      rounds: how many.
      least_seconds: of one sample.
      seed: decides the order in every round.

    Returns:
      Seconds of doing the work once, one entry per round, by name.
    """
    counts = {name: repetitions(call, least_seconds) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    generator = random.Random(seed)
    order = list(calls)
    gc.collect()
    gc.freeze()  # what the libraries hold need not be looked through after every round
    gc.disable()  # a collection would hit whoever happens to run
    try:
        for _ in range(rounds):
            generator.shuffle(order)
            for name in order:
                time.sleep(_PAUSE)
                calls[name](1)
                samples[name].append(calls[name](counts[name]) / counts[name])
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return samples
