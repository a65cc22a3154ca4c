"""What every likelihood offers to the model, the step and the evaluation.

Hard limits keep every family finite in float32, for any finite statistics: a location is clipped to
±LOCATION_LIMIT, a log scale (after its floor) to ±LOG_SCALE_LIMIT, and a logit of a class to
±LOGIT_LIMIT. They lie far beyond use (pixels are within ±7 of 0 in every space here, and scales
between e**-12 and e**3), values inside them pass unchanged, and the gradient outside is 0.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from logit_laplace_jax.distribution.arguments import of_one_sharding

LOCATION_LIMIT = 1e3
LOG_SCALE_LIMIT = 30.0
LOGIT_LIMIT = 1e6


@dataclasses.dataclass(frozen=True)
class Likelihood(abc.ABC):
    """A family of distributions for 8-bit pixels, given the decoder's statistics.

    ``stats`` is floating point [..., C · num_stats]: all channels' first statistic, then all
    channels' second, as in DALL-E. ``pixels`` is uint8 [..., C]. Results are computed in float32 at
    least; 16-bit statistics are cast up. An 8-bit value k stands for the bin [k - 1/2, k + 1/2]/255
    under the family's map of pixels; the first and the last bin reach to the ends of its support.

    Instances are frozen and hashable: static arguments of ``jax.jit``. Every method is pure, works
    under ``jit``, ``vmap`` and ``grad``, and raises AssertionError (chex) for a wrong dtype or
    shape, at trace time.

    NaN among a value's statistics gives NaN everywhere, never a plausible number.

    A new family is one file: a frozen dataclass with ``name``, ``num_stats`` and the hooks
    ``_loss``, ``_log_mass``, ``_bin_cdf``, ``_reconstruct`` and ``_sample``, which get checked
    arguments and run compiled; and its line in the registry.
    """

    name: ClassVar[str]
    """The name in the registry."""

    has_scale: ClassVar[bool] = False
    """Whether it has a location and one scale: the options of ``LocationScale``."""

    @property
    @abc.abstractmethod
    def num_stats(self) -> int:
        """Feature maps a colour channel."""

    def loss(self, pixels: Array, stats: Array, noise: Array | None = None) -> Array:
        """Negative log density, the training objective, in nats per value.

        It is a density of the family's own variable (see the class), so that its values compare
        within a family, and not across families: that is what :meth:`log_mass` is for.

        Args:
          pixels: uint8 [..., C].
          stats: [..., C · num_stats].
          noise: None, or floating point [..., C] in [-1/2, 1/2): uniform dequantisation. The
            density is then taken at clip(pixels + noise, 0, 255).

        Returns:
          float32 [..., C]; negative values are normal.

        Raises:
          AssertionError: a dtype or a shape differs.
        """
        check_pixels(pixels, stats, self.num_stats)
        if noise is not None:
            check_noise(noise, pixels)
        return _call(self, "_loss", *of_one_sharding([pixels, stats]), noise)

    def log_mass(self, pixels: Array, stats: Array) -> Array:
        """Exact log mass of the 8-bit values, in nats: float32 [..., C], at most 0.

        The 256 masses sum to one, so that these compare across families; ``bits_per_dim`` of
        their negative mean is a code length.

        Raises:
          AssertionError: a dtype or a shape differs.
        """
        check_pixels(pixels, stats, self.num_stats)
        return _call_or_nan(self, "_log_mass", *of_one_sharding([stats, pixels]))

    def bin_cdf(self, pixels: Array, stats: Array) -> tuple[Array, Array]:
        """The cdf at the two ends of each value's bin, (low, high): float32 [..., C] in [0, 1].

        The first bin's low end is exactly 0 and the last one's high end exactly 1. A uniform draw
        between the two is the randomised probability integral transform.

        Raises:
          AssertionError: a dtype or a shape differs.
        """
        check_pixels(pixels, stats, self.num_stats)
        low, high = _call_or_nan(self, "_bin_cdf", *of_one_sharding([stats, pixels]))
        return low, high

    def reconstruct(self, stats: Array) -> Array:
        """The family's point estimate of the pixels in [0, 1]: float32 [..., C]."""
        return _call_or_nan(self, "_reconstruct", stats)

    def mean_and_median(self, stats: Array) -> tuple[Array, Array]:
        """Mean and median of the 8-bit value, divided by 255: float32 [..., C] each.

        The median is the smallest value whose cumulative probability reaches 1/2. The levels are
        visited one after the other, so that nothing of 256 times the image's size is ever held.
        """
        mean, median = _call_or_nan(self, "_mean_and_median", stats)
        return mean, median

    def sample(self, key: Array, stats: Array) -> Array:
        """A draw of the pixels in [0, 1], mapped back and clipped: float32 [..., C]."""
        return _call_or_nan(self, "_sample", stats, key)

    def at_floor(self, stats: Array) -> Array:
        """Where the predicted log scale lies at or below its floor: bool [..., C].

        All False where there is no floor, or no predicted scale.
        """
        floor: Array = _call(self, "_at_floor", stats)
        return floor

    # --- Hooks ------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _loss(self, pixels: Array, stats: Array, noise: Array | None) -> Array: ...

    @abc.abstractmethod
    def _log_mass(self, pixels: Array, stats: Array) -> Array: ...

    @abc.abstractmethod
    def _bin_cdf(self, pixels: Array, stats: Array) -> tuple[Array, Array]: ...

    @abc.abstractmethod
    def _reconstruct(self, stats: Array) -> Array: ...

    @abc.abstractmethod
    def _sample(self, key: Array, stats: Array) -> Array: ...

    def _at_floor(self, stats: Array) -> Array:
        return jnp.zeros_like(split_stats(stats, self.num_stats)[0], bool)

    def _level_cdf(self, stats: Array) -> Callable[[Array], Array]:
        """Of a level, a scalar uint8: the probability of a value up to it, [..., C].

        Families override it whose ``bin_cdf`` reads more of the pixels, or whose bins cost less for
        one level than for all pixels.
        """
        shape = split_stats(stats, self.num_stats)[0].shape
        return lambda level: self._bin_cdf(jnp.broadcast_to(level, shape), stats)[1]

    def _mean_and_median(self, stats: Array) -> tuple[Array, Array]:
        cdf = self._level_cdf(stats)

        def visit(carry: tuple[Array, Array], level: Array) -> tuple[tuple[Array, Array], None]:
            mean, median = carry
            below = cdf(level.astype(jnp.uint8))
            return (mean + (1.0 - below), median + (below < 0.5).astype(mean.dtype)), None

        # E[K] = sum of P(K > k); the median is the number of levels k with P(K <= k) < 1/2.
        start = jnp.zeros_like(split_stats(stats, self.num_stats)[0])
        (mean, median), _ = lax.scan(visit, (start, start), jnp.arange(255))
        return jnp.clip(mean * (1.0 / 255.0), 0.0, 1.0), median / 255.0


