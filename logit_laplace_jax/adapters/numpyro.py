"""The logit-Laplace distribution for NumPyro.

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", arXiv:2102.12092, appendix A.3,
equation 2. Densities and entropies are in nats.
"""

from typing import Any, ClassVar

from jax import Array, lax
from jax import numpy as jnp
from jax.typing import ArrayLike

import logit_laplace_jax as ll
from logit_laplace_jax.adapters import _draws, _missing

try:
    from numpyro import distributions as dist
    from numpyro.distributions import constraints, transforms
    from numpyro.distributions.util import promote_shapes
except ModuleNotFoundError as error:
    raise _missing("numpyro", "numpyro", error) from None

__all__ = ["LogitLaplace"]


class LogitLaplace(dist.TransformedDistribution):
    r"""x = sigmoid(X) with X ~ Laplace(μ, b), on the open interval (0, 1).

    .. math::
        f(x \mid \mu, b) = \frac{1}{2 b\, x (1 - x)}
            \exp\left(-\frac{|\operatorname{logit} x - \mu|}{b}\right)

    It may be an observed or a latent site, a component of a mixture, or the marginal of a
    ``GaussianCopula``. As a latent site it is sampled in the unconstrained space of logit x. Next
    to 1 float32 has a resolution of 6e-8, so a latent x whose mass lies there (μ above 15 or so)
    needs x64, or ``TransformReparam``, which samples logit x itself.

    Under a further transform NumPyro takes it apart into a Laplace and a sigmoid, whose log density
    is NaN at 0 and 1; ``to_event`` before that transform keeps this class's.

    Args:
      loc: μ, any real, in logit space; the batch shape is its broadcast with ``log_scale``.
      log_scale: ln b, any real.
      validate_args: checks, outside of jit, that the parameters are finite and warns of values
        outside [0, 1]; NumPyro's global setting by default.

    Raises:
      ValueError: the shapes do not broadcast, or ``validate_args`` finds a NaN or an infinity.

    >>> d = LogitLaplace(jnp.array([0.0, 1.0]), -1.0)
    >>> d.batch_shape
    (2,)
    >>> d.log_prob(0.5)
    Array([ 1.6931472, -1.0251...], dtype=float32)

    As the likelihood of pixels x in (0, 1), with the unknown centre and scale shared:

    >>> import numpyro
    >>> def model(x):
    ...     loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
    ...     log_scale = numpyro.sample("log_scale", dist.Normal(-1.0, 1.0))
    ...     with numpyro.plate("pixels", x.size):
    ...         numpyro.sample("x", LogitLaplace(loc, log_scale), obs=x)
    """

    # NumPyro's `real` is "finite": it rejects NaN and both infinities.
    arg_constraints: ClassVar = {"loc": constraints.real, "log_scale": constraints.real}
    support = constraints.unit_interval  # the constant, which is what mixtures ask for
    reparametrized_params: ClassVar = ["loc", "log_scale"]
    transforms: ClassVar = [transforms.SigmoidTransform()]

    def __init__(
        self, loc: ArrayLike, log_scale: ArrayLike, *, validate_args: bool | None = None
    ) -> None:
        batch_shape = lax.broadcast_shapes(jnp.shape(loc), jnp.shape(log_scale))
        self.loc, self.log_scale = promote_shapes(loc, log_scale)
        dist.Distribution.__init__(self, batch_shape=batch_shape, validate_args=validate_args)

    @classmethod
    def gather_pytree_data_fields(cls) -> tuple[str, ...]:
        """The leaves: the two parameters, from which all else follows."""
        return ("loc", "log_scale")

    @property
    def base_dist(self) -> dist.Laplace:
        """The distribution of logit x, for NumPyro's ``TransformReparam``."""
        return dist.Laplace(self.loc, jnp.exp(self.log_scale), validate_args=False)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of shape ``sample_shape + batch_shape`` inside (0, 1), differentiable in both.

        Args:
          key: a JAX random key.
          sample_shape: leading dimensions of independent draws.

        >>> import jax
        >>> LogitLaplace(jnp.zeros(3), -1.0).sample(jax.random.key(0), (2,)).shape
        (2, 3)
        """
        return ll.sample(key, self.loc, self.log_scale, (*sample_shape, *self.batch_shape))

    rsample = sample

    def sample_with_intermediates(
        self, key: Array, sample_shape: tuple[int, ...] = ()
    ) -> tuple[Array, list[Array]]:
        """Draws and what ``log_prob`` needs to score them before they are rounded."""
        shape = (*sample_shape, *self.batch_shape)
        x, z = _draws.sample_with_noise(key, self.loc, self.log_scale, shape)
        return x, [z]

    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> Array:
        """Log density in nats; see :func:`logit_laplace_jax.log_prob`.

        -inf with gradients 0 at and beyond 0 and 1, also without ``validate_args``; NaN at NaN.

        Args:
          value: x, floating point, broadcastable with the batch shape.
          intermediates: those of ``sample_with_intermediates`` of this distribution.

        >>> LogitLaplace(0.0, 0.0, validate_args=False).log_prob(jnp.array([0.0, 0.5, 1.0]))
        Array([      -inf, 0.6931472,      -inf], dtype=float32)
        """
        if self._validate_args:
            # The warning only: NumPyro's mask would make -inf of NaN, and of subnormal x.
            self._validate_sample(value)
        if intermediates:
            return _draws.log_prob_of_noise(intermediates[0], self.loc, self.log_scale)
        return ll.log_prob(value, self.loc, self.log_scale)

    def cdf(self, value: ArrayLike) -> Array:
        """P(X <= value); see :func:`logit_laplace_jax.cdf`."""
        return ll.cdf(value, self.loc, self.log_scale)

    def log_cdf(self, value: ArrayLike) -> Array:
        """Log of the cdf, exact in the far tail; see :func:`logit_laplace_jax.log_cdf`."""
        return ll.log_cdf(value, self.loc, self.log_scale)

    def icdf(self, q: ArrayLike) -> Array:
        """Inverse of the cdf; see :func:`logit_laplace_jax.quantile`.

        Inside (0, 1) like the draws, where ``log_prob`` is finite, also for q = 0 and q = 1.
        """
        return _draws.interior(ll.quantile(q, self.loc, self.log_scale))

    @property
    def mean(self) -> Array:
        """Mean of x, in (0, 1), of the batch shape; see :func:`logit_laplace_jax.mean`."""
        return ll.mean(self.loc, self.log_scale)

    @property
    def variance(self) -> Array:
        """Variance of x, of the batch shape; see :func:`logit_laplace_jax.variance`."""
        return ll.variance(self.loc, self.log_scale)

    @property
    def mode(self) -> Array:
        """sigmoid(μ), and NaN where b >= 1; see :func:`logit_laplace_jax.mode`."""
        return ll.mode(self.loc, self.log_scale)

    def entropy(self) -> Array:
        """Differential entropy in nats; see :func:`logit_laplace_jax.entropy`."""
        return ll.entropy(self.loc, self.log_scale)


@dist.kl_divergence.register(LogitLaplace, LogitLaplace)
def _kl_divergence(p: LogitLaplace, q: LogitLaplace) -> Array:
    """KL(p‖q) in nats, in closed form."""
    return ll.kl_divergence(p.loc, p.log_scale, q.loc, q.log_scale)
