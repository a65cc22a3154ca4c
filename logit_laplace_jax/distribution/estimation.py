"""Maximum-likelihood estimates of the two parameters."""

from __future__ import annotations

import math
import operator
from functools import partial

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from logit_laplace_jax.checks import jit
from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.distribution.arguments import (
    gathered,
    of_one_sharding,
    reject_integers,
    working_arrays,
)


def fit(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = None,
    where: ArrayLike | None = None,
) -> tuple[Array, Array]:
    """Maximum-likelihood (loc, log_scale): median of logit x, ln of the mean absolute deviation.

    The Jacobian does not depend on the parameters, so these are the Laplace estimates in logit
    space. For an even number of values every loc between the middle two is a maximum; the middle of
    them is returned.

    Args:
      x: values in (0, 1), floating point, any shape.
      axis: axis or axes to reduce; all by default.
      where: boolean, broadcastable to the shape of ``x``: the values to count; all by default.

    Returns:
      (loc, log_scale), each of the shape of ``x`` without ``axis``. log_scale is -inf where all
      values are equal (the likelihood has no maximum), and both are NaN where no value counts, or
      one is NaN. Values outside (0, 1) count as lying beyond all others: they may leave loc finite,
      and make log_scale inf.

    Raises:
      TypeError: ``x`` is an integer array, or ``where`` is not boolean.
      ValueError: ``axis`` is out of range or named twice, or ``where`` does not broadcast.

    >>> import jax
    >>> x = jax.nn.sigmoid(jnp.array([-1.0, 0.0, 2.0, 9.0]))
    >>> loc, log_scale = fit(x, where=jnp.arange(4) < 3)
    >>> abs(loc).round(5), jnp.exp(log_scale).round(5)
    (Array(0., dtype=float32), Array(1., dtype=float32))
    """
    reject_integers("x", x)
    (values,) = working_arrays(x=x)
    axes = tuple(range(values.ndim)) if axis is None else axis
    axes = tuple(operator.index(a) for a in (axes if isinstance(axes, tuple) else (axes,)))
    if any(not -values.ndim <= a < values.ndim for a in axes):
        raise ValueError(f"axis {axis} is out of range for x of shape {values.shape}")
    axes = tuple(a % values.ndim for a in axes)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis {axis} names an axis twice")
    if where is None:
        return _fit(values, None, axes)
    counts = jnp.asarray(where)
    if counts.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, got dtype {counts.dtype}")
    try:
        counts = jnp.broadcast_to(counts, values.shape)
    except ValueError:
        raise ValueError(
            f"where of shape {counts.shape} does not broadcast to x of shape {values.shape}"
        ) from None
    return _fit(values, counts, axes)


@partial(jit, static_argnames=("axes",))
def _fit(x: Array, counts: Array | None, axes: tuple[int, ...]) -> tuple[Array, Array]:
    counts = jnp.ones_like(x, bool) if counts is None else counts
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    size = math.prod(x.shape[a] for a in axes)
    shape = (*(x.shape[a] for a in kept), size)
    x, counts = of_one_sharding([x, counts])
    x, counts = (gathered(v, axes).transpose(kept + axes).reshape(shape) for v in (x, counts))

    inside = elementary.inside(x) & counts
    t = elementary.logit(jnp.where(inside, x, 0.5))
    beyond = jnp.where(jnp.isnan(x), jnp.nan, jnp.where(x >= 1, jnp.inf, -jnp.inf))
    t = jnp.where(inside, t, beyond)
    n = counts.sum(-1, keepdims=True)
    broken = (n == 0) | jnp.any(counts & jnp.isnan(t), -1, keepdims=True)

    if size == 0:
        nothing = jnp.full(shape[:-1], jnp.nan, x.dtype)
        return nothing, nothing
    ordered = jnp.sort(jnp.where(counts, t, jnp.inf), -1)  # what does not count goes to the end
    place = lax.broadcasted_iota(jnp.int32, (1,) * len(kept) + (size,), len(kept))
    low, high = (
        jnp.where(place == i, ordered, 0.0).sum(-1, keepdims=True)
        for i in (jnp.maximum(n - 1, 0) // 2, jnp.minimum(n // 2, size - 1))
    )
    same = low == high
    loc = jnp.where(same, low, low + 0.5 * jnp.where(same, 0.0, high - low))
    off = inside & (t != loc) & jnp.isfinite(loc)
    gap = jnp.where(off, jnp.abs(jnp.where(off, t - loc, 1.0)), 0.0)
    total = gap.sum(-1, keepdims=True)
    spread = total > 0
    log_scale = jnp.where(
        spread,
        jnp.log(jnp.where(spread, total, 1.0)) - jnp.log(jnp.maximum(n, 1).astype(x.dtype)),
        -jnp.inf,
    )
    far = jnp.any(counts & ~inside & (t != loc), -1, keepdims=True) | jnp.isinf(loc)
    log_scale = jnp.where(far, jnp.inf, log_scale)
    return (
        jnp.where(broken, jnp.nan, loc)[..., 0],
        jnp.where(broken, jnp.nan, log_scale)[..., 0],
    )
