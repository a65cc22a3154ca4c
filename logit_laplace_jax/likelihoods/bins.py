"""The pixels' coordinates, and the ends of their bins, in the two spaces that families live in.

On the line a pixel v = k/255 is y = 2v - 1 in [-1, 1]; in logit space it is t = logit((1-2ε)v + ε).
The ends of the 256 bins are constants. Each is held as a float and the rest that the float leaves,
so that a sharp distribution's distances to them are exact to rounding, and the masses sum to one.
"""

from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from logit_laplace_jax import pixel_map as pixel_maps


class Bins(NamedTuple):
    """Bins of 8-bit values: the two ends, each as a float and its rest, and the width.

    ``first`` and ``last`` mark the bins that are open to below and above in the families whose
    support is unbounded; their outer ends are finite numbers without meaning there.
    """

    lower: Array
    lower_rest: Array
    upper: Array
    upper_rest: Array
    width: Array
    log_width: Array
    first: Array
    last: Array

    def standardise(self, loc: Array, inv_scale: Array) -> tuple[Array, Array]:
        """The two ends in units of the scale from the location."""
        return (
            (self.lower - loc + self.lower_rest) * inv_scale,
            (self.upper - loc + self.upper_rest) * inv_scale,
        )


@lru_cache(maxsize=64)
def _tables(eps: float | None, closed: bool, dtype: str) -> tuple[np.ndarray, ...]:
    # An inner end is y = (2k - 256)/255; logit x = 2 artanh(2x - 1) with 2x - 1 = (1 - 2ε) y.
    inner = (2 * np.arange(1, 256) - 256).astype(np.longdouble) / 255
    if eps is not None:
        inner = 2 * np.arctanh((1 - 2 * np.longdouble(eps)) * inner)
    outer = np.longdouble(1) if closed else inner[-1] + (inner[-1] - inner[-2])
    ends = np.concatenate([[-outer], inner, [outer]])
    heads = ends.astype(dtype)
    rests = (ends - heads).astype(dtype)
    width = np.diff(ends)
    tables = heads[:-1], rests[:-1], heads[1:], rests[1:], width, np.log(width)
    return tuple(table.astype(dtype) for table in tables)


def line_bins(pixels: Array, dtype: np.dtype, closed: bool = False) -> Bins:
    """Bins of y = 2v - 1; ``closed``: the outer ones end at -1 and 1, for families on [-1, 1].

    >>> bins = line_bins(jnp.array([0, 1], jnp.uint8), jnp.dtype("float32"), closed=True)
    >>> (bins.width * 255).tolist()
    [1.0, 2.0]
    """
    return _look_up(_tables(None, closed, np.dtype(dtype).name), pixels)


def logit_bins(pixels: Array, dtype: np.dtype, eps: float) -> Bins:
    """Bins of t = logit((1-2ε)v + ε).

    >>> bins = logit_bins(jnp.array([127], jnp.uint8), jnp.dtype("float32"), eps=0.1)
    >>> bool(bins.lower < 0), bins.upper.tolist()
    (True, [0.0])
    """
    return _look_up(_tables(float(eps), False, np.dtype(dtype).name), pixels)


def _look_up(tables: tuple[np.ndarray, ...], pixels: Array) -> Bins:
    columns = [pixel_maps.look_up(table, pixels) for table in tables]
    lower, lower_rest, upper, upper_rest, width, log_width = columns
    return Bins(lower, lower_rest, upper, upper_rest, width, log_width, pixels == 0, pixels == 255)


def levels(pixels: Array, noise: Array | None, dtype: np.dtype) -> Array:
    """The pixels as numbers in [0, 255]: clip(k + noise, 0, 255).

    >>> levels(jnp.array([0, 7], jnp.uint8), jnp.array([-0.5, 0.25]), jnp.dtype("float32"))
    Array([0.  , 7.25], dtype=float32)
    """
    values = lax.convert_element_type(pixels, dtype)
    if noise is None:
        return values
    return jnp.clip(values + lax.convert_element_type(noise, dtype), 0.0, 255.0)


def line(pixels: Array, noise: Array | None, dtype: np.dtype) -> Array:
    """y = 2v - 1 of the pixels, dequantised by ``noise``.

    >>> line(jnp.array([0, 255], jnp.uint8), None, jnp.dtype("float32"))
    Array([-1.,  1.], dtype=float32)
    """
    return (2.0 * levels(pixels, noise, dtype) - 255.0) / 255.0


def unit_interval(pixels: Array, noise: Array | None, dtype: np.dtype, eps: float) -> Array:
    """x = (1-2ε)v + ε of the pixels, dequantised by ``noise``: the very bits of ``map_pixels``.

    >>> unit_interval(jnp.array([0, 255], jnp.uint8), None, jnp.dtype("float32"), 0.1)
    Array([0.1, 0.9], dtype=float32)
    """
    values = pixels if noise is None else levels(pixels, noise, dtype) / 255.0
    return lax.convert_element_type(pixel_maps.map_pixels(values, eps), dtype)


def unmap_line(y: Array) -> Array:
    """The inverse of :func:`line`, clipped: v in [0, 1].

    >>> unmap_line(jnp.array([-3.0, 0.0, 1.0]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    return jnp.clip(0.5 * (y + 1.0), 0.0, 1.0)
