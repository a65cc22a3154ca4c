"""Families with a location and one scale per value: the options of the scale, loss and masses."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal, Self, get_args

import jax
import jax.numpy as jnp
from jax import Array, lax

from logit_laplace_jax import pixel_bins, pixel_map
from logit_laplace_jax.distribution import elementary, kernels
from logit_laplace_jax.likelihoods import base

Scale = Literal["per_pixel", "per_channel", "shared", "fixed", "optimal"]

LARGEST_OPTIMUM = 3.0
"""Where the search for the best ln scale ends (families without a closed form)."""


@dataclasses.dataclass(frozen=True)
class LocationScale(base.Likelihood):
    """A location map μ a channel and, where the scale is predicted, a map of ln b after it.

    Attributes:
      scale: whence b comes.
        ``per_pixel``: a second map a channel is ln b.
        ``per_channel``: the same map, averaged over all axes but the channels.
        ``shared``: the same map, averaged over all axes. (A model that supplies one learnt number
        a channel, or one, gives constant maps; the average makes the meaning true for any map.)
        ``fixed``: b = ``fixed_scale``; one map a channel.
        ``optimal``: the b that minimises the mean loss of the call, from its pixels and μ
        (sigma-VAE, Rybkin et al. 2021); one map a channel. No gradient flows through
        it: at the optimum the loss's derivative in b is 0, so that of the locations is complete.
      fixed_scale: b for ``fixed``, positive; in the units of the family's space.
      min_log_scale: floor m of a predicted ln b, or None. With a floor ln b = m + softplus(raw -
        m): above m everywhere, within 0.02 of the raw value from m + 4 on, and with a gradient
        that never vanishes, unlike that of a hard maximum. Of ``optimal`` it is a hard
        lower limit, as no gradient flows; ``fixed`` ignores it.
    """

    scale: Scale = "per_pixel"
    fixed_scale: float = 0.1
    min_log_scale: float | None = None

    has_scale: ClassVar[bool] = True

    scale_power: ClassVar[int] = 1
    """p where the mean of abs(t - μ)**p estimates b**p: 1 Laplace-like, 2 normal-like."""

    closed_form: ClassVar[bool] = True
    """Whether that mean is the optimum exactly; else Newton's method starts from it."""

    kernel: ClassVar[type[kernels.Kernel]]
    """The family's standard shape."""

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, got {self.scale}")
        if not (math.isfinite(self.fixed_scale) and self.fixed_scale > 0):
            raise ValueError(f"fixed_scale must be positive and finite, got {self.fixed_scale}")
        if self.min_log_scale is not None and not math.isfinite(self.min_log_scale):
            raise ValueError(f"min_log_scale must be finite or None, got {self.min_log_scale}")

    @property
    def num_stats(self) -> int:
        """2 where ln b is predicted, 1 where it is fixed or optimal."""
        return 1 if self.scale in ("fixed", "optimal") else 2

    # --- The parameters ---------------------------------------------------------------------------

    def location(self, stats: Array) -> Array:
        """μ, clipped to ±1e3: [..., C]."""
        loc = base.split_stats(stats, self.num_stats)[0]
        return jnp.clip(loc, -base.LOCATION_LIMIT, base.LOCATION_LIMIT)

    def parameters(
        self, stats: Array, pixels: Array | None = None, noise: Array | None = None
    ) -> tuple[Array, Array]:
        """(μ, ln b), each [..., C], with floor and hard limits applied.

        Args:
          stats: [..., C · num_stats].
          pixels: uint8 [..., C]; needed, and read, for ``optimal`` alone.
          noise: as in :meth:`loss`; the optimal scale is then that of the dequantised pixels.

        Raises:
          ValueError: ``optimal`` without pixels.
        """
        loc = self.location(stats)
        if self.scale == "optimal":
            if pixels is None:
                raise ValueError(
                    f"{self.name} with scale='optimal' has no scale without pixels; "
                    "use with_fixed_scale"
                )
            log_scale = self._optimal(self._target(pixels, noise, loc), loc)
        elif self.scale == "fixed":
            limits = -base.LOG_SCALE_LIMIT, base.LOG_SCALE_LIMIT
            log_scale = jnp.asarray(max(min(math.log(self.fixed_scale), limits[1]), limits[0]))
            log_scale = lax.convert_element_type(log_scale, loc.dtype)
        else:
            log_scale = base.soft_floor(self._raw_log_scale(stats), self.min_log_scale)
        return loc, jnp.broadcast_to(log_scale, loc.shape)

    def _raw_log_scale(self, stats: Array) -> Array:
        """The predicted ln b before its floor: [..., C], or [C], or []."""
        raw = base.split_stats(stats, self.num_stats)[1]
        if self.scale == "per_pixel":
            return raw
        raw = jnp.clip(raw, -base.LOCATION_LIMIT, base.LOCATION_LIMIT)  # the sum stays finite
        return raw.mean(axis=None if self.scale == "shared" else tuple(range(raw.ndim - 1)))

    def _at_floor(self, stats: Array) -> Array:
        """Where the predicted (or averaged) ln b lies at or below the floor: bool [..., C]."""
        if self.min_log_scale is None or self.num_stats == 1:
            return super()._at_floor(stats)
        shape = base.split_stats(stats, self.num_stats)[0].shape
        return jnp.broadcast_to(self._raw_log_scale(stats) <= self.min_log_scale, shape)

    # --- The optimal scale ------------------------------------------------------------------------

    def with_fixed_scale(self, scale: float) -> Self:
        """The same family with the scale fixed at ``scale``.

        Raises:
          ValueError: it is not positive and finite.
        """
        return dataclasses.replace(self, scale="fixed", fixed_scale=float(scale))

    def optimal_scale_moment(self, pixels: Array, stats: Array) -> Array:
        """Each image's optimal scale to the power ``scale_power``: float32 [B].

        In closed form that is a mean over the image (of the absolute or squared deviation), so the
        average over images of equal size, to the power 1/``scale_power``, is the optimum of them
        all. Where there is none (logistic, truncated families) it is each image's own optimum.

        Args:
          pixels: uint8 [B, ..., C].
          stats: [B, ..., C · num_stats]; the locations alone are read.
        """
        base.check_pixels(pixels, stats, self.num_stats)
        moment: Array = base._call(self, "_optimal_scale_moment", pixels, stats)
        return moment

    def _optimal_scale_moment(self, pixels: Array, stats: Array) -> Array:
        loc = self.location(stats)
        t = self._target(pixels, None, loc)
        if self.closed_form:
            return self._moment(t, loc, tuple(range(1, t.ndim)))
        return jnp.exp(self.scale_power * jax.vmap(self._optimal)(t, loc))

    def _moment(self, t: Array, loc: Array, axes: tuple[int, ...] | None = None) -> Array:
        return (jnp.abs(self._distance(t, loc)) ** self.scale_power).mean(axis=axes)

    def _optimal(self, t: Array, loc: Array) -> Array:
        """ln of the scale with the least mean loss, a scalar, without gradients."""
        t, loc = lax.stop_gradient((t, loc))
        low = -base.LOG_SCALE_LIMIT if self.min_log_scale is None else self.min_log_scale
        low = min(max(low, -base.LOG_SCALE_LIMIT), LARGEST_OPTIMUM)
        moment = jnp.maximum(self._moment(t, loc), jnp.finfo(t.dtype).tiny)
        start = jnp.log(moment) / self.scale_power
        if self.closed_form:
            return jnp.clip(start, low, base.LOG_SCALE_LIMIT)
        start = jnp.clip(start, low, LARGEST_OPTIMUM)
        found = best_log_scale(lambda r: self._nll(t, loc, r).mean(), start, low)
        return lax.stop_gradient(found)

    # --- The distribution -------------------------------------------------------------------------

    def _target(self, pixels: Array, noise: Array | None, loc: Array) -> Array:
        """The pixels' positions."""
        return pixel_bins.half_levels(pixels, noise, loc.dtype)

    def _bins(self, pixels: Array, loc: Array) -> pixel_bins.Bins:
        """The pixels' bins."""
        return pixel_bins.line_bins(pixels, loc.dtype)

    def _unmap(self, y: Array) -> Array:
        """From the space of the location to [0, 1], clipped."""
        return pixel_bins.unmap_line(y)

    def _distance(self, t: Array, loc: Array) -> Array:
        """From the location to the position t, in units of the location."""
        return pixel_bins.line_distance(t, loc)

    def _z(self, t: Array, loc: Array, log_scale: Array) -> Array:
        """The same in units of the scale."""
        return elementary.scaled(self._distance(t, loc), log_scale)

    def _nll(self, t: Array, loc: Array, log_scale: Array) -> Array:
        """Negative log density of the position t, per unit of the location."""
        return self.kernel.nll(self._z(t, loc, log_scale)) + log_scale

    def _loss(self, pixels: Array, stats: Array, noise: Array | None) -> Array:
        loc, log_scale = self.parameters(stats, pixels, noise)
        t = self._target(pixels, noise, loc)
        return elementary.one_pass(self._nll, elementary.ACCELERATORS, t, loc, log_scale)

    def _log_mass(self, pixels: Array, stats: Array) -> Array:
        loc, log_scale = self.parameters(stats, pixels)
        bins = self._bins(pixels, loc)
        return self.kernel.log_interval(
            self._z(bins.lower, loc, log_scale),
            self._z(bins.upper, loc, log_scale),
            elementary.scaled(bins.width, log_scale),
            bins.log_width - log_scale,
            bins.first,
            bins.last,
        )

    def _cdf(self, t: Array, loc: Array, log_scale: Array) -> Array:
        """Probability of what lies below the position t."""
        return self.kernel.cdf(self._z(t, loc, log_scale))

    def _level_cdf(self, stats: Array) -> Callable[[Array], Array]:
        loc, log_scale = self.parameters(stats)
        return lambda level: self._cdf(self._bins(level, loc).upper, loc, log_scale)

    def _bin_cdf(self, pixels: Array, stats: Array) -> tuple[Array, Array]:
        loc, log_scale = self.parameters(stats, pixels)
        bins = self._bins(pixels, loc)
        low, high = (self._cdf(end, loc, log_scale) for end in (bins.lower, bins.upper))
        return jnp.where(bins.first, 0.0, low), jnp.where(bins.last, 1.0, high)

    def _reconstruct(self, stats: Array) -> Array:
        """The median, which is the location, mapped back and clipped: float32 [..., C]."""
        return self._unmap(self.location(stats))

    def _sample(self, key: Array, stats: Array) -> Array:
        loc, log_scale = self.parameters(stats)
        draws = self.kernel.draw(key, loc.shape, loc.dtype)
        return self._unmap(loc + jnp.exp(log_scale) * draws)


