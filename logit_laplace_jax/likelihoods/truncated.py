"""Families on the line renormalised on [-1, 1], where the location may lie outside."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from logit_laplace_jax.distribution.elementary import LN2
from logit_laplace_jax.likelihoods import bins, kernels, location_scale


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

    def _log_part(
        self, ends: tuple[Array, Array, Array, Array], width: Array, loc: Array, log_scale: Array
    ) -> Array:
        """Log probability of a part of [-1, 1].

        ``ends`` are lower, its rest, upper, its rest; ``width`` is positive and exact to rounding.
        """
        lower, lower_rest, upper, upper_rest = ends
        inv_scale = jnp.exp(-log_scale)
        inside, distance, whole = self._whole(loc, log_scale)
        z0 = (lower - loc + lower_rest) * inv_scale
        z1 = (upper - loc + upper_rest) * inv_scale
        closed = jnp.zeros(z0.shape, bool)
        around, near = kernels.sides(z0, z1, closed, closed)

        bottom, top = lower + 1.0 + lower_rest, 1.0 - upper - upper_rest
        from_end = jnp.where(loc < 0, bottom, top) * inv_scale
        height = jnp.where(
            inside,
            self.kernel.nll(jnp.where(inside, near, 0.0)),
            self.kernel.drop(distance, jnp.where(inside, 0.0, from_end)),
        )
        log_delta = jnp.log(width) - log_scale
        beside = self.kernel.log_fall(near, width * inv_scale, log_delta, closed) - height
        start, end = jnp.where(around, z0, -1.0), jnp.where(around, z1, 1.0)
        part = jnp.where(around, self.kernel.log_around(start, end, closed, closed), beside)
        return jnp.minimum(part - whole, 0.0)

    def _whole(self, loc: Array, log_scale: Array) -> tuple[Array, Array, Array]:
        """(is μ in (-1, 1), A, ln Z there and ln J(A, 2/b) elsewhere)."""
        inv_scale = jnp.exp(-log_scale)
        inside = jnp.abs(loc) < 1.0
        distance = (jnp.maximum(jnp.abs(loc), 1.0) - 1.0) * inv_scale
        closed = jnp.zeros(distance.shape, bool)
        fall = self.kernel.log_fall(distance, 2.0 * inv_scale, LN2 - log_scale, closed)
        centre = jnp.where(inside, loc, 0.0)
        z0, z1 = (-1.0 - centre) * inv_scale, (1.0 - centre) * inv_scale
        return (
            inside,
            distance,
            jnp.where(inside, self.kernel.log_around(z0, z1, closed, closed), fall),
        )

    def _nll(self, t: Array, loc: Array, log_scale: Array) -> Array:
        inv_scale = jnp.exp(-log_scale)
        inside, distance, whole = self._whole(loc, log_scale)
        from_end = jnp.where(loc < 0, t + 1.0, 1.0 - t) * inv_scale
        height = jnp.where(
            inside,
            self.kernel.nll(jnp.where(inside, t - loc, 0.0) * inv_scale),
            self.kernel.drop(distance, jnp.where(inside, 0.0, from_end)),
        )
        return height + whole + log_scale

    def _bins(self, pixels: Array, loc: Array) -> bins.Bins:
        return bins.line_bins(pixels, loc.dtype, closed=True)

    def _log_mass_at(self, pixels: Array, loc: Array, log_scale: Array) -> Array:
        b = self._bins(pixels, loc)
        ends = b.lower, b.lower_rest, b.upper, b.upper_rest
        return self._log_part(ends, b.width, loc, log_scale)

    def _cdf(self, end: Array, rest: Array, loc: Array, log_scale: Array) -> Array:
        width = end + 1.0 + rest
        inside = width > 0
        ends = -jnp.ones_like(end), jnp.zeros_like(end), end, rest
        part = self._log_part(ends, jnp.where(inside, width, 1.0), loc, log_scale)
        return jnp.where(inside, jnp.exp(part), 0.0)

    def _bin_cdf(self, pixels: Array, stats: Array) -> tuple[Array, Array]:
        loc, log_scale = self.parameters(stats, pixels)
        b = self._bins(pixels, loc)
        ends = jnp.stack([b.lower, b.upper]), jnp.stack([b.lower_rest, b.upper_rest])
        low, high = self._cdf(*ends, loc[None], log_scale[None])
        return low, jnp.where(b.last, 1.0, high)

    def _sample(self, key: Array, stats: Array) -> Array:
        """By bisection of the cdf, to 2**-24 of the range: it holds for μ far outside too."""
        loc, log_scale = self.parameters(stats)
        share = jax.random.uniform(key, loc.shape, loc.dtype)

        def halve(i: Array, y: Array) -> Array:
            # From -1, add 1, 1/2, 1/4, ... wherever the cdf there still lies below the share.
            step = jnp.exp2(-lax.convert_element_type(i, y.dtype))
            higher = y + step
            return jnp.where(
                self._cdf(higher, jnp.zeros_like(y), loc, log_scale) < share, higher, y
            )

        return self._unmap(lax.fori_loop(0, 24, halve, -1.0 + 0.0 * share))
