"""The log density, its score and its Fisher information."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax.checks import check, jit
from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.distribution.arguments import broadcast, debug_parameters, reject_integers
from logit_laplace_jax.distribution.elementary import LN2, weighted_tangents


def standardise(t: Array, loc: Array, log_scale: Array) -> tuple[Array, Array]:
    """(|t - μ| / b, sign(t - μ) / b), both 0 at a tie, however small b is."""
    d = t - loc
    # One exponential serves both. Its square may overflow where the distance does not.
    root = elementary.exp(-0.5 * log_scale)
    inv_scale = elementary.saturate(root * root)
    distance = elementary.saturate(jnp.abs(d) * root * root)
    distance = jnp.where((d == 0) & ~jnp.isnan(log_scale), 0.0, distance)
    # The last d is 0 or NaN.
    slope = jnp.where(d > 0, inv_scale, jnp.where(d < 0, -inv_scale, d))
    return distance, slope


def laplace_nll(t: Array, loc: Array, log_scale: Array) -> Array:
    """|t - μ|/b + ln b + ln 2: the Laplace negative log density in logit space, in nats.

    An infinite ``log_scale`` (b = 0 or ∞) counts as the largest finite one.

    >>> laplace_nll(jnp.array(1.0), jnp.array(1.0), jnp.array(0.0))
    Array(0.6931472, dtype=float32)
    """
    distance, _ = standardise(t, loc, log_scale)
    return distance + elementary.saturate(log_scale) + LN2


def laplace_nll_partials(t: Array, loc: Array, log_scale: Array) -> tuple[Array, Array]:
    """Derivatives of :func:`laplace_nll` in loc and log_scale: -sign(t - μ)/b and 1 - |t - μ|/b.

    >>> laplace_nll_partials(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
    (Array(-1., dtype=float32), Array(0., dtype=float32))
    """
    distance, slope = standardise(t, loc, log_scale)
    return elementary.saturate(-slope), elementary.saturate(1.0 - distance)


@jax.custom_jvp
def _log_prob(x: Array, loc: Array, log_scale: Array) -> Array:
    inside = elementary.inside(x)
    safe = jnp.where(inside | jnp.isnan(x), x, 0.5)
    t = elementary.logit(safe)
    value = -(laplace_nll(t, loc, log_scale) + elementary.log_jacobian_at(safe, t))
    # The second condition keeps the NaN of a NaN parameter.
    return jnp.where(inside | jnp.isnan(value), value, -jnp.inf)


def _log_prob_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]
) -> tuple[Array, Array]:
    def by(number: int) -> Array:
        x, loc, log_scale = elementary.apart(elementary.GPUS, 1 + number, *primals)
        inside = elementary.inside(x) | jnp.isnan(x)
        safe = jnp.where(inside, x, 0.5)
        t = elementary.logit(safe)
        if number:
            partial = -laplace_nll_partials(t, loc, log_scale)[number - 1]
        else:
            _, slope = standardise(t, loc, log_scale)
            # Partial fractions of -slope/(x(1-x)) - 1/x + 1/(1-x): no inf - inf, exact for b = 1.
            partial = -elementary.divide(slope + 1.0, safe) - (slope - 1.0) / (1.0 - safe)
            partial = elementary.saturate(partial)
        return jnp.where(inside, partial, 0.0)

    value = _log_prob(*primals)
    return value, weighted_tangents([functools.partial(by, i) for i in range(3)], tangents, value)


_log_prob.defjvp(_log_prob_jvp, symbolic_zeros=True)


@jit
def log_prob(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    r"""Log density of x, in nats: -\|logit x - μ\|/b - ln b - ln 2 - ln x - ln(1-x).

    It is the density of ``x`` itself. For pixels mapped by :func:`map_pixels` add ln(1 - 2ε) a
    value for the density of raw pixels in [0, 1], and -ln 255 more for one per 8-bit level.
    A positive log density is normal: it has no upper bound as b → 0.

    Args:
      x: values in (0, 1), floating point, any shape.
      loc: μ, any real, broadcastable with ``x``.
      log_scale: ln b, broadcastable with ``x``.

    Returns:
      The elementwise log density, of the broadcast shape; -inf, with gradients 0, where x <= 0 or
      x >= 1; NaN where an argument is NaN. The gradient in ``loc`` is 0 at logit x = μ. The
      rounding error is at most 8u (|t|/b + |t-μ|/b + |ln b| + |ln x| + |ln(1-x)| + 1), with t the
      logit of x and u = 2**-24 in float32.

    Raises:
      TypeError: ``x`` is an integer array (pixels that were not mapped).
      ValueError: the shapes do not broadcast.

    >>> log_prob(jnp.array([0.0, 0.5, 0.9]), 0.0, 0.0)
    Array([       -inf,  0.6931472 , -0.48242...], dtype=float32)
    """
    reject_integers("x", x)
    x, loc, log_scale = broadcast(x=x, loc=loc, log_scale=log_scale)
    check(lambda: jnp.all((x > 0) & (x < 1)), "x must lie in (0, 1)")
    debug_parameters(loc, log_scale)
    return _log_prob(x, loc, log_scale)


@jit
def score(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> tuple[Array, Array]:
    r"""The score: derivatives of the log density in the two parameters.

    They are sign(t - μ)/b and \|t - μ\|/b - 1, with t = logit x. Under the model both have mean 0;
    a log_scale component with a positive mean says that the scale is predicted too small.

    Args:
      x: values in (0, 1), floating point, any shape.
      loc: μ, broadcastable with ``x``.
      log_scale: ln b, broadcastable with ``x``.

    Returns:
      (∂/∂loc, ∂/∂log_scale) of :func:`log_prob`, each of the broadcast shape; 0 where x <= 0 or
      x >= 1, and the first one 0 at logit x = μ.

    Raises:
      TypeError: ``x`` is an integer array.
      ValueError: the shapes do not broadcast.

    >>> score(jnp.array(0.5), 1.0, 0.0)
    (Array(-1., dtype=float32), Array(-0., dtype=float32))
    """
    reject_integers("x", x)
    x, loc, log_scale = broadcast(x=x, loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    inside = elementary.inside(x) | jnp.isnan(x)
    safe = jnp.where(inside, x, 0.5)
    by_loc, by_log_scale = laplace_nll_partials(elementary.logit(safe), loc, log_scale)
    return jnp.where(inside, -by_loc, 0.0), jnp.where(inside, -by_log_scale, 0.0)


@jit
def fisher_information(loc: ArrayLike, log_scale: ArrayLike) -> tuple[Array, Array]:
    """The Fisher information in (loc, log_scale): the matrix diag(1/b², 1), as its diagonal.

    With z = (t - μ)/b, the score is (sign(z)/b, |z| - 1). E sign² = 1; E (|z| - 1)² = 1, the
    variance of an exponential variable; and sign(z) is independent of |z|, so the parameters are
    orthogonal. It is the mean of the squared score (the density has a corner at its median, where
    the second derivative is no guide). The sigmoid is a bijection and leaves it unchanged.

    Args:
      loc: μ, any shape; it does not change the values.
      log_scale: ln b, broadcastable with ``loc``.

    Returns:
      (1/b², 1), each of the broadcast shape. n values determine μ to about b/√n and ln b to 1/√n.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> fisher_information(0.0, jnp.log(2.0))
    (Array(0.25, dtype=float32), Array(1., dtype=float32))
    """
    loc, log_scale = broadcast(loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    nothing = 0.0 * (loc + log_scale)  # NaN parameters give NaN
    return elementary.exp(-2.0 * log_scale) + nothing, 1.0 + nothing
