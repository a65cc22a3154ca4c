"""Both tails: cdf and survival function, their logarithms, and the probability transform.

With z = (logit x - μ)/b the cdf is exp(z)/2 for z <= 0 and 1 - exp(-z)/2 above. The survival
function is the same with -z, so one rule with a sign serves both. Neither is computed as one minus
the other, which would lose the far tail.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax.checks import check, jit
from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.distribution.arguments import broadcast, debug_parameters, reject_integers
from logit_laplace_jax.distribution.density import log_prob, standardise
from logit_laplace_jax.distribution.elementary import LN2, saturate, weighted_tangents


def _signed(x: Array, loc: Array, log_scale: Array, sign: int) -> tuple[Array, Array, Array]:
    """(is x in (0, 1) or NaN, x or 1/2 in its place, sign · z)."""
    proper = elementary.inside(x) | jnp.isnan(x)
    safe = jnp.where(proper, x, 0.5)
    distance, slope = standardise(elementary.logit(safe), loc, log_scale)
    return proper, safe, jnp.where(sign * slope < 0, -distance, distance)


def _beyond(x: Array, sign: int) -> Array:
    """The probability where x lies outside (0, 1)."""
    return ((x >= 1) == (sign > 0)).astype(x.dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _probability(x: Array, loc: Array, log_scale: Array, sign: int) -> Array:
    """P(X <= x) for sign = 1, P(X > x) for sign = -1."""
    proper, _, z = _signed(x, loc, log_scale, sign)
    tail = 0.5 * jnp.exp(-jnp.abs(z))
    value = jnp.where(z > 0, 1.0 - tail, tail)
    return jnp.where(proper | jnp.isnan(value), value, _beyond(x, sign))


def _probability_jvp(
    sign: int, primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]
) -> tuple[Array, Array]:
    x, loc, log_scale = primals
    proper, _, z = _signed(x, loc, log_scale, sign)
    distance = jnp.abs(z)

    def masked(y: Array) -> Array:
        return jnp.where(proper, saturate(y), 0.0)

    def by_x() -> Array:
        return masked(sign * jnp.exp(log_prob(x, loc, log_scale)))

    def by_loc() -> Array:
        return masked(-0.5 * sign * jnp.exp(-distance - log_scale))

    def by_log_scale() -> Array:
        # z · exp(-|z|) with z = ±inf is 0, not NaN.
        bounded = jnp.where(jnp.isinf(z), 0.0, z)
        return masked(-0.5 * bounded * jnp.exp(-distance))

    value = _probability(x, loc, log_scale, sign)
    return value, weighted_tangents([by_x, by_loc, by_log_scale], tangents, value)


_probability.defjvp(_probability_jvp, symbolic_zeros=True)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _log_probability(x: Array, loc: Array, log_scale: Array, sign: int) -> Array:
    """The logarithm of :func:`_probability`: z - ln 2 for z <= 0, ln(1 - exp(-z)/2) above."""
    proper, _, z = _signed(x, loc, log_scale, sign)
    upper = z > 0
    value = jnp.where(upper, elementary.log1m_half_exp(jnp.where(upper, z, 0.0)), z - LN2)
    beyond = jnp.where(_beyond(x, sign) > 0, 0.0, -jnp.inf).astype(x.dtype)
    return jnp.where(proper | jnp.isnan(value), value, beyond)


def _log_probability_jvp(
    sign: int, primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]
) -> tuple[Array, Array]:
    x, loc, log_scale = primals
    proper, safe, z = _signed(x, loc, log_scale, sign)
    # The derivative in z: 1 for z <= 0, exp(-z)/(2 - exp(-z)) above. In the far upper tail z may
    # be inf, and the inverse scale with it: neither is multiplied by 0.
    tail = jnp.exp(-jnp.maximum(z, 0.0))
    hazard = tail / (2.0 - tail)
    inv_scale = jnp.where(hazard == 0, 0.0, jnp.exp(-log_scale))

    def masked(y: Array) -> Array:
        return jnp.where(proper, saturate(y), 0.0)

    def by_x() -> Array:
        slope = sign * hazard * inv_scale
        return masked(elementary.divide(slope, safe) + slope / (1.0 - safe))

    def by_loc() -> Array:
        return masked(-sign * hazard * inv_scale)

    def by_log_scale() -> Array:
        return masked(-jnp.where(hazard == 0, 0.0, z) * hazard)

    value = _log_probability(x, loc, log_scale, sign)
    return value, weighted_tangents([by_x, by_loc, by_log_scale], tangents, value)


_log_probability.defjvp(_log_probability_jvp, symbolic_zeros=True)


def _prepared(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> list[Array]:
    reject_integers("x", x)
    x, loc, log_scale = broadcast(x=x, loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    return [x, loc, log_scale]


@jit
def cdf(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """Cumulative distribution function P(X <= x).

    Args:
      x: floating point, any real; the function is 0 for x <= 0 and 1 for x >= 1.
      loc: μ, broadcastable with ``x``.
      log_scale: ln b, broadcastable with ``x``.

    Returns:
      Probabilities in [0, 1], of the broadcast shape; NaN where an argument is NaN. Its gradient
      in ``x`` is the density; all gradients are 0 outside (0, 1).

    Raises:
      TypeError: ``x`` is an integer array.
      ValueError: the shapes do not broadcast.

    >>> cdf(jnp.array([-1.0, 0.5, 2.0]), 0.0, 0.0)
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    return _probability(*_prepared(x, loc, log_scale), 1)


