"""Families on the line renormalised on [-1, 1], where the location may lie outside."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from logit_laplace_jax import pixel_bins
from logit_laplace_jax.distribution import kernels
from logit_laplace_jax.distribution.elementary import LN2, scaled
from logit_laplace_jax.likelihoods import location_scale
from logit_laplace_jax.pixel_bins import HALF_LEVELS


@dataclasses.dataclass(frozen=True)
class Truncated(location_scale.LocationScale):
    """A kernel in y = 2v - 1, renormalised on [-1, 1]: no mass beyond black and white.

    With μ in the interval, masses and density are those of the kernel over Z = P(-1 < Y < 1). With
    μ outside, both can be of order exp(-1e30), and their quotient is taken from the nearer end
    of the interval on: with A its distance from μ and s the distance from there, in units of b,

        -ln f(y) = H(A + s) - H(A) + ln J(A, 2/b) + ln b     (H and J as in ``kernels``).
    """

    closed_form: ClassVar[bool] = False
    kernel: ClassVar[type[kernels.Tailed]]

    def _log_part(self, lower: Array, upper: Array, loc: Array, log_scale: Array) -> Array:
        """Log probability of the part between two positions, lower < upper."""
        inside, distance, whole = self._whole(loc, log_scale)
        z0, z1 = (self._z(end, loc, log_scale) for end in (lower, upper))
        closed = jnp.zeros_like(inside)
        around, near = kernels.sides(z0, z1, closed, closed)

        height = jnp.where(
            inside,
            self.kernel.nll(jnp.where(inside, near, 0.0)),
            self.kernel.drop(distance, self._from_end(lower, upper, loc, log_scale)),
        )
        width = (upper - lower) * (1.0 / HALF_LEVELS)
        delta, log_delta = scaled(width, log_scale), jnp.log(width) - log_scale
        beside = self.kernel.log_fall(near, delta, log_delta, closed) - height
        start, end = jnp.where(around, z0, -1.0), jnp.where(around, z1, 1.0)
        inner = self.kernel.log_around(start, end, delta, log_delta, closed, closed)
        return jnp.minimum(jnp.where(around, inner, beside) - whole, 0.0)

    def _from_end(self, lower: Array, upper: Array, loc: Array, log_scale: Array) -> Array:
        """With μ outside: s, from its end of the support to the nearer of two positions; else 0."""
        s = jnp.where(loc < 0, lower + HALF_LEVELS, HALF_LEVELS - upper) * (1.0 / HALF_LEVELS)
        return scaled(jnp.where(jnp.abs(loc) < 1.0, 0.0, s), log_scale)

    def _whole(self, loc: Array, log_scale: Array) -> tuple[Array, Array, Array]:
        """(is μ in (-1, 1), A, ln Z there and ln J(A, 2/b) elsewhere)."""
        inside = ~(jnp.abs(loc) >= 1.0)  # where NaN goes too, and stays
        distance = scaled(jnp.maximum(jnp.abs(loc), 1.0) - 1.0, log_scale)
        closed = jnp.zeros_like(inside)
        delta, log_delta = scaled(jnp.full_like(loc, 2.0), log_scale), LN2 - log_scale
        fall = self.kernel.log_fall(distance, delta, log_delta, closed)
        centre = jnp.where(inside, loc, 0.0)
        z0, z1 = (scaled(end - centre, log_scale) for end in (-1.0, 1.0))
        inner = self.kernel.log_around(z0, z1, delta, log_delta, closed, closed)
        return inside, distance, jnp.where(inside, inner, fall)

    def _nll(self, t: Array, loc: Array, log_scale: Array) -> Array:
        inside, distance, whole = self._whole(loc, log_scale)
        height = jnp.where(
            inside,
            self.kernel.nll(jnp.where(inside, self._z(t, loc, log_scale), 0.0)),
            self.kernel.drop(distance, self._from_end(t, t, loc, log_scale)),
        )
        return height + whole + log_scale

    def _bins(self, pixels: Array, loc: Array) -> pixel_bins.Bins:
        return pixel_bins.line_bins(pixels, loc.dtype, closed=True)

    def _log_mass(self, pixels: Array, stats: Array) -> Array:
        loc, log_scale = self.parameters(stats, pixels)
        bins = self._bins(pixels, loc)
        return self._log_part(bins.lower, bins.upper, loc, log_scale)

    def _cdf(self, t: Array, loc: Array, log_scale: Array) -> Array:
        inside = t > -HALF_LEVELS
        upper = jnp.where(inside, t, HALF_LEVELS)
        part = self._log_part(jnp.full_like(t, -HALF_LEVELS), upper, loc, log_scale)
        return jnp.where(inside, jnp.exp(part), 0.0)

    def _sample(self, key: Array, stats: Array) -> Array:
        """By bisection of the cdf, to 2**-24 of the range: it holds for μ far outside too."""
        loc, log_scale = self.parameters(stats)
        share = jax.random.uniform(key, loc.shape, loc.dtype)

        def halve(i: Array, t: Array) -> Array:
            # From the lower end, add 1, 1/2, 1/4, ... wherever the cdf there lies below the share.
            higher = t + HALF_LEVELS * jnp.exp2(-lax.convert_element_type(i, t.dtype))
            return jnp.where(self._cdf(higher, loc, log_scale) < share, higher, t)

        start = -HALF_LEVELS + 0.0 * (share + loc)
        return self._unmap(lax.fori_loop(0, 24, halve, start) * (1.0 / HALF_LEVELS))
