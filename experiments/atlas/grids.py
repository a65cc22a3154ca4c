"""Functions of one point, evaluated over grids by ``jax.vmap``."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def over(function: Callable[..., Any], *axes: Any) -> np.ndarray:
    """``function`` at every combination of the given one-dimensional axes.

    Args:
      function: of as many scalars as there are axes; it may contain ``jax.grad``.
      *axes: one-dimensional arrays.

    Returns:
      An array whose first dimensions are the axes, in their order.
    """
    for position in reversed(range(len(axes))):
        function = jax.vmap(function, [0 if i == position else None for i in range(len(axes))])
    return np.asarray(jax.jit(function)(*(jnp.asarray(axis, float) for axis in axes)))


def unit_interval(points: int, *extra: Any) -> np.ndarray:
    """Midpoints of equal parts of (0, 1), with ``extra`` values sorted in (kinks, peaks)."""
    even = (np.arange(points) + 0.5) / points
    return np.unique(np.concatenate([even, *(np.ravel(e) for e in extra)]))


def table(columns: dict[str, Any], **axes: Any) -> dict[str, dict[str, float]]:
    """A row of numbers, by the name of their column, for each place that :func:`tag` names.

    Args:
      columns: arrays whose dimensions are the axes.
      **axes: one-dimensional arrays, in their order.
    """
    rows = {}
    for place in itertools.product(*(enumerate(np.asarray(a).tolist()) for a in axes.values())):
        index = tuple(i for i, _ in place)
        key = tag(**dict(zip(axes, (value for _, value in place), strict=True)))
        rows[key] = {name: float(values[index]) for name, values in columns.items()}
    return rows


def tag(**values: float) -> str:
    """The name of a place: ``tag(loc=0.0, b=0.3)`` is "loc=0 b=0.3"."""
    return " ".join(f"{name}={value:g}" for name, value in values.items())
