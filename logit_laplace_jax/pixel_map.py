"""Pixels and the unit interval: the affine map of the paper, its inverse, and nats to bits.

The logit-Laplace density lives on the open interval, 8-bit images do not: the map
φ(v) = (1 - 2ε) v + ε (Ramesh et al. 2021, appendix A.3, with v = pixel/255 and ε = 0.1) keeps
every value at least ε away from 0 and 1, where logit and density are steep.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from logit_laplace_jax import distribution
from logit_laplace_jax.checks import check, jit, suspect


def check_eps(eps: float) -> float:
    """Returns ``eps`` as a float.

    Raises:
      ValueError: it is outside [0, 0.5), where the map is not one to one.

    >>> check_eps(0.1)
    0.1
    """
    value = float(eps)
    if not 0.0 <= value < 0.5:
        raise ValueError(f"eps must lie in [0, 0.5), got {value}")
    return value


def affine(levels: Array, slope: Fraction, offset: Fraction) -> Array:
    """slope · levels + offset for whole numbers of at most 9 bits, right to one rounding.

    Both constants are split into a part on a grid, on which product and sum are exact, and a small
    rest: a·k + c and b·k + d. No product is rounded, so that the bits are the same eager, jitted
    and where a compiler fuses multiplication and addition; and dividing by 255, which compilers
    turn into a multiplication, would cost another rounding.

    >>> affine(jnp.array([0.0, 255.0]), Fraction(1, 255), Fraction(0))
    Array([0., 1.], dtype=float32)
    """
    digits = jnp.finfo(levels.dtype).nmant + 1
    largest = 511 * abs(slope) + abs(offset)
    grid = Fraction(2) ** (math.frexp(float(largest))[1] - digits)
    finer = grid / 2 ** (digits - 9)
    a, c = (round(v / grid) * grid for v in (slope, offset))
    b = round((slope - a) / finer) * finer
    head = levels * float(a) + float(c)
    return head + (levels * float(b) + float(offset - c))


def as_uint8(pixels: ArrayLike, name: str = "pixels") -> Array | np.ndarray:
    """Returns ``pixels`` as an array, of JAX or as it came: a jitted call takes either.

    Raises:
      TypeError: its dtype is not uint8.

    >>> as_uint8(np.zeros(2, np.uint8)).dtype.name
    'uint8'
    """
    array = pixels if isinstance(pixels, Array | np.ndarray) else np.asarray(pixels)
    if array.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8 values 0..255, got dtype {array.dtype}")
    return array


def map_pixels(pixels: ArrayLike, eps: float = 0.1) -> Array:
    """Maps pixels into [ε, 1-ε] by φ(v) = (1-2ε) v + ε.

    Args:
      pixels: uint8 in 0..255 (then v = pixels/255), or floating point v in [0, 1]; any shape.
      eps: ε, in [0, 0.5), a Python number. At 0 the values 0 and 255 land on the edge of the
        interval, where the log density is -inf.

    Returns:
      Mapped values of the same shape; float32 (float64 for float64 input, and for uint8 when x64
      is on).

    Raises:
      TypeError: ``pixels`` has another dtype.
      ValueError: ``eps`` is outside [0, 0.5).

    Warns:
      RangeWarning: on the first eager calls, floating-point values outside [0, 1].

    >>> map_pixels(np.array([0, 255], np.uint8))
    Array([0.1, 0.9], dtype=float32)
    >>> map_pixels(0.5)
    Array(0.5, dtype=float32)
    """
    eps = check_eps(eps)
    values = jnp.asarray(pixels)
    if values.dtype == jnp.uint8:
        return _map_levels(values, eps)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(
            f"pixels must be uint8 in 0..255 or floating point in 0..1, got dtype {values.dtype}"
        )
    suspect("floating-point pixels", values, _suspect)
    return _map_floats(values, eps)


def _suspect(low: float, high: float) -> str | None:
    rounding = 1e-6  # what sums and resampling in float32 leave beyond the ends
    if low != low or (low >= -rounding and high <= 1 + rounding):
        return None
    cure = "divide by what maps them to [0, 1]"
    if low >= 0 and 2 < high <= 255:
        cure = "they look like 0..255, pass uint8"
    elif low >= -1 - rounding and high <= 1 + rounding:
        cure = "they look like -1..1, pass 0.5 * pixels + 0.5"
    return f"floating-point pixels must lie in [0, 1], these go from {low:g} to {high:g}: {cure}"


@partial(jit, static_argnames=("eps",))
def _map_levels(pixels: Array, eps: float) -> Array:
    levels = lax.convert_element_type(pixels, jnp.result_type(float))
    return affine(levels, (1 - 2 * Fraction(eps)) / 255, Fraction(eps))


@partial(jit, static_argnames=("eps",))
def _map_floats(values: Array, eps: float) -> Array:
    (values,) = distribution.working_arrays(pixels=values)
    check(
        lambda: jnp.all((values >= 0) & (values <= 1)), "floating-point pixels must lie in [0, 1]"
    )
    width = 1.0 - 2.0 * eps
    # From the nearer end, so that 1 does not land a rounding error above 1 - ε.
    return jnp.where(values <= 0.5, eps + width * values, (1.0 - eps) - width * (1.0 - values))


def unmap_pixels(x: ArrayLike, eps: float = 0.1) -> Array:
    """The inverse of :func:`map_pixels`, clipped: clip((x - ε)/(1 - 2ε), 0, 1).

    Args:
      x: mapped values, floating point, any shape; usually sigmoid(μ), the median.
      eps: ε, in [0, 0.5), the same as in the map.

    Returns:
      Values in [0, 1] of the same shape; float32 (float64 for float64 input). Multiply by 255 and
      round for 8-bit pixels: on mapped uint8 values that gives back each of them.

    Raises:
      TypeError: ``x`` is not floating point.
      ValueError: ``eps`` is outside [0, 0.5).

    >>> unmap_pixels(jnp.array([0.05, 0.5, 0.95]))
    Array([0. , 0.5, 1. ], dtype=float32)
    """
    eps = check_eps(eps)
    values = jnp.asarray(x)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"x must be floating point, got dtype {values.dtype}")
    return _unmap(values, eps)


@partial(jit, static_argnames=("eps",))
def _unmap(x: Array, eps: float) -> Array:
    (x,) = distribution.working_arrays(x=x)
    return jnp.clip((x - eps) / (1.0 - 2.0 * eps), 0.0, 1.0)


@jit
def bits_per_dim(nats_per_dim: ArrayLike) -> Array:
    """Converts nats per value to bits per value: nats / ln 2.

    Bits per dimension compare across likelihoods only where the nats are those of an exact 8-bit
    probability; those of a density depend on the space it is a density in.

    Args:
      nats_per_dim: any shape.

    Returns:
      The same in bits; float32 (float64 for float64 input).

    >>> bits_per_dim(jnp.log(256.0))
    Array(8., dtype=float32)
    """
    (nats,) = distribution.working_arrays(nats_per_dim=nats_per_dim)
    return nats / float(np.log(2.0))
