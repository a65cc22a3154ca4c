"""What every likelihood offers to the model, the step and the evaluation."""

from typing import Protocol

import jax.numpy as jnp
from jax import Array


class Likelihood(Protocol):
    """A family of distributions for 8-bit pixels, given the decoder's statistics.

    ``stats`` is [..., C · num_stats]: all channels' first statistic, then all channels' second, as
    in DALL-E. ``pixels`` is uint8 [..., C]. Instances are frozen and hashable.
    """

    @property
    def name(self) -> str:
        """The name in the registry."""

    @property
    def num_stats(self) -> int:
        """Feature maps a colour channel."""

    def loss(self, pixels: Array, stats: Array) -> Array:
        """Negative log density of every value, in nats: float32 [..., C]."""

    def reconstruct(self, stats: Array) -> Array:
        """The point estimate of the pixels in [0, 1]: float32 [..., C]."""

    def sample(self, key: Array, stats: Array) -> Array:
        """A draw of the pixels in [0, 1]: float32 [..., C]."""

    def at_floor(self, stats: Array) -> Array:
        """Where the predicted scale lies at or below its floor: bool [..., C]."""


def split_stats(stats: Array, num_stats: int) -> list[Array]:
    """Splits [..., C · num_stats] into ``num_stats`` arrays [..., C], in float32 at least.

    Raises:
      ValueError: the last axis is not a multiple of ``num_stats``.

    >>> [a.tolist() for a in split_stats(jnp.arange(4.0), 2)]
    [[0.0, 1.0], [2.0, 3.0]]
    """
    import chex  # on first use: see distribution.sample

    chex.assert_type(stats, float)
    maps = stats.shape[-1]
    if maps % num_stats:
        raise ValueError(f"stats have {maps} maps, not a multiple of {num_stats} a channel")
    stats = stats.astype(jnp.promote_types(stats.dtype, jnp.float32))
    return jnp.split(stats, num_stats, axis=-1)


def check_pixels(pixels: Array, stats: Array, num_stats: int) -> None:
    """Asserts that ``pixels`` is uint8 [..., C] for ``stats`` [..., C · num_stats].

    Raises:
      AssertionError: dtype or shape differ (chex).

    >>> check_pixels(jnp.zeros((2, 3), jnp.uint8), jnp.zeros((2, 6)), 2)
    """
    import chex  # on first use: see distribution.sample

    chex.assert_type(pixels, jnp.uint8)
    chex.assert_shape(pixels, (*stats.shape[:-1], stats.shape[-1] // num_stats))
