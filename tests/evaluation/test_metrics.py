"""Errors, SSIM and MS-SSIM, statistics of the codes, untrained baselines and pictures."""

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data
from skimage.metrics import structural_similarity

from logit_laplace_jax.evaluation import baselines, codebook, figures, metrics

# --- Errors ----------------------------------------------------------------------------------


def test_mean_squared_error_is_one_number_an_image():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 4, 5, 3)).astype(np.float32)
    error = metrics.mean_squared_error(jnp.asarray(a), jnp.asarray(b))
    expected = [np.mean((x.astype(np.float64) - y) ** 2) for x, y in zip(a, b, strict=True)]
    # A float32 mean of 60 values below 1.
    np.testing.assert_allclose(error, expected, rtol=1e-6)
    with pytest.raises(AssertionError):
        metrics.mean_squared_error(jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 4, 4, 1)))


@pytest.mark.parametrize(
    ("mse", "decibels"),
    [(1.0, 0.0), (0.1, 10.0), (0.01, 20.0), (0.25, 6.0206), (1e-10, 100.0), (0.0, 100.0)],
)
def test_psnr(mse, decibels):
    # log10 in float32 to 2 ulp at 100: 1.6e-5; the table has four decimals.
    assert float(metrics.psnr(jnp.float32(mse))) == pytest.approx(decibels, abs=6e-5)


def test_mean_absolute_error_is_in_grey_levels():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 4, 5, 3)).astype(np.float32)
    error = metrics.mean_absolute_error(jnp.asarray(a), jnp.asarray(b))
    assert error.dtype == jnp.float32
    expected = [255 * np.abs(x.astype(np.float64) - y).mean() for x, y in zip(a, b, strict=True)]
    # A float32 mean of 60 values below 1.
    np.testing.assert_allclose(error, expected, rtol=1e-6)


def test_masked_mean_gives_sums_and_counts():
    rng = np.random.default_rng(0)
    values = rng.random((3, 4, 5, 2)).astype(np.float32)
    mask = rng.random((3, 4, 5)) < 0.4
    mask[2] = False
    expected = [v[m].astype(np.float64).sum() for v, m in zip(values, mask, strict=True)]
    values[~mask] = np.nan
    total, count = jax.jit(metrics.masked_mean)(jnp.asarray(values), jnp.asarray(mask))
    assert (total.dtype, count.dtype) == (jnp.float32, jnp.int32)
    # A float32 sum of at most 40 values below 1.
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    assert count.tolist() == [2 * int(m.sum()) for m in mask]
    for wrong in (jnp.ones((3, 4, 5)), jnp.ones((3, 4), bool), jnp.ones((3, 4, 5, 2), bool)):
        with pytest.raises(AssertionError):
            metrics.masked_mean(jnp.asarray(values), wrong)


# --- SSIM and MS-SSIM ------------------------------------------------------------------------


def reference_terms(a, b, window):
    """Luminance and contrast-structure of grey images in float64, by a two-dimensional window."""
    offset = np.arange(window) - window // 2
    weight = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    weight /= weight.sum()

    def blur(x):
        inside = slice(window // 2, -(window // 2) or None)
        return ndimage.correlate(x, weight)[inside, inside]

    mean_x, mean_y = blur(a), blur(b)
    var_x, var_y = blur(a * a) - mean_x**2, blur(b * b) - mean_y**2
    cov = blur(a * b) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * cov + c2) / (var_x + var_y + c2)


def reference_ms_ssim(a, b, scales):
    """As in the authors' code: filtered by 2 x 2 ones with mirrored borders, every other pixel."""
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    if scales < 5:
        weights = weights / weights.sum()
    channels = []
    for x, y in zip(np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0), strict=True):
        value = 1.0
        for scale, weight in enumerate(weights, 1):
            luminance, structure = reference_terms(x, y, 11)
            term = np.mean(structure if scale < scales else luminance * structure)
            value *= max(term, 0.0) ** weight
            x, y = (
                ndimage.correlate(i, np.full((2, 2), 0.25), mode="reflect", origin=-1)[::2, ::2]
                for i in (x, y)
            )
        channels.append(value)
    return np.mean(channels)


def pairs():
    """Pairs of float32 [1, 46, 65, 3] in [0, 1], each named."""
    rng = np.random.default_rng(0)
    photo = data.astronaut()[50:96, 190:255] / 255
    noise = rng.normal(size=photo.shape)
    bright = np.full_like(photo, 0.97)
    halves = np.where(np.arange(65)[:, None] < 30, bright, 0.02)
    rows = {
        "noise": (photo, photo + 0.1 * noise),
        "a little noise": (photo, photo + 0.004 * noise),
        "blurred": (photo, ndimage.gaussian_filter(photo, (2, 2, 0))),
        "darker": (photo, 0.5 * photo),
        "against a constant": (photo, np.full_like(photo, 0.99)),
        "negative": (photo, 1 - photo),
        "bright and flat": (bright, bright + noise / 255),
        "black and white": (halves, halves + noise / 255),
    }
    return {
        name: tuple(np.clip(image, 0, 1).astype(np.float32)[None] for image in pair)
        for name, pair in rows.items()
    }


