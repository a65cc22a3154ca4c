"""Whether predicted scales are right: the histogram of the probability integral transform (PIT).

Put each true value through the cdf predicted for it. If the predictions are right the results are
uniform on [0, 1], whatever the predicted locations and scales. How to read their histogram:

- flat: calibrated;
- a hump in the middle: values lie closer to the predictions than claimed, the scales are too
  large; a peaked centre with raised ends: tails heavier than the family's;
- a U: the scales are too small, the model is overconfident;
- a slope: rising to the right, values lie above their predictions (the predictions are too dark),
  falling, below them.

Uniform is necessary, not sufficient: a model that knows only the data set's overall histogram of
grey levels is calibrated too. Read it beside the code length, which rewards sharpness.

An 8-bit value has a cdf with steps. The randomised transform draws uniformly within the value's
step, which restores uniformity exactly (Czado, Gneiting and Held 2009, Biometrics 65).
"""

from collections.abc import Sequence
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

BINS = 20


@partial(jax.jit, static_argnames="bins")
def pit_counts(
    low: Array, high: Array, uniform: Array, mask: Array | None = None, bins: int = BINS
) -> Array:
    """Histogram of the randomised transform u = low + uniform · (high − low).

    Args:
      low: probability of all values below the true one, float [...] in [0, 1].
      high: the same including the true value; of equal shape.
      uniform: draws from [0, 1), e.g. ``jax.random.uniform(key, low.shape)``; of equal shape.
      mask: bool, or 0 and 1, whose shape begins ``low``'s: [B] for whole images, [B, H, W] for
        pixels; what it leaves out may be anything. None counts everything.
      bins: equal bins of [0, 1]; static.

    Returns:
      int32 [bins]. u = 1 falls into the last bin; NaN falls into none, so that a sum below the
      number of values shows it.

    >>> low, high = jnp.array([0.0, 0.5, 1.0]), jnp.array([0.5, 1.0, 1.0])
    >>> pit_counts(low, high, jnp.array([0.5, 0.5, 0.5]), bins=4).tolist()
    [0, 1, 0, 2]
    """
    chex.assert_equal_shape([low, high, uniform])
    chex.assert_type([low, high, uniform], float)
    u = (low + uniform * (high - low)).astype(jnp.float32)
    bin_of = jnp.clip(jnp.floor(u * bins), 0, bins - 1)
    counts = ~jnp.isnan(u)
    if mask is not None:
        chex.assert_shape(mask, low.shape[: mask.ndim])
        counts &= jnp.reshape(mask.astype(bool), mask.shape + (1,) * (low.ndim - mask.ndim))
    bin_of = jnp.where(counts, bin_of, bins).astype(jnp.int32)  # one past the last: dropped
    return jnp.zeros(bins, jnp.int32).at[bin_of.ravel()].add(1, mode="drop")


def distance_from_uniform(counts: Sequence[int] | np.ndarray) -> dict[str, float]:
    """How far a histogram on equal bins of [0, 1] is from flat.

    Even a calibrated model is not at 0 exactly: n independent draws give a ``ks`` of about
    0.8 / √n. Neighbouring pixels are not independent, so real scatter is larger.

    Args:
      counts: of each bin, from :func:`pit_counts`; batches may be added up.

    Returns:
      ``tv``: total variation, half the sum of |share − 1/bins|, 0 to 1 − 1/bins: the share of
      values that would have to move. ``ks``: the largest distance of the binned cdf from the
      straight line (Kolmogorov-Smirnov, looked at between bins only), 0 to 1 − 1/bins.
      ``mean_shift``: mean − 1/2; positive where values lie above their predictions.
      ``variance_ratio``: variance / (1/12), values taken as uniform within their bin; above 1
      where scales are too small, below 1 where too large. All NaN without any count.

    Raises:
      ValueError: ``counts`` is not a non-empty list of numbers >= 0.

    >>> distance_from_uniform([5, 5, 5, 5])
    {'tv': 0.0, 'ks': 0.0, 'mean_shift': 0.0, 'variance_ratio': 1.0}
    >>> distance_from_uniform([10, 0, 0, 10])["tv"]
    0.5
    """
    n = np.asarray(counts, np.float64)
    if n.ndim != 1 or not n.size or not (n >= 0).all():
        raise ValueError("counts must be a non-empty list of numbers that are not negative")
    if n.sum() == 0:
        return dict.fromkeys(("tv", "ks", "mean_shift", "variance_ratio"), float("nan"))
    share, bins = n / n.sum(), n.size
    middle = (np.arange(bins) + 0.5) / bins - 0.5
    line = np.arange(1, bins + 1) / bins
    mean = share @ middle
    variance = share @ (middle - mean) ** 2 + 1 / (12 * bins**2)
    return {
        "tv": float(0.5 * np.abs(share - 1 / bins).sum()),
        "ks": float(np.abs(np.cumsum(share) - line).max()),
        "mean_shift": float(mean),
        "variance_ratio": float(12 * variance),
    }
