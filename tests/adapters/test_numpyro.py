"""What only the NumPyro adapter does: NumPyro's ways to wrap a distribution, and inference."""

import importlib
import math

import hosts
import jax
import numpy as np
import pytest
from hosts import LOC, LOG_SCALE, TOL, U32, X

import logit_laplace_jax as ll

numpyro = pytest.importorskip("numpyro", reason="needs NumPyro: the extra [numpyro]")
dist = numpyro.distributions
LogitLaplace = hosts.load("numpyro").adapter
vmap_over = importlib.import_module("numpyro.distributions.batch_util").vmap_over

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(5)


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


# --- Wrapped ------------------------------------------------------------------------------------


def test_shapes():
    d = LogitLaplace(np.zeros((4, 1), np.float32), np.zeros(3, np.float32))
    assert d.batch_shape == (4, 3)
    assert d.event_shape == ()
    assert LogitLaplace.infer_shapes((4, 1), (3,)) == ((4, 3), ())
    for shaped in (d, d.expand((2, 4, 3)), d.to_event(1), d.mask(False)):
        draws = jax.eval_shape(lambda shaped=shaped: shaped.sample(KEY, (7,)))
        assert draws.shape == shaped.shape((7,))
        log_prob = jax.eval_shape(shaped.log_prob, draws)
        assert log_prob.shape == (7, *shaped.batch_shape)
    np.testing.assert_allclose(
        LogitLaplace(LOC, LOG_SCALE).to_event(2).log_prob(X),
        ll.log_prob(X, LOC, LOG_SCALE).sum(),
        atol=12 * TOL,  # the sum of 12
    )
    expanded = LogitLaplace(0.5, np.float32([-1, 0])).expand((3, 2))
    np.testing.assert_array_equal(expanded.mean[1], ll.mean(0.5, np.float32([-1, 0])))
    np.testing.assert_array_equal(d.mask(False).log_prob(X), 0)


def test_kl_divergence_of_wrapped_distributions():
    p, q = LogitLaplace(LOC, LOG_SCALE), LogitLaplace(LOC[::-1], LOG_SCALE[::-1])
    want = ll.kl_divergence(LOC, LOG_SCALE, LOC[::-1], LOG_SCALE[::-1])
    # NumPyro's rules for wrapped distributions find it. The sum of three: three roundings more.
    np.testing.assert_allclose(
        dist.kl_divergence(p.to_event(1), q.to_event(1)), want.sum(-1), rtol=8 * U32
    )
    wide = dist.kl_divergence(p.expand((2, 4, 3)), q)
    np.testing.assert_array_equal(wide, np.broadcast_to(want, (2, 4, 3)))


def test_vmap_over_one_of_the_parameters():
    # NumPyro's way of saying which parameters to map: here the first row's loc with every scale.
    first = LogitLaplace(LOC[0], LOG_SCALE)
    axes = vmap_over(first, log_scale=0)
    rows = jax.vmap(lambda d, x: d.log_prob(x), (axes, 0))(first, X)
    np.testing.assert_allclose(rows[:, 0], ll.log_prob(X, LOC[0], LOG_SCALE), atol=TOL)


@pytest.mark.parametrize("validate_args", [False, True])
def test_mixtures(validate_args):
    mixing = dist.Categorical(probs=np.float32([1 / 3] * 3))
    components = LogitLaplace(np.float32([-1, 0, 2]), np.float32(-1.0))
    same = dist.MixtureSameFamily(mixing, components, validate_args=validate_args)
    want = jax.nn.logsumexp(ll.log_prob(0.3, np.float32([-1, 0, 2]), -1.0)) - math.log(3)
    np.testing.assert_allclose(same.log_prob(0.3), want, atol=1e-6)
    general = dist.MixtureGeneral(
        dist.Categorical(probs=np.float32([0.4, 0.6])),
        [LogitLaplace(0.0, 0.0), dist.Kumaraswamy(2.0, 3.0)],
        validate_args=validate_args,
    )
    densities = math.exp(float(ll.log_prob(0.3, 0.0, 0.0))), 6 * 0.3 * (1 - 0.3**2) ** 2
    want = math.log(0.4 * densities[0] + 0.6 * densities[1])
    assert float(general.log_prob(0.3)) == pytest.approx(want, abs=1e-6)
    draws = general.sample(KEY, (50,))
    assert np.all((draws > 0) & (draws < 1))


