"""The exact probability of an 8-bit value, and its probability integral transform.

A value k in 0..255 stands for the bin [k - ½, k + ½], mapped by the same affine map as the pixel;
the first bin reaches down to 0 and the last one up to 1, so that the 256 probabilities sum to one.
Unlike densities they compare across likelihoods: their mean logarithm is a code length.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax import distribution, pixel_bins, pixel_map
from logit_laplace_jax.checks import jit
from logit_laplace_jax.distribution import elementary
from logit_laplace_jax.distribution.kernels import Laplace


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

    >>> levels = jnp.arange(256, dtype=jnp.uint8)
    >>> float(jnp.exp(pixel_log_prob(levels, loc=0.3, log_scale=-2.0)).sum().round(5))
    1.0
    >>> pixel_log_prob(jnp.uint8(255), loc=-900.0, log_scale=-5.0)
    Array(-133896..., dtype=float32)
    """
    eps = pixel_map.check_eps(eps)
    return _pixel_log_prob(pixel_map.as_uint8(pixels), loc, log_scale, eps)


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

    >>> pixel_pit(jnp.array([0, 255], jnp.uint8), loc=0.0, log_scale=1.0).round(3)
    Array([0.112..., 0.888...], dtype=float32)
    """
    eps = pixel_map.check_eps(eps)
    return _pixel_pit(pixel_map.as_uint8(pixels), loc, log_scale, eps, key)


def _prepared(pixels: Array, loc: ArrayLike, log_scale: ArrayLike) -> tuple[Array, Array, Array]:
    """The pixels as numbers, μ and ln b, broadcast; in the precision of ``map_pixels`` at least."""
    levels = jnp.asarray(pixels).astype(jnp.result_type(float))
    levels, loc, log_scale = distribution.broadcast(pixels=levels, loc=loc, log_scale=log_scale)
    distribution.debug_parameters(loc, log_scale)
    return levels, loc, log_scale


@partial(jit, static_argnames=("eps",))
def _pixel_log_prob(pixels: Array, loc: ArrayLike, log_scale: ArrayLike, eps: float) -> Array:
    arguments = _prepared(pixels, loc, log_scale)
    return elementary.one_pass(partial(_log_mass, eps), elementary.GPUS, *arguments)


def _log_mass(eps: float, levels: Array, loc: Array, log_scale: Array) -> Array:
    bins = pixel_bins.logit_bins(levels, levels.dtype, eps)
    return Laplace.log_interval(
        elementary.scaled(bins.lower - loc, log_scale),
        elementary.scaled(bins.upper - loc, log_scale),
        elementary.scaled(bins.width, log_scale),
        bins.log_width - log_scale,
        bins.first,
        bins.last,
    )


@partial(jit, static_argnames=("eps",))
def _pixel_pit(
    pixels: Array, loc: ArrayLike, log_scale: ArrayLike, eps: float, key: Array | None
) -> Array:
    levels, loc, log_scale = _prepared(pixels, loc, log_scale)
    bins = pixel_bins.logit_bins(levels, levels.dtype, eps)
    low, high = (
        Laplace.cdf(elementary.scaled(end - loc, log_scale)) for end in (bins.lower, bins.upper)
    )
    low, high = jnp.where(bins.first, 0.0, low), jnp.where(bins.last, 1.0, high)
    share = 0.5 if key is None else jax.random.uniform(key, low.shape, low.dtype)
    return low + share * (high - low)
