"""The closed-form scale of a batch (``scale`` optimal), the same on any number of devices.

A decoder that predicts μ only leaves the scale to the data: the best one is the mean absolute
deviation for a Laplace likelihood, the root mean square for a normal one (σ-VAE: Rybkin,
Daniilidis, Levine 2021, "Simple and Effective VAE Training with Calibrated Decoders",
arXiv:2006.13202, section 3.3). In training it is that of the whole batch, over all devices. In
evaluation it is that of all evaluated images: a batch's own would make the numbers depend on the
batch size.
"""

import dataclasses
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from logit_laplace_jax.likelihoods import Likelihood


def is_optimal(likelihood: Likelihood) -> bool:
    """Whether the likelihood's scale comes from the data in closed form.

    >>> from logit_laplace_jax import likelihoods
    >>> is_optimal(likelihoods.get("normal", scale="optimal"))
    True
    """
    return getattr(likelihood, "scale", None) == "optimal"


def log_scale_of(likelihood: Likelihood, mean_moment: Array) -> Array:
    """ln of the scale whose moment over the images has that mean, at or above the floor.

    >>> from logit_laplace_jax import likelihoods
    >>> log_scale_of(likelihoods.get("normal", scale="optimal"), jnp.array(1.0))
    Array(0., dtype=float32)
    """
    family = cast(Any, likelihood)
    floor = -np.inf if family.min_log_scale is None else family.min_log_scale
    tiny = jnp.finfo(jnp.float32).tiny
    return jnp.maximum(jnp.log(jnp.maximum(mean_moment, tiny)) / family.scale_power, floor)


def batch_moment(
    likelihood: Likelihood, pixels: Array, stats: Array, axis_name: str | None
) -> Array:
    """The mean moment of a batch, over all devices of ``axis_name``; no gradient goes through."""
    moment = lax.stop_gradient(cast(Any, likelihood).optimal_scale_moment(pixels, stats)).mean()
    return moment if axis_name is None else lax.pmean(moment, axis_name)


def at_log_scale(
    likelihood: Likelihood, stats: Array, log_scale: Array
) -> tuple[Likelihood, Array]:
    """The same family with ln b as a second map, and the statistics with that map.

    Args:
      likelihood: a likelihood whose scale is ``optimal``.
      stats: float [B, H, W, C], its one map a channel.
      log_scale: ln b, a scalar or [B].
    """
    predicted = dataclasses.replace(cast(Any, likelihood), scale="per_pixel", min_log_scale=None)
    rows = jnp.asarray(log_scale, jnp.float32).reshape(-1, 1, 1, 1)
    maps = jnp.broadcast_to(rows, stats.shape)
    return predicted, jnp.concatenate([stats.astype(jnp.float32), maps], axis=-1)
