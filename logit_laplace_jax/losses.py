"""The training loss: the negative log density, elementwise, with hand-written derivatives.

Both losses return one value an element, like optax's losses; take the mean yourself. Their
derivative rule is linear in the tangents with coefficients computed in the same pass as the value
(sign(t-μ)/b and |t-μ|/b, t the logit of x), so reverse mode reads the data once, and forward mode
works as well, which a ``jax.custom_vjp`` would forbid.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax import distribution
from logit_laplace_jax import pixel_map as pixel_maps
from logit_laplace_jax.distribution import elementary


@jax.jit
def logit_laplace_loss(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    r"""Negative logit-Laplace log density: \|logit x - μ\|/b + ln b + ln 2 + ln x + ln(1-x).

    Source: Ramesh et al. 2021, appendix A.3, equation 2, with the sign turned. Minimised over both
    parameters, b becomes the mean absolute residual in logit space.

    Args:
      x: targets in (0, 1), floating point: pixels mapped by :func:`map_pixels`; any shape.
      loc: predicted μ, broadcastable with ``x``.
      log_scale: predicted ln b, broadcastable with ``x``.

    Returns:
      The loss of every element in nats, of the broadcast shape, in float32 at least. It may be
      negative: a density has no upper bound. It is +inf, with gradients 0, outside (0, 1).

    Raises:
      TypeError: ``x`` is an integer array (pixels that were not mapped).
      ValueError: the shapes do not broadcast.

    >>> logit_laplace_loss(jnp.array([0.5, 0.9]), loc=0.0, log_scale=0.0)
    Array([-0.6931472 ,  0.48242...], dtype=float32)
    >>> jax.grad(lambda m: logit_laplace_loss(jnp.array([0.9, 0.2]), m, 0.0).mean())(0.1)
    Array(0., dtype=float32, weak_type=True)
    """
    return -distribution.log_prob(x, loc, log_scale)


@lru_cache(maxsize=64)
def _level_constants(eps: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """logit φ(k) and ln φ(k)(1-φ(k)) of the 256 mapped levels, computed in long arithmetic.

    They belong to the mapped value as rounded to ``dtype``, the x that the float path sees.
    """
    x = pixel_maps.mapped_levels(eps, dtype).astype(np.longdouble)
    with np.errstate(divide="ignore"):
        m = np.minimum(x, 1 - x)
        t = np.copysign(np.log1p((1 - 2 * m) / m), x - 0.5)
        log_jacobian = np.log(x) + np.log1p(-x)
    return t.astype(dtype), log_jacobian.astype(dtype)


@jax.custom_jvp
def _pixel_nll(t: Array, log_jacobian: Array, loc: Array, log_scale: Array) -> Array:
    value = distribution.laplace_nll(t, loc, log_scale) + log_jacobian
    return jnp.where(jnp.isinf(t) & ~jnp.isnan(loc + log_scale), jnp.inf, value)


def _pixel_nll_jvp(
    primals: tuple[Array, Array, Array, Array], tangents: tuple[Any, Any, Any, Any]
) -> tuple[Array, Array]:
    t, _, loc, log_scale = primals

    def masked(index: int) -> Array:
        return jnp.where(
            jnp.isinf(t), 0.0, distribution.laplace_nll_partials(t, loc, log_scale)[index]
        )

    value = _pixel_nll(*primals)
    partials = [partial(masked, 0), partial(masked, 1)]
    return value, elementary.weighted_tangents(partials, tangents[2:], value)


_pixel_nll.defjvp(_pixel_nll_jvp, symbolic_zeros=True)


def logit_laplace_pixel_loss(
    pixels: ArrayLike, loc: ArrayLike, log_scale: ArrayLike, eps: float = 0.1
) -> Array:
    """The same loss straight from 8-bit pixels: logit_laplace_loss(map_pixels(pixels), ...).

    It reads one byte a value, and its logits and Jacobians are 256 exact constants. Equal to the
    float path to rounding.

    Args:
      pixels: uint8 in 0..255, any shape.
      loc: predicted μ of the *mapped* pixels, broadcastable with ``pixels``.
      log_scale: predicted ln b, broadcastable with ``pixels``.
      eps: ε of the map, in [0, 0.5), a Python number.

    Returns:
      The loss of every element in nats, of the broadcast shape, in float32 at least. With
      ``eps`` = 0 the levels 0 and 255 lie on the edge: +inf, with gradients 0.

    Raises:
      TypeError: ``pixels`` is not uint8.
      ValueError: ``eps`` is outside [0, 0.5), or the shapes do not broadcast.

    >>> logit_laplace_pixel_loss(np.array([0, 128], np.uint8), loc=0.0, log_scale=0.0)
    Array([ 0.48242..., -0.6868...], dtype=float32)
    """
    return _pixel_loss(pixel_maps.as_uint8(pixels), loc, log_scale, pixel_maps.check_eps(eps))


@partial(jax.jit, static_argnames=("eps",))
def _pixel_loss(pixels: Array, loc: ArrayLike, log_scale: ArrayLike, eps: float) -> Array:
    # The precision of map_pixels: with x64 on the constants are float64.
    constants = _level_constants(eps, jnp.result_type(float).name)
    t, log_jacobian = (pixel_maps.look_up(table, pixels) for table in constants)
    t, log_jacobian, loc, log_scale = distribution.broadcast(
        pixels=t, log_jacobian=log_jacobian, loc=loc, log_scale=log_scale
    )
    distribution.debug_parameters(loc, log_scale)
    return _pixel_nll(t, log_jacobian, loc, log_scale)
