"""The training loss: the negative log density, elementwise, with hand-written derivatives.

Both losses return one value an element, like optax's losses; take the mean yourself. Their
derivative rule is linear in the tangents with coefficients computed in the same pass as the value
(sign(t-μ)/b and |t-μ|/b, t the logit of x), so reverse mode reads the data once, and forward mode
works as well, which a ``jax.custom_vjp`` would forbid.
"""

from __future__ import annotations

import warnings
from functools import partial

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax import distribution, pixel_map
from logit_laplace_jax.checks import RangeWarning, jit, suspect


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

    Warns:
      RangeWarning: on the first eager calls, x that reaches 0 or 1, or a scale where its logarithm
        belongs; always, one channel of μ for three of x.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> logit_laplace_loss(jnp.array([0.5, 0.9]), loc=0.0, log_scale=0.0)
    Array([-0.6931472 ,  0.48242...], dtype=float32)
    >>> jax.grad(lambda m: logit_laplace_loss(jnp.array([0.9, 0.2]), m, 0.0).mean())(0.1)
    Array(0., dtype=float32, weak_type=True)
    """
    suspect("x", x, _suspect_x)
    suspect("log_scale", log_scale, _suspect_log_scale)
    return _loss(x, loc, log_scale)


@jit
def _loss(x: ArrayLike, loc: ArrayLike, log_scale: ArrayLike) -> Array:
    _suspect_channels(jnp.shape(x), jnp.shape(loc))
    return -distribution.log_prob(x, loc, log_scale)


def logit_laplace_pixel_loss(
    pixels: ArrayLike, loc: ArrayLike, log_scale: ArrayLike, eps: float = 0.1
) -> Array:
    """The same loss straight from 8-bit pixels: logit_laplace_loss(map_pixels(pixels), ...).

    Compiled, the map is part of the loss's one pass: it reads one byte per value.

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

    >>> import jax.numpy as jnp
    >>> logit_laplace_pixel_loss(jnp.array([0, 128], jnp.uint8), loc=0.0, log_scale=0.0)
    Array([ 0.48242..., -0.6868...], dtype=float32)
    """
    suspect("log_scale", log_scale, _suspect_log_scale)
    return _pixel_loss(pixel_map.as_uint8(pixels), loc, log_scale, pixel_map.check_eps(eps))


@partial(jit, static_argnames=("eps",))
def _pixel_loss(pixels: Array, loc: ArrayLike, log_scale: ArrayLike, eps: float) -> Array:
    return _loss(pixel_map.map_pixels(pixels, eps), loc, log_scale)


def _suspect_x(low: float, high: float) -> str | None:
    if (low > 0 and high < 1) or low != low:
        return None
    return (
        f"x reaches from {low:g} to {high:g}; at 0, at 1 and beyond the loss is inf and has no "
        "gradient: pass x = map_pixels(pixels)"
    )


def _suspect_log_scale(low: float, high: float) -> str | None:
    if not low > 0:
        return None
    return f"log_scale is {low:g} or more everywhere: it is ln b, pass jnp.log(b) for a scale b"


def _suspect_channels(x: tuple[int, ...], loc: tuple[int, ...]) -> None:
    if len(x) > 1 and x[-1] == 3 and loc == (*x[:-1], 1):
        warnings.warn(
            f"loc of shape {loc} gives all three channels of x one location; was one channel "
            "of the statistics meant for each?",
            RangeWarning,
            stacklevel=2,
        )
