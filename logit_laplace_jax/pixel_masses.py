"""The exact probability of an 8-bit value, and its probability integral transform.

A value k in 0..255 stands for the bin [k - ½, k + ½], mapped by the same affine map as the pixel;
the first bin reaches down to 0 and the last one up to 1, so that the 256 probabilities sum to one.
Unlike densities they compare across likelihoods: their mean logarithm is a code length.

With z₀ < z₁ the bin's ends in units of b from μ, and Δ = z₁ - z₀, nothing is ever the difference of
two cdfs:

    below μ (z₁ <= 0)    ln P = z₁ - ln 2 + ln(1 - exp(-Δ)), and mirrored above μ;
    around μ             P = ½ (1 - exp(z₀)) + ½ (1 - exp(-z₁)), a sum of two positive terms, and
                         from P = ½ on ln P = log1p(-½ (exp(z₀) + exp(-z₁)));
    the open bins        ln P = ln F(z₁) of the first, ln(1 - F(z₀)) of the last one.

The ends' logits, and the bins' widths in logit space, are constants of the map, rounded once.
"""

import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax import distribution
from logit_laplace_jax import pixel_map as pixel_maps
from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.distribution.elementary import LN2, saturate

_FAR = 1e4
"""A distance in units of b that counts as infinite: exp(-1e4) is 0 in any precision."""


class _Bins(NamedTuple):
    """Constants of the 256 bins in logit space; the outer ends are ±inf."""

    lower: np.ndarray
    upper: np.ndarray
    width: np.ndarray
    log_width: np.ndarray


@lru_cache(maxsize=64)
def _bins(eps: float, dtype: str) -> _Bins:
    # An inner end is x = (1-2ε)(2k-1)/510 + ε, and logit x = 2 artanh(2x-1), with
    # 2x-1 = (1-2ε)(2k-256)/255: no cancellation at the middle.
    steps = (2 * np.arange(1, 256) - 256).astype(np.longdouble) / 255
    inner = 2 * np.arctanh((1 - 2 * np.longdouble(eps)) * steps)
    ends = np.concatenate([[-np.inf], inner, [np.inf]])
    width = np.diff(ends)
    tables = (ends[:-1], ends[1:], width, np.log(width))
    return _Bins(*(table.astype(dtype) for table in tables))


def _look_up(pixels: Array, loc: ArrayLike, log_scale: ArrayLike, eps: float) -> list[Array]:
    """The bins' constants, μ and ln b in the working type, broadcast against each other."""
    # The precision of map_pixels: with x64 on the constants are float64.
    tables = _bins(eps, jnp.result_type(float).name)._asdict()
    bins = {name: pixel_maps.look_up(table, pixels) for name, table in tables.items()}
    arrays = distribution.broadcast(pixels=bins.pop("lower"), **bins, loc=loc, log_scale=log_scale)
    distribution.debug_parameters(*arrays[-2:])
    return arrays


def _standardise(t: Array, loc: Array, inv_scale: Array) -> Array:
    """(t - μ)/b; an open end is far away, a constant that no derivative passes through."""
    is_open = jnp.isinf(t)
    d = jnp.where(is_open, 0.0, t) - loc
    z = jnp.where(d == 0, 0.0, d * inv_scale)
    return jnp.where(is_open, jnp.sign(t) * _FAR, z)


class _Parts(NamedTuple):
    """What value and derivatives share. z₀ < z₁ are the bin's ends; misses are 1 - exp(-|z|)."""

    inv_scale: Array
    below: Array  # z₁ <= 0
    above: Array  # z₀ >= 0
    near: Array  # distance of the nearer end, for bins that do not hold μ
    delta: Array
    lower_tail: Array  # exp(z₀) and exp(-z₁), for bins that hold μ
    upper_tail: Array
    both_misses: Array
    z0: Array
    z1: Array


def _parts(lower: Array, upper: Array, width: Array, loc: Array, log_scale: Array) -> _Parts:
    inv_scale = jnp.exp(-log_scale)
    z0, z1 = (_standardise(t, loc, inv_scale) for t in (lower, upper))
    below, above = z1 <= 0, z0 >= 0
    inside = ~(below | above)
    start, end = jnp.where(inside, z0, -1.0), jnp.where(inside, z1, 1.0)
    return _Parts(
        inv_scale,
        below,
        above,
        near=jnp.where(below, -z1, jnp.where(above, z0, 0.0)),
        delta=jnp.where(
            jnp.isinf(width), _FAR, jnp.where(jnp.isinf(width), 1.0, width) * inv_scale
        ),
        lower_tail=jnp.exp(start),
        upper_tail=jnp.exp(-end),
        both_misses=-jnp.expm1(start) - jnp.expm1(-end),
        z0=start,
        z1=end,
    )


@jax.custom_jvp
def _log_mass(
    lower: Array, upper: Array, width: Array, log_width: Array, loc: Array, log_scale: Array
) -> Array:
    p = _parts(lower, upper, width, loc, log_scale)
    beside = -p.near - LN2 + elementary.log1m_exp(p.delta, log_width - log_scale)
    lost = 0.5 * (p.lower_tail + p.upper_tail)
    most = lost <= 0.5
    kept = jnp.where(most, lost, 0.0)
    vanishes = p.both_misses < jnp.finfo(loc.dtype).tiny
    half = jnp.where(
        vanishes, log_width - log_scale, jnp.log(jnp.where(vanishes, 1.0, p.both_misses))
    )
    around = jnp.where(most, -jnp.log1p(kept / (1.0 - kept)), half - LN2)
    return jnp.where(p.below | p.above, beside, around)