def test_icdf_stays_inside():
    d = LogitLaplace(8.0, 0.5)
    x = d.icdf(np.float32([0.0, 0.001, 0.999, 1.0]))
    assert np.all((x > 0) & (x < 1))
    copula = dist.GaussianCopula(d, correlation_matrix=np.float32([[1, 0.5], [0.5, 1]]))
    draws = copula.sample(KEY, (200,))
    assert np.isfinite(copula.log_prob(draws)).all()


def test_edges_under_a_further_transform():
    wrapped = dist.TransformedDistribution(
        LogitLaplace(np.float32([0.3]), -1.0).to_event(1), dist.transforms.AffineTransform(0.0, 2.0)
    )
    for x in np.float32([[0], [2]]):
        value, slope = jax.value_and_grad(wrapped.log_prob)(x)
        assert (value, slope[0]) == (-np.inf, 0)


# --- Inference ----------------------------------------------------------------------------------


def test_transform_reparam():
    handlers = importlib.import_module("numpyro.handlers")
    reparam = importlib.import_module("numpyro.infer.reparam").TransformReparam

    def model():
        return numpyro.sample("x", LogitLaplace(0.3, -1.0))

    trace = handlers.trace(
        handlers.seed(handlers.reparam(model, config={"x": reparam()}), KEY)
    ).get_trace()
    base = trace["x_base"]
    assert isinstance(base["fn"], dist.Laplace)
    np.testing.assert_allclose(trace["x"]["value"], jax.nn.sigmoid(base["value"]), rtol=1e-6)


def test_nuts_recovers_the_parameters_and_draws_a_latent_site():
    n, truth = 500, {"loc": 0.7, "log_scale": -1.2}
    latent = LogitLaplace(np.float32([-1, 0.5, 2]), np.float32([-1.5, -0.5, 0.5]))

    def model(x):
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0))
        log_scale = numpyro.sample("log_scale", dist.Normal(-1.0, 1.0))
        with numpyro.plate("values", x.size):
            numpyro.sample("x", LogitLaplace(loc, log_scale), obs=x)
        numpyro.sample("latent", latent.to_event(1))

    mcmc = numpyro.infer.MCMC(
        numpyro.infer.NUTS(model), num_warmup=300, num_samples=800, progress_bar=False
    )
    x = ll.sample(jax.random.key(9), truth["loc"], truth["log_scale"], shape=(n,))
    mcmc.run(jax.random.key(4), x)
    assert not mcmc.get_extra_fields()["diverging"].any()
    draws = {name: np.asarray(v, np.float64) for name, v in mcmc.get_samples().items()}
    # The Laplace distribution's Fisher information: 1/b² for loc and 1 for ln b, a value.
    sd = {"loc": math.exp(truth["log_scale"]) / math.sqrt(n), "log_scale": 1 / math.sqrt(n)}
    for name, true in truth.items():
        values = draws[name]
        # Four posterior standard deviations: one data set in 16,000 is that far off.
        assert abs(values.mean() - true) < 4 * values.std(), name
        # The formula is the limit of large n; at 500 the ratio was 0.95 to 1.22 over three data
        # sets, of which 3 % is Monte Carlo error (1/sqrt(2 · 540) at the smallest sample size).
        assert values.std() == pytest.approx(sd[name], rel=0.3), name
    level = np.asarray(latent.cdf(draws["latent"].astype(np.float32)), np.float64)
    # Levels are uniform: mean 1/2 and standard deviation 1/sqrt(12), their distance to 1/2 has mean
    # 1/4 and 1/sqrt(48). Four standard errors of the mean, at each statistic's own sample size.
    for statistic, want, sd in ((level, 1 / 2, 12**-0.5), (abs(level - 0.5), 1 / 4, 48**-0.5)):
        size = numpyro.diagnostics.effective_sample_size(statistic[None])
        assert (size > 100).all()
        np.testing.assert_array_less(abs(statistic.mean(0) - want), 4 * sd / np.sqrt(size))
