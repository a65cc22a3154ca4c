"""The standard shapes (location 0, scale 1) of the families with a location and a scale.

The log probability of an interval is never the logarithm of a difference of two cdfs. With
z₀ < z₁ its ends, Δ = z₁ - z₀, f = exp(-H) the density and Q the upper tail:

    beside 0, a >= 0 the nearer end's distance    ln P = -H(a) + ln J(a, Δ),
                                                  J(a, Δ) = ∫₀^Δ exp(H(a) - H(a+s)) ds;
    around 0                                      P = P(z₀ < Z < 0) + P(0 < Z < z₁), and from
                                                  P = 1/2 on ln P = ln(1 - Q(-z₀) - Q(z₁)).

J is of order min(Δ, 1, 1/a): it neither overflows nor underflows however far the interval lies.
"""

import abc
import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.distribution.elementary import LN2

HALF_LN_2PI = 0.5 * math.log(2.0 * math.pi)
SQRT_HALF = math.sqrt(0.5)


class Kernel(abc.ABC):
    """A density on the line, symmetric about 0. All methods are static, elementwise, in nats."""

    @staticmethod
    @abc.abstractmethod
    def nll(z: Array) -> Array:
        """H(z), the negative log density."""

    @staticmethod
    @abc.abstractmethod
    def cdf(z: Array) -> Array:
        """The cumulative distribution function."""

    @staticmethod
    @abc.abstractmethod
    def draw(key: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """Independent draws."""

    @classmethod
    @abc.abstractmethod
    def log_interval(
        cls, z0: Array, z1: Array, delta: Array, log_delta: Array, first: Array, last: Array
    ) -> Array:
        """Log probability of z₀ < Z < z₁, Δ and ln Δ given with small relative error.

        Where ``first``, z₀ counts as -∞, and where ``last``, z₁ as ∞.
        """


class Tailed(Kernel):
    """A kernel by the two cases of the module's head, which can be truncated too."""

    @staticmethod
    @abc.abstractmethod
    def tail(a: Array) -> Array:
        """Q(a) = P(Z > a), a >= 0."""

    @staticmethod
    @abc.abstractmethod
    def core(a: Array) -> Array:
        """P(0 < Z < a), a >= 0, with small relative error."""

    @classmethod
    def middle(cls, half: Array, offset: Array) -> Array:
        """P(-half < Z + offset < half), 0 <= abs(offset) <= half; not close to 1."""
        return cls.core(half + offset) + cls.core(half - offset)

    @staticmethod
    @abc.abstractmethod
    def log_fall(a: Array, delta: Array, log_delta: Array, open_: Array) -> Array:
        """ln J(a, Δ), a >= 0; ln J(a, ∞) where ``open_``."""

    @staticmethod
    @abc.abstractmethod
    def drop(a: Array, s: Array) -> Array:
        """H(a + s) - H(a), a >= 0 and s >= 0, without cancellation."""

    @classmethod
    def log_around(
        cls, z0: Array, z1: Array, delta: Array, log_delta: Array, first: Array, last: Array
    ) -> Array:
        """Log probability of z₀ < Z < z₁ for z₀ < 0 < z₁; an infinite end where marked."""
        # Δ is known better than the two ends are: the nearer one and Δ give the other.
        open_, half = first | last, 0.5 * delta
        nearer = jnp.minimum(jnp.minimum(-z0, z1), half)
        nearer = jnp.where(first, z1, jnp.where(last, -z0, nearer))
        farther = jnp.where(open_, 1.0, delta - nearer)
        lost = cls.tail(nearer) + jnp.where(open_, 0.0, cls.tail(farther))
        most = lost <= 0.5  # as always where an end is open
        lost = jnp.where(most, lost, 0.0)
        offset = jnp.where(-z0 < z1, nearer - half, half - nearer)
        kept = cls.middle(jnp.where(most, 1.0, half), jnp.where(most, 0.0, offset))
        vanishes = kept < jnp.finfo(z0.dtype).tiny  # so wide a scale that the density is constant
        kept = jnp.log(jnp.where(most | vanishes, 1.0, kept))
        kept = jnp.where(vanishes, log_delta - cls.nll(jnp.zeros_like(z0)), kept)
        # log1p of a positive argument: of a negative one it is inaccurate on some platforms.
        return jnp.where(most, -jnp.log1p(lost / (1.0 - lost)), kept)

    @classmethod
    def log_interval(
        cls, z0: Array, z1: Array, delta: Array, log_delta: Array, first: Array, last: Array
    ) -> Array:
        """Log probability of z₀ < Z < z₁; see :meth:`Kernel.log_interval`.

        >>> one, no = jnp.ones(()), jnp.array(False)
        >>> Laplace.log_interval(0 * one, one, one, 0 * one, no, ~no)
        Array(-0.6931472, dtype=float32)
        """
        around, near = sides(z0, z1, first, last)
        beside = cls.log_fall(near, delta, log_delta, first | last) - cls.nll(near)
        start, end = jnp.where(around, z0, -1.0), jnp.where(around, z1, 1.0)
        return jnp.where(around, cls.log_around(start, end, delta, log_delta, first, last), beside)


def sides(z0: Array, z1: Array, first: Array, last: Array) -> tuple[Array, Array]:
    """(does the interval hold 0 in its interior; else the distance of its nearer end)."""
    below, above = ~last & (z1 <= 0), ~first & (z0 >= 0)
    return ~(below | above), jnp.where(below, -z1, jnp.where(above, z0, 0.0))


class Laplace(Tailed):
    """exp(-|z|)/2."""

    @staticmethod
    def nll(z: Array) -> Array:
        """|z| + ln 2; the gradient at 0 is 0."""
        return jnp.abs(z) + LN2

    @staticmethod
    def cdf(z: Array) -> Array:
        """exp(z)/2 below 0, mirrored above."""
        tail = 0.5 * jnp.exp(-jnp.abs(z))
        return jnp.where(z > 0, 1.0 - tail, tail)

    @staticmethod
    def draw(key: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """``jax.random.laplace``."""
        return jax.random.laplace(key, shape, dtype)

    @staticmethod
    def tail(a: Array) -> Array:
        """exp(-a)/2."""
        return 0.5 * jnp.exp(-a)

    @staticmethod
    def core(a: Array) -> Array:
        """(1 - exp(-a))/2."""
        return -0.5 * jnp.expm1(-a)

    @classmethod
    def middle(cls, half: Array, offset: Array) -> Array:
        """1 - exp(-half) cosh(offset), so that nothing cancels in the derivatives."""
        return -jnp.expm1(-half) - 2.0 * jnp.exp(-half) * jnp.sinh(0.5 * offset) ** 2

    @staticmethod
    def log_fall(a: Array, delta: Array, log_delta: Array, open_: Array) -> Array:
        """ln(1 - exp(-Δ)), whatever a is."""
        return jnp.where(open_, 0.0, elementary.log1m_exp(delta, log_delta))

    @staticmethod
    def drop(a: Array, s: Array) -> Array:
        """The Laplace's H is linear on either side."""
        return s


@lru_cache(maxsize=2)
def _convergent(terms: int) -> tuple[list[float], list[float], list[float]]:
    """Polynomials P, Q and P - Q of 1/a², highest power first, with R(a) = Q/(a P) + ...

    The convergent of Laplace's continued fraction 1/(a + 1/(a + 2/(a + ... terms/a))), Abramowitz
    and Stegun 26.2.14.
    """
    numerator, denominator = [1, 0], [0, 1]  # a/1, highest power first
    for k in range(terms, 0, -1):  # h = a + k/h, h a quotient of polynomials of a
        numerator, denominator = (
            [n + k * d for n, d in zip([*numerator, 0], [0, *denominator], strict=True)],
            [0, *numerator],
        )
    over, under = numerator[::2], denominator[1::2]
    under = [*under, *[0] * (len(over) - len(under))]
    rest = [n - d for n, d in zip(over, under, strict=True)]
    p, q, difference = ([float(c) for c in reversed(row)] for row in (over, under, rest))
    return p, q, difference


def _horner(coefficients: list[float], w: Array) -> Array:
    value = jnp.zeros_like(w)
    for coefficient in coefficients:
        value = value * w + coefficient
    return value


def _mills(a: Array) -> tuple[Array, Array]:
    """(R(a), 1 - a R(a)): by erfc below 5, above by a convergent, to 2**-27 (float64: 2**-48)."""
    p, q, difference = _convergent(8 if a.dtype == jnp.float32 else 20)
    small = a < 5.0
    near, far = jnp.where(small, a, 0.0), jnp.where(small, 5.0, a)
    by_erfc = math.sqrt(math.pi / 2) * jnp.exp(0.5 * near * near) * lax.erfc(near * SQRT_HALF)
    w = 1.0 / (far * far)
    over = _horner(p, w)
    ratio = jnp.where(small, by_erfc, _horner(q, w) / (far * over))
    return ratio, jnp.where(small, 1.0 - near * by_erfc, _horner(difference, w) / over)


@jax.custom_jvp
def mills_ratio(a: Array) -> Array:
    """R(a) = (1 - Φ(a))/φ(a) for a >= 0, with small relative error up to the largest a.

    Its derivative is a R(a) - 1, without cancellation in the tail.

    >>> mills_ratio(jnp.array([0.0, 1.0, 1e10]))
    Array([1.2533141e+00, 6.5567...e-01, 1.0000000e-10], dtype=float32)
    """
    return _mills(a)[0]


@mills_ratio.defjvp
def _mills_ratio_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    ratio, complement = _mills(primals[0])
    return ratio, -complement * tangents[0]


class Normal(Tailed):
    """exp(-z²/2)/√(2π)."""

    @staticmethod
    def nll(z: Array) -> Array:
        """z²/2 + ln √(2π)."""
        return 0.5 * z * z + HALF_LN_2PI

    @staticmethod
    def cdf(z: Array) -> Array:
        """Φ(z)."""
        return 0.5 * lax.erfc(-z * SQRT_HALF)

    @staticmethod
    def draw(key: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """``jax.random.normal``."""
        return jax.random.normal(key, shape, dtype)

    @staticmethod
    def tail(a: Array) -> Array:
        """1 - Φ(a)."""
        return 0.5 * lax.erfc(a * SQRT_HALF)

    @staticmethod
    def core(a: Array) -> Array:
        """Φ(a) - 1/2."""
        return 0.5 * lax.erf(a * SQRT_HALF)

    @staticmethod
    def log_fall(a: Array, delta: Array, log_delta: Array, open_: Array) -> Array:
        """J = R(a) - exp(-q) R(a + Δ), with R the Mills ratio and q = Δ (a + Δ/2).

        For q <= 1/2, where that cancels, Gauss-Legendre quadrature of ∫ exp(-as - s²/2): 5 nodes
        give 1e-10 there, and 9 give 1e-17 for float64.
        """
        q = delta * (a + 0.5 * delta)
        far = open_ | (q > 0.5)
        difference = mills_ratio(a) - jnp.where(open_, 0.0, jnp.exp(-q)) * mills_ratio(a + delta)
        steep = jnp.log(jnp.where(far, difference, 1.0))
        step, slope = jnp.where(far, 0.0, delta), jnp.where(far, 0.0, a)
        nodes, weights = np.polynomial.legendre.leggauss(5 if a.dtype == jnp.float32 else 9)
        flat = jnp.zeros_like(a)
        for node, weight in zip(0.5 * (nodes + 1), 0.5 * weights, strict=True):
            s = float(node) * step
            flat = flat + float(weight) * jnp.exp(-s * (slope + 0.5 * s))
        return jnp.where(far, steep, log_delta + jnp.log(flat))

    @staticmethod
    def drop(a: Array, s: Array) -> Array:
        """s (a + s/2)."""
        return s * (a + 0.5 * s)


class Logistic(Kernel):
    """exp(-z)/(1 + exp(-z))²."""

    @staticmethod
    def nll(z: Array) -> Array:
        """|z| + 2 ln(1 + exp(-|z|))."""
        distance = jnp.abs(z)
        return distance + 2.0 * jnp.log1p(jnp.exp(-distance))

    @staticmethod
    def cdf(z: Array) -> Array:
        """sigmoid(z)."""
        return jax.nn.sigmoid(z)

    @staticmethod
    def draw(key: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """``jax.random.logistic``."""
        return jax.random.logistic(key, shape, dtype)

    @classmethod
    def log_interval(
        cls, z0: Array, z1: Array, delta: Array, log_delta: Array, first: Array, last: Array
    ) -> Array:
        """sigmoid(z₁) - sigmoid(z₀) = sigmoid(z₁) sigmoid(-z₀) (1 - exp(-Δ)), in logarithms.

        >>> one, no = jnp.ones(()), jnp.array(False)
        >>> Logistic.log_interval(0 * one, one, one, 0 * one, no, ~no)
        Array(-0.6931472, dtype=float32)
        """
        below_z1 = jnp.where(last, 0.0, -jax.nn.softplus(-z1))
        above_z0 = jnp.where(first, 0.0, -jax.nn.softplus(z0))
        width = jnp.where(first | last, 0.0, elementary.log1m_exp(delta, log_delta))
        return below_z1 + above_z0 + width