PAIRS = pairs()
ssim, ms_ssim, dm_pix_ssim = metrics.ssim, metrics.ms_ssim, jax.jit(dm_pix.ssim)
each_pair = pytest.mark.parametrize("name", PAIRS)


@each_pair
def test_ssim_is_scikit_images_and_dm_pix(name):
    a, b = PAIRS[name]
    got = ssim(a, b)
    assert (got.shape, got.dtype) == ((1,), jnp.float32)
    # Wang et al.'s settings; scikit-image leaves the windows that cross the border out, too.
    expected = structural_similarity(
        a[0].astype(np.float64),
        b[0].astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
    )
    # float32 errors below 1e-8 in the variances against C2 = 9e-4; measured 7e-6 for black and
    # white, where centring helps least, and at most 2e-7 for all the others.
    assert float(got[0]) == pytest.approx(expected, abs=2e-5)
    # dm_pix's variances cancel: errors of 1e-7 against C2; measured at most 5e-5.
    assert float(dm_pix_ssim(a, b)[0]) == pytest.approx(float(got[0]), abs=2e-4)


@pytest.mark.parametrize(("shape", "window"), [((8, 8), 7), ((10, 30), 9), ((1, 5), 1)])
def test_ssim_of_small_images_cuts_the_window(shape, window):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, *shape)).astype(np.float32)
    assert metrics.ssim_window(*shape) == window
    luminance, structure = reference_terms(a.astype(np.float64), b.astype(np.float64), window)
    got = ssim(a[None, ..., None], b[None, ..., None])
    # As above.
    assert float(got[0]) == pytest.approx(np.mean(luminance * structure), abs=3e-6)


@pytest.mark.parametrize(
    ("shape", "scales"),
    [((161, 170, 1), 5), ((90, 83, 2), 4), ((21, 300, 1), 2)],
)
def test_ms_ssim_is_the_authors(shape, scales):
    rng = np.random.default_rng(0)
    a = ndimage.gaussian_filter(rng.random(shape), (3, 3, 0))
    a = (a - a.min()) / np.ptp(a)
    b = np.clip(0.9 * a + rng.normal(0, 0.1, shape), 0, 1)
    a, b = a.astype(np.float32), b.astype(np.float32)
    assert metrics.ms_ssim_scales(*shape[:2]) == scales
    got = ms_ssim(a[None], b[None])
    assert (got.shape, got.dtype) == ((1,), jnp.float32)
    expected = reference_ms_ssim(a.astype(np.float64), b.astype(np.float64), scales)
    assert 0.3 < expected < 0.99
    # Up to five terms as exact as SSIM above, to powers that sum to 1.
    assert float(got[0]) == pytest.approx(expected, abs=3e-6)


@each_pair
def test_ms_ssim_of_every_kind_of_pair(name):
    a, b = PAIRS[name]
    expected = reference_ms_ssim(a[0].astype(np.float64), b[0].astype(np.float64), 3)
    got = float(ms_ssim(a, b)[0])
    # A term t near 0 enters as t**w with w >= 0.07: relative errors of t are damped, not raised.
    assert got == pytest.approx(expected, abs=3e-6)


def test_reversed_structure():
    a, b = PAIRS["negative"]
    assert float(ssim(a, b)[0]) < 0
    assert float(ms_ssim(a, b)[0]) == 0


def test_one_scale_is_ssim():
    a, b = (image[:, :20, :20] for image in PAIRS["blurred"])
    assert metrics.ms_ssim_scales(20, 20) == 1
    # The same sum in another order.
    np.testing.assert_allclose(ms_ssim(a, b), ssim(a, b), atol=1e-6)


@pytest.mark.parametrize("measure", [ssim, ms_ssim])
def test_properties_of_similarity(measure):
    rng = np.random.default_rng(1)
    photo = data.astronaut()[40:88, 190:238].astype(np.float32) / 255
    noise = rng.normal(size=photo.shape)
    levels = [0, 0.01, 0.03, 0.1, 0.3]
    a = jnp.asarray(np.stack([photo] * len(levels)))
    b = jnp.asarray(np.stack([photo + s * noise for s in levels]).astype(np.float32))
    similarity = measure(a, b)
    # Equal images give numerator and denominator that differ by roundings only.
    assert float(similarity[0]) == pytest.approx(1.0, abs=1e-6)
    assert (jnp.diff(similarity) < 0).all()
    # Symmetric; mirroring does not matter (48 x 48: no odd side to repeat), nor do
    # leading axes. Sums in another order: errors as against scikit-image.
    turned = [x.swapaxes(1, 2) for x in (a, b)]
    for other in (
        measure(b, a),
        measure(a[:, ::-1], b[:, ::-1]),
        measure(*turned),
        measure(a[None], b[None])[0],
    ):
        np.testing.assert_allclose(other, similarity, atol=3e-6)


