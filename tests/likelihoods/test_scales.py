"""Where the scale comes from: predicted a pixel, a channel or at all, fixed, or optimal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logit_laplace_jax import likelihoods

CLOSED = ["logit_laplace", "laplace", "normal", "logit_normal"]
SEARCHED = ["logistic", "truncated_normal", "truncated_laplace"]
SHAPE = (3, 4, 5, 2)  # B, H, W, C


@functools.cache
def batch(spread=0.3):
    """Pixels, and locations that err by about ``spread``."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, SHAPE, dtype=np.uint8)
    error = spread * rng.normal(size=SHAPE) * np.array([0.5, 1.0, 1.5])[:, None, None, None]
    return pixels, (pixels / 127.5 - 1 + error).astype(np.float32)


# --- Predicted, averaged and fixed ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "axes"), [("per_pixel", ()), ("per_channel", (0, 1, 2)), ("shared", (0, 1, 2, 3))]
)
def test_predicted_scales(scale, axes):
    pixels, loc = batch()
    raw = np.random.default_rng(1).normal(-2, 1, SHAPE).astype(np.float32)
    likelihood = likelihoods.get("laplace", scale=scale, min_log_scale=-4.0)
    stats = np.concatenate([loc, raw], axis=-1)
    assert likelihood.num_stats == 2
    got_loc, got = likelihood.parameters(stats)
    np.testing.assert_array_equal(got_loc, loc)
    averaged = raw.astype(np.float64).mean(axis=axes, keepdims=True)
    expected = np.broadcast_to(-4 + np.logaddexp(0, averaged + 4), SHAPE)
    np.testing.assert_allclose(got, expected, atol=2e-6)  # a mean of 40 and a softplus in float32
    np.testing.assert_array_equal(
        likelihood.at_floor(stats), np.broadcast_to(averaged <= -4, SHAPE)
    )
    # The loss is that of these scales.
    fixed = np.concatenate([loc, np.asarray(got)], axis=-1)
    np.testing.assert_allclose(
        likelihood.loss(pixels, stats),
        likelihoods.get("laplace").loss(pixels, fixed),
        rtol=1e-6,  # the same arithmetic, compiled twice
        atol=1e-6,
    )
    gradient = jax.grad(lambda s: likelihood.loss(pixels, s).mean())(jnp.asarray(stats))
    assert np.all(np.asarray(gradient)[..., 2:] != 0)


@pytest.mark.parametrize("name", ["logit_laplace", "normal", "truncated_laplace"])
def test_fixed_scale(name):
    pixels, loc = batch()
    fixed = likelihoods.get(name, scale="fixed", fixed_scale=0.25)
    assert fixed.num_stats == 1
    predicted = likelihoods.get(name)
    stats = np.concatenate([loc, np.full(SHAPE, np.log(0.25), np.float32)], axis=-1)
    for method in ("loss", "log_mass"):
        np.testing.assert_allclose(
            getattr(fixed, method)(pixels, loc),
            getattr(predicted, method)(pixels, stats),
            rtol=1e-5,
            atol=1e-5,
        )
    np.testing.assert_array_equal(fixed.reconstruct(loc), predicted.reconstruct(stats))
    assert not np.asarray(fixed.at_floor(loc)).any()
    assert predicted.with_fixed_scale(0.25) == fixed


@pytest.mark.parametrize("name", CLOSED + SEARCHED)
def test_hard_limits(name):
    likelihood = likelihoods.get(name)
    raw = np.array([[1e30, 1e30], [-1e30, -1e30], [999.0, 29.5], [-999.0, -29.5]], np.float32)
    loc, log_scale = likelihood.parameters(raw)
    assert loc[:, 0].tolist() == [1e3, -1e3, 999, -999]
    assert log_scale[:, 0].tolist() == [30, -30, 29.5, -29.5]


# --- The optimal scale ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def log_scale_of(likelihood, loc, pixels):
    return likelihood.parameters(loc, pixels)[1]


@functools.cache
def optimum(name, spread):
    """(ln b, mean loss as a function of a shift of ln b)."""
    pixels, loc = batch(spread)
    optimal = likelihoods.get(name, scale="optimal")
    best = float(log_scale_of(optimal, loc, pixels).ravel()[0])
    predicted = likelihoods.get(name)

    def mean_loss(shift):
        raw = np.full(SHAPE, best + shift, np.float32)
        loss = predicted.loss(pixels, np.concatenate([loc, raw], axis=-1))
        return float(np.asarray(loss, np.float64).mean())

    return best, mean_loss


@pytest.mark.parametrize("spread", [0.02, 0.3])
@pytest.mark.parametrize("name", CLOSED + SEARCHED)
def test_optimal_scale_is_the_minimiser(name, spread):
    pixels, loc = batch(spread)
    _, mean_loss = optimum(name, spread)
    # A loss with curvature c in ln b (1 to 2 here) rises by c h²/2 on both sides, and by the same.
    left, middle, right = map(mean_loss, (-0.02, 0.0, 0.02))
    assert min(left, right) > middle
    # The slope there: |left - right| / 0.04; the cubic term gives 0.02²; float32 sums 1e-5.
    assert abs(left - right) / 0.04 < 2e-3
    optimal = likelihoods.get(name, scale="optimal")
    assert optimal.num_stats == 1
    loss = np.asarray(optimal.loss(pixels, loc), np.float64).mean()
    np.testing.assert_allclose(loss, middle, atol=1e-5)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name):
    pixels, loc = batch()
    likelihood = likelihoods.get(name, scale="optimal")
    v = pixels / 255.0
    x = 0.8 * v + 0.1
    t = np.log(x / (1 - x)) if name.startswith("logit_") else 2 * v - 1
    power = likelihood.scale_power
    moments = (np.abs(t - loc) ** power).mean(axis=(1, 2, 3))
    got = likelihood.optimal_scale_moment(pixels, loc)
    assert (got.shape, got.dtype) == ((SHAPE[0],), jnp.float32)
    np.testing.assert_allclose(got, moments, rtol=1e-5)  # t - loc of order 1, to a few u
    # Averages over images of equal size give the optimum of them all.
    log_scale = np.asarray(likelihood.parameters(loc, pixels)[1])
    assert np.ptp(log_scale) == 0
    np.testing.assert_allclose(log_scale.ravel()[0], np.log(moments.mean()) / power, atol=1e-5)


