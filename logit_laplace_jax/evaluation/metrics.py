"""Per-image measures of a reconstruction. Images are [..., H, W, C] in [0, 1]."""

import chex
import jax.numpy as jnp
from jax import Array

_SMALLEST_MSE = 1e-10


def mean_squared_error(a: Array, b: Array) -> Array:
    """Mean squared difference of each image: [B, H, W, C] twice to float32 [B].

    >>> mean_squared_error(jnp.zeros((2, 4, 4, 3)), jnp.full((2, 4, 4, 3), 0.5)).tolist()
    [0.25, 0.25]
    """
    chex.assert_equal_shape([a, b])
    return jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)), axis=(-3, -2, -1))


def psnr(mse: Array) -> Array:
    """Peak signal-to-noise ratio in decibels for a peak of 1: -10 log10 mse.

    An image reproduced to better than 1e-10 counts as 100 dB, so that a mean stays finite.

    >>> [round(float(value), 3) for value in psnr(jnp.array([0.01, 0.0]))]
    [20.0, 100.0]
    """
    return -10.0 * jnp.log10(jnp.maximum(mse, _SMALLEST_MSE))
