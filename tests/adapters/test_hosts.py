"""What the three hosts ask of a distribution besides its numbers: draws scored, KL, copies."""

import copy
import importlib
import math
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logit_laplace_jax as ll

KEY = jax.random.key(5)
HOSTS = ("numpyro", "tfp", "distrax")


def load(host):
    """The adapter's class, the host, its own composition, and draws with their log densities."""
    modules = {
        "numpyro": "numpyro",
        "tfp": "tensorflow_probability.substrates.jax",
        "distrax": "distrax",
    }
    library = pytest.importorskip(modules[host], reason=f"needs the extra [{host}]")
    adapter = importlib.import_module(f"logit_laplace_jax.adapters.{host}").LogitLaplace
    if host == "numpyro":
        dist = library.distributions

        def compose(loc, scale):
            base = dist.Laplace(loc, scale)
            return dist.TransformedDistribution(base, dist.transforms.SigmoidTransform())

        def scored(d, n):
            x, intermediates = d.sample_with_intermediates(KEY, (n,))
            return x, d.log_prob(x, intermediates)

        return types.SimpleNamespace(adapter=adapter, compose=compose, scored=scored, dist=dist)
    if host == "tfp":
        tfd, tfb = library.distributions, library.bijectors

        def compose(loc, scale):
            return tfd.TransformedDistribution(tfd.Laplace(loc, scale), tfb.Sigmoid())

        def scored(d, n):
            return d.experimental_sample_and_log_prob(n, seed=KEY)

        return types.SimpleNamespace(adapter=adapter, compose=compose, scored=scored, dist=tfd)

    def compose(loc, scale):
        return library.Transformed(library.Laplace(loc, scale), library.Sigmoid())

    def scored(d, n):
        return d.sample_and_log_prob(seed=KEY, sample_shape=n)

    return types.SimpleNamespace(adapter=adapter, compose=compose, scored=scored, dist=library)


@pytest.fixture(params=HOSTS)
def host(request):
    return load(request.param)


def test_draws_are_scored_before_they_are_rounded(host):
    """At μ = 17, b = 1 most draws round to a few floats next to 1; their densities do not."""
    n = 4096

    def mean(loc):
        return host.scored(host.adapter(loc, 0.0), n)[1].mean()

    value, slope = jax.value_and_grad(mean)(17.0)
    z = np.asarray(jax.random.laplace(KEY, (n,)), np.float64)
    t = 17.0 + z
    # -|z| - ln 2 - ln x(1-x) with ln x(1-x) = t - 2 softplus(t); x(1-x) = exp(-17) and so falls
    # as μ rises. Means of numbers of order 10: a few roundings of 16.
    want = (-abs(z) - math.log(2) - t + 2 * np.logaddexp(0, t)).mean()
    np.testing.assert_allclose(value, want, rtol=8 * 2.0**-24)
    np.testing.assert_allclose(slope, np.tanh(t / 2).mean(), rtol=8 * 2.0**-24)
    rounded = ll.log_prob(host.scored(host.adapter(17.0, 0.0), n)[0], 17.0, 0.0).mean()
    assert abs(rounded - want) > 0.3


@pytest.mark.parametrize("name", ["tfp", "distrax"])
def test_kl_divergence_from_and_to_the_hosts_composition(name):
    host = load(name)
    p, q = host.adapter(0.3, -1.0), host.compose(jnp.float32(-0.5), jnp.float32(0.7))
    to_q = ll.kl_divergence(0.3, -1.0, -0.5, math.log(0.7))
    to_p = ll.kl_divergence(-0.5, math.log(0.7), 0.3, -1.0)
    np.testing.assert_allclose(p.kl_divergence(q), to_q, rtol=16 * 2.0**-24)
    np.testing.assert_allclose(q.kl_divergence(p), to_p, rtol=16 * 2.0**-24)


def test_kl_divergence_of_another_composition_is_refused():
    host = load("tfp")
    normal = host.dist.TransformedDistribution(
        host.dist.Normal(0.0, 1.0), host.compose(0.0, 1.0).bijector
    )
    with pytest.raises(NotImplementedError, match="Laplace distribution under a Sigmoid"):
        host.adapter(0.0, 0.0).kl_divergence(normal)


def test_copies(host):
    d = host.adapter(np.float32([0.3, -1.0]), np.float32(-1.0))
    x = np.float32([0.2, 0.7])
    for again in (copy.copy(d), copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        assert type(again) is type(d)
        np.testing.assert_array_equal(again.log_prob(x), d.log_prob(x))


# --- NumPyro ------------------------------------------------------------------------------------


@pytest.fixture
def numpyro():
    return load("numpyro")


@pytest.mark.parametrize("validate_args", [False, True])
def test_mixtures(numpyro, validate_args):
    dist, ours = numpyro.dist, numpyro.adapter
    mixing = dist.Categorical(probs=np.float32([1 / 3] * 3))
    same = dist.MixtureSameFamily(
        mixing, ours(np.float32([-1, 0, 2]), np.float32(-1.0)), validate_args=validate_args
    )
    want = jax.nn.logsumexp(ll.log_prob(0.3, np.float32([-1, 0, 2]), -1.0)) - math.log(3)
    np.testing.assert_allclose(same.log_prob(0.3), want, atol=1e-6)
    general = dist.MixtureGeneral(
        dist.Categorical(probs=np.float32([0.4, 0.6])),
        [ours(0.0, 0.0), dist.Beta(2.0, 3.0)],
        validate_args=validate_args,
    )
    densities = math.exp(float(ll.log_prob(0.3, 0.0, 0.0))), 12 * 0.3 * 0.7**2
    want = math.log(0.4 * densities[0] + 0.6 * densities[1])
    assert float(general.log_prob(0.3)) == pytest.approx(want, abs=1e-6)
    assert round(want, 5) == 0.38292
    draws = general.sample(KEY, (50,))
    assert np.all((draws > 0) & (draws < 1))


def test_icdf_stays_inside(numpyro):
    d = numpyro.adapter(8.0, 0.5)
    x = d.icdf(np.float32([0.0, 0.001, 0.999, 1.0]))
    assert np.all((x > 0) & (x < 1))
    copula = numpyro.dist.GaussianCopula(d, correlation_matrix=np.float32([[1, 0.5], [0.5, 1]]))
    draws = copula.sample(KEY, (200,))
    assert np.isfinite(copula.log_prob(draws)).all()


def test_edges_under_a_further_transform(numpyro):
    wrapped = numpyro.dist.TransformedDistribution(
        numpyro.adapter(np.float32([0.3]), -1.0).to_event(1),
        numpyro.dist.transforms.AffineTransform(0.0, 2.0),
    )
    for x in np.float32([[0], [2]]):
        value, slope = jax.value_and_grad(wrapped.log_prob)(x)
        assert (value, slope[0]) == (-np.inf, 0)


def test_transform_reparam(numpyro):
    handlers = importlib.import_module("numpyro.handlers")
    reparam = importlib.import_module("numpyro.infer.reparam").TransformReparam
    sample = importlib.import_module("numpyro").sample

    def model():
        return sample("x", numpyro.adapter(0.3, -1.0))

    trace = handlers.trace(
        handlers.seed(handlers.reparam(model, config={"x": reparam()}), KEY)
    ).get_trace()
    base = trace["x_base"]
    assert isinstance(base["fn"], numpyro.dist.Laplace)
    np.testing.assert_allclose(trace["x"]["value"], jax.nn.sigmoid(base["value"]), rtol=1e-6)
