"""The normal likelihood on the line: the L2 loss, with a scale."""

import dataclasses
from typing import ClassVar

from logit_laplace_jax.distribution import kernels
from logit_laplace_jax.likelihoods import location_scale


@dataclasses.dataclass(frozen=True)
class NormalLikelihood(location_scale.LocationScale):
    """Normal in y = 2v - 1 in [-1, 1]: maps of μ (0 is mid-grey), then of ln b, b the deviation.

    The loss is the negative log density of y, (y-μ)²/2b² + ln b + ln √(2π): with b = 1 half the
    squared error. With scale="optimal" it is sigma-VAE's objective (Rybkin et al. 2021;
    there for v: its b is half as large), the mean squared error's logarithm. The first and last
    bins take the tails. ``reconstruct`` is the median, μ.

    >>> import jax.numpy as jnp
    >>> likelihood = NormalLikelihood(scale="fixed", fixed_scale=1.0)
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> likelihood.loss(pixels, jnp.zeros((1, 3)))
    Array([[1.4189..., 0.9189..., 1.4189...]], dtype=float32)
    """

    name: ClassVar[str] = "normal"
    scale_power: ClassVar[int] = 2
    kernel: ClassVar[type[kernels.Kernel]] = kernels.Normal