@dataclasses.dataclass(frozen=True)
class LogitLocationScale(LocationScale):
    """A family in logit space: t = logit x of the mapped pixel x = (1-2ε)v + ε.

    Attributes:
      eps: ε of the map, in [0, 0.5). At 0 the values 0 and 255 lie on the edge of the interval,
        where the loss is +inf with gradients 0; masses are finite all the same.
    """

    eps: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        pixel_map.check_eps(self.eps)

    def _mapped(self, pixels: Array, noise: Array | None, loc: Array) -> Array:
        """x in [ε, 1-ε]."""
        return pixel_bins.unit_interval(pixels, noise, loc.dtype, self.eps)

    def _target(self, pixels: Array, noise: Array | None, loc: Array) -> Array:
        # At ε = 0 the edges count with the logit of the first number inside.
        x = self._mapped(pixels, noise, loc)
        info = jnp.finfo(x.dtype)
        return elementary.logit(jnp.clip(x, float(info.tiny), 1.0 - float(info.epsneg)))

    def _bins(self, pixels: Array, loc: Array) -> pixel_bins.Bins:
        return pixel_bins.logit_bins(pixels, loc.dtype, self.eps)

    def _distance(self, t: Array, loc: Array) -> Array:
        return t - loc

    def _unmap(self, t: Array) -> Array:
        return pixel_map.unmap_pixels(jax.nn.sigmoid(t), eps=self.eps)


