r"""Mean, variance, median, mode and differential entropy of x = sigmoid(X), X ~ Laplace(μ, b).

The mean E σ(X) has no elementary form. With a = 1/b and c = σ(μ) it is

    E σ(X) = c/2 · [ a/(1+a) · ₂F₁(1, 1; 2+a; c) + ₂F₁(1, 1; 1+a; 1-c) ],

of which the second function converges slowly for small c, and whose connection formula has poles at
every integer a that cancel only in the sum. The methods below keep every term bounded instead. They
meet at b = 1/4:

* b <= 1/4: Gauss-Laguerre quadrature with 24 nodes on each side of μ. In s = |X - μ| the weight is
  the Laplace density itself, and σ(μ ± s) is analytic, with poles at a distance of at least π, that
  is of 4π in units of b. The deviation from c,

      σ(μ + s) - c = c (1-c) (e^s - 1) / (1 + c (e^s - 1)),

  is computed without cancellation, so that mean and variance keep their relative precision down
  to b -> 0 and into the tails c -> 0.
* b > 1/4: beyond |t| = 3 the series σ(t) = e^t - e^2t + e^3t - ... times the Laplace density is
  integrated term by term in closed form; where n = a, the quotient (e^{(n-a)L} - 1)/(n-a) is taken
  as a midpoint exponential times sinh(y)/y, which has no pole. Between -3 and 3, split at μ, 20
  Gauss-Legendre nodes a panel. Twelve terms leave e^-36, the nodes about 1e-13.

By symmetry only μ <= 0 is computed, where the mean is the smaller one of x and 1-x: its relative
error is small there, which 1 - mean would not have.

The variance is E (σ(X) - k)² - (E σ(X) - k)² with k = c near the middle and k = 0 in the tail. The
second term never exceeds the first one's half for k = c (mean and median lie within one standard
deviation), so little cancels.

The entropy follows from the mean's slope. Let G(μ) = E softplus(X). The Laplace density p satisfies
p - b² p'' = δ, so G - b² G'' = softplus(μ), and G'' = E σ'(X). With ln x(1-x) = X - 2 softplus(X),

    h(x) = h(X) + E ln x(1-x) = 1 + ln 2b + μ - 2 softplus(μ) - 2 b² E σ'(X).

Derivatives are those of the quadrature itself, taken forward through it in the derivative rule.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax.checks import jit
from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.distribution.arguments import broadcast, debug_parameters
from logit_laplace_jax.distribution.elementary import LN2, weighted_tangents

_NARROW = math.log(0.25)  # the largest ln b of the Gauss-Laguerre method
_WIDEST = 40.0  # beyond this ln b the moments keep their limits for b -> ∞ to rounding
_EDGE = 3.0  # where the series takes over from the panels

_LAGUERRE = np.polynomial.laguerre.laggauss(24)
_LEGENDRE = np.polynomial.legendre.leggauss(20)

# For r(x) = x/(1+x) with x = e^-|t|, the coefficients of x^n, n = 1..12, in r, r² and r(1-r).
_ORDERS = np.arange(1.0, 13.0)
_R = (-1.0) ** (_ORDERS - 1)
_R_SQUARED = -(_ORDERS - 1) * _R
_R_SLOPE = _ORDERS * _R


def _last(values: np.ndarray, like: Array) -> Array:
    """A table along a new last axis of ``like``."""
    return jnp.asarray(values, like.dtype).reshape((1,) * like.ndim + (-1,))


def _narrow(loc: Array, scale: Array) -> tuple[Array, Array, Array]:
    """(E x, Var x, b E σ'(X)) for loc <= 0 and b <= 1/4, by Gauss-Laguerre quadrature."""
    nodes, weights = (_last(v, loc) for v in _LAGUERRE)
    s = scale[..., None] * nodes
    c, d = jax.nn.sigmoid(loc)[..., None], jax.nn.sigmoid(-loc)[..., None]
    # fall = 1 - exp(-s), from the same expm1: XLA's CPU compiler (0.10.2 and 0.12) confuses
    # expm1(s) and expm1(-s) where both feed one sum over an array of some 5,000 elements.
    rise = jnp.expm1(s)
    fall = rise / (1.0 + rise)
    up, down = c * d * rise / (1.0 + c * rise), -c * d * fall / (1.0 - c * fall)

    def expect(above: Array, below: Array) -> Array:
        return 0.5 * jnp.sum(weights * (above + below), -1)

    deviation = expect(up, down)
    slope = expect((c + up) * (d - up), (c + down) * (d - down))
    variance = expect(up * up, down * down) - deviation * deviation
    return c[..., 0] + deviation, variance, scale * slope


def _wide(loc: Array, scale: Array) -> tuple[Array, Array, Array]:
    """(E x, Var x, b E σ'(X)) for loc <= 0 and b > 1/4, by series beyond ±3 and panels between."""
    rate = 1.0 / scale
    nodes, weights = (_last(v, loc) for v in _LEGENDRE)
    orders, r, r_squared, r_slope = (_last(v, loc) for v in (_ORDERS, _R, _R_SQUARED, _R_SLOPE))
    near = loc > -_EDGE
    mu, a = loc[..., None], rate[..., None]
    # Where the series ends and the second panel begins; by where, for a derivative at μ = -3.
    tail = jnp.where(near[..., None], -_EDGE, mu)
    start = jnp.where(near[..., None], mu, -_EDGE)

    # b · the integrals of e^{nt} below -3, and of e^{-nt} above 3, against the density's 2 p(t).
    # For μ < -3 the former is that up to μ and that from μ to -3, over a length L.
    length = -_EDGE - tail
    y = 0.5 * (orders - a) * length
    central = jnp.abs(y) < 0.5
    size = jnp.where(central, 1.0, jnp.abs(y))
    largest = jnp.where(y > 0, -orders * _EDGE - a * length, orders * mu)
    between = length * jnp.where(
        central,
        jnp.exp(orders * mu + y) * elementary.sinhc(jnp.where(central, y, 0.0)),
        -jnp.exp(largest) * jnp.expm1(-2.0 * size) / (2.0 * size),
    )
    below = jnp.where(
        near[..., None],
        jnp.exp(-orders * _EDGE - a * (start + _EDGE)) / (orders + a),
        jnp.exp(orders * tail) / (orders + a) + between,
    )
    above = jnp.exp(-orders * _EDGE - a * (_EDGE - mu)) / (orders + a)

    # Between -3 and 3.
    halves = 0.5 * (start + _EDGE), 0.5 * (_EDGE - start)
    t = -_EDGE + halves[0] * (1.0 + nodes), start + halves[1] * (1.0 + nodes)
    w = (
        halves[0] * weights * jnp.exp(-a * (start - t[0])),
        halves[1] * weights * jnp.exp(-a * (t[1] - mu)),
    )

    def panels(f: Any) -> Array:
        return jnp.sum(w[0] * f(t[0]) + w[1] * f(t[1]), -1)

    # Moments about k; beyond ±3 the constants -k and 1-k carry the tails' probabilities.
    k = jnp.where(near, jax.nn.sigmoid(loc), 0.0)
    lower = jnp.where(near, 0.5 * jnp.exp(-rate * (start[..., 0] + _EDGE)), 0.0)
    upper = 0.5 * jnp.exp(-rate * (_EDGE - loc))
    below_r, above_r = jnp.sum(r * below, -1), jnp.sum(r * above, -1)
    first = (
        0.5 * rate * (below_r - above_r + panels(lambda v: jax.nn.sigmoid(v) - k[..., None]))
        + upper * (1.0 - k)
        - lower * k
    )
    squares = jnp.sum(r_squared * (below + above), -1)
    centre = panels(lambda v: jnp.square(jax.nn.sigmoid(v) - k[..., None]))
    second = (
        0.5 * rate * (squares - 2.0 * k * below_r - 2.0 * (1.0 - k) * above_r + centre)
        + upper * jnp.square(1.0 - k)
        + lower * jnp.square(k)
    )
    slope = 0.5 * (
        jnp.sum(r_slope * (below + above), -1)
        + panels(lambda v: jax.nn.sigmoid(v) * jax.nn.sigmoid(-v))
    )
    return k + first, second - first * first, slope


def _forward(loc: Array, log_scale: Array) -> tuple[Array, Array, Array]:
    # Far beyond any use, and where products with L stay finite.
    folded = jnp.maximum(jnp.where(loc > 0, -loc, loc), -1e30)
    narrow = log_scale <= _NARROW
    log_scale = jnp.minimum(log_scale, _WIDEST)
    few = _narrow(folded, jnp.exp(jnp.where(narrow, log_scale, _NARROW)))
    many = _wide(folded, jnp.exp(jnp.where(narrow, _NARROW, log_scale)))
    mean, variance, slope = (jnp.where(narrow, f, m) for f, m in zip(few, many, strict=True))
    return jnp.where(loc > 0, 1.0 - mean, mean), variance, slope


@jax.custom_jvp
def _moments(loc: Array, log_scale: Array) -> tuple[Array, Array, Array]:
    """(E x, Var x, b E σ'(X)); what is not used is not computed under jit."""
    return _forward(loc, log_scale)


def _moments_jvp(
    primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    # Elementwise functions: one forward derivative in the direction of ones gives all partials, so
    # that reverse mode keeps two arrays a function, and not one a node.
    one, zero = jnp.ones_like(primals[0]), jnp.zeros_like(primals[0])

    def by(index: int, direction: tuple[Array, Array]) -> Array:
        return jax.jvp(_forward, primals, direction)[1][index]

    values = _moments(*primals)
    out = [
        weighted_tangents(
            [lambda i=i: by(i, (one, zero)), lambda i=i: by(i, (zero, one))], tangents, value
        )
        for i, value in enumerate(values)
    ]
    return values, (out[0], out[1], out[2])


_moments.defjvp(_moments_jvp, symbolic_zeros=True)


def _prepared(loc: ArrayLike, log_scale: ArrayLike) -> list[Array]:
    loc, log_scale = broadcast(loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    return [loc, log_scale]


@jit
def mean(loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The mean of x, E σ(X): the reconstruction with the least squared error.

    It lies between the median sigmoid(μ) and 1/2. For the method see this module's docstring.

    Args:
      loc: μ, any shape.
      log_scale: ln b, broadcastable with ``loc``.

    Returns:
      Means in [0, 1], of the broadcast shape. The relative error is at most 1e-5 in float32 and
      1e-10 in float64 for |μ| <= 20 and -7 <= ln b <= 3.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> mean(jnp.array([0.0, 2.0]), -1.0)
    Array([0.5..., 0.870...], dtype=float32)
    """
    return _moments(*_prepared(loc, log_scale))[0]


@jit
def variance(loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The variance of x. For b -> 0 it is 2 b² x² (1-x)² at the median, for b -> ∞ 1/4.

    Args:
      loc: μ, any shape.
      log_scale: ln b, broadcastable with ``loc``.

    Returns:
      Variances in [0, 1/4], of the broadcast shape, with the accuracy of :func:`mean`.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> variance(0.0, jnp.array([-5.0, 0.0, 9.0]))
    Array([5.67...e-06, 5.68...e-02, 2.499...e-01], dtype=float32)
    """
    return _moments(*_prepared(loc, log_scale))[1]


@jit
def entropy(loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The differential entropy of x, in nats: 1 + ln 2b + E ln x(1-x).

    Like every differential entropy it may be negative, and it has no lower bound as b -> 0. It
    never exceeds 0, the entropy of the uniform distribution on (0, 1).

    Args:
      loc: μ, any shape.
      log_scale: ln b, broadcastable with ``loc``.

    Returns:
      Nats, of the broadcast shape. The absolute error is at most 1e-5 in float32 and 1e-10 in
      float64 for |μ| <= 20 and -7 <= ln b <= 3.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> entropy(0.0, jnp.array([-3.0, 0.0, 3.0]))
    Array([ -2.69..., -0.079..., -15.47...], dtype=float32)
    """
    loc, log_scale = _prepared(loc, log_scale)
    folded = -jnp.where(loc > 0, loc, -loc)
    of_laplace = 1.0 + LN2 + log_scale
    at_median = folded - 2.0 * jnp.log1p(jnp.exp(folded))  # ln x(1-x)
    slope = _moments(loc, log_scale)[2]
    return of_laplace + at_median - elementary.scaled(2.0 * slope, -log_scale)


@jit
def median(loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The median of x, sigmoid(μ); a reconstruction by sigmoid(μ) is this, not the mean.

    Args:
      loc: μ, any shape.
      log_scale: ln b, broadcastable with ``loc``; it does not change the result's value.

    Returns:
      Medians in [0, 1], of the broadcast shape.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> median(0.0, -3.0)
    Array(0.5, dtype=float32)
    """
    loc, log_scale = broadcast(loc=loc, log_scale=log_scale)
    debug_parameters(loc, log_scale)
    return jax.nn.sigmoid(loc)


@jit
def mode(loc: ArrayLike, log_scale: ArrayLike) -> Array:
    """The interior mode of x: sigmoid(μ) where b < 1; NaN where b >= 1, which has none.

    In logit space the log density rises towards μ with slope 1/b, and its Jacobian term,
    -ln x(1-x), rises towards the ends with slope |tanh(t/2)| < 1. For b < 1 the first wins
    everywhere and the only maximum is at μ. For b > 1 the second wins far out: the density is
    unbounded at 0 and 1, and where |tanh(μ/2)| < 1/b the corner at μ remains as a third, local
    peak. b = 1 is counted with b > 1 by convention, though the density, bounded there, still peaks
    at sigmoid(μ).

    Args:
      loc: μ, any shape.
      log_scale: ln b, broadcastable with ``loc``.

    Returns:
      Modes in [0, 1] or NaN, of the broadcast shape.

    Raises:
      ValueError: the shapes do not broadcast.

    >>> mode(0.0, jnp.array([-1.0, 0.0, 1.0]))
    Array([0.5, nan, nan], dtype=float32)
    """
    loc, log_scale = _prepared(loc, log_scale)
    return jnp.where(log_scale < 0, jax.nn.sigmoid(loc), jnp.nan)
