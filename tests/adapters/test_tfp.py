"""What only the TensorFlow Probability adapter does: validation, bijectors, fits, slices."""

import hosts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import LOC, LOG_SCALE, TOL, U32, X

import logit_laplace_jax as ll

pytest.importorskip(
    "tensorflow_probability.substrates.jax",
    reason="needs TensorFlow Probability: the extra [tfp]",
)
HOST = hosts.load("tfp")
LogitLaplace, tfd = HOST.adapter, HOST.dist

pytestmark = pytest.mark.usefixtures("quick_compilation")


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


def test_kl_divergence_is_that_of_the_laplace_distributions():
    """The sigmoid is a bijection."""
    p, q = LogitLaplace(LOC, LOG_SCALE), LogitLaplace(LOC[::-1], LOG_SCALE[::-1])
    laplace = [tfd.Laplace(d.loc, jnp.exp(d.log_scale)) for d in (p, q)]
    # A sum of four terms, each below 40.
    np.testing.assert_allclose(p.kl_divergence(q), tfd.kl_divergence(*laplace), atol=TOL)


def test_kl_divergence_of_another_composition_is_refused():
    sigmoid = HOST.compose(0.0, 0.0).bijector
    normal = tfd.TransformedDistribution(tfd.Normal(0.0, 1.0), sigmoid)
    with pytest.raises(NotImplementedError, match="Laplace distribution under a Sigmoid"):
        LogitLaplace(0.0, 0.0).kl_divergence(normal)


def test_leaves_that_are_no_arrays():
    """Shapes alone, and the placeholders of tree utilities."""
    shapes = jax.eval_shape(lambda: LogitLaplace(jnp.zeros((4, 3)), jnp.zeros(3)))
    assert shapes.loc.shape == (4, 3)
    assert jax.tree.map(lambda a: None, LogitLaplace(LOC, LOG_SCALE)).loc is None
