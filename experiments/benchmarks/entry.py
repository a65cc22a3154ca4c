"""What the loss suite measures: a contestant that can also show its results."""

from collections.abc import Callable
from typing import Any

from _bench import rounds


class Entry:
    """A contestant that can also show its results: ``(value, gradients)`` as NumPy arrays."""

    def __init__(
        self,
        name: str,
        nbytes: float,
        call: rounds.Call,
        results: Callable[[], Any],
        units: int = 1,
    ):
        self.name = name
        self.nbytes = nbytes
        self.call = call
        self.results = results
        self.units = units
