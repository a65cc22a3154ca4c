"""The normal likelihood truncated to the range of the pixels."""

import dataclasses
from typing import ClassVar

from logit_laplace_jax.distribution import kernels
from logit_laplace_jax.likelihoods import truncated


@dataclasses.dataclass(frozen=True)
class TruncatedNormalLikelihood(truncated.Truncated):
    """Normal in y = 2v - 1, renormalised on [-1, 1]: maps of μ (0 is mid-grey), then of ln b.

    The loss is the negative log density of y: that of the normal, plus ln(Φ((1-μ)/b) -
    Φ((-1-μ)/b)). μ outside of [-1, 1] gives densities that fall from one end on. The optimal b is
    found by Newton's method on ln b, in [min_log_scale, 3]. ``reconstruct`` is the mode, μ clipped.

    >>> import jax.numpy as jnp
    >>> likelihood = TruncatedNormalLikelihood(scale="fixed", fixed_scale=1.0)
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> likelihood.loss(pixels, jnp.zeros((1, 3)))
    Array([[1.037..., 0.537..., 1.037...]], dtype=float32)
    """

    name: ClassVar[str] = "truncated_normal"
    scale_power: ClassVar[int] = 2
    kernel: ClassVar[type[kernels.Tailed]] = kernels.Normal
