"""PixelCNN++'s mixture: the coupling of the channels, against an independent implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_softmax, logsumexp

from logit_laplace_jax import likelihoods

K = 4
N = 40


def make(**options):
    return likelihoods.get(
        "logistic_mixture", **({"components": K, "coupled": True, "min_log_scale": None} | options)
    )


def random_maps(n=N, seed=0):
    """(logits [n, K], means, log scales, coefficients [n, 3, K]), as the stats hold them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (n, 3, K))
    means = rng.normal(0, 0.5, (n, 3, K))
    log_scales = rng.uniform(-4, 0, (n, 3, K))
    coefficients = rng.normal(0, 1, (n, 3, K))
    return tuple(a.astype(np.float32) for a in (logits, means, log_scales, coefficients))


def as_stats(*groups):
    """All channels' first statistic, then all channels' second: [n, C · (4 K)]."""
    maps = np.concatenate([np.swapaxes(g, 1, 2) for g in groups], axis=1)
    return maps.reshape(len(maps), -1)


def joint_log_mass(pixels, logits, means, log_scales, coefficients):
    """ln P(r, g, b) in float64, written from the paper: ln Σ π Π (cdf - cdf)."""
    weights = log_softmax(logits.astype(np.float64).mean(axis=1), axis=-1)
    y = pixels[..., None] / 127.5 - 1
    c = np.tanh(coefficients.astype(np.float64))
    centres = means.astype(np.float64)
    centres = np.stack(
        [
            centres[:, 0],
            centres[:, 1] + c[:, 0] * y[:, 0],
            centres[:, 2] + c[:, 1] * y[:, 0] + c[:, 2] * y[:, 1],
        ],
        axis=1,
    )
    scales = np.exp(log_scales.astype(np.float64))
    upper = np.where(pixels[..., None] == 255, np.inf, (y + 1 / 255 - centres) / scales)
    lower = np.where(pixels[..., None] == 0, -np.inf, (y - 1 / 255 - centres) / scales)
    # Both ends above the centre: the difference of the upper tails, which does not cancel.
    lower, upper = np.where(lower > 0, -upper, lower), np.where(lower > 0, -lower, upper)
    mass = expit(upper) - expit(lower)
    return logsumexp(weights + np.log(mass).sum(axis=1), axis=-1)


def test_the_sum_over_channels_is_the_papers_joint():
    maps = random_maps()
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (N, 3), dtype=np.uint8)
    pixels[::6] = 0
    pixels[1::6] = 255
    got = np.asarray(make().log_mass(pixels, as_stats(*maps)), np.float64).sum(axis=-1)
    expected = joint_log_mass(pixels, *maps)
    # Three logarithms of a few roundings each, of standardised distances below 100.
    np.testing.assert_allclose(got, expected, rtol=8 * 2.0**-24, atol=1e-4)


def test_each_conditionals_masses_sum_to_one():
    stats = as_stats(*random_maps())
    before = np.random.default_rng(2).integers(0, 256, (N, 3), dtype=np.uint8)
    log_mass = jax.jit(make().log_mass)
    bin_cdf = jax.jit(make().bin_cdf)
    for channel in range(3):
        grid = np.repeat(before[None], 256, axis=0)
        grid[..., channel] = np.arange(256)[:, None]
        every = np.broadcast_to(stats, (256, *stats.shape))
        mass = np.exp(np.asarray(log_mass(grid, every), np.float64))
        np.testing.assert_allclose(mass[..., channel].sum(axis=0), 1, atol=1e-5)  # the contract's
        # What comes after a channel does not change it.
        assert np.all(np.ptp(mass[..., :channel], axis=0) == 0)
        low, high = (np.asarray(end, np.float64)[..., channel] for end in bin_cdf(grid, every))
        np.testing.assert_allclose(high - low, mass[..., channel], atol=1e-5)
        assert np.all(low[0] == 0)
        assert np.all(high[-1] == 1)