@pytest.mark.parametrize("name", ["logistic", "truncated_laplace"])
def test_optimal_scale_of_each_image_where_it_is_searched(name):
    pixels, loc = batch()
    likelihood = likelihoods.get(name, scale="optimal")
    got = np.asarray(likelihood.optimal_scale_moment(pixels, loc))
    assert got.shape == (SHAPE[0],)
    one = np.asarray(log_scale_of(likelihood, np.tile(loc[:1], (3, 1, 1, 1)), pixels[[0, 0, 0]]))
    np.testing.assert_allclose(np.log(got[0]) / likelihood.scale_power, one.ravel()[0], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("logistic", None),
        ("logistic", -3.0),
        ("truncated_normal", None),
        ("truncated_laplace", None),
    ],
)
def test_the_search_ends_at_its_limits(name, floor):
    likelihood = likelihoods.get(name, scale="optimal", min_log_scale=floor)
    levels = np.resize(np.arange(8, 248, 2, dtype=np.uint8), SHAPE)
    exact = log_scale_of(likelihood, (levels / 127.5 - 1).astype(np.float32), levels)
    assert np.all(np.asarray(exact) <= (-10.0 if floor is None else floor))
    flat = np.asarray(log_scale_of(likelihood, np.zeros(SHAPE, np.float32), levels))
    if name == "logistic":
        assert np.all((flat > -2) & (flat < 0))
    else:  # a sample of the two ends: the flatter the better
        ends = np.where(levels < 128, 0, 255).astype(np.uint8)
        flat = log_scale_of(likelihood, np.zeros(SHAPE, np.float32), ends)
        np.testing.assert_allclose(flat, 3.0, atol=0.02)
    far = np.asarray(log_scale_of(likelihood, np.full(SHAPE, 900, np.float32), levels))
    assert np.isfinite(far).all()
    assert np.all(far <= 3.0)


def test_no_gradient_through_the_optimal_scale():
    pixels, loc = batch()
    optimal = likelihoods.get("normal", scale="optimal")
    log_scale = optimal.parameters(loc, pixels)[1]
    frozen = optimal.with_fixed_scale(float(jnp.exp(log_scale.ravel()[0])))
    got, expected = (
        jax.grad(lambda s, like=like: like.loss(pixels, s).sum())(jnp.asarray(loc))
        for like in (optimal, frozen)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_optimal_scale_of_dequantised_pixels():
    pixels, loc = batch()
    noise = np.random.default_rng(2).uniform(-0.5, 0.5, SHAPE).astype(np.float32)
    likelihood = likelihoods.get("laplace", scale="optimal")
    y = np.clip(pixels + noise, 0, 255) / 127.5 - 1
    expected = np.log(np.abs(y - loc).mean())
    got = likelihood.parameters(loc, pixels, noise)[1]
    np.testing.assert_allclose(got.ravel()[0], expected, atol=1e-5)


def test_optimal_with_a_floor():
    pixels, loc = batch(0.02)
    likelihood = likelihoods.get("normal", scale="optimal", min_log_scale=-1.0)
    np.testing.assert_array_equal(likelihood.parameters(loc, pixels)[1], np.full(SHAPE, -1.0))
    assert not np.asarray(likelihood.at_floor(loc)).any()


@pytest.mark.parametrize("name", ["logit_laplace", "truncated_normal"])
def test_optimal_without_pixels(name):
    _, loc = batch()
    likelihood = likelihoods.get(name, scale="optimal")
    assert likelihood.reconstruct(loc).shape == SHAPE
    for call in (
        lambda: likelihood.sample(jax.random.key(0), loc),
        lambda: likelihood.mean_and_median(loc),
        lambda: likelihood.parameters(loc),
    ):
        with pytest.raises(ValueError, match="use with_fixed_scale") as caught:
            call()
        assert "\n" not in str(caught.value)


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": "per_image"}, ["scale", "per_channel", "per_image"]),
        ({"fixed_scale": 0.0}, ["fixed_scale", "0.0"]),
        ({"fixed_scale": -1.0}, ["fixed_scale", "-1.0"]),
        ({"fixed_scale": float("nan")}, ["fixed_scale", "nan"]),
        ({"fixed_scale": float("inf")}, ["fixed_scale", "inf"]),
        ({"min_log_scale": float("nan")}, ["min_log_scale", "nan"]),
    ],
)
def test_a_mistake_is_said_in_one_line(options, words):
    for name in CLOSED + SEARCHED:
        with pytest.raises(ValueError, match=words[0]) as caught:
            likelihoods.get(name, **options)
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in words)
    with pytest.raises(ValueError, match="fixed_scale"):
        likelihoods.get("laplace").with_fixed_scale(0.0)