@jit
def survival(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """Survival function P(X > x), exact in the upper tail, where 1 - cdf is 0.

    Args:
      x: floating point, any real; the function is 1 for x <= 0 and 0 for x >= 1.
      loc: μ, broadcastable with ``x``.
      log_scale: ln b, broadcastable with ``x``.

    Returns:
      Probabilities in [0, 1], of the broadcast shape; NaN where an argument is NaN.

    Raises:
      TypeError: ``x`` is an integer array.
      ValueError: the shapes do not broadcast.

    >>> survival(jnp.array([-1.0, 0.5, 2.0]), 0.0, 0.0)
    Array([1. , 0.5, 0. ], dtype=float32)
    >>> f"{survival(0.5, -5.0, -2.3):.1e}"  # 1 - cdf is 0 here
    '1.1e-22'
    """
    return _probability(*_prepared(x, loc, log_scale), -1)


@jit
def log_cdf(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """ln P(X <= x), in nats, exact in both tails.

    It is z - ln 2 for z = (logit x - μ)/b <= 0, and ln(1 - exp(-z)/2) above.

    Args:
      x: floating point, any real.
      loc: μ, broadcastable with ``x``.
      log_scale: ln b, broadcastable with ``x``.

    Returns:
      Values <= 0, of the broadcast shape: -inf for x <= 0, 0 for x >= 1, both with gradients 0;
      NaN where an argument is NaN. The relative error is at most 32u (1 + condition), also at -1e6
      nats.

    Raises:
      TypeError: ``x`` is an integer array.
      ValueError: the shapes do not broadcast.

    >>> log_cdf(0.5, 1e6, 0.0)
    Array(-1.0000007e+06, dtype=float32)
    """
    return _log_probability(*_prepared(x, loc, log_scale), 1)


@jit
def log_survival(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """ln P(X > x), in nats, exact in both tails; :func:`log_cdf` seen from the other end.

    Args:
      x: floating point, any real.
      loc: μ, broadcastable with ``x``.
      log_scale: ln b, broadcastable with ``x``.

    Returns:
      Values <= 0, of the broadcast shape: 0 for x <= 0, -inf for x >= 1, both with gradients 0;
      NaN where an argument is NaN.

    Raises:
      TypeError: ``x`` is an integer array.
      ValueError: the shapes do not broadcast.

    >>> log_survival(0.5, -1e6, 0.0)
    Array(-1.0000007e+06, dtype=float32)
    """
    return _log_probability(*_prepared(x, loc, log_scale), -1)


@jit
def pit(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The probability integral transform of ``x``: its cdf under the predicted distribution.

    If the predictions are calibrated, the transforms of the observed values are uniform on (0, 1).
    A histogram with a hump in the middle says that the predicted scales are too large; one with
    peaks at both ends, too small; a slope, that μ is biased. For 8-bit values use
    :func:`pixel_pit`: their cdf takes 256 values only and is not uniform.

    Args:
      x: observed values in (0, 1), floating point, any shape.
      loc: predicted μ, broadcastable with ``x``.
      log_scale: predicted ln b, broadcastable with ``x``.

    Returns:
      Probabilities of the broadcast shape. Unlike :func:`cdf`, NaN outside (0, 1), where no value
      can be observed.

    Raises:
      TypeError: ``x`` is an integer array.
      ValueError: the shapes do not broadcast.

    >>> pit(jnp.array([0.5, 1.5]), 0.0, 0.0)
    Array([0.5, nan], dtype=float32)
    """
    x, loc, log_scale = _prepared(x, loc, log_scale)
    check(lambda: jnp.all((x > 0) & (x < 1)), "x must lie in (0, 1)")
    return jnp.where(elementary.inside(x), _probability(x, loc, log_scale, 1), jnp.nan)
