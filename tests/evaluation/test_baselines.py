"""The codecs that a model is measured against."""

import math

import numpy as np
import pytest

import logit_laplace_jax as ll
from logit_laplace_jax.evaluation import baselines


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def two_colours(count, seed=0, noise=0):
    """Images of 4 x 4 patches, each dark or light, with noise of some grey levels."""
    rng = np.random.default_rng(seed)
    dark = rng.random((count, 2, 2, 1)) < 0.5
    flat = np.where(dark, 60, 190).repeat(4, 1).repeat(4, 2)
    return (flat + rng.integers(-noise, noise + 1, flat.shape)).astype(np.uint8)


def test_k_means_finds_the_colours_and_their_code_length_is_exact():
    quantiser = baselines.fit_quantiser(two_colours(20), 4, 2, seed=0)
    test = two_colours(6, seed=1)
    np.testing.assert_allclose(quantiser.reconstruct(test) * 255, test, atol=1e-4)
    # The narrowest scale there is leaves the pixels nearly free: one bit per patch of 16 values.
    assert sorted(quantiser.log_scales) == [-6.0, -6.0]
    loc = np.log(ll.map_pixels(test)) - np.log1p(-ll.map_pixels(test))
    nats = -np.asarray(ll.pixel_log_prob(test, loc, -6.0)).mean((1, 2, 3))
    # A centre is a float32 mean: its location is off by some 1e-7, a hundredth of that of b.
    np.testing.assert_allclose(quantiser.bits_per_dim(test), nats / math.log(2) + 1 / 16, atol=1e-3)


def test_every_code_has_the_scale_that_makes_its_patches_shortest():
    rng = np.random.default_rng(0)
    noise = rng.integers(-20, 21, (60, 4, 4, 1))
    # Dark patches are noisy, light ones hardly.
    images = np.where(np.arange(60)[:, None, None, None] % 2, 60 + noise, 190 + noise // 10)
    quantiser = baselines.fit_quantiser(images.astype(np.uint8), 4, 2, seed=0)
    dark, light = np.argsort(quantiser.codebook.mean(1))
    assert quantiser.log_scales[dark] > quantiser.log_scales[light] + 1
    for change in (-0.25, 0.25):
        other = baselines.Quantiser(quantiser.codebook, quantiser.log_scales + change, 4)
        test = images.astype(np.uint8)
        assert other.bits_per_dim(test).mean() > quantiser.bits_per_dim(test).mean()


def test_constant_colour():
    batch = images(2, 4, 6, 3)
    flat = baselines.constant_colour(batch)
    assert flat.shape == batch.shape
    for image, mean in zip(batch, flat, strict=True):
        expected = image.reshape(-1, 3).mean(axis=0) / 255
        np.testing.assert_allclose(mean, np.broadcast_to(expected, image.shape), rtol=1e-14)


def test_pooled():
    batch = images(2, 4, 6, 3)
    pooled = baselines.pooled(batch, 2)
    for n in range(2):
        for y in (0, 2):
            for x in (0, 2, 4):
                patch = batch[n, y : y + 2, x : x + 2]
                expected = np.broadcast_to(patch.mean(axis=(0, 1)) / 255, patch.shape)
                np.testing.assert_allclose(pooled[n, y : y + 2, x : x + 2], expected, rtol=1e-14)


def test_vector_quantisation_of_few_patches_is_lossless():
    # Two kinds of patches and two codes: nothing can be lost, whatever the order of pixels.
    kinds = images(2, 2, 2, 3)
    order = np.random.default_rng(1).integers(0, 2, (3, 2, 3))
    order[0, 0, :2] = 0, 1
    batch = np.concatenate(
        [np.concatenate(list(kinds[row]), axis=1)[None] for rows in order for row in rows]
    ).reshape(3, 2, 2, 6, 3)
    batch = np.concatenate([batch[:, 0], batch[:, 1]], axis=1)
    for seed in range(20):
        coded = baselines.fit_quantiser(batch, 2, 2, seed).reconstruct(batch)
        if np.abs(coded - batch / 255).max() < 1e-6:  # float32 codes
            break
    else:
        # Both starting points are of one kind half of the time: 20 times in a row, once in 10**6.
        pytest.fail("k-means never found the two patches")


def test_vector_quantisation_uses_no_more_codes_and_repeats_itself():
    train, batch = images(8, 8, 8, 3), images(4, 8, 8, 3, seed=1)
    coded = baselines.fit_quantiser(train, 2, 5, seed=0).reconstruct(batch)
    assert coded.shape == batch.shape
    assert ((coded >= 0) & (coded <= 1)).all()
    patches = coded.reshape(4, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(64, -1)
    assert len(np.unique(patches, axis=0)) <= 5
    again = baselines.fit_quantiser(train, 2, 5, seed=0).reconstruct(batch)
    np.testing.assert_array_equal(coded, again)
    more = baselines.fit_quantiser(train, 2, 100, seed=0).reconstruct(batch)
    assert np.mean((more - batch / 255) ** 2) < np.mean((coded - batch / 255) ** 2)
    with pytest.raises(ValueError, match="128 training patches cannot give 129 codes"):
        baselines.fit_quantiser(train, 2, 129, seed=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_takes_the_best_quality_that_fits(channels):
    ramp = np.linspace(0, 255, 64)
    image = (0.5 * ramp[:, None, None] + 0.4 * ramp[:, None]).repeat(channels, -1)
    image = (image + images(64, 64, channels) * 0.1).astype(np.uint8)
    errors = []
    for rate in (1.5, 2.5, 4.0):
        decoded, taken = baselines.jpeg(image, rate)
        assert decoded.shape == image.shape
        assert 0.7 * rate < taken <= rate  # the next quality is less than 30 % larger
        errors.append(np.square(decoded.astype(float) - image).mean())
    assert errors == sorted(errors, reverse=True)
    # The header alone takes more: the poorest quality.
    decoded, taken = baselines.jpeg(image, 0.01)
    assert 0.01 < taken < 1.5
    assert np.square(decoded.astype(float) - image).mean() > errors[0]