def _log_mass_jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    lower, upper, width, _, loc, log_scale = primals
    p = _parts(lower, upper, width, loc, log_scale)
    misses = jnp.where(p.both_misses > 0, p.both_misses, 1.0)

    def by_loc() -> Array:
        difference = jnp.expm1(p.z0) - jnp.expm1(-p.z1)  # of exp(z₀) and exp(-z₁)
        around = jnp.where(difference == 0, 0.0, difference / misses * p.inv_scale)
        outside = jnp.where(p.below, -p.inv_scale, p.inv_scale)
        return saturate(jnp.where(p.below | p.above, outside, around))

    def by_log_scale() -> Array:
        # Δ/(e^Δ - 1) is 1 at 0 and vanishes before the exponential overflows.
        delta = jnp.clip(p.delta, jnp.finfo(loc.dtype).tiny, math.log(jnp.finfo(loc.dtype).max) - 1)
        outside = p.near - delta / jnp.expm1(delta)
        moments = p.z0 * p.lower_tail - p.z1 * p.upper_tail
        around = jnp.where(p.both_misses > 0, moments / misses, -1.0)
        return saturate(jnp.where(p.below | p.above, outside, around))

    value = _log_mass(*primals)
    return value, elementary.weighted_tangents([by_loc, by_log_scale], tangents[4:], value)


_log_mass.defjvp(_log_mass_jvp, symbolic_zeros=True)


def pixel_log_prob(
    pixels: ArrayLike, loc: ArrayLike, log_scale: ArrayLike, eps: float = 0.1
) -> Array:
    """Log mass of an 8-bit value: the ln of the distribution's probability of its bin, in nats.

    Its mean, by :func:`bits_per_dim`, is the exact code length of the pixels, which compares across
    likelihoods; that of :func:`log_prob` is a density's, which does not.

    Args:
      pixels: uint8 in 0..255, any shape.
      loc: μ of the *mapped* pixels, broadcastable with ``pixels``.
      log_scale: ln b, broadcastable with ``pixels``.
      eps: ε of the map, in [0, 0.5), a Python number.

    Returns:
      Log masses <= 0 of the broadcast shape, finite for every uint8, |loc| <= 1e3 and
      -30 <= log_scale <= 30 in float32, with finite gradients. The relative error is at most
      32u (1 + condition). The 256 masses sum to 1.

    Raises:
      TypeError: ``pixels`` is not uint8.
      ValueError: ``eps`` is outside [0, 0.5), or the shapes do not broadcast.

    >>> levels = np.arange(256, dtype=np.uint8)
    >>> float(jnp.exp(pixel_log_prob(levels, loc=0.3, log_scale=-2.0)).sum().round(5))
    1.0
    >>> pixel_log_prob(np.uint8(255), loc=-900.0, log_scale=-5.0)
    Array(-133896..., dtype=float32)
    """
    eps = pixel_maps.check_eps(eps)
    return _pixel_log_prob(pixel_maps.as_uint8(pixels), loc, log_scale, eps)


@partial(jax.jit, static_argnames=("eps",))
def _pixel_log_prob(pixels: Array, loc: ArrayLike, log_scale: ArrayLike, eps: float) -> Array:
    return _log_mass(*_look_up(pixels, loc, log_scale, eps))


def pixel_pit(
    pixels: ArrayLike,
    loc: ArrayLike,
    log_scale: ArrayLike,
    eps: float = 0.1,
    key: Array | None = None,
) -> Array:
    """The probability integral transform of an 8-bit value, for calibration.

    The cdf of a discrete value takes few values and is not uniform. With a ``key`` the transform is
    a draw between the cdf at the two ends of the value's bin: exactly uniform on (0, 1) where the
    pixels follow the prediction. Without, it is the middle of the two, the mean of that draw.

    Args:
      pixels: uint8 in 0..255, any shape.
      loc: predicted μ of the mapped pixels, broadcastable with ``pixels``.
      log_scale: predicted ln b, broadcastable with ``pixels``.
      eps: ε of the map, in [0, 0.5), a Python number.
      key: a JAX random key, or None.

    Returns:
      Probabilities in [0, 1] of the broadcast shape. How to read their histogram: :func:`pit`.

    Raises:
      TypeError: ``pixels`` is not uint8.
      ValueError: ``eps`` is outside [0, 0.5), or the shapes do not broadcast.

    >>> pixel_pit(np.array([0, 255], np.uint8), loc=0.0, log_scale=1.0).round(3)
    Array([0.112..., 0.888...], dtype=float32)
    """
    eps = pixel_maps.check_eps(eps)
    return _pixel_pit(pixel_maps.as_uint8(pixels), loc, log_scale, eps, key)


@partial(jax.jit, static_argnames=("eps",))
def _pixel_pit(
    pixels: Array, loc: ArrayLike, log_scale: ArrayLike, eps: float, key: Array | None
) -> Array:
    lower, upper, _, _, loc, log_scale = _look_up(pixels, loc, log_scale, eps)
    inv_scale = jnp.exp(-log_scale)

    def cdf(t: Array) -> Array:
        z = _standardise(t, loc, inv_scale)
        tail = 0.5 * jnp.exp(-jnp.abs(z))
        return jnp.where(z > 0, 1.0 - tail, tail)

    low, high = cdf(lower), cdf(upper)
    share = 0.5 if key is None else jax.random.uniform(key, low.shape, low.dtype)
    return low + share * (high - low)
