"""Sums inside jit, over arrays large enough for the compiler's own reduction kernels.

XLA's CPU compiler (jax 0.10.2 and 0.12) evaluates two expm1 or log1p of multiples of one array
wrongly where a large reduction takes them in. Users take means of these functions under jit, so
every function is summed inside jit here and compared with its own elementwise values.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logit_laplace_jax as ll

SHAPES = {
    "flat": ((60_000,), None),
    "rows": ((2_000, 24), -1),
    "images": ((8, 64, 40, 3), (1, 2, 3)),
}
THREE = ["log_prob", "cdf", "survival", "log_cdf", "log_survival", "pit", "logit_laplace_loss"]
TWO = ["mean", "variance", "median", "entropy"]
PIXELS = ["pixel_log_prob", "pixel_pit", "logit_laplace_pixel_loss"]


def case(name, shape):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.01, 0.99, shape).astype(np.float32)
    loc = rng.normal(0, 2, shape).astype(np.float32)
    log_scale = rng.uniform(-3, 1, shape).astype(np.float32)
    if name in TWO:
        return getattr(ll, name), (loc, log_scale)
    if name == "kl_divergence":
        return ll.kl_divergence, (loc, log_scale, 0.5 * loc, 0.5 * log_scale)
    if name in PIXELS:
        pixels = rng.integers(0, 256, shape).astype(np.uint8)
        return getattr(ll, name), (pixels, loc, log_scale)
    return getattr(ll, name), (x, loc, log_scale)


@pytest.mark.parametrize("name", [*THREE, *TWO, *PIXELS, "kl_divergence"])
def test_a_sum_inside_jit_is_the_sum_of_the_values(name):
    for kind, (shape, axis) in SHAPES.items():
        f, args = case(name, shape)
        inside = np.asarray(jax.jit(lambda *a, f=f, axis=axis: jnp.sum(f(*a), axis=axis))(*args))
        values = np.asarray(f(*args), np.float64)
        size = np.abs(values).sum(axis=axis)
        # float32 sums of up to 60,000 terms in blocks: far below 1e-5 of their size. The mistake
        # that this guards against is of the size of the values themselves.
        assert np.all(np.abs(inside - values.sum(axis=axis)) <= 1e-5 * size), kind


def test_moments_of_large_arrays_are_those_of_small_ones():
    """Both quadratures have sums of their own inside; b on either side of where they meet."""
    b = np.linspace(0.05, 0.6, 4_000)
    loc = np.linspace(-6, 6, 4_000)
    loc, log_scale = loc.astype(np.float32), np.log(b).astype(np.float32)
    for f in (ll.mean, ll.variance, ll.entropy):
        whole = np.asarray(f(loc, log_scale))
        parts = [f(loc[i : i + 40], log_scale[i : i + 40]) for i in range(0, 4_000, 40)]
        # The same arithmetic, vectorised in another way: a few hundred roundings.
        np.testing.assert_allclose(whole, np.concatenate(parts), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ll.likelihoods.names())
def test_means_of_likelihoods_inside_jit(name):
    """What training and evaluation take: sums over an image, of the loss and of the log mass."""
    family = ll.likelihoods.get(name)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 40, 40, 3)).astype(np.uint8)
    stats = rng.normal(0, 0.7, (4, 40, 40, 3 * family.num_stats)).astype(np.float32)
    for f in (family.loss, family.log_mass):
        inside = np.asarray(jax.jit(lambda p, s, f=f: f(p, s).sum(axis=(1, 2, 3)))(pixels, stats))
        values = np.asarray(f(pixels, stats), np.float64)
        size = np.abs(values).sum(axis=(1, 2, 3))
        # float32 sums of 4,800 terms, as above.
        assert np.all(np.abs(inside - values.sum(axis=(1, 2, 3))) <= 1e-5 * size), f.__name__
