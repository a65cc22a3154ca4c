"""Log masses of every family against 60-digit arithmetic: tails, tiny and huge scales, edges."""

import itertools

import likelihood_oracle
import numpy as np
import pytest

from logit_laplace_jax import likelihoods

U = 2.0**-24
PIXELS = [0, 1, 63, 127, 128, 254, 255]
LOCS = [0.0, 1e-20, 0.3, -0.99999994, 1.0, -1.0000001, -2.3, 50.0, -1e3]
LOG_SCALES = [-30.0, -12.0, -6.5, -5.0, -3.1, -1.0, 0.0, 1.5, 4.0, 12.0, 30.0]
FAMILIES = ["laplace", "normal", "logistic", "logit_normal", "logit_laplace"]
FAMILIES += ["truncated_normal", "truncated_laplace"]


def location_scale_table(family, eps):
    """(pixel, loc, log_scale): a product, and locations in the middle and at the end of the bin."""
    rows = list(itertools.product(PIXELS, LOCS, LOG_SCALES))
    for pixel in PIXELS[1:-1]:
        if eps is None:
            ends = likelihood_oracle.line_ends(pixel)
        else:
            ends = likelihood_oracle.logit_ends(pixel, eps)
        low, high = map(float, ends)
        rows += itertools.product([pixel], [low, (low + high) / 2, high], LOG_SCALES)
    pixels, *params = zip(*rows, strict=True)
    return np.asarray(pixels, np.uint8), *(np.asarray(p, np.float32) for p in params)


@pytest.mark.parametrize("family", FAMILIES)
def test_location_and_scale(family):
    eps = 0.1 if family.startswith("logit_") else None
    columns = location_scale_table(family, eps)
    likelihood = likelihoods.get(family)
    got = np.asarray(likelihood.log_mass(columns[0][:, None], np.stack(columns[1:], axis=-1))[:, 0])
    # The contract of pixel_log_prob is 32 u; the others were seen to keep 3 u, on CPU.
    roundings = 32 if family == "logit_laplace" else 8
    rows = zip(*map(list_of_scalars, columns), strict=True)
    worst = max(
        (oracle_excess(value, family, *row, eps, roundings), row)
        for value, row in zip(got, rows, strict=True)
    )
    assert worst[0] <= 1, worst


def oracle_excess(value, *row):
    return likelihood_oracle.excess(value, *likelihood_oracle.log_mass_interval(*row))


def list_of_scalars(column):
    """Python integers for pixels, float32 scalars for the rest."""
    return column.tolist() if column.dtype == np.uint8 else list(column)


def test_continuous_bernoulli():
    sizes = [0, 1e-30, 1e-3, 0.3, 0.99999994, 1, 1.0000001, 5, 88, 1e3, 1e6]
    etas = np.array([s * v for v in sizes for s in (-1, 1)], np.float32)
    pixels = np.array([0, 1, 2, 127, 128, 200, 254, 255], np.uint8)
    grid = np.broadcast_to(pixels[:, None], (len(pixels), len(etas)))
    got = likelihoods.get("continuous_bernoulli").log_mass(
        grid[..., None], np.broadcast_to(etas, grid.shape)[..., None]
    )
    for (i, j), value in np.ndenumerate(np.asarray(got)[..., 0]):
        true, terms = likelihood_oracle.continuous_bernoulli(int(pixels[i]), etas[j])
        assert abs(float(value - true)) <= 16 * U * float(terms), (pixels[i], etas[j], value)


def test_logistic_mixture():
    rng = np.random.default_rng(0)
    n, k = 400, 3
    pixels = rng.choice(np.array([0, 1, 100, 127, 128, 254, 255], np.uint8), n)
    logits = rng.normal(0, 3, (n, k)).astype(np.float32)
    means = rng.choice([0.0, 0.3, -0.99, 1.2, -7.0], (n, k)).astype(np.float32)
    log_scales = rng.choice([-9.0, -6.0, -4.0, -2.0, 0.0, 5.0], (n, k)).astype(np.float32)
    likelihood = likelihoods.get("logistic_mixture", components=k, min_log_scale=None)
    stats = np.concatenate([logits, means, log_scales], axis=-1)
    got = np.asarray(likelihood.log_mass(pixels[:, None], stats))[:, 0]
    for value, *row in zip(got, pixels.tolist(), logits, means, log_scales, strict=True):
        true, terms = likelihood_oracle.logistic_mixture(*row)
        assert abs(float(value - true)) <= 16 * U * float(terms), (row, value)


def test_categorical():
    rng = np.random.default_rng(0)
    stats = (rng.normal(0, 1, (64, 256)) * 10.0 ** rng.uniform(-2, 3, (64, 1))).astype(np.float32)
    pixels = rng.integers(0, 256, (64, 1), dtype=np.uint8)
    got = np.asarray(likelihoods.get("categorical").log_mass(pixels, stats))[:, 0]
    wide = stats.astype(np.float64)  # 2**29 times finer than the bound below
    top = wide.max(axis=-1)
    total = np.log(np.exp(wide - top[:, None]).sum(axis=-1))
    true = wide[np.arange(64), pixels[:, 0]] - top - total
    # One rounding each of the difference from the top, of a sum of 256 terms, and of the result.
    assert np.all(np.abs(got - true) <= 16 * U * (1 + np.abs(true)))
