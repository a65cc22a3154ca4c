"""The logit-normal likelihood: normal where DALL-E's is Laplace."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax import Array

from logit_laplace_jax.distribution import elementary, kernels
from logit_laplace_jax.likelihoods import location_scale


@dataclasses.dataclass(frozen=True)
class LogitNormalLikelihood(location_scale.LogitLocationScale):
    """Normal in t = logit x, x = (1-2ε)v + ε: maps of μ, then of ln b, both in logit space.

    The loss is the negative log density of the mapped pixel x, (t-μ)²/2b² + ln b + ln √(2π) +
    ln x + ln(1-x) (Aitchison and Shen 1980). The optimal b is the root mean squared deviation in
    logit space. ``reconstruct`` is the median, sigmoid(μ) mapped back.

    >>> likelihood = LogitNormalLikelihood()
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> likelihood.loss(pixels, jnp.zeros((1, 6)))
    Array([[ 0.924..., -0.467...,  0.924...]], dtype=float32)
    """

    name: ClassVar[str] = "logit_normal"
    scale_power: ClassVar[int] = 2
    kernel: ClassVar[type[kernels.Kernel]] = kernels.Normal

    def _loss(self, pixels: Array, stats: Array, noise: Array | None) -> Array:
        loc, log_scale = self.parameters(stats, pixels, noise)
        x = self._mapped(pixels, noise, loc)
        return elementary.one_pass(self._nll_at, elementary.ACCELERATORS, x, loc, log_scale)

    def _nll_at(self, x: Array, loc: Array, log_scale: Array) -> Array:
        """Negative log density of the mapped pixel x."""
        inside = elementary.inside(x)
        safe = jnp.where(inside, x, 0.5)
        t = elementary.logit(safe)
        value = self._nll(t, loc, log_scale) + elementary.log_jacobian_at(safe, t)
        return jnp.where(inside, value, jnp.inf)
