"""The distrax adapter: the library's numbers in distrax's interface."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import logit_laplace_jax as ll

distrax = pytest.importorskip("distrax", reason="needs distrax: the extra [distrax]")
LogitLaplace = importlib.import_module("logit_laplace_jax.adapters.distrax").LogitLaplace

U32 = 2.0**-24
RNG = np.random.default_rng(3)
X = RNG.uniform(0.05, 0.95, (4, 3)).astype(np.float32)
LOC = RNG.normal(size=(4, 3)).astype(np.float32)
LOG_SCALE = RNG.uniform(-1.2, 1, (4, 3)).astype(np.float32)
# At these arguments the terms of a log density sum to less than 40, and two correct results differ
# by at most two bounds of 8u times the terms.
TOL = 16 * 40 * U32
OF_X = {
    "log_prob": ll.log_prob,
    "cdf": ll.cdf,
    "log_cdf": ll.log_cdf,
    "survival_function": ll.survival,
    "log_survival_function": ll.log_survival,
}
OF_PARAMETERS = ("mean", "variance", "median", "mode", "entropy")


# --- the interface ----------------------------------------------------------------------------


def test_numbers_are_the_library_s():
    d = LogitLaplace(LOC, LOG_SCALE)
    for name, f in OF_X.items():
        np.testing.assert_array_equal(getattr(d, name)(X), f(X, LOC, LOG_SCALE), err_msg=name)
    for name in OF_PARAMETERS:
        want = getattr(ll, name)(LOC, LOG_SCALE)
        np.testing.assert_array_equal(getattr(d, name)(), want, err_msg=name)
    assert np.isnan(d.mode()[LOG_SCALE >= 0]).all()
    key = jax.random.key(0)
    draws, log_prob = d.sample_and_log_prob(seed=key, sample_shape=(5, 2))
    np.testing.assert_array_equal(draws, d.sample(seed=key, sample_shape=(5, 2)))
    np.testing.assert_array_equal(
        draws.reshape(10, 4, 3), ll.sample(key, LOC, LOG_SCALE, shape=(10, 4, 3))
    )
    # Scored before the draws are rounded: see test_hosts.
    np.testing.assert_allclose(log_prob, ll.log_prob(draws, LOC, LOG_SCALE), rtol=TOL, atol=TOL)


@pytest.mark.parametrize("name", ["log_prob", "prob"])
def test_numbers_are_those_of_distrax_s_own_composition(name):
    base = distrax.Laplace(LOC, np.exp(LOG_SCALE))
    composed = distrax.Transformed(base, distrax.Sigmoid())
    got = getattr(LogitLaplace(LOC, LOG_SCALE), name)(X)
    # exp turns an absolute error into a relative one.
    np.testing.assert_allclose(got, getattr(composed, name)(X), atol=TOL, rtol=TOL)


@pytest.mark.parametrize("name", ["cdf", "log_cdf", "log_survival_function"])
def test_tails_are_those_of_distrax_s_laplace_at_the_logit(name):
    """distrax's composition has no cdf. Probabilities here are above 0.01: no worse conditioned."""
    laplace = distrax.Laplace(LOC, np.exp(LOG_SCALE))
    want = getattr(laplace, name)(np.log(X) - np.log1p(-X))
    np.testing.assert_allclose(getattr(LogitLaplace(LOC, LOG_SCALE), name)(X), want, atol=TOL)


def test_edges_are_minus_infinity_with_zero_gradient():
    def f(x, loc, log_scale):
        return LogitLaplace(loc, log_scale).log_prob(x)

    for x in np.float32([-1, 0, 1, 2]):
        assert f(x, 0.3, -1.0) == -np.inf
        assert jax.grad(f, (0, 1, 2))(x, 0.3, -1.0) == (0, 0, 0)
    assert np.isfinite(f(np.float32(1e-45), 0.3, -1.0))  # the smallest subnormal: inside
    d = LogitLaplace(0.3, -1.0)
    np.testing.assert_array_equal(d.log_cdf(np.float32([0, 1])), [-np.inf, 0])
    np.testing.assert_array_equal(d.log_survival_function(np.float32([0, 1])), [0, -np.inf])


def test_shapes_and_indexing():
    d = LogitLaplace(np.zeros((4, 1), np.float32), np.float32([-1, 0, 1]))
    assert (d.batch_shape, d.event_shape) == ((4, 3), ())
    assert d.loc.shape == d.log_scale.shape == (4, 3)
    assert d.sample(seed=1, sample_shape=(2, 5)).shape == (2, 5, 4, 3)
    assert d.name == "LogitLaplace"
    assert d.dtype == jnp.float32
    assert LogitLaplace(jnp.bfloat16(0), jnp.bfloat16(0)).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"(?i)shape"):
        LogitLaplace(np.zeros(2), np.zeros(3))
    full = LogitLaplace(LOC, LOG_SCALE)
    indices = (1, -1, slice(1, 3), (slice(None), 2), (..., 0), (0, 2), None, np.asarray([2, 0]))
    for index in indices:
        part = full[index]
        np.testing.assert_array_equal(part.loc, LOC[index])
        np.testing.assert_array_equal(part.log_scale, LOG_SCALE[index])
    for index in (4, (0, 3), (0, 0, 0)):
        with pytest.raises(IndexError):
            full[index]


