"""The pixels' positions, and the bins of the 8-bit values, in the two spaces that families live in.

On the line a pixel v = k/255 is y = 2v - 1 in [-1, 1]. Positions there are counted in half levels,
255 y = 2k - 255, with the bin's ends one below and one above: whole numbers, without rounding. In
logit space a pixel is t = logit((1-2ε)v + ε).

All is arithmetic on the pixels: a table's look-up is a gather, the slowest thing that a TPU does.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from logit_laplace_jax import pixel_map
from logit_laplace_jax.distribution import elementary

HALF_LEVELS = 255.0
"""Half levels per unit of y."""


class Bins(NamedTuple):
    """Bins of 8-bit values: the positions of the two ends, and the width in units of y or t.

    ``first`` and ``last`` mark the bins that are open to below and above in the families whose
    support is unbounded; their outer ends and widths are finite numbers without meaning there.
    """

    lower: Array
    upper: Array
    width: Array
    log_width: Array
    first: Array
    last: Array


def half_levels(pixels: Array, noise: Array | None, dtype: np.dtype) -> Array:
    """255 y of the pixels, dequantised by ``noise``.

    >>> half_levels(jnp.array([0, 255], jnp.uint8), None, jnp.dtype("float32"))
    Array([-255.,  255.], dtype=float32)
    """
    return 2.0 * levels(pixels, noise, dtype) - HALF_LEVELS


def line_distance(halves: Array, loc: Array) -> Array:
    """From a location to a position on the line, in units of y, right to two roundings.

    >>> line_distance(jnp.array([255.0]), jnp.array([0.5])).round(6)
    Array([0.5], dtype=float32)
    """
    # The product is exact, and the first difference is where the two are close.
    return ((halves - 256.0 * loc) + loc) * (1.0 / HALF_LEVELS)


def line_bins(pixels: Array, dtype: np.dtype, closed: bool = False) -> Bins:
    """Bins on the line; ``closed``: the outer ones end at y = -1 and 1, for families on [-1, 1].

    >>> bins = line_bins(jnp.array([0, 1], jnp.uint8), jnp.dtype("float32"), closed=True)
    >>> bins.lower, bins.upper
    (Array([-255., -254.], dtype=float32), Array([-254., -252.], dtype=float32))
    """
    middle = half_levels(pixels, None, dtype)
    lower, upper, halves = middle - 1.0, middle + 1.0, jnp.full_like(middle, 2.0)
    if closed:
        lower, upper = jnp.maximum(lower, -HALF_LEVELS), jnp.minimum(upper, HALF_LEVELS)
        halves = upper - lower
    log_width = jnp.where(halves == 2.0, math.log(2.0 / HALF_LEVELS), -math.log(HALF_LEVELS))
    return Bins(lower, upper, halves * (1.0 / HALF_LEVELS), log_width, pixels == 0, pixels == 255)


def logit_bins(pixels: Array, dtype: np.dtype, eps: float) -> Bins:
    """Bins in logit space.

    >>> bins = logit_bins(jnp.array([127], jnp.uint8), jnp.dtype("float32"), eps=0.1)
    >>> bool(bins.lower < 0), bins.upper.tolist()
    (True, [0.0])
    """
    width = 1 - 2 * Fraction(eps)
    middle = half_levels(pixels, None, dtype)
    # Of the open bins the outer ends are those inside, so that all stays finite.
    lower, upper = jnp.maximum(middle - 1.0, -254.0), jnp.minimum(middle + 1.0, 254.0)

    # With s = 2x - 1 at the two ends, the width is 2 atanh(d), d = (s₁ - s₀)/(1 - s₀ s₁), without
    # the cancellation of t₁ - t₀; the product of the half levels is a whole number, 254 · 252 in
    # the outermost bins with two ends.
    product = jnp.minimum(lower * upper, 254.0 * 252.0)
    step = float(2 * width / 255)
    rest = float(1 - width**2) + float(width**2 / 255**2) * (255.0**2 - product)
    bin_width = jnp.log1p(2.0 * step / (rest - step))
    return Bins(
        _logit_at(lower, width),
        _logit_at(upper, width),
        bin_width,
        jnp.log(bin_width),
        pixels == 0,
        pixels == 255,
    )


def _logit_at(halves: Array, width: Fraction) -> Array:
    """logit x for x = (1 + s)/2, s = ``width`` · halves/255."""
    s = pixel_map.affine(halves, width / 255, Fraction(0))
    above, below = (pixel_map.affine(sign * halves, width, Fraction(255)) for sign in (1, -1))
    near = jnp.abs(s) < 1.0 / 3.0
    return jnp.where(near, elementary.twice_atanh(s), jnp.log(above / below))


def levels(pixels: Array, noise: Array | None, dtype: np.dtype) -> Array:
    """The pixels as numbers in [0, 255]: clip(k + noise, 0, 255).

    >>> levels(jnp.array([0, 7], jnp.uint8), jnp.array([-0.5, 0.25]), jnp.dtype("float32"))
    Array([0.  , 7.25], dtype=float32)
    """
    values = lax.convert_element_type(pixels, dtype)
    if noise is None:
        return values
    return jnp.clip(values + lax.convert_element_type(noise, dtype), 0.0, 255.0)


def unit_interval(pixels: Array, noise: Array | None, dtype: np.dtype, eps: float) -> Array:
    """x = (1-2ε)v + ε of the pixels, dequantised by ``noise``: the very bits of ``map_pixels``.

    >>> unit_interval(jnp.array([0, 255], jnp.uint8), None, jnp.dtype("float32"), 0.1)
    Array([0.1, 0.9], dtype=float32)
    """
    values = pixels if noise is None else levels(pixels, noise, dtype) * (1.0 / 255.0)
    return lax.convert_element_type(pixel_map.map_pixels(values, eps), dtype)


def unmap_line(y: Array) -> Array:
    """v in [0, 1] for y = 2v - 1, clipped.

    >>> unmap_line(jnp.array([-3.0, 0.0, 1.0]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    return jnp.clip(0.5 * (y + 1.0), 0.0, 1.0)
