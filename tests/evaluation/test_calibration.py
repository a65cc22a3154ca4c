"""PIT histograms by hand, and of predictors that are right, too wide, too narrow and too dark."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from logit_laplace_jax.evaluation import calibration


def transformed(scale=1.0, shift=0.0, step=0.5, n=200_000):
    """PIT bounds and draws for values that are normal, rounded to multiples of ``step``.

    The prediction is a normal of mean -shift and standard deviation ``scale``, rounded likewise.
    """
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=n) / step) * step
    low, high = (stats.norm.cdf(values + d, -shift, scale) for d in (-step / 2, step / 2))
    return tuple(jnp.asarray(x, jnp.float32) for x in (low, high, rng.random(n)))


# --- Counting --------------------------------------------------------------------------------


def test_counts_are_numpys():
    rng = np.random.default_rng(0)
    low, high = np.sort(rng.random((2, 4, 5, 6, 3)).astype(np.float32), axis=0)
    uniform = rng.random(low.shape).astype(np.float32)
    counts = jax.jit(calibration.pit_counts)(*map(jnp.asarray, (low, high, uniform)))
    assert (counts.shape, counts.dtype) == ((20,), jnp.int32)
    expected, _ = np.histogram(low + uniform * (high - low), bins=20, range=(0, 1))
    np.testing.assert_array_equal(counts, expected)


def test_the_ends_belong_to_the_outer_bins():
    u = jnp.array([0.0, 0.5, 1.0, 1.0])
    counts = calibration.pit_counts(u, u, jnp.zeros(4), bins=2)
    assert counts.tolist() == [1, 3]
    # Bounds that rounding carries past 0 or 1.
    u = jnp.array([-1e-7, 1 + 2e-7])
    assert calibration.pit_counts(u, u, jnp.zeros(2), bins=4).tolist() == [1, 0, 0, 1]


def test_masks_of_images_and_of_pixels():
    rng = np.random.default_rng(0)
    u = rng.random((3, 4, 5, 2)).astype(np.float32)
    pixels = rng.random((3, 4, 5)) < 0.5
    images = np.array([1.0, 0.0, 1.0])
    broken = u.copy()
    broken[1] = np.nan
    zeros = jnp.zeros(u.shape)
    for values, mask, kept in (
        (u, pixels, u[pixels]),
        (broken, images, u[[0, 2]]),
        (u, pixels[..., None] & np.ones(2, bool), u[pixels]),
        (broken, None, u[[0, 2]]),  # NaN counts nowhere
    ):
        given = None if mask is None else jnp.asarray(mask)
        counts = calibration.pit_counts(jnp.asarray(values), jnp.asarray(values), zeros, given)
        expected, _ = np.histogram(kept, bins=20, range=(0, 1))
        np.testing.assert_array_equal(counts, expected)


def test_arguments_are_checked(strict):
    u = jnp.zeros((2, 3, 4, 1))
    assert int(calibration.pit_counts(u, u, u, jnp.ones(2, bool)).sum()) == u.size
    for wrong in (
        (u, u, u[0]),
        (u, u, jnp.zeros(u.shape, jnp.int32)),
        (u, u, u, jnp.ones(3)),
        (u, u, u, jnp.ones((2, 4))),
    ):
        with pytest.raises(AssertionError):
            calibration.pit_counts(*wrong)


# --- What histograms say ---------------------------------------------------------------------


def test_a_right_prediction_is_flat():
    low, high, uniform = transformed()
    counts = np.asarray(calibration.pit_counts(low, high, uniform))
    assert counts.sum() == low.size
    # 19 degrees of freedom; the seed is fixed, and one seed in 10,000 would fail.
    assert stats.chisquare(counts).pvalue > 1e-4
    distance = calibration.distance_from_uniform(counts)
    # 200,000 draws: the cdf scatters by 0.5/√n = 0.0011, the mean by 0.29/√n = 0.0006, the
    # variance's ratio by 0.9/√n = 0.002, each share by √(0.05/n) = 0.0005; four times these.
    assert distance["ks"] < 0.0045
    assert distance["tv"] < 20 / 2 * 0.002
    assert abs(distance["mean_shift"]) < 0.0026
    assert abs(distance["variance_ratio"] - 1) < 0.008


def test_without_the_draws_steps_remain():
    # Why the transform is randomised: all of a step's probability at its lower end is not flat.
    low, high, uniform = transformed(step=1.0)
    lower = calibration.pit_counts(low, high, jnp.zeros_like(uniform))
    drawn = calibration.pit_counts(low, high, uniform)
    lower, drawn = (calibration.distance_from_uniform(np.asarray(c)) for c in (lower, drawn))
    assert lower["tv"] > 0.5 > 0.02 > drawn["tv"]


@pytest.mark.parametrize(("scale", "shape"), [(2.0, "hump"), (0.5, "U")])
def test_a_wrong_scale_is_a_hump_or_a_u(scale, shape):
    counts = np.asarray(calibration.pit_counts(*transformed(scale)))
    ends, middle = counts[[0, -1]].mean(), counts[9:11].mean()
    distance = calibration.distance_from_uniform(counts)
    assert (ends < 0.2 * middle) if shape == "hump" else (ends > 3 * middle)
    assert (
        (distance["variance_ratio"] < 0.6) if shape == "hump" else distance["variance_ratio"] > 1.5
    )
    # P(|Z| is between the crossing points of the two densities), about 0.2 to 0.4 for a factor 2.
    assert 0.2 < distance["tv"] < 0.5
    assert abs(distance["mean_shift"]) < 0.01  # symmetric; scatter as above


def test_too_dark_a_prediction_is_a_slope():
    # Predicted one standard deviation too low; Φ(Z + 1) has the mean Φ(1/√2) = 0.760.
    counts = np.asarray(calibration.pit_counts(*transformed(shift=1.0)))
    assert counts[-1] == counts.max() > 5 * counts[:10].mean()
    shift = calibration.distance_from_uniform(counts)["mean_shift"]
    # A bin counts as its middle, at most 0.025 from its values; measured 0.006, since those of
    # the last bin, half of all, crowd at its upper end.
    assert shift == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)) - 0.5, abs=0.01)


# --- Distances -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7] * 20, (0.0, 0.0, 0.0, 1.0)),
        ([4, 0], (0.5, 0.5, -0.25, 0.25)),
        # Variance 2/3 · (1/3)² + (1/3)²/12, of 1/12.
        ([1, 1, 1], (0.0, 0.0, 0.0, 1.0)),
        ([2, 0, 2, 0], (0.5, 0.25, -0.125, 12 * (1 / 16 + 1 / 192))),
        ([0, 0, 0, 9], (0.75, 0.75, 0.375, 1 / 16)),
        ([0, 0], (np.nan,) * 4),
    ],
)
def test_distances_by_hand(counts, expected):
    for given in (counts, np.array(counts), np.array(counts, np.float64)):
        distance = calibration.distance_from_uniform(given)
        assert all(type(value) is float for value in distance.values())
        # float64: a few ulp.
        assert tuple(distance.values()) == pytest.approx(expected, abs=1e-14, nan_ok=True)


@pytest.mark.parametrize("wrong", [[], [[1, 2]], [1, -1], [np.nan, 1]])
def test_what_is_no_histogram(wrong):
    with pytest.raises(ValueError, match="counts must be a non-empty list"):
        calibration.distance_from_uniform(wrong)
