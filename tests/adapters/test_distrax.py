"""What only the distrax adapter does: indexing, meta-distributions, exchange with TFP."""

import hosts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hosts import LOC, LOG_SCALE, TOL, X

distrax = pytest.importorskip("distrax", reason="needs distrax: the extra [distrax]")
LogitLaplace = hosts.load("distrax").adapter

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("name", ["cdf", "log_cdf", "log_survival_function"])
def test_tails_are_those_of_distrax_s_laplace_at_the_logit(name):
    """distrax's composition has no cdf. Probabilities here are above 0.01: no worse conditioned."""
    laplace = distrax.Laplace(LOC, np.exp(LOG_SCALE))
    want = getattr(laplace, name)(np.log(X) - np.log1p(-X))
    np.testing.assert_allclose(getattr(LogitLaplace(LOC, LOG_SCALE), name)(X), want, atol=TOL)


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


def test_exchange_with_tfp():
    p, q = LogitLaplace(LOC, LOG_SCALE), LogitLaplace(LOC[::-1], LOG_SCALE[::-1])
    q_tfp = LogitLaplace.equiv_tfp_cls(LOC[::-1], LOG_SCALE[::-1])
    np.testing.assert_array_equal(p.kl_divergence(q_tfp), p.kl_divergence(q))
    np.testing.assert_array_equal(q_tfp.kl_divergence(p), q.kl_divergence(p))
    np.testing.assert_array_equal(distrax.as_distribution(q_tfp).log_prob(X), q.log_prob(X))
    np.testing.assert_array_equal(distrax.to_tfp(p).log_prob(X), p.log_prob(X))
