"""Quantiles from both ends, the central interval, and reparameterised draws.

All are sigmoid(μ + b z) for some z: a standard Laplace quantile, or a draw.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from logit_laplace_jax.checks import jit
from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.distribution.arguments import broadcast, debug_parameters
from logit_laplace_jax.distribution.elementary import LN2


def shift(loc: Array, z: Array, log_scale: Array) -> Array:
    """μ + b z; μ at z = 0 also where b overflows."""
    return loc + elementary.scaled(z, -log_scale)


def _edge(p: Array, at_zero: ArrayLike, at_one: ArrayLike) -> Array:
    """The value at p = 0 and at p = 1; NaN elsewhere."""
    # A subnormal p < 0 compares equal to 0, also on its bits where LLVM turns "all bits but the
    # sign are 0" back into that comparison; a range of bits it leaves alone.
    pattern = elementary.bits(p)
    below = (pattern > jnp.iinfo(pattern.dtype).min) & (pattern < 0)
    return jnp.where((p == 0) & ~below, at_zero, jnp.where(p == 1, at_one, jnp.nan))


def _quantile(p: ArrayLike, loc: ArrayLike, log_scale: ArrayLike, sign: int) -> Array:
    p, loc, log_scale = broadcast(p=p, loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    inside = elementary.inside(p)
    safe = jnp.where(inside, p, 0.5)
    upper = safe > 0.5
    m = jnp.where(upper, 1.0 - safe, safe)  # exact where it is taken
    # ln 2m <= 0. Near m = 1/2, where it cancels, by log1p of a positive number: of a negative one
    # it is inaccurate on some platforms.
    near = m > 0.25
    z = jnp.where(
        near,
        -jnp.log1p((1.0 - 2.0 * m) / jnp.where(near, 2.0 * m, 1.0)),
        # Filled with 1, not 1/4: that would compile to a minimum, which flushes subnormal m to 0.
        elementary.log(jnp.where(near, 1.0, m)) + LN2,
    )
    value = jax.nn.sigmoid(shift(loc, sign * jnp.where(upper, -z, z), log_scale))
    low, high = (0.0, 1.0) if sign > 0 else (1.0, 0.0)
    return jnp.where(inside | jnp.isnan(value), value, _edge(p, low, high))


@jit
def quantile(p: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The x with cdf(x) = p: sigmoid(μ + b z), z = ln 2p for p <= 1/2 and -ln 2(1-p) above.

    Args:
      p: probabilities, any shape.
      loc: μ, broadcastable with ``p``.
      log_scale: ln b, broadcastable with ``p``.

    Returns:
      Values in [0, 1], of the broadcast shape: 0 at p = 0, 1 at p = 1, NaN for p outside [0, 1].
      (A quantile closer to 1 than half a unit of rounding is 1.) Gradients at p = 0 and p = 1
      are 0.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> quantile(jnp.array([0.0, 0.5, 1.0, 1.5]), 0.0, 0.0)
    Array([0. , 0.5, 1. , nan], dtype=float32)
    """
    return _quantile(p, loc, log_scale, 1)


@jit
def isf(q: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """Inverse survival function: the x with survival(x) = q, exact for the smallest q.

    Args:
      q: probabilities of the upper tail, any shape.
      loc: μ, broadcastable with ``q``.
      log_scale: ln b, broadcastable with ``q``.

    Returns:
      Values in [0, 1], of the broadcast shape: 1 at q = 0, 0 at q = 1, NaN for q outside [0, 1].
      Gradients at q = 0 and q = 1 are 0.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> isf(jnp.array([0.0, 0.5, 1.0]), 0.0, 0.0)
    Array([1. , 0.5, 0. ], dtype=float32)
    >>> isf(1e-30, 0.0, -3.0)  # quantile(1 - 1e-30) would be quantile(1) = 1
    Array(0.967..., dtype=float32)
    """
    return _quantile(q, loc, log_scale, -1)


@jit
def central_interval(mass: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> tuple[Array, Array]:
    """The interval that holds ``mass`` and leaves as much below as above it.

    Its ends are the quantiles of (1 - mass)/2 and (1 + mass)/2: sigmoid(μ ± b ln(1 - mass)).

    Args:
      mass: probability of the interval, in [0, 1], any shape.
      loc: μ, broadcastable with ``mass``.
      log_scale: ln b, broadcastable with ``mass``.

    Returns:
      (low, high), each of the broadcast shape: the median twice at mass 0, (0, 1) at mass 1, NaN
      for a mass outside [0, 1].

    Raises:
      ValueError: the shapes do not broadcast.

    >>> low, high = central_interval(0.9, 0.0, -2.0)
    >>> low.round(4), high.round(4)
    (Array(0.4227, dtype=float32), Array(0.5773, dtype=float32))
    """
    mass, loc, log_scale = broadcast(mass=mass, loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    inside = elementary.inside(mass)
    safe = jnp.where(inside, mass, 0.5)
    z = jnp.log1p(safe / (1.0 - safe))  # -ln(1 - mass), of a positive argument
    middle = jax.nn.sigmoid(loc) + 0.0 * log_scale
    ends = []
    for sign, end in ((-1.0, 0.0), (1.0, 1.0)):
        value = jax.nn.sigmoid(shift(loc, sign * z, log_scale))
        ends.append(jnp.where(inside | jnp.isnan(value), value, _edge(mass, middle, end)))
    return ends[0], ends[1]


@partial(jit, static_argnames=("shape",))
def _sample(key: Array, loc: Array, log_scale: Array, shape: tuple[int, ...]) -> Array:
    z = jax.random.laplace(key, shape, loc.dtype)
    x = jax.nn.sigmoid(shift(loc, z, log_scale))
    info = jnp.finfo(loc.dtype)
    # lax.clamp, not jnp.clip: the end points are the open interval's, 1 - 2**-24 in float32.
    return lax.clamp(jnp.asarray(info.tiny, x.dtype), x, jnp.asarray(1.0 - info.epsneg, x.dtype))


def sample(
    key: Array, loc: ArrayLike, log_scale: ArrayLike, shape: int | tuple[int, ...] | None = None
) -> Array:
    """Reparameterised draws: sigmoid(μ + b z) with z a standard Laplace variable.

    Args:
      key: a JAX random key.
      loc: μ, any shape.
      log_scale: ln b, broadcastable with ``loc``.
      shape: the full shape of the result, to which the broadcast of ``loc`` and ``log_scale`` must
        itself broadcast; that broadcast shape by default.

    Returns:
      Draws of that shape inside the open interval (0, 1), differentiable in ``loc`` and
      ``log_scale``. Draws that would round to 0 or 1 are moved to the nearest normal float inside.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> sample(jax.random.key(0), jnp.zeros(3), -1.0, shape=(2, 3)).shape
    (2, 3)
    """
    loc, log_scale = broadcast(loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    if shape is None:
        shape = loc.shape
    import chex  # here and not above: it loads test frameworks, a tenth of jax's own import time

    sizes = (shape,) if hasattr(shape, "__index__") else shape
    shape = jax.eval_shape(lambda: jnp.zeros(sizes)).shape  # symbolic sizes (jax.export) pass too
    try:
        chex.assert_is_broadcastable(loc.shape, shape)
    except AssertionError:
        raise ValueError(
            f"shape {shape} is not one that the parameters' shape {loc.shape} broadcasts to; "
            "shape is the full shape of the result"
        ) from None
    return _sample(key, jnp.broadcast_to(loc, shape), jnp.broadcast_to(log_scale, shape), shape)
