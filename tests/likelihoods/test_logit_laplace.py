"""The logit-Laplace likelihood on maps of statistics: order, floor, reconstruction, samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

import logit_laplace_jax as ll
from logit_laplace_jax import likelihoods

SHAPE = (2, 4, 5, 3)


def make(**options):
    return likelihoods.get("logit_laplace", **options)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, SHAPE, dtype=np.uint8)
    loc = rng.normal(0, 1.5, SHAPE).astype(np.float32)
    log_scale = rng.normal(-1, 1, SHAPE).astype(np.float32)
    return pixels, loc, log_scale, np.concatenate([loc, log_scale], axis=-1)


@pytest.mark.parametrize("eps", [0.1, 0.02])
def test_loss_is_the_pixel_loss_of_the_split_maps(batch, eps):
    pixels, loc, log_scale, stats = batch
    loss = make(eps=eps).loss(pixels, stats)
    assert (loss.shape, loss.dtype) == (SHAPE, jnp.float32)
    np.testing.assert_array_equal(
        loss, ll.logit_laplace_pixel_loss(pixels, loc, log_scale, eps=eps)
    )


def test_loss_is_the_papers_formula(batch):
    pixels, loc, log_scale, stats = batch
    x = 0.8 * pixels / 255.0 + 0.1
    expected = (
        np.abs(np.log(x / (1 - x)) - loc) / np.exp(log_scale.astype(np.float64))
        + log_scale
        + np.log(2 * x * (1 - x))
    )
    # Rounding of the first term, |logit x| + |μ| <= 8 over b >= e^-4.5: 8 u 8 e^4.5 < 4e-4.
    np.testing.assert_allclose(make().loss(pixels, stats), expected, rtol=1e-6, atol=4e-4)


def test_channels_first_all_locations_then_all_log_scales():
    # One pixel, three channels: change one map, and see which values move.
    pixels = np.array([[10, 100, 200]], np.uint8)
    base = np.zeros((1, 6), np.float32)
    for index in range(6):
        moved = base.copy()
        moved[0, index] = 0.7
        changed = np.asarray(make().loss(pixels, moved) != make().loss(pixels, base))[0]
        assert np.flatnonzero(changed).tolist() == [index % 3]
        reconstruction = np.asarray(make().reconstruct(moved))[0]
        expected = [0.5] * 3
        if index < 3:
            expected[index] = (1 / (1 + np.exp(-0.7)) - 0.1) / 0.8
        np.testing.assert_allclose(reconstruction, expected, rtol=1e-6)  # a few ulp


def test_bfloat16_maps_are_computed_in_float32(batch):
    pixels, _, _, stats = batch
    half = jnp.asarray(stats, jnp.bfloat16)
    loss = make().loss(pixels, half)
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, make().loss(pixels, half.astype(jnp.float32)))


@pytest.mark.parametrize(
    ("pixels", "stats", "error"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((2, 6), np.float32), AssertionError),
        (np.zeros((2, 3), np.uint8), np.zeros((3, 6), np.float32), AssertionError),
        (np.zeros((2, 1), np.uint8), np.zeros((2, 6), np.float32), AssertionError),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 6), np.int32), AssertionError),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 7), np.float32), (AssertionError, ValueError)),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(pixels, stats, error):
    with pytest.raises(error):
        make().loss(jnp.asarray(pixels), jnp.asarray(stats))


# --- The floor -------------------------------------------------------------------------------

FLOOR = -5.0


def test_soft_floor_formula():
    raw = np.linspace(-40, 10, 201).astype(np.float32)
    stats = np.stack([np.zeros_like(raw), raw], axis=-1)
    _, log_scale = make(min_log_scale=FLOOR).parameters(stats)
    expected = FLOOR + np.logaddexp(0, raw.astype(np.float64) - FLOOR)
    # Three float32 roundings of numbers below 16: 3 * 2**-21.
    np.testing.assert_allclose(log_scale[:, 0], expected, atol=1.5e-6)
    assert (np.asarray(log_scale) >= FLOOR).all()
    # What the docstring promises: within 0.02 of the raw value from four above the floor on.
    far = raw >= FLOOR + 4
    assert np.abs(np.asarray(log_scale)[far, 0] - raw[far]).max() < 0.02


def test_without_a_floor_the_raw_value_counts():
    raw = np.array([-60.0, -29.9, 0.0, 29.9, 60.0], np.float32)
    _, log_scale = make().parameters(np.stack([np.zeros_like(raw), raw], axis=-1))
    np.testing.assert_array_equal(log_scale[:, 0], np.clip(raw, -30, 30))  # the hard limits


@pytest.mark.parametrize("below", [0.1, 1, 5, 20, 60])
def test_the_gradient_never_vanishes_below_the_floor(below):
    likelihood = make(min_log_scale=FLOOR)
    pixels = jnp.array([[255]], jnp.uint8)

    def loss(raw):
        return likelihood.loss(pixels, jnp.stack([jnp.zeros(()), raw])[None]).sum()

    gradient = float(jax.grad(loss)(jnp.float32(FLOOR - below)))
    # d loss / d ln b = 1 - |logit 0.9|/b, times the slope of the softplus, sigmoid(-below).
    log_scale = FLOOR + np.log1p(np.exp(-below))
    expected = (1 - np.log(9) * np.exp(-log_scale)) / (1 + np.exp(below))
    assert gradient != 0
    # exp and log1p of float32 each round to a few ulp; ln b near -5 gives 5 ulp more.
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_at_floor():
    raw = np.array([[[0.0, 0.0, FLOOR - 1e-3, FLOOR]], [[0.0, 0.0, FLOOR + 1e-3, 3.0]]], np.float32)
    floored = make(min_log_scale=FLOOR).at_floor(raw)
    assert floored.tolist() == [[[True, True]], [[False, False]]]
    assert make().at_floor(raw).tolist() == [[[False, False]], [[False, False]]]


# --- Reconstruction and samples --------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3])
def test_reconstruction_is_the_clipped_median(eps):
    loc = np.linspace(-30, 30, 121).astype(np.float32)
    stats = np.stack([loc, np.full_like(loc, -2)], axis=-1)
    image = np.asarray(make(eps=eps).reconstruct(stats))[:, 0]
    expected = np.clip((1 / (1 + np.exp(-loc.astype(np.float64))) - eps) / (1 - 2 * eps), 0, 1)
    # sigmoid to 2 ulp (1.2e-7), divided by at least 0.4.
    np.testing.assert_allclose(image, expected, atol=5e-7)
    assert image.min() == pytest.approx(0, abs=1e-12)
    assert image.max() == 1
    assert ((image >= 0) & (image <= 1)).all()


def test_reconstruction_ignores_the_scale(batch):
    _, loc, log_scale, stats = batch
    other = np.concatenate([loc, log_scale + 3], axis=-1)
    for options in ({}, {"min_log_scale": FLOOR}):
        np.testing.assert_array_equal(
            make(**options).reconstruct(stats), make(**options).reconstruct(other)
        )


@pytest.mark.parametrize(
    ("loc", "log_scale", "floor"), [(0.3, -1.0, None), (-1.5, -0.5, None), (0.5, -9.0, -1.5)]
)
def test_samples_follow_the_cdf(loc, log_scale, floor):
    likelihood = make(eps=0.1, min_log_scale=floor)
    stats = jnp.broadcast_to(jnp.array([loc, log_scale]), (4000, 2))
    draws = np.asarray(likelihood.sample(jax.random.key(0), stats))[:, 0]
    assert ((draws >= 0) & (draws <= 1)).all()
    scale = log_scale if floor is None else floor + np.log1p(np.exp(log_scale - floor))
    # Draws are clipped, so only those inside have the density; compare them given that.
    inside = draws[(draws > 0) & (draws < 1)]
    low, high = (float(ll.cdf(jnp.float32(x), loc, scale)) for x in (0.1, 0.9))

    def conditional(values):
        mapped = jnp.asarray(0.8 * values + 0.1, jnp.float32)
        return (np.asarray(ll.cdf(mapped, loc, scale)) - low) / (high - low)

    # The seed is fixed, so this is no gamble: 1e-3 is where a right sampler fails once in 1,000.
    assert scipy_stats.kstest(inside, conditional).pvalue > 1e-3
    # Five binomial standard deviations for the clipped shares.
    for share, expected in ((np.mean(draws == 0), low), (np.mean(draws == 1), 1 - high)):
        assert abs(share - expected) <= 5 * np.sqrt(expected * (1 - expected) / 4000) + 1e-9


def test_samples_differ_by_key_and_by_value(batch):
    stats = batch[-1]
    first, second = (make().sample(jax.random.key(k), stats) for k in (0, 1))
    assert first.shape == SHAPE
    np.testing.assert_array_equal(first, make().sample(jax.random.key(0), stats))
    assert np.mean(np.asarray(first) != np.asarray(second)) > 0.5  # clipped ones may agree


# --- As a static argument --------------------------------------------------------------------


def test_hashable_and_static_under_jit(batch):
    pixels, _, _, stats = batch
    traces = []

    def loss(pixels, stats, likelihood):
        traces.append(likelihood)
        return likelihood.loss(pixels, stats)

    jitted = jax.jit(loss, static_argnums=2)
    equal = make(min_log_scale=-4.0), make(min_log_scale=-4.0)
    assert equal[0] == equal[1]
    assert hash(equal[0]) == hash(equal[1])
    for likelihood in equal:
        # The compiler may contract and reorder float32 arithmetic; a term |t - μ|/b is below 1e3.
        np.testing.assert_allclose(
            jitted(pixels, stats, likelihood), likelihood.loss(pixels, stats), rtol=1e-5, atol=1e-5
        )
    assert len(traces) == 1
    jitted(pixels, stats, make())
    assert len(traces) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        equal[0].eps = 0.2


@pytest.mark.parametrize(
    ("maps", "words"), [(3, "3 maps, no multiple of the 2"), (2, "2 . channels")]
)
def test_maps_that_do_not_fit_are_named(maps, words):
    likelihood = likelihoods.get("logit_laplace")
    pixels, stats = jnp.zeros((4, 8, 8, 3), jnp.uint8), jnp.zeros((4, 8, 8, maps))
    with pytest.raises((ValueError, AssertionError), match=f"stats .4, 8, 8, {maps}.*{words}"):
        likelihood.loss(pixels, stats)
