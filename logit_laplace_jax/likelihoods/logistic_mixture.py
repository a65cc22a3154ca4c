"""PixelCNN++'s discretised mixture of logistics (Salimans et al. 2017, sections 2.1 and 2.2)."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from logit_laplace_jax import pixel_bins
from logit_laplace_jax.distribution import elementary, kernels
from logit_laplace_jax.likelihoods import base


class Mixture(NamedTuple):
    """The parameters, each [..., C, K]; ``coefficients`` is None where channels are independent."""

    log_weights: Array
    means: Array
    log_scales: Array
    coefficients: Array | None

    def shifted(self, y: Array | None) -> Array:
        """The means given the channels before: [..., C, K].

        ``y`` [..., C] or [..., C, K] holds the channels' values in [-1, 1]. Equation 3: green is
        shifted by c₀ times red, blue by c₁ times red and c₂ times green.
        """
        if self.coefficients is None or y is None:
            return self.means
        red, green = (y[..., i, None] if y.ndim < self.means.ndim else y[..., i, :] for i in (0, 1))
        c, m = self.coefficients, self.means
        return jnp.stack(
            [
                m[..., 0, :],
                m[..., 1, :] + c[..., 0, :] * red,
                m[..., 2, :] + c[..., 1, :] * red + c[..., 2, :] * green,
            ],
            axis=-2,
        )


@dataclasses.dataclass(frozen=True)
class LogisticMixtureLikelihood(base.Likelihood):
    """Mixture of logistics in y = 2v - 1 in [-1, 1].

    The loss is the negative log density of y, ``log_mass`` the paper's equation 2. Maps of each
    channel: K logits of the weights, K means, K log scales and, where coupled, K coefficients.

    Coupled, the channels of a pixel share the mixture's indicator (its logits are the mean of the
    channels' logit maps), and the means of green and blue depend linearly on the 8-bit values of
    the channels before, by coefficients tanh'd into (-1, 1): red's maps hold those of green from
    red, green's those of blue from red, blue's those of blue from green. Values stay one a channel,
    by the chain rule ln p(r), ln p(g|r), ln p(b|r,g): each conditional's 256 masses sum to one, and
    the sum over channels is the joint. With one channel there is nothing to couple.

    The means are clipped to ±1e3 (before the shift), the weights' logits to ±1e6. ``bin_cdf`` is
    that of the conditionals. What has no pixels to condition on (``reconstruct``,
    ``mean_and_median``) takes, within each component, the means of the channels before, clipped, in
    their place, and the prior weights.

    Attributes:
      components: K, at least 1.
      coupled: whether the channels of a pixel depend on each other; for 1 or 3 channels.
      min_log_scale: soft floor m of ln b, m + softplus(raw - m), or None. (PixelCNN++ clamps at
        -7.)

    >>> likelihood = LogisticMixtureLikelihood(components=2)
    >>> pixels = jnp.array([[0, 128, 255]], jnp.uint8)
    >>> likelihood.log_mass(pixels, jnp.zeros((1, 18)))
    Array([[-1.309..., -6.235..., -1.309...]], dtype=float32)
    """

    components: int = 10
    coupled: bool = False
    min_log_scale: float | None = -7.0

    name: ClassVar[str] = "logistic_mixture"

    def __post_init__(self) -> None:
        if isinstance(self.components, bool) or not isinstance(self.components, int):
            raise ValueError(f"components must be a whole number, got {self.components}")
        if self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}")
        if self.min_log_scale is not None and not math.isfinite(self.min_log_scale):
            raise ValueError(f"min_log_scale must be finite or None, got {self.min_log_scale}")

    @property
    def num_stats(self) -> int:
        """3 K, or 4 K where coupled."""
        return (4 if self.coupled else 3) * self.components

    def _maps(self, stats: Array) -> list[Array]:
        """The 3 or 4 groups of maps, each [..., C, K]."""
        maps = jnp.swapaxes(base.stack_stats(stats, self.num_stats), -1, -2)
        channels = maps.shape[-2]
        if self.coupled and channels not in (1, 3):
            raise ValueError(f"a coupled logistic_mixture takes 1 or 3 channels, got {channels}")
        return jnp.split(maps, self.num_stats // self.components, axis=-1)

    def parameters(self, stats: Array) -> Mixture:
        """Weights, means, scales and coefficients, with the floor and the hard limits applied.

        Raises:
          ValueError: coupled, and neither 1 nor 3 channels.
        """
        logits, means, log_scales, *coefficients = self._maps(stats)
        logits = jnp.clip(logits, -base.LOGIT_LIMIT, base.LOGIT_LIMIT)
        coupled = self.coupled and means.shape[-2] == 3
        if coupled:
            mean = logits.mean(axis=-2, keepdims=True)
            logits = jnp.broadcast_to(mean, logits.shape)
        return Mixture(
            jax.nn.log_softmax(logits, axis=-1),
            jnp.clip(means, -base.LOCATION_LIMIT, base.LOCATION_LIMIT),
            base.soft_floor(log_scales, self.min_log_scale),
            jnp.tanh(coefficients[0]) if coupled else None,
        )

    def _at_floor(self, stats: Array) -> Array:
        """Where the heaviest component's raw ln b is at or below the floor: bool [..., C]."""
        log_scales = self._maps(stats)[2]
        if self.min_log_scale is None:
            return super()._at_floor(stats)
        weights = self.parameters(stats).log_weights
        heaviest = weights == weights.max(axis=-1, keepdims=True)
        return (heaviest & (log_scales <= self.min_log_scale)).any(axis=-1)

    # --- Values given the components --------------------------------------------------------------

    def _interval(self, pixels: Array, mixture: Mixture, means: Array) -> Array:
        """Log mass of the pixels in each component: [..., C, K]."""
        bins = pixel_bins.line_bins(pixels[..., None], means.dtype)
        return kernels.Logistic.log_interval(
            _z(bins.lower, means, mixture),
            _z(bins.upper, means, mixture),
            elementary.scaled(bins.width, mixture.log_scales),
            bins.log_width - mixture.log_scales,
            bins.first,
            bins.last,
        )

    @staticmethod
    def _posterior(mixture: Mixture, log_values: Array) -> Array:
        """Log weights given the channels before: [..., C, K]."""
        if mixture.coefficients is None:
            return mixture.log_weights
        before = jnp.cumsum(log_values, axis=-2)[..., :-1, :]
        joint = mixture.log_weights + jnp.pad(
            before, [(0, 0)] * (before.ndim - 2) + [(1, 0), (0, 0)]
        )
        return jax.nn.log_softmax(joint, axis=-1)

    def _mixed(self, mixture: Mixture, log_values: Array) -> Array:
        weights = self._posterior(mixture, log_values)
        return jax.nn.logsumexp(weights + log_values, axis=-1)

    def _loss(self, pixels: Array, stats: Array, noise: Array | None) -> Array:
        # The means depend on the 8-bit values also where noise is added, so that the density
        # integrates to the mass over every bin of all channels.
        mixture = self.parameters(stats)
        dtype = mixture.means.dtype
        means = mixture.shifted(_line(pixels, dtype))
        z = _z(pixel_bins.half_levels(pixels, noise, dtype)[..., None], means, mixture)
        return -self._mixed(mixture, -kernels.Logistic.nll(z) - mixture.log_scales)

    def _log_mass(self, pixels: Array, stats: Array) -> Array:
        mixture = self.parameters(stats)
        means = mixture.shifted(_line(pixels, mixture.means.dtype))
        return jnp.minimum(self._mixed(mixture, self._interval(pixels, mixture, means)), 0.0)

    def _level_cdf(self, stats: Array) -> Callable[[Array], Array]:
        mixture = self.parameters(stats)
        means, weights = self._marginal_means(mixture), jnp.exp(mixture.log_weights)

        def cdf(level: Array) -> Array:
            end = pixel_bins.line_bins(level, means.dtype).upper
            return jnp.minimum((weights * jax.nn.sigmoid(_z(end, means, mixture))).sum(-1), 1.0)

        return cdf

    def _bin_cdf(self, pixels: Array, stats: Array) -> tuple[Array, Array]:
        mixture = self.parameters(stats)
        means = mixture.shifted(_line(pixels, mixture.means.dtype))
        weights = jnp.exp(self._posterior(mixture, self._interval(pixels, mixture, means)))
        bins = pixel_bins.line_bins(pixels[..., None], means.dtype)
        low, high = (
            (weights * jax.nn.sigmoid(_z(end, means, mixture))).sum(axis=-1)
            for end in (bins.lower, bins.upper)
        )
        low, high = jnp.minimum(low, 1.0), jnp.minimum(high, 1.0)
        return jnp.where(pixels == 0, 0.0, low), jnp.where(pixels == 255, 1.0, high)

    # --- Without pixels ---------------------------------------------------------------------------

    @staticmethod
    def _marginal_means(mixture: Mixture) -> Array:
        """The components' means, each given the clipped means of the channels before it."""
        means = mixture.means
        if mixture.coefficients is None:
            return means
        for _ in range(2):  # green, then blue
            means = mixture.shifted(jnp.clip(means, -1.0, 1.0))
        return means

    def _reconstruct(self, stats: Array) -> Array:
        """The weighted mean of the components' means, each clipped to the range: float32 [..., C].

        (``mean_and_median`` gives the mean of the 8-bit value exactly, at 256 times the cost.)
        """
        mixture = self.parameters(stats)
        means = jnp.clip(self._marginal_means(mixture), -1.0, 1.0)
        return pixel_bins.unmap_line((jnp.exp(mixture.log_weights) * means).sum(axis=-1))

    def _sample(self, key: Array, stats: Array) -> Array:
        """The component first, then channel after channel given the 8-bit values before."""
        mixture = self.parameters(stats)
        choice_key, noise_key = jax.random.split(key)
        weights = mixture.log_weights
        if mixture.coefficients is not None:
            weights = weights[..., :1, :]  # one choice for all channels
        choice = jax.random.categorical(choice_key, weights, axis=-1)[..., None]
        choice = jnp.broadcast_to(choice, (*mixture.means.shape[:-1], 1))
        picked = jax.tree.map(lambda a: jnp.take_along_axis(a, choice, axis=-1), mixture)
        shape = mixture.means.shape[:-1]
        draws = jax.random.logistic(noise_key, shape, mixture.means.dtype)
        steps = jnp.exp(picked.log_scales[..., 0]) * draws
        y = picked.means[..., 0] + steps
        if picked.coefficients is not None:
            for _ in range(2):  # green, then blue
                level = jnp.round(255.0 * pixel_bins.unmap_line(y))
                y = picked.shifted((2.0 * level - 255.0) * (1.0 / 255.0))[..., 0] + steps
        return pixel_bins.unmap_line(y)


def _line(pixels: Array, dtype: np.dtype) -> Array:
    """y in [-1, 1] of the pixels."""
    return pixel_bins.half_levels(pixels, None, dtype) * (1.0 / pixel_bins.HALF_LEVELS)


def _z(halves: Array, means: Array, mixture: Mixture) -> Array:
    """Positions in units of the scales from the means: [..., C, K]."""
    return elementary.scaled(pixel_bins.line_distance(halves, means), mixture.log_scales)
