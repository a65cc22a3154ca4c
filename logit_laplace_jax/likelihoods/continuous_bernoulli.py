"""The continuous Bernoulli likelihood (Loaiza-Ganem and Cunningham 2019)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from logit_laplace_jax import pixel_bins
from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.likelihoods import base

# ln(sinh(x)/x) = Σ cₙ x²ⁿ, cₙ = (-1)ⁿ⁺¹ ζ(2n)/(n π²ⁿ): 1/6, -1/180, 1/2835, ...
_COEFFICIENTS = [1 / 6, -1 / 180] + [
    -((-1) ** n) * sum(k ** (-2 * n) for k in range(1, 1000)) / n / math.pi ** (2 * n)
    for n in range(3, 11)
]


def _log_sinhc(x: Array) -> Array:
    """ln(sinh(x)/x), abs(x) <= 1/2, to 2**-57: even and smooth, with the right gradient at 0."""
    series = jnp.zeros_like(x)
    for coefficient in reversed(_COEFFICIENTS):
        series = (series + coefficient) * x * x
    return series


def _langevin(x: Array) -> Array:
    """coth(x) - 1/x, its derivative, at abs(x) <= 1/2."""
    series = jnp.zeros_like(x)
    for n in range(len(_COEFFICIENTS), 0, -1):
        series = series * x * x + 2 * n * _COEFFICIENTS[n - 1]
    return series * x


@dataclasses.dataclass(frozen=True)
class ContinuousBernoulliLikelihood(base.Likelihood):
    """On [0, 1], one map η a channel, the logit of λ: f(v) = η exp(ηv)/(exp(η) - 1).

    The loss is the negative log density of v = pixel/255 itself: Bernoulli cross-entropy with its
    normalising constant, ln C(λ) in the paper. η = 0 is the uniform
    density; η is clipped to ±1e6. ``reconstruct`` is the mean, 1/(1 - exp(-η)) - 1/η.

    >>> likelihood = ContinuousBernoulliLikelihood()
    >>> pixels = jnp.array([[0, 255]], jnp.uint8)
    >>> likelihood.loss(pixels, jnp.array([[0.0, 2.0]]))
    Array([[ 0.    , -0.838...]], dtype=float32)
    """

    name: ClassVar[str] = "continuous_bernoulli"

    @property
    def num_stats(self) -> int:
        """1: η."""
        return 1

    def parameters(self, stats: Array) -> Array:
        """η, clipped to ±1e6: [..., C]."""
        eta = base.split_stats(stats, 1)[0]
        return jnp.clip(eta, -base.LOGIT_LIMIT, base.LOGIT_LIMIT)

    # With h = |η| and the distance u from the end where the density is highest it is the
    # exponential's h exp(-hu)/(1 - exp(-h)); near η = 0, where that has a corner in |η|, it is
    # exp(η (v - 1/2)) over sinh(η/2)/(η/2).

    def _loss(self, pixels: Array, stats: Array, noise: Array | None) -> Array:
        eta = self.parameters(stats)
        halves = pixel_bins.half_levels(pixels, noise, eta.dtype)
        return elementary.one_pass(_nll, elementary.ACCELERATORS, halves, eta)

    def _log_part(self, middle: Array, distance: Array, width: Array, eta: Array) -> Array:
        """Log probability of a part of [0, 1].

        ``middle`` is its middle less 1/2; ``distance`` that of its nearer end from the end where
        the density is highest.
        """
        small, safe, h, log_h = _two_sides(eta)
        log_width = jnp.log(width)
        centred = safe * middle + log_width + _log_sinhc(0.5 * safe * width)
        centred = centred - _log_sinhc(0.5 * safe)
        steep = elementary.log1m_exp(h * width, log_h + log_width) - h * distance
        steep = steep - elementary.log1m_exp(h, log_h)
        return jnp.minimum(jnp.where(small, centred, steep), 0.0)

    def _log_mass(self, pixels: Array, stats: Array) -> Array:
        eta = self.parameters(stats)
        bins = pixel_bins.line_bins(pixels, eta.dtype, closed=True)
        middle = (bins.lower + bins.upper) * (1.0 / 1020.0)
        distance = jnp.where(eta < 0, 255.0 + bins.lower, 255.0 - bins.upper) * (1.0 / 510.0)
        return self._log_part(middle, distance, 0.5 * bins.width, eta)

    def _cdf(self, halves: Array, eta: Array) -> Array:
        inside = halves > -255.0
        halves = jnp.where(inside, halves, 255.0)
        below, above = (255.0 + halves) * (1.0 / 510.0), (255.0 - halves) * (1.0 / 510.0)
        part = self._log_part(-0.5 * above, jnp.where(eta < 0, 0.0, above), below, eta)
        return jnp.where(inside, jnp.exp(part), 0.0)

    def _bin_cdf(self, pixels: Array, stats: Array) -> tuple[Array, Array]:
        eta = self.parameters(stats)
        bins = pixel_bins.line_bins(pixels, eta.dtype, closed=True)
        low, high = (self._cdf(end, eta) for end in (bins.lower, bins.upper))
        return low, jnp.where(bins.last, 1.0, high)

    def _reconstruct(self, stats: Array) -> Array:
        """The mean, 1/2 + (coth(η/2) - 2/η)/2: float32 [..., C].

        >>> ContinuousBernoulliLikelihood().reconstruct(jnp.array([-1e30, 0.0, 1.0]))
        Array([1.01...e-06, 5.00...e-01, 5.819...e-01], dtype=float32)
        """
        x = 0.5 * self.parameters(stats)
        small = jnp.abs(x) < 0.5
        near, far = jnp.where(small, x, 0.0), jnp.where(small, 1.0, x)
        mean = jnp.where(small, _langevin(near), 1.0 / jnp.tanh(far) - 1.0 / far)
        return jnp.clip(0.5 + 0.5 * mean, 0.0, 1.0)

    def _sample(self, key: Array, stats: Array) -> Array:
        eta = self.parameters(stats)
        share = jax.random.uniform(key, eta.shape, eta.dtype)
        # The inverse of the exponential's cdf, by log1p of a positive argument:
        # u = -ln(1 - q)/h, q = share (1 - exp(-h)); to 1e-7 below h = 1e-3 by its series.
        h = jnp.abs(eta)
        small = h < 1e-3
        safe = jnp.where(small, 1.0, h)
        q = share * -jnp.expm1(-safe)
        distance = jnp.where(
            small, share * (1.0 - 0.5 * h * (1.0 - share)), jnp.log1p(q / (1.0 - q)) / safe
        )
        return jnp.clip(jnp.where(eta < 0, distance, 1.0 - distance), 0.0, 1.0)


def _nll(halves: Array, eta: Array) -> Array:
    small, safe, h, log_h = _two_sides(eta)
    centred = _log_sinhc(0.5 * safe) - safe * (halves * (1.0 / 510.0))
    distance = jnp.where(eta < 0, 255.0 + halves, 255.0 - halves) * (1.0 / 510.0)
    steep = h * distance - log_h + elementary.log1m_exp(h, log_h)
    return jnp.where(small, centred, steep)


def _two_sides(eta: Array) -> tuple[Array, Array, Array, Array]:
    """(is |η| < 1; η there, else 0; |η| elsewhere, else 1; its logarithm)."""
    small = jnp.abs(eta) < 1.0
    h = jnp.where(small, 1.0, jnp.abs(eta))
    return small, jnp.where(small, eta, 0.0), h, jnp.log(h)
