"""The discretised logistic likelihood (Kingma et al. 2016; Salimans et al. 2017, one component)."""

import dataclasses
from typing import ClassVar

from logit_laplace_jax.distribution import kernels
from logit_laplace_jax.likelihoods import location_scale


@dataclasses.dataclass(frozen=True)
class LogisticLikelihood(location_scale.LocationScale):
    """Logistic in y = 2v - 1 in [-1, 1]: maps of μ (0 is mid-grey), then of ln b.

    The loss is the negative log density of y, with z = (y-μ)/b: abs(z) + 2 ln(1 + exp(-abs(z))) +
    ln b. ``log_mass`` is Salimans et al.'s equation 2 with one component. The optimal b has no
    closed form: Newton's method on ln b, from the standard deviation's (the mean loss is convex in
    ln b). ``reconstruct`` is the median, μ.

    >>> import jax.numpy as jnp
    >>> likelihood = LogisticLikelihood()
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> likelihood.loss(pixels, jnp.zeros((1, 6)))
    Array([[1.626..., 1.386..., 1.626...]], dtype=float32)
    """

    name: ClassVar[str] = "logistic"
    closed_form: ClassVar[bool] = False
    kernel: ClassVar[type[kernels.Kernel]] = kernels.Logistic
