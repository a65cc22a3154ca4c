"""What all three adapters do: the library's numbers, behind each host's interface."""

import copy
import math
import pickle
import warnings

import hosts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import LOC, LOG_SCALE, TOL, U32, X
from scipy import stats

import logit_laplace_jax as ll

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(5)


@pytest.fixture(params=hosts.EVERY)
def host(request):
    return hosts.load(request.param)


def of(d, name):
    """A number of the distribution itself: NumPyro's are properties."""
    value = getattr(d, name)
    return value() if callable(value) else value


# --- Numbers ------------------------------------------------------------------------------------


def test_numbers_are_the_library_s(host):
    d = host.adapter(LOC, LOG_SCALE)
    for name, f in host.of_x.items():
        np.testing.assert_array_equal(getattr(d, name)(X), f(X, LOC, LOG_SCALE), err_msg=name)
    for name in host.of_parameters:
        want = getattr(ll, name)(LOC, LOG_SCALE)
        np.testing.assert_array_equal(of(d, name), want, err_msg=name)
    assert np.isnan(of(d, "mode")[LOG_SCALE >= 0]).all()
    draws = ll.sample(KEY, LOC, LOG_SCALE, shape=(10, 4, 3))
    np.testing.assert_array_equal(host.draw(d, KEY, (5, 2)).reshape(10, 4, 3), draws)
    again, log_prob = host.scored(d, KEY, 10)
    np.testing.assert_array_equal(again, draws)
    # Scored before the draws are rounded: see below.
    np.testing.assert_allclose(log_prob, ll.log_prob(draws, LOC, LOG_SCALE), rtol=TOL, atol=TOL)


def test_numbers_are_those_of_the_host_s_own_composition(host):
    """Beyond log_prob all are probabilities, or logs of ones above 0.01: no worse conditioned."""
    d, composed = host.adapter(LOC, LOG_SCALE), host.compose(LOC, LOG_SCALE)
    for name in host.composed:
        got, want = getattr(d, name)(X), getattr(composed, name)(X)
        # A density is exp of its logarithm, which turns an absolute error into a relative one.
        rtol = TOL if name == "prob" else 1e-7
        np.testing.assert_allclose(got, want, rtol=rtol, atol=TOL, err_msg=name)


@pytest.mark.parametrize(
    ("name", "validate_args"),
    [("numpyro", False), ("numpyro", True), ("tfp", False), ("tfp", True), ("distrax", None)],
)
def test_edges_are_minus_infinity_with_zero_gradient(name, validate_args):
    host = hosts.load(name)
    options = {} if validate_args is None else {"validate_args": validate_args}

    def f(x, loc, log_scale):
        return host.adapter(loc, log_scale, **options).log_prob(x)

    refused = name == "tfp" and validate_args
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPyro's, which its own test asks for
        for x in np.float32([0, 1] if refused else [-1, 0, 1, 2]):
            value, slopes = jax.value_and_grad(f, (0, 1, 2))(x, 0.3, -1.0)
            assert (value, *slopes) == (-np.inf, 0, 0, 0)
        smallest = np.float32(1e-45)  # the smallest subnormal: inside
        assert np.isfinite(f(smallest, 0.3, -1.0))
        assert np.isfinite(f(jnp.asarray(smallest), 0.3, -1.0))
        if not refused:
            assert np.isnan(f(np.float32(np.nan), 0.3, -1.0))
    d = host.adapter(0.3, -1.0, **options)
    at_edges = {"log_cdf": [-np.inf, 0], "log_survival_function": [0, -np.inf], "quantile": [0, 1]}
    for method in at_edges.keys() & host.of_x.keys():
        np.testing.assert_array_equal(getattr(d, method)(np.float32([0, 1])), at_edges[method])


def test_kl_divergence(host):
    p, q = host.adapter(LOC, LOG_SCALE), host.adapter(LOC[::-1], LOG_SCALE[::-1])
    want = ll.kl_divergence(LOC, LOG_SCALE, LOC[::-1], LOG_SCALE[::-1])
    np.testing.assert_array_equal(host.kl(p, q), want)
    if hasattr(p, "cross_entropy"):
        np.testing.assert_allclose(p.cross_entropy(q), want + p.entropy(), atol=TOL)


