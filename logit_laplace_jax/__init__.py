"""The logit-Laplace likelihood for images in JAX: density, loss, discrete VAE.

>>> import jax.numpy as jnp
>>> import logit_laplace_jax as ll
>>> x = ll.map_pixels(jnp.array([0, 128, 255], jnp.uint8))
>>> ll.logit_laplace_loss(x, loc=0.0, log_scale=-1.0).shape
(3,)
"""

from logit_laplace_jax import likelihoods as likelihoods
from logit_laplace_jax.checks import debug_checks
from logit_laplace_jax.distribution import (
    cdf,
    central_interval,
    entropy,
    fisher_information,
    fit,
    isf,
    kl_divergence,
    log_cdf,
    log_prob,
    log_survival,
    mean,
    median,
    mode,
    pit,
    quantile,
    sample,
    score,
    survival,
    variance,
)
from logit_laplace_jax.logit_laplace import LogitLaplace
from logit_laplace_jax.losses import logit_laplace_loss, logit_laplace_pixel_loss
from logit_laplace_jax.pixel_map import bits_per_dim, map_pixels, unmap_pixels
from logit_laplace_jax.pixel_masses import pixel_log_prob, pixel_pit

__version__ = "0.1.0"

__all__ = [
    "LogitLaplace",
    "bits_per_dim",
    "cdf",
    "central_interval",
    "debug_checks",
    "entropy",
    "fisher_information",
    "fit",
    "isf",
    "kl_divergence",
    "likelihoods",
    "log_cdf",
    "log_prob",
    "log_survival",
    "logit_laplace_loss",
    "logit_laplace_pixel_loss",
    "map_pixels",
    "mean",
    "median",
    "mode",
    "pit",
    "pixel_log_prob",
    "pixel_pit",
    "quantile",
    "sample",
    "score",
    "survival",
    "unmap_pixels",
    "variance",
]


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*__all__, "__doc__", "__version__"]
