"""Images through the hard codes, in windows, and the sheet that shows them."""

import jax
import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax import likelihoods
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs import coding, final_sheet
from logit_laplace_jax.training.config import LikelihoodConfig, TrainConfig
from logit_laplace_jax.training.state import create_state

TINY = DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4)


@pytest.mark.parametrize("name", ["logit_laplace", "categorical"])
def test_the_expected_error_is_that_of_the_masses(name):
    likelihood = likelihoods.get(name)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 3, 3), np.uint8)
    stats = rng.normal(size=(2, 3, 3 * likelihood.num_stats)).astype(np.float32)
    rebuilt = np.asarray(likelihood.reconstruct(stats))
    found = coding.expected_error(likelihood, pixels, stats)
    masses = [
        np.exp(np.asarray(likelihood.log_mass(np.full_like(pixels, v), stats), np.float64))
        for v in range(256)
    ]
    distances = [np.abs(v - 255.0 * rebuilt) for v in range(256)]
    exact = sum(m * d for m, d in zip(masses, distances, strict=True))
    # The level at the reconstruction counts as a whole step, which is wrong by 1 at most.
    np.testing.assert_allclose(found, exact, atol=1.0)


def test_an_image_and_its_sheet(tmp_path):
    config = TrainConfig(
        run_dir="", image_size=8, model=TINY, likelihood=LikelihoodConfig("logit_laplace")
    )
    state = create_state(config, jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    row = coding.code(state, image, expected=True)
    assert row.tokens.shape == (4, 6)
    assert row.rebuilt.shape == image.shape
    assert row.expected.shape == image.shape[:2]
    mean_square = ((row.rebuilt - image / 255.0) ** 2).mean()
    # Float32 sums of 288 terms.
    assert row.psnr == pytest.approx(-10 * np.log10(mean_square), abs=1e-4)
    assert row.bits_per_dim > 3 * 24 / image.size
    rows = [("noise$", row), ("again", row)]
    final_sheet.write(tmp_path / "a" / "sheet.png", rows, "two rows")
    width, height = Image.open(tmp_path / "a" / "sheet.png").size
    assert width > 1500
    assert height > 600


def test_windows_give_what_the_whole_image_gives(monkeypatch):
    config = TrainConfig(run_dir="", image_size=8, model=TINY)
    state = create_state(config, jax.random.key(0))
    image = np.random.default_rng(1).integers(0, 256, (66, 120, 3), np.uint8)
    whole = coding.code(state, image)
    monkeypatch.setattr(coding, "_CORE", 16)
    assert len(coding._windows(120, TINY)) == 8
    parts = coding.code(state, image)
    np.testing.assert_array_equal(parts.tokens, whole.tokens)
    # Convolutions of other sizes may add in another order.
    np.testing.assert_allclose(parts.rebuilt, whole.rebuilt, atol=1e-5)
    assert parts.bits_per_dim == pytest.approx(whole.bits_per_dim, rel=1e-5)
