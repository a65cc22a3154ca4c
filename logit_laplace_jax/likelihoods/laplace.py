"""The Laplace likelihood on the line: the L1 loss, with a scale."""

import dataclasses
from typing import ClassVar

from logit_laplace_jax.distribution import kernels
from logit_laplace_jax.likelihoods import location_scale


@dataclasses.dataclass(frozen=True)
class LaplaceLikelihood(location_scale.LocationScale):
    """Laplace in y = 2v - 1 in [-1, 1]: maps of μ (0 is mid-grey), then of ln b.

    The loss is the negative log density of y, abs(y-μ)/b + ln b + ln 2: with b = 1 the absolute
    error. The optimal b is the mean absolute deviation. The first and last bins take the tails.
    ``reconstruct`` is the median, μ.

    >>> import jax.numpy as jnp
    >>> likelihood = LaplaceLikelihood()
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> likelihood.loss(pixels, jnp.zeros((1, 6)))
    Array([[1.693..., 0.697..., 1.693...]], dtype=float32)
    """

    name: ClassVar[str] = "laplace"
    kernel: ClassVar[type[kernels.Kernel]] = kernels.Laplace