def test_meta_distributions():
    full = LogitLaplace(LOC, LOG_SCALE)
    image = distrax.Independent(full, reinterpreted_batch_ndims=2)
    np.testing.assert_allclose(image.log_prob(X), full.log_prob(X).sum(), atol=12 * TOL)
    weights = np.float32([0.2, 0.3, 0.5])
    mixture = distrax.MixtureSameFamily(distrax.Categorical(probs=np.tile(weights, (4, 1))), full)
    want = jax.nn.logsumexp(full.log_prob(X[:, :1]) + np.log(weights), axis=-1)
    np.testing.assert_allclose(mixture.log_prob(X[:, 0]), want, atol=TOL)
    np.testing.assert_array_equal(distrax.to_tfp(full).log_prob(X), full.log_prob(X))


def test_kl_divergence():
    p, q = LogitLaplace(LOC, LOG_SCALE), LogitLaplace(LOC[::-1], LOG_SCALE[::-1])
    want = ll.kl_divergence(LOC, LOG_SCALE, LOC[::-1], LOG_SCALE[::-1])
    np.testing.assert_array_equal(p.kl_divergence(q), want)
    q_tfp = LogitLaplace.equiv_tfp_cls(LOC[::-1], LOG_SCALE[::-1])
    np.testing.assert_array_equal(p.kl_divergence(q_tfp), want)
    np.testing.assert_array_equal(
        q_tfp.kl_divergence(p), ll.kl_divergence(LOC[::-1], LOG_SCALE[::-1], LOC, LOG_SCALE)
    )
    np.testing.assert_array_equal(distrax.as_distribution(q_tfp).log_prob(X), q.log_prob(X))
    # Sums of terms below 40.
    np.testing.assert_allclose(p.cross_entropy(q), want + p.entropy(), atol=TOL)


# --- JAX --------------------------------------------------------------------------------------


def test_transformations_give_what_the_plain_call_gives(check_transforms):
    def f(x, loc, log_scale):
        return LogitLaplace(loc, log_scale).log_prob(x)

    check_transforms(f, (X, LOC, LOG_SCALE), (0, 1, 2), TOL)


def test_it_is_a_pytree():
    d = LogitLaplace(LOC, LOG_SCALE)
    want = d.log_prob(X)
    assert len(jax.tree.leaves(d)) == 2
    np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(X))(d), want, atol=TOL)
    rows = jax.vmap(lambda d, x: d.log_prob(x))(d, X)
    np.testing.assert_allclose(rows, want, atol=TOL)
    # Inside vmap the batch shape has one axis less.
    keys = jax.random.split(jax.random.key(0), 4)
    assert jax.vmap(lambda d, k: d.sample(seed=k, sample_shape=2))(d, keys).shape == (4, 2, 3)
    grad = jax.grad(lambda d: d.log_prob(X).sum())(d)
    by_hand = jax.grad(lambda a, b: ll.log_prob(X, a, b).sum(), (0, 1))(LOC, LOG_SCALE)
    for got, want in zip((grad.loc, grad.log_scale), by_hand, strict=True):
        np.testing.assert_allclose(got, want, atol=TOL, rtol=TOL)


def test_samples_follow_the_cdf():
    n = 20_000
    d = LogitLaplace(np.float32([-3, 0, 1.5]), np.float32([0.7, 0, -2]))
    draws = d.sample(seed=jax.random.key(11), sample_shape=n)
    # Kolmogorov-Smirnov at the 0.1 % level; the key is fixed, so it does not flake.
    for level in np.asarray(d.cdf(draws)).T:
        assert stats.kstest(level, stats.uniform.cdf).statistic < 1.95 / math.sqrt(n)


def test_samples_are_reparameterised():
    def draw(d):
        return d.sample(seed=jax.random.key(2)).sum()

    def by_hand(loc, log_scale):
        return ll.sample(jax.random.key(2), loc, log_scale, shape=(1, 4, 3)).sum()

    grad = jax.grad(draw)(LogitLaplace(LOC, LOG_SCALE))
    want = jax.grad(by_hand, (0, 1))(LOC, LOG_SCALE)
    # One and the same computation, compiled twice.
    np.testing.assert_allclose((grad.loc, grad.log_scale), want, rtol=16 * U32, atol=U32)
