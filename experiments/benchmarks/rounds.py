"""Interleaved rounds: every contestant once a round, in an order that changes.

Noise of the machine (other processes, clock speed, temperature) drifts over seconds. Contestants
that run one after the other would meet different machines; in rounds all meet the same ones, and
ratios within a round lose what they have in common.
"""

import dataclasses
import gc
import math
import random
import resource
import time
from collections.abc import Callable, Sequence

Call = Callable[[int], float]
"""Does the work n times and returns the seconds that all of it took."""

_MOST_REPETITIONS = 100_000

_PAUSE = 0.005
"""Seconds before the untimed call: threads of a pool (OpenMP's) spin for some milliseconds after
their work, and would take a core from the next contestant."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One thing that is timed.

    Attributes:
      name: unique in its group.
      call: does the work n times and returns the seconds.
      units: of work in one repetition; what is reported is the time of one.
      repeat: whether n may be more than 1.
      lead: whether an untimed call comes before each sample, to find caches, thread pools and
        allocators as its own work leaves them, not as another contestant did.
    """

    name: str
    call: Call
    units: int = 1
    repeat: bool = True
    lead: bool = True


@dataclasses.dataclass(frozen=True)
class Samples:
    """What was measured of a contestant, one entry a round.

    Attributes:
      seconds: of one unit of work.
      faults: minor page faults of this process, of one unit of work.
      repetitions: in each sample.
    """

    seconds: list[float]
    faults: list[float]
    repetitions: int


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
    contestants: Sequence[Contestant], rounds: int, least_seconds: float, seed: int
) -> dict[str, Samples]:
    """Warms everything up, then measures in rounds.

    Args:
      contestants: with different names.
      rounds: how many.
      least_seconds: of one sample, for contestants that may repeat.
      seed: decides the order in every round.

    Returns:
      The samples by name, in the order of ``contestants``.
    """
    if len({c.name for c in contestants}) < len(contestants):
        raise ValueError("two contestants have the same name")
    counts = {c.name: repetitions(c.call, least_seconds) if c.repeat else 1 for c in contestants}
    samples = {c.name: Samples([], [], counts[c.name]) for c in contestants}
    generator = random.Random(seed)
    order = list(contestants)
    gc.collect()
    gc.freeze()  # what the libraries hold need not be looked through after every round
    gc.disable()  # a collection would hit whoever happens to run
    try:
        for _ in range(rounds):
            generator.shuffle(order)
            for contestant in order:
                count = counts[contestant.name]
                if contestant.lead:
                    time.sleep(_PAUSE)
                    contestant.call(1)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
                seconds = contestant.call(count)
                faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
                done = count * contestant.units
                samples[contestant.name].seconds.append(seconds / done)
                samples[contestant.name].faults.append(faults / done)
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return samples