@partial(jax.jit, static_argnums=(0, 1))
def _call(likelihood: Likelihood, hook: str, *args: Array | None) -> Any:
    return getattr(likelihood, hook)(*args)


@partial(jax.jit, static_argnums=(0, 1))
def _call_or_nan(likelihood: Likelihood, hook: str, stats: Array, *before: Array) -> Any:
    """``hook(*before, stats)``, and NaN where a statistic is, which a comparison would swallow."""
    unknown = functools.reduce(
        jnp.logical_or, map(jnp.isnan, split_stats(stats, likelihood.num_stats))
    )
    out = getattr(likelihood, hook)(*before, stats)
    return jax.tree.map(lambda a: jnp.where(unknown, jnp.nan, a), out)


# --- Shared by the families -----------------------------------------------------------------------


def split_stats(stats: Array, num_stats: int) -> list[Array]:
    """Splits [..., C · num_stats] into ``num_stats`` arrays [..., C], in float32 at least.

    Raises:
      ValueError: the last axis is not a multiple of ``num_stats``.

    >>> [a.tolist() for a in split_stats(jnp.arange(4.0), 2)]
    [[0.0, 1.0], [2.0, 3.0]]
    """
    stats = floats(stats, num_stats)
    # By slices: on a TPU the array that a reshape makes of few channels is mostly padding.
    channels = stats.shape[-1] // num_stats
    return [
        lax.slice_in_dim(stats, i * channels, (i + 1) * channels, axis=-1) for i in range(num_stats)
    ]


