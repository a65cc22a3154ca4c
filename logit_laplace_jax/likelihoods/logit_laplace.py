"""The logit-Laplace likelihood of DALL-E's dVAE (Ramesh et al. 2021, appendix A.3)."""

import dataclasses
from typing import ClassVar

from jax import Array

from logit_laplace_jax import losses, pixel_bins
from logit_laplace_jax.distribution import kernels
from logit_laplace_jax.likelihoods import location_scale


@dataclasses.dataclass(frozen=True)
class LogitLaplaceLikelihood(location_scale.LogitLocationScale):
    """Laplace in t = logit x, x = (1-2ε)v + ε: maps of μ, then of ln b, both in logit space.

    The loss is the negative log density of the mapped pixel x (the paper's equation 2), that of
    ``logit_laplace_pixel_loss``; ``log_mass`` that of ``pixel_log_prob``. The paper has eps=0.1 and
    no floor. The optimal b is the mean absolute deviation in logit space. ``reconstruct`` is the
    median, clip((sigmoid(μ) - ε)/(1 - 2ε), 0, 1).

    >>> import jax.numpy as jnp
    >>> likelihood = LogitLaplaceLikelihood()
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> stats = jnp.zeros((1, 6))
    >>> likelihood.loss(pixels, stats).shape, likelihood.reconstruct(stats).tolist()
    ((1, 3), [[0.5, 0.5, 0.5]])
    >>> LogitLaplaceLikelihood(min_log_scale=-5.0).parameters(jnp.array([0.0, -99.0]))[1]
    Array([-5.], dtype=float32)
    """

    name: ClassVar[str] = "logit_laplace"
    kernel: ClassVar[type[kernels.Kernel]] = kernels.Laplace

    def _loss(self, pixels: Array, stats: Array, noise: Array | None) -> Array:
        loc, log_scale = self.parameters(stats, pixels, noise)
        if noise is None:
            return losses.logit_laplace_pixel_loss(pixels, loc, log_scale, eps=self.eps)
        x = pixel_bins.unit_interval(pixels, noise, loc.dtype, self.eps)
        return losses.logit_laplace_loss(x, loc, log_scale)