def test_the_joint_density_integrates_to_the_joint_mass():
    """Gauss-Legendre nodes in the three channels' noise; the means hold the 8-bit values."""
    maps = random_maps(8, seed=3)
    stats = as_stats(*maps)
    pixels = np.random.default_rng(4).integers(1, 255, (8, 3), dtype=np.uint8)
    nodes, weights = np.polynomial.legendre.leggauss(4)
    noise = np.stack(np.meshgrid(*[0.5 * nodes] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    share = np.einsum("i,j,k->ijk", *[0.5 * weights] * 3).ravel()
    noise = np.broadcast_to(noise, (64, 8, 3)).astype(np.float32)
    loss = make().loss(
        np.broadcast_to(pixels, noise.shape), np.broadcast_to(stats, (64, *stats.shape)), noise
    )
    joint = np.asarray(loss, np.float64).sum(axis=-1)
    log_integral = logsumexp(-joint, b=share[:, None], axis=0) + 3 * np.log(2 / 255)
    log_mass = np.asarray(make().log_mass(pixels, stats), np.float64).sum(axis=-1)
    # Bins of up to 0.43 scales: 4 nodes err by 1e-8; three float32 values of up to 1e2 by 1e-4.
    np.testing.assert_allclose(log_integral, log_mass, rtol=1e-5, atol=2e-4)


def test_without_coefficients_and_with_shared_weights_it_is_the_joint_of_the_components():
    logits, means, log_scales, coefficients = random_maps()
    one = make(components=1)
    single = as_stats(*(a[..., :1] for a in (logits, means, log_scales, 0 * coefficients)))
    alone = make(components=1, coupled=False)
    pixels = np.random.default_rng(5).integers(0, 256, (N, 3), dtype=np.uint8)
    expected = alone.log_mass(pixels, single[:, : 3 * 3])
    np.testing.assert_allclose(one.log_mass(pixels, single), expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(one.reconstruct(single), alone.reconstruct(single[:, :9]), atol=1e-6)


def test_one_channel_has_nothing_to_couple():
    rng = np.random.default_rng(6)
    stats = rng.normal(-1, 1, (N, 4 * K)).astype(np.float32)
    pixels = rng.integers(0, 256, (N, 1), dtype=np.uint8)
    alone = make(coupled=False)
    np.testing.assert_array_equal(
        make().log_mass(pixels, stats), alone.log_mass(pixels, stats[:, : 3 * K])
    )


def test_one_component_is_the_logistic():
    rng = np.random.default_rng(7)
    stats = rng.normal(-1, 1, (N, 2 * 3)).astype(np.float32)
    pixels = rng.integers(0, 256, (N, 3), dtype=np.uint8)
    mixture = make(components=1, coupled=False)
    weighted = np.concatenate([np.ones((N, 3), np.float32), stats], axis=-1)
    for method in ("loss", "log_mass"):
        np.testing.assert_allclose(
            getattr(mixture, method)(pixels, weighted),
            getattr(likelihoods.get("logistic"), method)(pixels, stats),
            rtol=2e-6,
            atol=2e-6,
        )


def test_the_mean_is_that_of_samples():
    """Where nothing is clipped the plugged-in means give the marginal mean exactly."""
    logits, means, log_scales, coefficients = random_maps(1, seed=8)
    stats = as_stats(logits, 0.3 * means, np.minimum(log_scales, -3), coefficients)
    n = 20000
    draws = np.asarray(
        make().sample(jax.random.key(0), np.broadcast_to(stats, (n, stats.shape[1])))
    )
    error = 5 * draws.std(axis=0) / np.sqrt(n)  # five standard errors
    assert np.all(np.abs(draws.mean(axis=0) - np.asarray(make().reconstruct(stats))[0]) < error)
    mean, median = make().mean_and_median(jnp.asarray(stats))
    assert np.all(np.abs(draws.mean(axis=0) - np.asarray(mean)[0]) < error)
    assert mean.shape == median.shape == (1, 3)


def test_floor():
    likelihood = make(min_log_scale=-7.0, coupled=False)
    logits = np.array([[[0.0, 3.0, 0, 0]]], np.float32)  # the second is the heaviest
    raw = np.array([[[0.0, -7.5, 0, 0]]], np.float32)
    stats = as_stats(logits, 0 * logits, raw)
    assert likelihood.at_floor(stats).tolist() == [[True]]
    assert likelihood.at_floor(as_stats(logits, 0 * logits, -raw)).tolist() == [[False]]
    assert make(coupled=False).at_floor(stats).tolist() == [[False]]
    expected = -7 + np.logaddexp(0, raw.astype(np.float64) + 7)
    np.testing.assert_allclose(likelihood.parameters(stats).log_scales, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": 0}, ["components", "0"]),
        ({"components": 2.5}, ["components", "2.5"]),
        ({"components": True}, ["components", "True"]),
        ({"min_log_scale": float("inf")}, ["min_log_scale", "inf"]),
    ],
)
def test_a_mistake_is_said_in_one_line(options, words):
    with pytest.raises(ValueError, match=words[0]) as caught:
        likelihoods.get("logistic_mixture", **options)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words)


def test_two_channels_cannot_be_coupled():
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        make().log_mass(jnp.zeros((1, 2), jnp.uint8), jnp.zeros((1, 8 * K)))
