"""The distribution as an object: a pytree of its two parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from logit_laplace_jax import distribution, pixel_masses


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LogitLaplace:
    """A logit-Laplace distribution, or a batch of them.

    The methods are the library's functions with the parameters filled in. An instance passes
    through ``jit``, ``vmap``, ``scan`` and tree maps like any other pytree. Two instances are equal
    if their parameters have the same shapes, types and values.

    Attributes:
      loc: μ, any real, in logit space.
      log_scale: ln b, broadcastable with ``loc``.

    >>> d = LogitLaplace(jnp.array([0.0, 1.0]), -1.0)
    >>> d
    LogitLaplace(loc=Array([0., 1.], dtype=float32), log_scale=-1.0)
    >>> d.batch_shape
    (2,)
    >>> jax.jit(lambda d: d.median())(d)
    Array([0.5      , 0.7310586], dtype=float32)
    """

    loc: ArrayLike
    log_scale: ArrayLike

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The broadcast shape of the parameters."""
        return jnp.broadcast_shapes(jnp.shape(self.loc), jnp.shape(self.log_scale))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LogitLaplace):
            return NotImplemented
        pairs = ((self.loc, other.loc), (self.log_scale, other.log_scale))
        same_types = all(jnp.result_type(a) == jnp.result_type(b) for a, b in pairs)
        return same_types and all(np.array_equal(a, b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]  # equal by value, and the values are arrays

    def broadcast_to(self, shape: tuple[int, ...]) -> LogitLaplace:
        """The same with both parameters of the given shape.

        Raises:
          ValueError: the batch shape does not broadcast to ``shape``.

        >>> LogitLaplace(0.0, jnp.zeros(3)).broadcast_to((2, 3)).loc.shape
        (2, 3)
        """
        loc, log_scale = (jnp.broadcast_to(p, shape) for p in (self.loc, self.log_scale))
        return LogitLaplace(loc, log_scale)

    @classmethod
    def fit(
        cls,
        x: ArrayLike,
        axis: int | tuple[int, ...] | None = None,
        where: ArrayLike | None = None,
    ) -> LogitLaplace:
        """The maximum-likelihood distribution of values in (0, 1); see :func:`fit`."""
        return cls(*distribution.fit(x, axis, where))

    def log_prob(self, x: ArrayLike) -> Array:
        """Log density in nats; see :func:`log_prob`."""
        return distribution.log_prob(x, self.loc, self.log_scale)

    def score(self, x: ArrayLike) -> tuple[Array, Array]:
        """Derivatives of the log density in loc and log_scale; see :func:`score`."""
        return distribution.score(x, self.loc, self.log_scale)

    def cdf(self, x: ArrayLike) -> Array:
        """P(X <= x); see :func:`cdf`."""
        return distribution.cdf(x, self.loc, self.log_scale)

    def log_cdf(self, x: ArrayLike) -> Array:
        """ln P(X <= x); see :func:`log_cdf`."""
        return distribution.log_cdf(x, self.loc, self.log_scale)

    def survival(self, x: ArrayLike) -> Array:
        """P(X > x); see :func:`survival`."""
        return distribution.survival(x, self.loc, self.log_scale)

    def prob(self, x: ArrayLike) -> Array:
        """Density of x, exp of :meth:`log_prob`."""
        return jnp.exp(self.log_prob(x))

    def log_survival(self, x: ArrayLike) -> Array:
        """ln P(X > x); see :func:`log_survival`."""
        return distribution.log_survival(x, self.loc, self.log_scale)

    def pit(self, x: ArrayLike) -> Array:
        """The probability integral transform; see :func:`pit`."""
        return distribution.pit(x, self.loc, self.log_scale)

    def quantile(self, p: ArrayLike) -> Array:
        """Inverse of the cdf; see :func:`quantile`."""
        return distribution.quantile(p, self.loc, self.log_scale)

    def isf(self, q: ArrayLike) -> Array:
        """Inverse of the survival function; see :func:`isf`."""
        return distribution.isf(q, self.loc, self.log_scale)

    def central_interval(self, mass: ArrayLike) -> tuple[Array, Array]:
        """(low, high) that hold ``mass`` between them; see :func:`central_interval`."""
        return distribution.central_interval(mass, self.loc, self.log_scale)

    def sample(self, key: Array, shape: int | tuple[int, ...] | None = None) -> Array:
        """Draws of the given full shape; see :func:`sample`."""
        return distribution.sample(key, self.loc, self.log_scale, shape)

    def mean(self) -> Array:
        """Mean of x; see :func:`mean`."""
        return distribution.mean(self.loc, self.log_scale)

    def variance(self) -> Array:
        """Variance of x; see :func:`variance`."""
        return distribution.variance(self.loc, self.log_scale)

    def stddev(self) -> Array:
        """Standard deviation of x, the root of :meth:`variance`."""
        return jnp.sqrt(self.variance())

    def median(self) -> Array:
        """Median of x; see :func:`median`."""
        return distribution.median(self.loc, self.log_scale)

    def mode(self) -> Array:
        """Interior mode of x, or NaN; see :func:`mode`."""
        return distribution.mode(self.loc, self.log_scale)

    def entropy(self) -> Array:
        """Differential entropy in nats; see :func:`entropy`."""
        return distribution.entropy(self.loc, self.log_scale)

    def fisher_information(self) -> tuple[Array, Array]:
        """Diagonal of the Fisher information; see :func:`fisher_information`."""
        return distribution.fisher_information(self.loc, self.log_scale)

    def kl_divergence(self, other: LogitLaplace) -> Array:
        """KL(self‖other) in nats; see :func:`kl_divergence`."""
        return distribution.kl_divergence(self.loc, self.log_scale, other.loc, other.log_scale)

    def pixel_log_prob(self, pixels: ArrayLike, eps: float = 0.1) -> Array:
        """Log mass of 8-bit values in nats; see :func:`pixel_log_prob`."""
        return pixel_masses.pixel_log_prob(pixels, self.loc, self.log_scale, eps)

    def pixel_pit(self, pixels: ArrayLike, eps: float = 0.1, key: Array | None = None) -> Array:
        """The probability integral transform of 8-bit values; see :func:`pixel_pit`."""
        return pixel_masses.pixel_pit(pixels, self.loc, self.log_scale, eps, key)

    def __getitem__(self, index: Any) -> LogitLaplace:
        """The distributions at an index of the batch, as of an array of shape ``batch_shape``."""
        loc, log_scale = jnp.broadcast_arrays(self.loc, self.log_scale)
        return LogitLaplace(loc[index], log_scale[index])

    def __iter__(self) -> Iterator[LogitLaplace]:
        """The distributions along the first axis of the batch."""
        loc, log_scale = jnp.broadcast_arrays(self.loc, self.log_scale)
        return (LogitLaplace(*pair) for pair in zip(loc, log_scale, strict=True))
