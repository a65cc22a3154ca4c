"""The Laplace likelihood truncated to the range of the pixels."""

import dataclasses
from typing import ClassVar

from logit_laplace_jax.distribution import kernels
from logit_laplace_jax.likelihoods import truncated


@dataclasses.dataclass(frozen=True)
class TruncatedLaplaceLikelihood(truncated.Truncated):
    """Laplace in y = 2v - 1, renormalised on [-1, 1]: maps of μ (0 is mid-grey), then of ln b.

    The loss is the negative log density of y: that of the Laplace, plus ln Z with Z = 1 -
    (exp((μ-1)/b) + exp(-(1+μ)/b))/2 for μ in [-1, 1]. For μ outside the density is exponential
    from one end on, whatever μ is. The optimal b is found by Newton's method on ln b, in
    [min_log_scale, 3]. ``reconstruct`` is the mode, μ clipped.

    >>> import jax.numpy as jnp
    >>> likelihood = TruncatedLaplaceLikelihood(scale="fixed", fixed_scale=1.0)
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> likelihood.loss(pixels, jnp.zeros((1, 3)))
    Array([[1.234..., 0.238..., 1.234...]], dtype=float32)
    """

    name: ClassVar[str] = "truncated_laplace"
    kernel: ClassVar[type[kernels.Tailed]] = kernels.Laplace
