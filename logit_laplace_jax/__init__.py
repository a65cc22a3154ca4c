"""The logit-Laplace likelihood for images in JAX: density, loss, discrete VAE.

>>> import jax.numpy as jnp
>>> import logit_laplace_jax as ll
>>> x = ll.map_pixels(jnp.array([0, 128, 255], jnp.uint8))
>>> ll.logit_laplace_loss(x, loc=0.0, log_scale=-1.0).shape
(3,)
"""

from logit_laplace_jax import likelihoods as likelihoods
from logit_laplace_jax.distribution import (
    LogitLaplace,
    cdf,
    log_prob,
    median,
    quantile,
    sample,
)
from logit_laplace_jax.losses import logit_laplace_loss, logit_laplace_pixel_loss
from logit_laplace_jax.pixels import bits_per_dim, map_pixels, unmap_pixels

__version__ = "0.1.0"

__all__ = [
    "LogitLaplace",
    "bits_per_dim",
    "cdf",
    "likelihoods",
    "log_prob",
    "logit_laplace_loss",
    "logit_laplace_pixel_loss",
    "map_pixels",
    "median",
    "quantile",
    "sample",
    "unmap_pixels",
]
