"""The logit-Laplace likelihood of DALL-E's dVAE (Ramesh et al. 2021, appendix A.3)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from logit_laplace_jax import distribution, losses
from logit_laplace_jax import pixels as pixel_maps
from logit_laplace_jax.likelihoods import base


@dataclasses.dataclass(frozen=True)
class LogitLaplaceLikelihood:
    """Two maps a channel: μ, then ln b.

    Attributes:
      eps: ε of the pixel map, in [0, 0.5).
      min_log_scale: soft floor of ln b, or None for none (the paper's choice). With a floor m the
        scale is ln b = m + softplus(raw - m): above m everywhere, within 0.02 of the raw value
        from m + 4 on, and with a gradient that never vanishes, unlike that of a hard maximum.

    >>> likelihood = LogitLaplaceLikelihood()
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> stats = jnp.zeros((1, 6))
    >>> likelihood.loss(pixels, stats).shape, likelihood.reconstruct(stats).tolist()
    ((1, 3), [[0.5, 0.5, 0.5]])
    """

    eps: float = 0.1
    min_log_scale: float | None = None

    name: ClassVar[str] = "logit_laplace"
    num_stats: ClassVar[int] = 2

    def __post_init__(self) -> None:
        pixel_maps.check_eps(self.eps)
        if self.min_log_scale is not None and not math.isfinite(self.min_log_scale):
            raise ValueError(f"min_log_scale must be finite or None, got {self.min_log_scale}")

    def parameters(self, stats: Array) -> tuple[Array, Array]:
        """(μ, ln b), each [..., C], with the floor applied.

        >>> LogitLaplaceLikelihood(min_log_scale=-5.0).parameters(jnp.array([0.0, -99.0]))[1]
        Array([-5.], dtype=float32)
        """
        loc, log_scale = base.split_stats(stats, self.num_stats)
        if self.min_log_scale is not None:
            log_scale = self.min_log_scale + jax.nn.softplus(log_scale - self.min_log_scale)
        return loc, log_scale

    def loss(self, pixels: Array, stats: Array) -> Array:
        """Negative log density of the mapped pixels, in nats a value: float32 [..., C]."""
        base.check_pixels(pixels, stats, self.num_stats)
        loc, log_scale = self.parameters(stats)
        return losses.logit_laplace_pixel_loss(pixels, loc, log_scale, eps=self.eps)

    def reconstruct(self, stats: Array) -> Array:
        """The median, clip((sigmoid(μ) - ε)/(1 - 2ε), 0, 1): float32 [..., C]."""
        return pixel_maps.unmap_pixels(distribution.median(*self.parameters(stats)), eps=self.eps)

    def sample(self, key: Array, stats: Array) -> Array:
        """A draw, mapped back and clipped to [0, 1]: float32 [..., C]."""
        return pixel_maps.unmap_pixels(
            distribution.sample(key, *self.parameters(stats)), eps=self.eps
        )

    def at_floor(self, stats: Array) -> Array:
        """Where the raw ln b lies at or below the floor: bool [..., C]; all False without one."""
        log_scale = base.split_stats(stats, self.num_stats)[1]
        if self.min_log_scale is None:
            return jnp.zeros(log_scale.shape, bool)
        return log_scale <= self.min_log_scale
