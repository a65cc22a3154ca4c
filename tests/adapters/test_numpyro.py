"""The NumPyro adapter: the library's numbers in NumPyro's interface, and inference with it."""

import importlib
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import logit_laplace_jax as ll

numpyro = pytest.importorskip("numpyro", reason="needs NumPyro: the extra [numpyro]")
LogitLaplace = importlib.import_module("logit_laplace_jax.adapters.numpyro").LogitLaplace
dist = numpyro.distributions
vmap_over = importlib.import_module("numpyro.distributions.batch_util").vmap_over

U32 = 2.0**-24
RNG = np.random.default_rng(3)
X = RNG.uniform(0.05, 0.95, (4, 3)).astype(np.float32)
LOC = RNG.normal(size=(4, 3)).astype(np.float32)
LOG_SCALE = RNG.uniform(-1.2, 1, (4, 3)).astype(np.float32)
# At these arguments the terms of a log density sum to less than 40, and two correct results differ
# by at most two bounds of 8u times the terms.
TOL = 16 * 40 * U32


# --- the interface ----------------------------------------------------------------------------


def test_numbers_are_the_library_s():
    d = LogitLaplace(LOC, LOG_SCALE)
    np.testing.assert_array_equal(d.log_prob(X), ll.log_prob(X, LOC, LOG_SCALE))
    np.testing.assert_array_equal(d.cdf(X), ll.cdf(X, LOC, LOG_SCALE))
    np.testing.assert_array_equal(d.log_cdf(X), ll.log_cdf(X, LOC, LOG_SCALE))
    np.testing.assert_array_equal(d.icdf(X), ll.quantile(X, LOC, LOG_SCALE))
    np.testing.assert_array_equal(d.entropy(), ll.entropy(LOC, LOG_SCALE))
    for name in ("mean", "variance", "mode"):
        np.testing.assert_array_equal(getattr(d, name), getattr(ll, name)(LOC, LOG_SCALE))
    assert np.isnan(d.mode[LOG_SCALE >= 0]).all()
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        d.sample(key, (5,)), ll.sample(key, LOC, LOG_SCALE, shape=(5, 4, 3))
    )


def test_log_prob_is_that_of_numpyro_s_own_composition():
    base = dist.Laplace(LOC, np.exp(LOG_SCALE))
    composed = dist.TransformedDistribution(base, dist.transforms.SigmoidTransform())
    d = LogitLaplace(LOC, LOG_SCALE)
    np.testing.assert_allclose(d.log_prob(X), composed.log_prob(X), atol=TOL)
    # cdf errors are those of ln F times F, and F <= 1.
    np.testing.assert_allclose(d.cdf(X), composed.cdf(X), atol=TOL)
    np.testing.assert_allclose(d.icdf(X), composed.icdf(X), atol=TOL)


@pytest.mark.parametrize("validate_args", [False, True])
def test_edges_are_minus_infinity_with_zero_gradient(validate_args):
    def f(x, loc, log_scale):
        return LogitLaplace(loc, log_scale, validate_args=validate_args).log_prob(x)

    smallest = np.float32(1e-45)  # the smallest subnormal: inside
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro's, asked for below
        for x in np.float32([-1, 0, 1, 2]):
            assert f(x, 0.3, -1.0) == -np.inf
            assert jax.grad(f, (0, 1, 2))(x, 0.3, -1.0) == (0, 0, 0)
        assert np.isfinite(f(smallest, 0.3, -1.0))
        assert np.isfinite(f(jnp.asarray(smallest), 0.3, -1.0))
        assert np.isnan(f(np.float32(np.nan), 0.3, -1.0))


