"""Distances between sets of images, against closed forms and SciPy."""

import numpy as np
import pytest
from scipy import stats

from logit_laplace_jax.evaluation import realism


def photographs(seed, count=32, size=32, power=1.0):
    """Noise whose amplitude falls as 1/f, as natural images' does: [count, size, size, 3]."""
    rng = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    falling = 1.0 / np.maximum(f, 1 / size) ** power
    white = np.fft.fft2(rng.standard_normal((count, 3, size, size)))
    images = np.fft.ifft2(white * falling).real.transpose(0, 2, 3, 1)
    return 0.5 + 0.15 * images / images.std()


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 23)])
def test_the_pyramid_adds_up_to_the_image(size):
    images = np.random.default_rng(0).random((2, *size, 3)).astype(np.float32)
    *levels, rest = realism.laplacian_pyramid(images)
    assert min(rest.shape[1:3]) >= realism.SMALLEST
    for level in reversed(levels):
        spread = np.zeros_like(level)
        spread[:, ::2, ::2] = 4.0 * rest
        # Burt and Adelson's own way up: five taps in both directions, mirrored at the ends.
        padded = np.pad(spread, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="reflect")
        taps = np.array([1, 4, 6, 4, 1]) / 16
        height, width = level.shape[1:3]
        rest = level + sum(
            a * b * padded[:, i : i + height, j : j + width]
            for i, a in enumerate(taps)
            for j, b in enumerate(taps)
        )
    np.testing.assert_allclose(rest, images, atol=1e-5)  # float32 sums of some 50 terms


def test_each_level_has_the_waves_of_its_own_octave():
    y = np.arange(32)
    for period, level in ((2, 0), (4, 0), (8, 1), (32, 2)):
        wave = np.cos(2 * np.pi * y / period)[None, :, None, None] * np.ones((1, 1, 32, 1))
        strength = [x.std() for x in realism.laplacian_pyramid(wave)]
        assert int(np.argmax(strength)) == level


def test_sliced_distance_of_one_direction_is_scipys(monkeypatch):
    one, other = photographs(0, 4, 8), photographs(1, 4, 8)  # a single level
    got = realism.sliced_wasserstein(one, other, np.random.default_rng(7), 16, 1)
    rng = np.random.default_rng(7)
    std = one.astype(np.float32).std(axis=(0, 1, 2))
    aim = rng.standard_normal((49 * 3, 1), np.float32)
    aim /= np.linalg.norm(aim)
    ends = [realism._patches((x / std).astype(np.float32), 16, rng) @ aim for x in (one, other)]
    want = stats.wasserstein_distance(*(e.ravel() for e in ends))
    assert got == [pytest.approx(want, rel=1e-4)]  # float32 against float64


def test_sliced_distance_of_white_noise_is_its_closed_form():
    # Projections on unit vectors are normal with the noise's own spread: W1 = |s - 1| sqrt(2/pi).
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 256, 8, 8, 1))  # 8 x 8: only the level that is the image
    (got,) = realism.sliced_wasserstein(noise[0], 3.0 * noise[1], rng)
    # 16,384 patches of 256 images that overlap: some 256 * 1.3 independent ones, 5 %.
    assert got == pytest.approx(2.0 * np.sqrt(2 / np.pi), rel=0.1)


def test_the_distance_orders_what_the_eye_orders():
    real, again = photographs(0, 128), photographs(1, 128)
    rough, pale = photographs(2, 128, power=0.5), 0.5 + 0.7 * (photographs(3, 128) - 0.5)

    def distance(images):
        return np.mean(realism.sliced_wasserstein(real, images, np.random.default_rng(0)))

    floor = distance(again)
    assert distance(pale) > 3 * floor  # contrast, which a separate normalisation would hide
    assert distance(rough) > 3 * floor
    with pytest.raises(ValueError, match="one shape"):
        distance(real[:5])


def test_the_spectrum_of_white_noise_is_flat_at_its_power():
    images = 0.5 + 0.1 * np.random.default_rng(0).standard_normal((512, 32, 32, 1))
    window = np.hanning(34)[1:-1]
    want = 10 * np.log10(0.01 * (np.outer(window, window) ** 2).sum())
    # Each ring averages 512 images times 8 or more frequencies: a relative error of 1.6 %, 0.07 dB.
    np.testing.assert_allclose(realism.power_spectrum(images)[1:], want, atol=0.3)
    assert len(realism.power_spectrum(images)) == 16


def test_a_blank_image_has_a_finite_spectrum():
    assert np.isfinite(realism.power_spectrum(np.full((1, 16, 16, 3), 0.5))).all()


def test_the_nearest_is_the_nearest():
    rng = np.random.default_rng(0)
    images, among = rng.random((5, 4, 4, 3)), rng.random((9, 4, 4, 3))
    which, distance = realism.nearest(images, among)
    apart = np.sqrt(np.square(images[:, None] - among[None]).mean(axis=(2, 3, 4)))
    np.testing.assert_array_equal(which, apart.argmin(axis=1))
    np.testing.assert_allclose(distance, apart.min(axis=1), rtol=1e-6)  # float32
    assert (realism.nearest(among, among)[1] == 0).all()
