"""Functions of one point, evaluated over grids by ``jax.vmap``."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def over(function: Callable[..., Any], *axes: Any) -> np.ndarray:
    """``function`` at every combination of the given one-dimensional axes.

    The function takes one number for each axis, so it may contain ``jax.grad``; ``vmap`` turns it
    into one call over the whole grid.

    Args:
      function: of as many scalars as there are axes.
      *axes: one-dimensional arrays.

    Returns:
      An array whose dimensions are the axes, in their order.
    """
    count = len(axes)
    for position in reversed(range(count)):
        function = jax.vmap(function, [0 if i == position else None for i in range(count)])
    return np.asarray(jax.jit(function)(*(jnp.asarray(axis, float) for axis in axes)))


def unit_interval(points: int, *extra: Any) -> np.ndarray:
    """Midpoints of equal parts of (0, 1), with ``extra`` values sorted in (kinks, peaks)."""
    even = (np.arange(points) + 0.5) / points
    return np.unique(np.concatenate([even, *(np.ravel(e) for e in extra)]))


def sigmoid(loc: Any) -> np.ndarray:
    """1 / (1 + e^-μ), in double precision."""
    return 1.0 / (1.0 + np.exp(-np.asarray(loc, float)))


def where(axis: np.ndarray, values: Any) -> np.ndarray:
    """The positions of ``values`` in a sorted axis that contains them."""
    return np.searchsorted(axis, np.asarray(values, float))


def table(columns: dict[str, np.ndarray], **axes: Any) -> dict[str, dict[str, float]]:
    """Numbers by their place: the row of ``tag`` for each combination of the axes.

    Args:
      columns: arrays by name, whose dimensions are the axes.
      **axes: the axes, in their order.
    """
    places = itertools.product(*(enumerate(np.asarray(axis).tolist()) for axis in axes.values()))
    rows = {}
    for place in places:
        index = tuple(i for i, _ in place)
        key = tag(**dict(zip(axes, (value for _, value in place), strict=True)))
        rows[key] = {name: float(values[index]) for name, values in columns.items()}
    return rows


def tag(**values: float) -> str:
    """A key for a table of numbers: ``tag(loc=0.0, b=0.3)`` is "loc=0 b=0.3"."""
    return " ".join(f"{name}={value:g}" for name, value in values.items())