def test_validation():
    with pytest.raises(ValueError, match="loc"):
        LogitLaplace(np.nan, 0.0, validate_args=True)
    with pytest.raises(ValueError, match="log_scale"):
        LogitLaplace(0.0, np.inf, validate_args=True)
    with pytest.raises(ValueError, match=r"(?i)shape"):
        LogitLaplace(np.zeros(2), np.zeros(3))
    d = LogitLaplace(0.0, 0.0, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        d.log_prob(np.float32(2))
    assert not d.support(-0.1)
    assert not d.support(1.1)
    assert d.support(0.5)
    assert not d.is_discrete
    assert d.has_rsample


def test_shapes():
    d = LogitLaplace(np.zeros((4, 1), np.float32), np.zeros(3, np.float32))
    assert d.batch_shape == (4, 3)
    assert d.event_shape == ()
    assert LogitLaplace.infer_shapes((4, 1), (3,)) == ((4, 3), ())
    for shaped in (d, d.expand((2, 4, 3)), d.to_event(1), d.mask(False)):
        draws = shaped.sample(jax.random.key(1), (7,))
        assert draws.shape == shaped.shape((7,))
        assert shaped.log_prob(draws).shape == (7, *shaped.batch_shape)
    np.testing.assert_allclose(
        LogitLaplace(LOC, LOG_SCALE).to_event(2).log_prob(X),
        ll.log_prob(X, LOC, LOG_SCALE).sum(),
        atol=12 * TOL,  # the sum of 12
    )
    expanded = LogitLaplace(0.5, np.float32([-1, 0])).expand((3, 2))
    np.testing.assert_array_equal(expanded.mean[1], ll.mean(0.5, np.float32([-1, 0])))
    np.testing.assert_array_equal(d.mask(False).log_prob(X), 0)


def test_kl_divergence():
    p, q = (LogitLaplace(LOC, LOG_SCALE), LogitLaplace(LOC[::-1], LOG_SCALE[::-1]))
    want = ll.kl_divergence(LOC, LOG_SCALE, LOC[::-1], LOG_SCALE[::-1])
    np.testing.assert_array_equal(dist.kl_divergence(p, q), want)
    # NumPyro's rules for wrapped distributions find it. The sum of three: three roundings more.
    np.testing.assert_allclose(
        dist.kl_divergence(p.to_event(1), q.to_event(1)), want.sum(-1), rtol=8 * U32
    )
    wide = dist.kl_divergence(p.expand((2, 4, 3)), q)
    np.testing.assert_array_equal(wide, np.broadcast_to(want, (2, 4, 3)))


# --- JAX --------------------------------------------------------------------------------------


def test_transformations_give_what_the_plain_call_gives(check_transforms):
    def f(x, loc, log_scale):
        return LogitLaplace(loc, log_scale).log_prob(x)

    check_transforms(f, (X, LOC, LOG_SCALE), (0, 1, 2), TOL)


def test_it_is_a_pytree():
    d = LogitLaplace(LOC, LOG_SCALE)
    want = d.log_prob(X)
    assert len(jax.tree.leaves(d)) == 2
    again = jax.tree.map(lambda a: a, d)
    assert (again.batch_shape, again.event_shape) == ((4, 3), ())
    np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(X))(d), want, atol=TOL)
    rows = jax.vmap(lambda d, x: d.log_prob(x))(d, X)
    np.testing.assert_allclose(rows, want, atol=TOL)
    # NumPyro's way of saying which parameters to map: here the first row's loc with every scale.
    first = LogitLaplace(LOC[0], LOG_SCALE)
    axes = vmap_over(first, log_scale=0)
    rows = jax.vmap(lambda d, x: d.log_prob(x), (axes, 0))(first, X)
    np.testing.assert_allclose(rows[:, 0], ll.log_prob(X, LOC[0], LOG_SCALE), atol=TOL)
    grad = jax.grad(lambda d: d.log_prob(X).sum())(d)
    assert isinstance(grad, LogitLaplace)
    by_hand = jax.grad(lambda a, b: ll.log_prob(X, a, b).sum(), (0, 1))(LOC, LOG_SCALE)
    for got, want in zip((grad.loc, grad.log_scale), by_hand, strict=True):
        np.testing.assert_allclose(got, want, atol=TOL, rtol=TOL)


def test_samples_follow_the_cdf():
    n = 20_000
    d = LogitLaplace(np.float32([-3, 0, 1.5]), np.float32([0.7, 0, -2]))
    draws = d.sample(jax.random.key(11), (n,))
    # Kolmogorov-Smirnov at the 0.1 % level; the key is fixed, so it does not flake.
    for level in np.asarray(d.cdf(draws)).T:
        assert stats.kstest(level, stats.uniform.cdf).statistic < 1.95 / math.sqrt(n)


# --- inference --------------------------------------------------------------------------------


def nuts(model, *args):
    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model), num_warmup=300, num_samples=800, progress_bar=False
    )
    mcmc.run(jax.random.key(4), *args)
    assert not mcmc.get_extra_fields()["diverging"].any()
    return {name: np.asarray(v, np.float64) for name, v in mcmc.get_samples().items()}


def test_nuts_recovers_the_parameters():
    n, truth = 500, {"loc": 0.7, "log_scale": -1.2}
    x = ll.sample(jax.random.key(9), truth["loc"], truth["log_scale"], shape=(n,))

    def model(x):
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
        log_scale = numpyro.sample("log_scale", dist.Normal(-1.0, 1.0))
        with numpyro.plate("values", x.size):
            numpyro.sample("x", LogitLaplace(loc, log_scale), obs=x)

    draws = nuts(model, x)
    # The Laplace distribution's Fisher information: 1/b² for loc and 1 for ln b, a value.
    sd = {"loc": math.exp(truth["log_scale"]) / math.sqrt(n), "log_scale": 1 / math.sqrt(n)}
    for name, values in draws.items():
        # Four posterior standard deviations: one data set in 16,000 is that far off.
        assert abs(values.mean() - truth[name]) < 4 * values.std(), name
        # The formula is the limit of large n; at 500 the ratio was 0.95 to 1.22 over three data
        # sets, of which 3 % is Monte Carlo error (1/sqrt(2 · 540) at the smallest sample size).
        assert values.std() == pytest.approx(sd[name], rel=0.3), name


def test_nuts_draws_a_latent_site():
    d = LogitLaplace(np.float32([-1, 0.5, 2]), np.float32([-1.5, -0.5, 0.5]))

    def model():
        numpyro.sample("x", d.to_event(1))

    level = np.asarray(d.cdf(nuts(model)["x"].astype(np.float32)), np.float64)
    # Levels are uniform: mean 1/2 and standard deviation 1/sqrt(12), their distance to 1/2 has mean
    # 1/4 and 1/sqrt(48). Four standard errors of the mean, at each statistic's own sample size.
    for statistic, want, sd in ((level, 1 / 2, 12**-0.5), (abs(level - 0.5), 1 / 4, 48**-0.5)):
        size = numpyro.diagnostics.effective_sample_size(statistic[None])
        assert (size > 100).all()
        np.testing.assert_array_less(abs(statistic.mean(0) - want), 4 * sd / np.sqrt(size))
