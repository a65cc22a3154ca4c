"""PSNR, statistics of the codes, untrained baselines and pictures, on arrays made by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

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
        coded = baselines.vector_quantised(batch, batch, 2, 2, seed)
        if np.abs(coded - batch / 255).max() < 1e-6:  # float32 codes
            break
    else:
        # Both starting points are of one kind half of the time: 20 times in a row, once in 10**6.
        pytest.fail("k-means never found the two patches")


def test_vector_quantisation_uses_no_more_codes_and_repeats_itself():
    train, batch = images(8, 8, 8, 3), images(4, 8, 8, 3, seed=1)
    coded = baselines.vector_quantised(batch, train, 2, 5, seed=0)
    assert coded.shape == batch.shape
    assert ((coded >= 0) & (coded <= 1)).all()
    patches = coded.reshape(4, 4, 2, 4, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(64, -1)
    assert len(np.unique(patches, axis=0)) <= 5
    np.testing.assert_array_equal(coded, baselines.vector_quantised(batch, train, 2, 5, seed=0))
    more = baselines.vector_quantised(batch, train, 2, 100, seed=0)
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
