"""Schedules of β, τ and the step size: pure functions of the step.

Ramesh et al. 2021, appendix A.2: β rises from 0 to 6.6 over 5,000 updates, τ falls from 1 to 1/16
over 150,000, the step size from 1e-4 to 1.25e-6 over 1,200,000, all "with a cosine schedule". The
exact shape is not given; ours is the half cosine, from the first value to the last and then flat.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

Shape = Literal["cosine", "linear"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A value that goes from ``start`` to ``end`` over ``steps`` updates and then stays.

    >>> half = Schedule(start=1.0, end=0.0, steps=100)
    >>> [round(float(half(step)), 4) for step in (0, 50, 100, 1000)]
    [1.0, 0.5, 0.0, 0.0]
    """

    start: float
    """Value at the first update."""
    end: float
    """Value from update `steps` on."""
    steps: int | None = None
    """Updates from start to end; None: the whole run."""
    shape: Shape = "cosine"
    """Half cosine (flat at both ends) or straight line."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"a schedule's ends must be finite, got {self.start} and {self.end}")
        if self.steps is not None and self.steps < 0:
            raise ValueError(f"a schedule's steps must be 0 or more, got {self.steps}")
        if self.shape not in ("cosine", "linear"):
            raise ValueError(f"a schedule's shape must be cosine or linear, got {self.shape!r}")

    def over(self, steps: int) -> "Schedule":
        """The same schedule with "the whole run" replaced by that number of updates."""
        return self if self.steps is not None else dataclasses.replace(self, steps=steps)

    def __call__(self, step: ArrayLike) -> Array:
        """The value at an update, counted from 0: float32, of the step's shape.

        Raises:
          ValueError: ``steps`` is still None.
        """
        if self.steps is None:
            raise ValueError("this schedule lasts the whole run: call over(steps) first")
        # In float32 a count of millions of updates is still exact.
        done = jnp.minimum(jnp.asarray(step, jnp.float32) / max(self.steps, 1), 1.0)
        if self.steps == 0:
            done = jnp.ones_like(done)
        weight = 0.5 * (1.0 + jnp.cos(jnp.pi * done)) if self.shape == "cosine" else 1.0 - done
        return self.end + (self.start - self.end) * weight
