"""The TensorFlow Probability adapter: the library's numbers in TFP's interface."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import logit_laplace_jax as ll

tfp = pytest.importorskip(
    "tensorflow_probability.substrates.jax",
    reason="needs TensorFlow Probability: the extra [tfp]",
)
LogitLaplace = importlib.import_module("logit_laplace_jax.adapters.tfp").LogitLaplace
tfb, tfd = tfp.bijectors, tfp.distributions

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
    "quantile": ll.quantile,
}
OF_PARAMETERS = ("mean", "variance", "mode", "entropy")


def composition(loc, log_scale):
    return tfd.TransformedDistribution(tfd.Laplace(loc, jnp.exp(log_scale)), tfb.Sigmoid())


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
    draws, log_prob = d.experimental_sample_and_log_prob((5, 2), seed=key)
    np.testing.assert_array_equal(
        draws.reshape(10, 4, 3), ll.sample(key, LOC, LOG_SCALE, shape=(10, 4, 3))
    )
    # Scored before the draws are rounded: see test_hosts.
    np.testing.assert_allclose(log_prob, ll.log_prob(draws, LOC, LOG_SCALE), rtol=TOL, atol=TOL)


@pytest.mark.parametrize("name", OF_X)
def test_numbers_are_those_of_tfp_s_own_composition(name):
    """Beyond log_prob all are probabilities, or logs of ones above 0.01: no worse conditioned."""
    got = getattr(LogitLaplace(LOC, LOG_SCALE), name)(X)
    np.testing.assert_allclose(got, getattr(composition(LOC, LOG_SCALE), name)(X), atol=TOL)


@pytest.mark.parametrize("validate_args", [False, True])
def test_edges_are_minus_infinity_with_zero_gradient(validate_args):
    def f(x, loc, log_scale):
        return LogitLaplace(loc, log_scale, validate_args=validate_args).log_prob(x)

    for x in np.float32([0, 1] if validate_args else [-1, 0, 1, 2]):
        assert f(x, 0.3, -1.0) == -np.inf
        assert jax.grad(f, (0, 1, 2))(x, 0.3, -1.0) == (0, 0, 0)
    smallest = np.float32(1e-45)  # the smallest subnormal: inside
    assert np.isfinite(f(smallest, 0.3, -1.0))
    d = LogitLaplace(0.3, -1.0, validate_args)
    np.testing.assert_array_equal(d.log_cdf(np.float32([0, 1])), [-np.inf, 0])
    np.testing.assert_array_equal(d.log_survival_function(np.float32([0, 1])), [0, -np.inf])
    np.testing.assert_array_equal(d.quantile(np.float32([0, 1])), [0, 1])


def test_validation():
    with pytest.raises(ValueError, match="loc must be finite"):
        LogitLaplace(np.nan, 0.0, validate_args=True)
    with pytest.raises(ValueError, match="log_scale must be finite"):
        LogitLaplace(0.0, np.inf, validate_args=True)
    d = LogitLaplace(0.0, 0.0, validate_args=True, allow_nan_stats=False)
    for x in np.float32([-0.1, 1.1, np.nan]):
        with pytest.raises(ValueError, match="values must lie in"):
            d.log_prob(x)
    with pytest.raises(ValueError, match="mode is undefined where b >= 1"):
        d.mode()
    # Under jit nothing can be raised; the values are the usual ones.
    assert jax.jit(d.log_prob)(np.float32(2)) == -np.inf
    assert np.isnan(jax.jit(d.mode)())
    with pytest.raises(ValueError, match="seed"):
        d.sample()


def test_shapes_and_meta_distributions():
    d = LogitLaplace(np.zeros((4, 1), np.float32), np.zeros(3, np.float32), name="pixels")
    assert d.batch_shape == (4, 3)
    assert d.event_shape == ()
    np.testing.assert_array_equal(d.batch_shape_tensor(), (4, 3))
    assert d.name == "pixels"
    with pytest.raises(ValueError, match="shapes do not broadcast"):
        LogitLaplace(np.zeros(2), np.zeros(3))
    assert d.sample((2, 5), seed=jax.random.key(0)).shape == (2, 5, 4, 3)
    assert d[1:3, None, 0].batch_shape == (2, 1)
    assert d.copy(loc=1.0).batch_shape == (3,)
    full = LogitLaplace(LOC, LOG_SCALE)
    np.testing.assert_array_equal(full[1].log_prob(X[1]), full.log_prob(X)[1])
    np.testing.assert_allclose(
        tfd.Independent(full, 2).log_prob(X), full.log_prob(X).sum(), atol=12 * TOL
    )
    weights = np.float32([0.2, 0.3, 0.5])
    mixture = tfd.MixtureSameFamily(tfd.Categorical(probs=weights), full)
    want = jax.nn.logsumexp(full.log_prob(X[:, :1]) + np.log(weights), axis=-1)
    np.testing.assert_allclose(mixture.log_prob(X[:, 0]), want, atol=TOL)


def test_dtypes(x64):
    half, double = jnp.zeros(3, jnp.bfloat16), np.zeros(3)
    for loc, dtype in ((half, jnp.float32), (np.float32(0), jnp.float32), (double, jnp.float64)):
        d = LogitLaplace(loc, loc)
        assert d.dtype == dtype
        assert d.sample(seed=jax.random.key(0)).dtype == dtype
        assert d.log_prob(0.5).dtype == dtype
    # Python numbers follow jax's default, as in the library.
    assert LogitLaplace(0, 1.0).dtype == ll.median(0, 1.0).dtype == jnp.float64
    with pytest.raises(TypeError, match="loc must be real"):
        LogitLaplace(True, 1.0)


def test_event_space_bijector_and_parameter_properties():
    d = LogitLaplace(LOC, LOG_SCALE)
    bijector = d.experimental_default_event_space_bijector()
    # A sigmoid: one exp, one sum, one quotient, below 4 roundings each.
    np.testing.assert_allclose(bijector.forward(LOC), jax.nn.sigmoid(LOC), rtol=16 * U32)
    assert set(LogitLaplace.parameter_properties()) == {"loc", "log_scale"}
    for properties in LogitLaplace.parameter_properties().values():
        free = properties.default_constraining_bijector_fn()
        np.testing.assert_array_equal(free.forward(LOC), LOC)  # any real number is allowed
    assert LogitLaplace.param_static_shapes((4, 3)) == {"loc": (4, 3), "log_scale": (4, 3)}
    assert d.reparameterization_type == tfd.FULLY_REPARAMETERIZED


def test_fit():
    draws = LogitLaplace(LOC[0], LOG_SCALE[0]).sample(99, seed=jax.random.key(6))
    fitted = LogitLaplace.experimental_fit(draws)
    assert fitted.batch_shape == (3,)
    np.testing.assert_array_equal((fitted.loc, fitted.log_scale), ll.fit(draws, axis=0))


def test_kl_divergence():
    p, q = LogitLaplace(LOC, LOG_SCALE), LogitLaplace(LOC[::-1], LOG_SCALE[::-1])
    want = ll.kl_divergence(LOC, LOG_SCALE, LOC[::-1], LOG_SCALE[::-1])
    np.testing.assert_array_equal(tfd.kl_divergence(p, q), want)
    # The sigmoid is a bijection, so it is also TFP's for the Laplace distributions themselves: a
    # sum of four terms, each below 40.
    laplace = [tfd.Laplace(d.loc, jnp.exp(d.log_scale)) for d in (p, q)]
    np.testing.assert_allclose(p.kl_divergence(q), tfd.kl_divergence(*laplace), atol=TOL)
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
    keys = jax.random.split(jax.random.key(0), 4)
    assert jax.vmap(lambda d, k: d.sample(2, seed=k))(d, keys).shape == (4, 2, 3)
    grad = jax.grad(lambda d: d.log_prob(X).sum())(d)
    by_hand = jax.grad(lambda a, b: ll.log_prob(X, a, b).sum(), (0, 1))(LOC, LOG_SCALE)
    for got, want in zip((grad.loc, grad.log_scale), by_hand, strict=True):
        np.testing.assert_allclose(got, want, atol=TOL, rtol=TOL)
    # Leaves that are no arrays: shapes alone, and the placeholders of tree utilities.
    shapes = jax.eval_shape(lambda: LogitLaplace(jnp.zeros((4, 3)), jnp.zeros(3)))
    assert shapes.loc.shape == (4, 3)
    assert jax.tree.map(lambda a: None, d).loc is None


def test_samples_follow_the_cdf():
    n = 20_000
    d = LogitLaplace(np.float32([-3, 0, 1.5]), np.float32([0.7, 0, -2]))
    draws = d.sample(n, seed=jax.random.key(11))
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
