"""Derivatives where b or 1/b leaves the range of float32: finite or saturated, never NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logit_laplace_jax as ll

KEY = jax.random.key(0)
LOCS = np.float32([0.3, 0.0, -5.0, 1e4])
LOG_SCALES = np.float32([-1e4, -200, -104, -95, -89, -88, -80, 80, 88, 89, 95, 104, 200, 1e4])

FUNCTIONS = {
    "loss": lambda m, s: ll.logit_laplace_loss(0.3, m, s),
    "pixel_loss": lambda m, s: ll.logit_laplace_pixel_loss(np.uint8(7), m, s),
    "pixel_log_prob": lambda m, s: ll.pixel_log_prob(np.uint8([0, 3, 140]), m, s).sum(),
    "pixel_pit": lambda m, s: ll.pixel_pit(np.uint8(3), m, s),
    "cdf": lambda m, s: ll.cdf(0.3, m, s),
    "log_cdf": lambda m, s: ll.log_cdf(0.3, m, s),
    "log_survival": lambda m, s: ll.log_survival(0.3, m, s),
    "pit": lambda m, s: ll.pit(0.3, m, s),
    "quantile": lambda m, s: ll.quantile(0.3, m, s),
    "isf": lambda m, s: ll.isf(0.3, m, s),
    "central_interval": lambda m, s: sum(ll.central_interval(0.5, m, s)),
    "sample": lambda m, s: ll.sample(KEY, m, s, shape=(4,)).sum(),
    "mean": ll.mean,
    "variance": ll.variance,
    "median": ll.median,
    "entropy": ll.entropy,
    "kl_divergence": lambda m, s: ll.kl_divergence(m, s, 0.1, 0.0),
    "kl_divergence of q": lambda m, s: ll.kl_divergence(0.1, 0.0, m, s),
    "score": lambda m, s: sum(ll.score(0.3, m, s)),
    "fisher_information": lambda m, s: sum(ll.fisher_information(m, s)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_derivative_is_nan(name):
    f = FUNCTIONS[name]
    loc, log_scale = (a.ravel() for a in np.meshgrid(LOCS, LOG_SCALES))

    @jax.jit
    @jax.vmap
    def derivatives(m, s):
        one = jnp.ones_like(m)
        return f(m, s), jax.grad(f, (0, 1))(m, s), jax.jvp(f, (m, s), (one, one))[1]

    for value in jax.tree.leaves(derivatives(loc, log_scale)):
        bad = np.isnan(value)
        assert not bad.any(), (loc[bad], log_scale[bad])


def test_values_there():
    # The draws are 0 and 1 to rounding, whatever b is.
    draws = jax.grad(lambda s: ll.sample(KEY, 0.3, s, shape=(4,)).sum())(89.0)
    assert draws == 0
    # b = exp(-89) is no float32, but |t - μ|/b is: value and derivative are both of that size.
    value, slope = jax.value_and_grad(lambda s: ll.pixel_log_prob(np.uint8(3), -2.0, s))(-89.0)
    near = (-2.0 - np.log(0.8 * 3.5 / 255 + 0.1) + np.log1p(-(0.8 * 3.5 / 255 + 0.1))) * np.exp(
        89.0
    )
    # The distance has the rounding of t = -2.08 in it: 26 units of that in 0.08.
    np.testing.assert_allclose([value, slope], [-near, near], rtol=64 * 2.0**-24)
    # 1 + ln 2b - 2 b E σ'(X)...: the mean of ln x(1-x) is minus the mean of |X|, b, to rounding.
    np.testing.assert_allclose(jax.grad(ll.entropy, 1)(0.0, 60.0), -np.exp(60.0), rtol=1e-5)
