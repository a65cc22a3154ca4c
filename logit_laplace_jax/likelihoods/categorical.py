"""The 256-way categorical likelihood: no assumption on the shape, the ceiling."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from logit_laplace_jax.likelihoods import base


@dataclasses.dataclass(frozen=True)
class CategoricalLikelihood(base.Likelihood):
    """256 maps per channel: the logits of the values 0 to 255 (van den Oord et al. 2016, sec. 2).

    A discrete family has no density: the loss is the negative log mass of the value, and ignores
    ``noise``. Logits are clipped to ±1e6. ``reconstruct`` is the mean.

    >>> likelihood = CategoricalLikelihood()
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> likelihood.loss(pixels, jnp.zeros((1, 768)))  # ln 256
    Array([[5.545..., 5.545..., 5.545...]], dtype=float32)
    """

    name: ClassVar[str] = "categorical"

    @property
    def num_stats(self) -> int:
        """One logit per value."""
        return 256

    def log_probabilities(self, stats: Array) -> Array:
        """Log masses of all values: float32 [..., 256, C]."""
        logits = base.stack_stats(stats, self.num_stats)
        logits = jnp.clip(logits, -base.LOGIT_LIMIT, base.LOGIT_LIMIT)
        return jax.nn.log_softmax(logits, axis=-2)

    def _log_mass(self, pixels: Array, stats: Array) -> Array:
        # On the maps as they lie, channels in turns. An axis of their own for so few channels would
        # be mostly padding on a TPU, and getting there a copy of all logits.
        logits = base.floats(stats, self.num_stats)
        logits = jnp.clip(logits, -base.LOGIT_LIMIT, base.LOGIT_LIMIT)
        channels = pixels.shape[-1]
        level, channel = jnp.divmod(jnp.arange(logits.shape[-1]), channels)

        def of_channels(reduce: Callable[..., Array], values: Array, other: float) -> Array:
            each = [jnp.where(channel == c, values, other) for c in range(channels)]
            return jnp.stack([reduce(v, axis=-1) for v in each], axis=-1)

        def to_maps(values: Array) -> Array:
            maps = values[..., :1]
            for c in range(1, channels):
                maps = jnp.where(channel == c, values[..., c : c + 1], maps)
            return maps

        largest = lax.stop_gradient(of_channels(jnp.max, logits, -jnp.inf))
        total = of_channels(jnp.sum, jnp.exp(logits - to_maps(largest)), 0.0)
        chosen = level.astype(jnp.uint8) == to_maps(pixels)
        return of_channels(jnp.sum, jnp.where(chosen, logits, 0.0), 0.0) - largest - jnp.log(total)

    def log_mass(self, pixels: Array, stats: Array) -> Array:
        """Exact log mass of the 8-bit values, in nats: float32 [..., C], at most 0.

        The softmax passes NaN on by itself: another look at all logits is spared.
        """
        return -self.loss(pixels, stats)

    def _loss(self, pixels: Array, stats: Array, noise: Array | None) -> Array:
        return -self._log_mass(pixels, stats)

    def _bin_cdf(self, pixels: Array, stats: Array) -> tuple[Array, Array]:
        p, level = jnp.exp(self.log_probabilities(stats)), pixels[..., None, :]
        low = jnp.where(_levels() < level, p, 0.0).sum(axis=-2)
        high = jnp.where(_levels() <= level, p, 0.0).sum(axis=-2)
        return jnp.minimum(low, 1.0), jnp.where(pixels == 255, 1.0, jnp.minimum(high, 1.0))

    def _reconstruct(self, stats: Array) -> Array:
        """The mean of the value, divided by 255: float32 [..., C]."""
        return self._mean_and_median(stats)[0]

    def _mean_and_median(self, stats: Array) -> tuple[Array, Array]:
        p = jnp.exp(self.log_probabilities(stats))
        levels = lax.convert_element_type(_levels(), p.dtype)
        mean = jnp.clip((p * levels).sum(axis=-2) / (255.0 * p.sum(axis=-2)), 0.0, 1.0)
        below = (jnp.cumsum(p, axis=-2) < 0.5).sum(axis=-2)
        return mean, lax.convert_element_type(jnp.minimum(below, 255), p.dtype) / 255.0

    def _sample(self, key: Array, stats: Array) -> Array:
        log_p = self.log_probabilities(stats)
        drawn = jax.random.categorical(key, log_p, axis=-2)
        return lax.convert_element_type(drawn, log_p.dtype) / 255.0


def _levels() -> Array:
    """The values 0 to 255 along the axis of the logits: uint8 [256, 1]."""
    return lax.broadcasted_iota(jnp.uint8, (256, 1), 0)