@pytest.mark.parametrize(
    "measure",
    [metrics.ssim, metrics.ms_ssim, metrics.mean_absolute_error],
    ids=lambda f: f.__name__,
)
def test_measures_check_their_arguments(measure, strict):
    a = jnp.linspace(0, 1, 32 * 32, dtype=jnp.float32).reshape(1, 32, 32, 1)
    low = a.astype(jnp.bfloat16)
    assert measure(low, low * 0.5).dtype == jnp.float32
    measure(a, a)
    for wrong in ((a, a[:, 1:]), ((255 * a).astype(jnp.uint8),) * 2, (a[0, ..., 0],) * 2):
        with pytest.raises(AssertionError):
            measure(*wrong)


# --- Codes -----------------------------------------------------------------------------------


def test_code_counts_leave_masked_images_out():
    tokens = jnp.array([[[0, 1], [1, 1]], [[4, 4], [4, 4]], [[0, 0], [0, 3]]])
    counts = codebook.code_counts(tokens, jnp.array([1.0, 0.0, 1.0]), 5)
    assert counts.dtype == jnp.int32
    assert counts.tolist() == [4, 3, 0, 1, 0]


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity"),
    [
        ([7, 0, 0, 0], 0.25, 1.0),
        ([3, 3, 3, 3], 1.0, 4.0),
        ([5, 5, 0, 0], 0.5, 2.0),
        # exp(H) of (1/2, 1/4, 1/4) = 2**1.5.
        ([2, 1, 1, 0], 0.75, 2**1.5),
        ([0, 0, 0, 0], 0.0, float("nan")),
    ],
)
def test_usage_and_perplexity(counts, usage, perplexity):
    assert codebook.usage(np.array(counts)) == usage
    # float64: a few ulp.
    assert codebook.perplexity(np.array(counts)) == pytest.approx(perplexity, 1e-14, nan_ok=True)


# --- Baselines -------------------------------------------------------------------------------


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


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
        coded, bits = baselines.vector_quantised(batch, batch, 2, 2, seed)
        if np.abs(coded - batch / 255).max() < 1e-6:  # float32 codes
            # One bit per patch of 12 values, and pixels that b at its floor all but knows: about
            # half of them within their bin's half width, some 0.01 in logit units.
            assert 1 / 12 < bits < 2.0
            break
    else:
        # Both starting points are of one kind half of the time: 20 times in a row, once in 10**6.
        pytest.fail("k-means never found the two patches")


def test_vector_quantisation_uses_no_more_codes_and_repeats_itself():
    train, batch = images(8, 8, 8, 3), images(4, 8, 8, 3, seed=1)
    coded, bits = baselines.vector_quantised(batch, train, 2, 5, seed=0)
    assert coded.shape == batch.shape
    assert ((coded >= 0) & (coded <= 1)).all()
    patches = coded.reshape(4, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(64, -1)
    assert len(np.unique(patches, axis=0)) <= 5
    again = baselines.vector_quantised(batch, train, 2, 5, seed=0)
    np.testing.assert_array_equal(coded, again.images)
    assert again.bits_per_dim == bits
    # Of noise: no fewer than 8 bits, and not many more with scales fitted to such noise.
    assert 8.0 < bits < 9.0
    more = baselines.vector_quantised(batch, train, 2, 100, seed=0).images
    assert np.mean((more - batch / 255) ** 2) < np.mean((coded - batch / 255) ** 2)
    with pytest.raises(ValueError, match="128 training patches cannot give 129 codes"):
        baselines.vector_quantised(batch, train, 2, 129, seed=0)


# --- Pictures --------------------------------------------------------------------------------


def test_to_uint8_rounds_clips_and_repeats_grey():
    values = np.array([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0]).reshape(1, 1, 6, 1)
    expected = np.repeat(np.array([0, 0, 0, 1, 255, 255], np.uint8).reshape(1, 1, 6, 1), 3, -1)
    np.testing.assert_array_equal(figures.to_uint8(values), expected)
    batch = images(2, 3, 3, 3)
    np.testing.assert_array_equal(figures.to_uint8(batch), batch)
    np.testing.assert_array_equal(figures.to_uint8(batch / 255), batch)


def test_side_by_side_and_grid_keep_every_picture():
    a, b = images(4, 4, 4, 3), images(4, 4, 4, 3, seed=1)
    pair = figures.side_by_side(a[0], b[0])
    np.testing.assert_array_equal(pair[:, :4], a[0])
    np.testing.assert_array_equal(pair[:, -4:], b[0])
    assert (pair[:, 4:-4] == 255).all()
    sheet = figures.grid([a, b], limit=3)
    gap = pair.shape[1] - 8
    assert sheet.shape == (8 + gap, 12 + 2 * gap, 3)
    np.testing.assert_array_equal(sheet[:4, -4:], a[2])
    np.testing.assert_array_equal(sheet[-4:, :4], b[0])


def test_save_png_enlarges_and_leaves_no_part(tmp_path):
    picture = images(3, 5, 3)
    figures.save_png(tmp_path / "new" / "picture.png", picture, scale=2)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["picture.png"]
    saved = np.asarray(Image.open(tmp_path / "new" / "picture.png"))
    np.testing.assert_array_equal(saved, picture.repeat(2, axis=0).repeat(2, axis=1))
