"""The logit-Laplace distribution for distrax.

Source: Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation", arXiv:2102.12092, appendix A.3,
equation 2. Densities and entropies are in nats.
"""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

import logit_laplace_jax as ll
from logit_laplace_jax.adapters import _draws, _missing

try:
    import distrax
except (ModuleNotFoundError, AttributeError) as error:  # the latter from a TFP too old for jax
    raise _missing("distrax", "distrax", error) from None

from logit_laplace_jax.adapters import tfp as tfp_adapter  # distrax stands on TFP

__all__ = ["LogitLaplace"]


class LogitLaplace(distrax.Distribution):
    r"""x = sigmoid(X) with X ~ Laplace(μ, b), on the open interval (0, 1).

        f(x | μ, b) = exp(-|logit x - μ| / b) / (2 b x (1 - x))

    A pytree like distrax's own distributions, and indexable along its batch shape. ``log_prob`` is
    -inf, with gradients 0, at and beyond 0 and 1. Samples are reparameterised: differentiable in
    both parameters. ``kl_divergence`` is in closed form, also against
    ``logit_laplace_jax.adapters.tfp.LogitLaplace`` and against a Laplace distribution under a
    ``Sigmoid`` bijector, of distrax or of TFP.

    Args:
      loc: μ, any real, in logit space; the batch shape is its broadcast with ``log_scale``.
      log_scale: ln b, any real. (Not b: this is no ``scale`` of distrax's.)

    Raises:
      ValueError: the shapes do not broadcast.

    >>> d = LogitLaplace(jnp.array([0.0, 1.0]), -1.0)
    >>> d.batch_shape
    (2,)
    >>> d.log_prob(0.5)
    Array([ 1.6931472, -1.0251...], dtype=float32)
    >>> d.sample(seed=0, sample_shape=3).shape
    (3, 2)
    >>> d[1].median()
    Array(0.7310586, dtype=float32)
    """

    equiv_tfp_cls = tfp_adapter.LogitLaplace

    def __init__(self, loc: ArrayLike, log_scale: ArrayLike) -> None:
        super().__init__()
        self._loc, self._log_scale = jnp.asarray(loc), jnp.asarray(log_scale)
        jnp.broadcast_shapes(self._loc.shape, self._log_scale.shape)  # or a ValueError, here

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(): a scalar."""
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast shape of the parameters."""
        # Not kept: inside vmap the parameters have one axis less.
        return jnp.broadcast_shapes(self._loc.shape, self._log_scale.shape)

    @property
    def loc(self) -> Array:
        """μ, in logit space, of the batch shape."""
        return jnp.broadcast_to(self._loc, self.batch_shape)

    @property
    def log_scale(self) -> Array:
        """ln b, of the batch shape."""
        return jnp.broadcast_to(self._log_scale, self.batch_shape)

    @property
    def _pair(self) -> tuple[Array, Array]:
        return self._loc, self._log_scale

    def _sample_n(self, key: Array, n: int) -> Array:
        return ll.sample(key, *self._pair, shape=(n, *self.batch_shape))

    def _sample_n_and_log_prob(self, key: Array, n: int) -> tuple[Array, Array]:
        return _draws.sample_and_log_prob(key, *self._pair, shape=(n, *self.batch_shape))

    def log_prob(self, value: ArrayLike) -> Array:
        """Log density in nats; see :func:`logit_laplace_jax.log_prob`.

        >>> LogitLaplace(0.0, 0.0).log_prob(jnp.array([0.0, 0.5, 1.0]))
        Array([      -inf, 0.6931472,      -inf], dtype=float32)
        """
        return ll.log_prob(value, *self._pair)

    def cdf(self, value: ArrayLike) -> Array:
        """P(X <= value); see :func:`logit_laplace_jax.cdf`."""
        return ll.cdf(value, *self._pair)

    def log_cdf(self, value: ArrayLike) -> Array:
        """Log of the cdf, exact in the far tail; see :func:`logit_laplace_jax.log_cdf`."""
        return ll.log_cdf(value, *self._pair)

    def survival_function(self, value: ArrayLike) -> Array:
        """P(X > value); see :func:`logit_laplace_jax.survival`."""
        return ll.survival(value, *self._pair)

    def log_survival_function(self, value: ArrayLike) -> Array:
        """Log of P(X > value); see :func:`logit_laplace_jax.log_survival`."""
        return ll.log_survival(value, *self._pair)

    def mean(self) -> Array:
        """Mean of x, in (0, 1), of the batch shape; see :func:`logit_laplace_jax.mean`."""
        return ll.mean(*self._pair)

    def variance(self) -> Array:
        """Variance of x, of the batch shape; see :func:`logit_laplace_jax.variance`."""
        return ll.variance(*self._pair)

    def median(self) -> Array:
        """sigmoid(μ), of the batch shape; see :func:`logit_laplace_jax.median`."""
        return ll.median(*self._pair)

    def mode(self) -> Array:
        """sigmoid(μ), and NaN where b >= 1; see :func:`logit_laplace_jax.mode`."""
        return ll.mode(*self._pair)

    def entropy(self) -> Array:
        """Differential entropy in nats; see :func:`logit_laplace_jax.entropy`."""
        return ll.entropy(*self._pair)

    def __getitem__(self, index: Any) -> "LogitLaplace":
        """The distribution at an index or a slice of the batch shape.

        Raises:
          IndexError: the index does not fit the batch shape.
        """
        # NumPy's positions and not the index itself: JAX would clamp one that is out of range.
        positions = np.arange(np.prod(self.batch_shape, dtype=int)).reshape(self.batch_shape)[index]
        return LogitLaplace(self.loc.reshape(-1)[positions], self.log_scale.reshape(-1)[positions])


# distrax dispatches through TFP's table of pairs, in which the TFP adapter has those without us.
_ours, _distrax_s = {LogitLaplace, tfp_adapter.LogitLaplace}, {LogitLaplace, distrax.Transformed}
_all = (*_ours, distrax.Transformed, distrax.Transformed.equiv_tfp_cls)
tfp_adapter.register_kl(
    [pair for pair in itertools.product(_all, _all) if _ours & {*pair} and _distrax_s & {*pair}],
    (distrax.Laplace, tfp_adapter.tfd.Laplace),
    (distrax.Sigmoid, tfp_adapter.tfb.Sigmoid),
)
