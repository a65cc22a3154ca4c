"""Relaxation, noise and KL: bounds by construction, values and gradients against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from logit_laplace_jax.models.bottleneck import (
    gumbel_noise,
    hard_codes,
    kl_to_uniform,
    one_hot,
    relax,
)

U = 2.0**-24  # half a unit in the last place of float32


def reference_kl(logits):
    """ln V - H in float64, with numpy alone."""
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return (np.exp(log_p) * log_p).sum(axis=-1) + np.log(z.shape[-1])


def reference_kl_gradient(logits):
    z = np.asarray(logits, np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    p = np.exp(log_p)
    return p * (log_p - (p * log_p).sum(axis=-1, keepdims=True))


finite = st.floats(-1e4, 1e4, width=32)
lengths = st.sampled_from([2, 7, 40])  # few, as each is compiled
rows = hnp.arrays(np.float32, lengths, elements=finite)
close = hnp.arrays(np.float32, lengths, elements=st.floats(-0.5, 0.5, width=32))


# ------------------------------------------------------------------------------------------- KL


@settings(max_examples=150, deadline=None)
@given(st.one_of(rows, close))
@example(np.zeros(8192, np.float32))
@example(np.full(8192, 1e4, np.float32))
@example(np.full(3, -1e4, np.float32))
@example(np.eye(1, 8192, dtype=np.float32)[0] * 1e4)
@example(np.eye(1, 512, 5, dtype=np.float32)[0] * -1e4)
@example(np.eye(1, 8192, dtype=np.float32)[0] * 1e-7)
@example(np.linspace(-1e4, 1e4, 1000, dtype=np.float32))
@example(np.float32([1e38, -3e38]))
@example(np.eye(1, 43, dtype=np.float32)[0] * 7)  # one code takes nearly all, not all
@example(np.eye(1, 8192, dtype=np.float32)[0] * 13)
def test_kl_is_within_its_bounds_and_right(logits):
    kl = np.asarray(kl_to_uniform(jnp.asarray(logits)))
    assert kl.dtype == np.float32
    assert 0 <= kl <= np.float32(np.log(logits.size))
    # |error| <= a few roundings of ln p, which is at most ln V + (spread of the likely logits),
    # plus that of the difference to the largest logit: 40 u in all, with margin.
    np.testing.assert_allclose(kl, reference_kl(logits), rtol=40 * U, atol=40 * U)


@settings(max_examples=100, deadline=None)
@given(st.one_of(rows, close))
@example(np.zeros(512, np.float32))
@example(np.eye(1, 512, dtype=np.float32)[0] * 1e4)
@example(np.eye(1, 512, dtype=np.float32)[0] * 9)
def test_kl_gradient_is_the_float64_one(logits):
    gradient = jax.grad(lambda z: kl_to_uniform(z))(jnp.asarray(logits))
    # p <= 1 and |ln p - E ln p| of the likely entries is a few nats: 100 u covers both roundings.
    np.testing.assert_allclose(gradient, reference_kl_gradient(logits), rtol=100 * U, atol=100 * U)


@pytest.mark.parametrize("scale", [1e-1, 1e-2, 1e-3, 1e-4])
def test_kl_keeps_relative_precision_near_uniform(scale):
    logits = scale * np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32)
    kl = np.asarray(kl_to_uniform(jnp.asarray(logits)))
    # KL is about scale²/2. Each of 512 terms r ln r - r + 1 is wrong by about u·scale, with
    # either sign or clamped at 0; ln V - H itself would be wrong by 1e-6, more than KL's value.
    np.testing.assert_allclose(kl, reference_kl(logits), atol=2 * U * scale)
    assert (kl > 0).all()


def test_kl_gradient_is_autodiff_of_the_float64_form():
    with jax.enable_x64(True):
        logits = jax.random.normal(jax.random.key(0), (5, 17), jnp.float64) * 3

        def plain(z):
            log_p = jax.nn.log_softmax(z)
            return (jnp.exp(log_p) * log_p).sum(-1) + jnp.log(17.0)

        np.testing.assert_allclose(kl_to_uniform(logits), plain(logits), rtol=1e-13)
        weight = jnp.arange(1.0, 6.0)
        got = jax.grad(lambda z: kl_to_uniform(z) @ weight)(logits)
        np.testing.assert_allclose(got, jax.grad(lambda z: plain(z) @ weight)(logits), atol=1e-13)
        got = jax.hessian(lambda z: kl_to_uniform(z))(logits[0])
        np.testing.assert_allclose(got, jax.hessian(plain)(logits[0]), atol=1e-13)
        float32 = jax.grad(lambda z: kl_to_uniform(z))(logits[0].astype(jnp.float32))
        # One row of float32 roundings, of values below 3.
        np.testing.assert_allclose(float32, jax.grad(plain)(logits[0]), atol=50 * U)


def test_kl_of_masked_and_broken_logits():
    logits = jnp.array([[0.0, 0.0, -jnp.inf, -jnp.inf], [0.0, jnp.nan, 0.0, 0.0]])
    kl = kl_to_uniform(logits)
    np.testing.assert_allclose(kl[0], np.log(2), rtol=4 * U)
    assert jnp.isnan(kl[1])  # a broken encoder must show, not read as 0
    gradient = jax.grad(lambda z: kl_to_uniform(z))(logits[0])
    np.testing.assert_allclose(gradient, np.zeros(4), atol=4 * U)


def test_kl_is_per_position_and_at_least_float32():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 4, 16)).astype(jnp.bfloat16)
    kl = kl_to_uniform(logits)
    assert kl.shape == (2, 3, 4)
    assert kl.dtype == jnp.float32
    np.testing.assert_allclose(kl[1, 2, 3], kl_to_uniform(logits[1, 2, 3]), rtol=4 * U)
    with pytest.raises(AssertionError):
        kl_to_uniform(jnp.zeros((2, 3), jnp.int32))


# ----------------------------------------------------------------------------------- relaxation


@settings(max_examples=60, deadline=None)
@given(rows, st.sampled_from([1.0, 0.5, 1 / 16, 1e-3]))
def test_relax_is_a_distribution(logits, temperature):
    noise = np.random.default_rng(0).gumbel(size=logits.shape).astype(np.float32)
    codes = np.asarray(relax(jnp.asarray(logits), temperature, jnp.asarray(noise)))
    assert codes.dtype == np.float32
    assert (codes >= 0).all()
    # At most 40 terms, each rounded once, and one division.
    assert abs(codes.astype(np.float64).sum() - 1) < 45 * U


def test_relax_is_the_formula():
    rng = np.random.default_rng(1)
    logits, noise = rng.normal(size=(2, 3, 8)), rng.gumbel(size=(2, 3, 8))
    z = (logits + noise) / 0.25
    expected = np.exp(z - z.max(-1, keepdims=True))
    expected /= expected.sum(-1, keepdims=True)
    got = relax(jnp.float32(logits), jnp.float32(0.25), jnp.float32(noise))
    # Rounding the inputs (|z| < 40) alone moves ln p by 40 u; the softmax adds a few more.
    np.testing.assert_allclose(got, expected, rtol=200 * U)


def test_relax_approaches_the_argmax():
    logits = jnp.array([[0.3, 0.1, 0.2]])
    np.testing.assert_allclose(relax(logits, 1e-3), one_hot(hard_codes(logits), 3), atol=1e-30)


@pytest.mark.parametrize("temperature", [1.0, 1 / 16])
def test_straight_through_is_one_hot_with_the_soft_gradient(temperature):
    logits = jax.random.normal(jax.random.key(0), (4, 5, 9))
    noise = jax.random.gumbel(jax.random.key(1), logits.shape)
    weight = jax.random.normal(jax.random.key(2), logits.shape)

    def value(z, straight_through):
        codes = relax(z, temperature, noise, straight_through)
        return (codes * weight).sum(), codes

    (_, hard), hard_gradient = jax.value_and_grad(value, has_aux=True)(logits, True)
    (_, soft), soft_gradient = jax.value_and_grad(value, has_aux=True)(logits, False)
    np.testing.assert_array_equal(hard, one_hot(jnp.argmax(logits + noise, -1), 9))
    np.testing.assert_array_equal(hard_gradient, soft_gradient)
    np.testing.assert_array_equal(jnp.argmax(soft, -1), jnp.argmax(hard, -1))


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_relax_refuses_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        relax(jnp.zeros(3), temperature)


def test_relax_checks_shapes_at_trace_time():
    with pytest.raises(AssertionError):
        jax.jit(relax)(jnp.zeros((2, 3)), 1.0, jnp.zeros((1, 3)))
    with pytest.raises(AssertionError):
        relax(jnp.zeros((2, 3)), jnp.ones(2))


def test_hard_codes():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 7))
    tokens = hard_codes(logits)
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, np.asarray(logits).argmax(-1))
    np.testing.assert_array_equal(hard_codes(one_hot(tokens, 7)), tokens)


# ---------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_noise_does_not_depend_on_the_split(impl):
    key = jax.random.key(7, impl=impl)
    draw = jax.jit(lambda indices: gumbel_noise(key, indices, (3, 2, 5)))
    whole = draw(jnp.arange(6))
    assert whole.shape == (6, 3, 2, 5)
    assert whole.dtype == jnp.float32
    parts = [draw(jnp.arange(0, 4)), draw(jnp.arange(4, 6))]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))
    np.testing.assert_array_equal(whole[jnp.array([5, 0])], draw(jnp.array([5, 0])))
    assert len(np.unique(np.asarray(whole))) > 170  # of 180: no example repeats another


def test_noise_takes_raw_keys():
    raw, typed = jax.random.PRNGKey(3), jax.random.key(3)
    np.testing.assert_array_equal(
        gumbel_noise(raw, jnp.arange(2), (4,)), gumbel_noise(typed, jnp.arange(2), (4,))
    )


def test_noise_is_gumbel():
    noise = np.asarray(gumbel_noise(jax.random.key(0), jnp.arange(50), (10, 10, 10)))
    ordered = np.sort(noise.ravel().astype(np.float64))
    n = ordered.size
    cdf = np.exp(-np.exp(-ordered))
    steps = np.arange(n + 1) / n
    distance = max((cdf - steps[:-1]).max(), (steps[1:] - cdf).max())
    # Kolmogorov-Smirnov: sqrt(n) D exceeds 1.95 once in a thousand; the seed is fixed.
    assert np.sqrt(n) * distance < 1.95
    assert np.isfinite(noise).all()


def test_noisy_argmax_samples_the_softmax():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    noise = gumbel_noise(jax.random.key(0), jnp.arange(20_000), (3,))
    counts = np.bincount(np.asarray(hard_codes(logits + noise)), minlength=3)
    # Binomial standard deviation at most 0.0036: four of them.
    np.testing.assert_allclose(counts / 20_000, [0.5, 0.3, 0.2], atol=0.0145)


def test_noise_checks_its_indices():
    with pytest.raises(AssertionError):
        gumbel_noise(jax.random.key(0), jnp.arange(2.0), (3,))
    with pytest.raises(AssertionError):
        gumbel_noise(jax.random.key(0), jnp.zeros((2, 2), jnp.int32), (3,))
