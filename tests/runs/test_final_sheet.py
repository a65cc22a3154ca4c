"""The sheet at the end of a run: its numbers, and that it can be drawn."""

import jax
import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax import likelihoods
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs import final_sheet
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
    found = final_sheet._expected_error(likelihood, pixels, stats, rebuilt)
    masses = [
        np.exp(np.asarray(likelihood.log_mass(np.full_like(pixels, v), stats), np.float64))
        for v in range(256)
    ]
    distances = [np.abs(v - 255.0 * rebuilt) for v in range(256)]
    exact = sum(m * d for m, d in zip(masses, distances, strict=True))
    # The levels next to the reconstruction count as whole steps: half a level on average, at most 1.
    np.testing.assert_allclose(found, exact, atol=1.0)


def test_an_image_and_its_sheet(tmp_path):
    config = TrainConfig(
        run_dir="", image_size=8, model=TINY, likelihood=LikelihoodConfig("logit_laplace")
    )
    state = create_state(config, jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    row = final_sheet.coded(state, "noise$", image)
    assert row.tokens.shape == (4, 6)
    assert row.rebuilt.shape == row.expected.shape == image.shape
    mean_square = ((row.rebuilt - image / 255.0) ** 2).mean()
    # Float32 sums of 288 terms.
    assert row.psnr == pytest.approx(-10 * np.log10(mean_square), abs=1e-4)
    assert row.bits_per_dim > 3 * 24 / image.size
    final_sheet.write(tmp_path / "a" / "sheet.png", [row, row], "two rows")
    width, height = Image.open(tmp_path / "a" / "sheet.png").size
    assert width > 1500
    assert height > 600