def stack_stats(stats: Array, num_stats: int) -> Array:
    """Reshapes [..., C · num_stats] to [..., num_stats, C], in float32 at least.

    Raises:
      ValueError: the last axis is not a multiple of ``num_stats``.

    >>> stack_stats(jnp.arange(4.0), 2).tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """
    stats = floats(stats, num_stats)
    return stats.reshape(*stats.shape[:-1], num_stats, stats.shape[-1] // num_stats)


def floats(stats: Array, num_stats: int) -> Array:
    """The statistics in float32 at least.

    Raises:
      ValueError: the last axis is not a multiple of ``num_stats``.

    >>> floats(jnp.zeros(4, jnp.bfloat16), 2).dtype.name
    'float32'
    """
    import chex  # on first use: see distribution.sample

    chex.assert_type(stats, float)
    maps = stats.shape[-1]
    if maps % num_stats:
        raise ValueError(
            f"stats {stats.shape} have {maps} maps, no multiple of the {num_stats} per channel "
            "that this likelihood needs"
        )
    return lax.convert_element_type(stats, jnp.promote_types(stats.dtype, jnp.float32))


def check_pixels(pixels: Array, stats: Array, num_stats: int) -> None:
    """Asserts that ``pixels`` is uint8 [..., C] for ``stats`` [..., C · num_stats].

    Raises:
      AssertionError: dtype or shape differ (chex).
      ValueError: the last axis of ``stats`` is not a multiple of ``num_stats``.

    >>> check_pixels(jnp.zeros((2, 3), jnp.uint8), jnp.zeros((2, 6)), 2)
    """
    import chex  # on first use: see distribution.sample

    chex.assert_type(pixels, jnp.uint8)
    chex.assert_type(stats, float)
    maps = stats.shape[-1]
    if maps % num_stats:
        raise ValueError(
            f"stats {stats.shape} have {maps} maps, no multiple of the {num_stats} per channel "
            "that this likelihood needs"
        )
    chex.assert_shape(
        pixels,
        (*stats.shape[:-1], maps // num_stats),
        custom_message=(
            f"stats {stats.shape} do not fit pixels {pixels.shape}: this likelihood needs stats "
            f"[..., {num_stats} * channels], all channels' first statistic, then their second"
        ),
    )


def check_noise(noise: Array, pixels: Array) -> None:
    """Asserts that ``noise`` is floating point, of the shape of ``pixels``.

    Raises:
      AssertionError: dtype or shape differ (chex).

    >>> check_noise(jnp.zeros((2, 3)), jnp.zeros((2, 3), jnp.uint8))
    """
    import chex  # on first use: see distribution.sample

    chex.assert_type(noise, float)
    chex.assert_equal_shape([noise, pixels])


def soft_floor(log_scale: Array, minimum: float | None) -> Array:
    """m + softplus(raw - m), above m everywhere, then the hard limits; unchanged for None.

    Within 0.02 of the raw value from m + 4 on, and with a gradient that never vanishes below m,
    unlike that of a hard maximum.

    >>> soft_floor(jnp.array([-99.0, -2.0, 99.0]), minimum=-7.0)
    Array([-7.    , -1.993..., 30.    ], dtype=float32)
    """
    if minimum is not None:
        log_scale = minimum + jax.nn.softplus(log_scale - minimum)
    return jnp.clip(log_scale, -LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)