@pytest.mark.parametrize("name", ["tfp", "distrax"])
def test_kl_divergence_from_and_to_the_hosts_composition(name):
    host = hosts.load(name)
    p, q = host.adapter(0.3, -1.0), host.compose(jnp.float32(-0.5), math.log(0.7))
    to_q = ll.kl_divergence(0.3, -1.0, -0.5, math.log(0.7))
    to_p = ll.kl_divergence(-0.5, math.log(0.7), 0.3, -1.0)
    np.testing.assert_allclose(p.kl_divergence(q), to_q, rtol=16 * U32)
    np.testing.assert_allclose(q.kl_divergence(p), to_p, rtol=16 * U32)


# --- Draws --------------------------------------------------------------------------------------


def test_draws_are_scored_before_they_are_rounded(host):
    """At μ = 17, b = 1 most draws round to a few floats next to 1; their densities do not."""
    n = 4096

    def mean(loc):
        x, log_prob = host.scored(host.adapter(loc, 0.0), KEY, n)
        return log_prob.mean(), x

    (value, x), slope = jax.value_and_grad(mean, has_aux=True)(17.0)
    z = np.asarray(jax.random.laplace(KEY, (n,)), np.float64)
    t = 17.0 + z
    # -|z| - ln 2 - ln x(1-x) with ln x(1-x) = t - 2 softplus(t); x(1-x) = exp(-17) and so falls
    # as μ rises. Means of numbers of order 10: a few roundings of 16.
    want = (-abs(z) - math.log(2) - t + 2 * np.logaddexp(0, t)).mean()
    np.testing.assert_allclose(value, want, rtol=8 * U32)
    np.testing.assert_allclose(slope, np.tanh(t / 2).mean(), rtol=8 * U32)
    assert abs(ll.log_prob(x, 17.0, 0.0).mean() - want) > 0.3


def test_samples_follow_the_cdf(host):
    n = 20_000
    d = host.adapter(np.float32([-3, 0, 1.5]), np.float32([0.7, 0, -2]))
    # Kolmogorov-Smirnov at the 0.1 % level; the key is fixed, so it does not flake.
    for level in np.asarray(d.cdf(host.draw(d, jax.random.key(11), (n,)))).T:
        assert stats.kstest(level, stats.uniform.cdf).statistic < 1.95 / math.sqrt(n)


def test_samples_are_reparameterised(host):
    def by_host(loc, log_scale):
        return host.draw(host.adapter(loc, log_scale), KEY, (2,)).sum()

    def by_hand(loc, log_scale):
        return ll.sample(KEY, loc, log_scale, shape=(2, 4, 3)).sum()

    got, want = (jax.grad(f, (0, 1))(LOC, LOG_SCALE) for f in (by_host, by_hand))
    # One and the same computation, compiled twice.
    np.testing.assert_allclose(got, want, rtol=16 * U32, atol=U32)


# --- JAX and Python -----------------------------------------------------------------------------


def test_transformations_give_what_the_plain_call_gives(host, check_transforms):
    def f(x, loc, log_scale):
        return host.adapter(loc, log_scale).log_prob(x)

    check_transforms(f, (X, LOC, LOG_SCALE), (0, 1, 2), TOL)


def test_it_is_a_pytree(host):
    d = host.adapter(LOC, LOG_SCALE)
    want = d.log_prob(X)
    assert len(jax.tree.leaves(d)) == 2
    again = jax.tree.map(lambda a: a, d)
    assert (again.batch_shape, again.event_shape) == ((4, 3), ())
    np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(X))(d), want, atol=TOL)
    rows = jax.vmap(lambda d, x: d.log_prob(x))(d, X)
    np.testing.assert_allclose(rows, want, atol=TOL)
    if host.name != "numpyro":  # inside vmap the batch shape has one axis less
        draw = jax.vmap(lambda d, key: host.draw(d, key, (2,)))
        assert jax.eval_shape(draw, d, jax.random.split(KEY, 4)).shape == (4, 2, 3)
    grad = jax.grad(lambda d: d.log_prob(X).sum())(d)
    assert type(grad) is type(d)
    by_hand = jax.grad(lambda a, b: ll.log_prob(X, a, b).sum(), (0, 1))(LOC, LOG_SCALE)
    for got, want in zip((grad.loc, grad.log_scale), by_hand, strict=True):
        np.testing.assert_allclose(got, want, atol=TOL, rtol=TOL)


def test_copies(host):
    d = host.adapter(np.float32([0.3, -1.0]), np.float32(-1.0))
    x = np.float32([0.2, 0.7])
    for again in (copy.copy(d), copy.deepcopy(d), pickle.loads(pickle.dumps(d))):
        assert type(again) is type(d)
        np.testing.assert_array_equal(again.log_prob(x), d.log_prob(x))
