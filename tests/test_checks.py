"""Words on values of a wrong range, and range checks that raise on concrete arrays."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logit_laplace_jax as ll
from logit_laplace_jax import checks
from logit_laplace_jax.checks import RangeWarning

X, PIXELS = jnp.full((2, 2, 3), 0.4), jnp.full((2, 2, 3), 9, jnp.uint8)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(checks, "_looked", {})


MISTAKES = {
    "-1..1": (lambda: ll.map_pixels(jnp.linspace(-1, 1, 5)), r"0\.5 \* pixels \+ 0\.5"),
    "0..255": (lambda: ll.map_pixels(np.linspace(0, 255, 5)), "pass uint8"),
    "normalised": (lambda: ll.map_pixels(np.linspace(-2, 2, 5)), r"from -2 to 2"),
    "unmapped": (lambda: ll.logit_laplace_loss(np.float32([0, 0.5]), 0.0, -1.0), "map_pixels"),
    "b for ln b": (lambda: ll.logit_laplace_loss(X, 0.0, 0.1), r"jnp\.log\(b\)"),
    "of bytes": (lambda: ll.logit_laplace_pixel_loss(PIXELS, 0.0, np.exp(-1.0)), r"jnp\.log\(b\)"),
    "one channel": (lambda: ll.logit_laplace_loss(X, X[..., :1], -1.0), "all three channels"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_likely_mistake_is_told_once(name):
    call, words = MISTAKES[name]
    jax.clear_caches()  # what is told of shapes is told when a program is traced
    with pytest.warns(RangeWarning, match=words) as caught:
        call()
    assert len(caught) == 1
    assert caught[0].filename.endswith(("test_checks.py", "losses.py"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


def test_right_values_and_traced_ones_are_not_told():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.map_pixels(jnp.array([0.0, 1.0 + 1e-7]))
        ll.map_pixels(jnp.array([jnp.nan]))
        ll.map_pixels(jnp.zeros(0))
        ll.logit_laplace_loss(X, X[..., :1] * jnp.ones(3), -1.0)
        ll.logit_laplace_loss(X[..., :1], X[..., :1], jnp.array([-0.5]))
        jax.jit(ll.map_pixels)(jnp.array([-1.0, 1.0]))
        jax.grad(lambda s: ll.logit_laplace_loss(0.5, 0.0, s))(0.1)


def test_only_the_first_calls_are_looked_at():
    for _ in range(checks._LOOKS):
        ll.map_pixels(jnp.array([0.5]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ll.map_pixels(jnp.array([-1.0]))


CHECKED = {
    "log_prob": (lambda v: ll.log_prob(v, 0.0, 0.0), 2.0, "x must lie"),
    "loss": (lambda v: ll.logit_laplace_loss(0.5, v, -1.0), np.nan, "loc must be finite"),
    "pixel_loss": (lambda v: ll.logit_laplace_pixel_loss(PIXELS, 0.0, v), -np.inf, "log_scale"),
    "pixel_log_prob": (lambda v: ll.pixel_log_prob(PIXELS, v, 0.0), np.nan, "loc must be finite"),
    "sample": (lambda v: ll.sample(jax.random.key(0), v, 0.0), np.nan, "loc must be finite"),
    "map_pixels": (lambda v: ll.map_pixels(v), 2.0, r"must lie in \[0, 1\]"),
    "method": (lambda v: ll.LogitLaplace(0.0, v).mean(), np.nan, "log_scale must be finite"),
}


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.filterwarnings("ignore::logit_laplace_jax.checks.RangeWarning")
def test_debug_checks_raise_on_concrete_arrays(name):
    call, bad, words = CHECKED[name]
    call(jnp.float32(bad))
    with ll.debug_checks():
        call(jnp.float32(0.5))
        with pytest.raises(ValueError, match=words):
            call(jnp.float32(bad))
        with ll.debug_checks(False):
            call(jnp.float32(bad))


def test_only_public_names_are_listed():
    assert set(dir(ll)) == {*ll.__all__, "__doc__", "__version__"}