def best_log_scale(
    mean_nll: Callable[[Array], Array], start: Array, low: float, steps: int = 16
) -> Array:
    """The ln scale in [low, 3] with the least mean loss, by ``steps`` safeguarded Newton steps.

    A step is at most 2, goes downhill where the curvature is not positive, and stays inside the
    bracket that the slopes seen so far leave. Mean losses here fall and then rise, or only fall.

    Args:
      mean_nll: the mean negative log density as a function of a scalar ln scale.
      start: a scalar in [low, 3]; the moment's estimate.
      low: the floor.

    >>> best = best_log_scale(lambda r: r + 0.5 * jnp.exp(-r), jnp.ones(()), low=-30.0)
    >>> round(float(best), 5)  # ln 0.5
    -0.69315
    """
    slope = jax.grad(mean_nll)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        r, left, right = state
        gradient, curvature = jax.jvp(slope, (r,), (jnp.ones_like(r),))
        left = jnp.where(gradient < 0, r, left)
        right = jnp.where(gradient > 0, r, right)
        convex = curvature > 0
        newton = -gradient / jnp.where(convex, curvature, 1.0)
        move = jnp.where(convex, jnp.clip(newton, -2.0, 2.0), -2.0 * jnp.sign(gradient))
        return jnp.clip(r + move, left, right), left, right

    edges = jnp.full_like(start, low), jnp.full_like(start, LARGEST_OPTIMUM)
    found, _, _ = lax.fori_loop(0, steps, step, (start, *edges))
    return found
