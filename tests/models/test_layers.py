"""Convolution, pooling and upsampling against their plain definitions."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logit_laplace_jax.models import layers
from logit_laplace_jax.models.layers import Conv, convolve, max_pool, upsample


def conv_by_definition(x, kernel, bias):
    """Zero-padded cross-correlation in float64: sum over offsets of shifted products."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    k = kernel.shape[0]
    p = k // 2
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    y = sum(
        padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(k) for j in range(k)
    )
    return y + np.asarray(bias, np.float64)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_conv_is_the_definition(kernel_size):
    conv = Conv(n_in=5, n_out=4, kernel_size=kernel_size)
    x = jax.random.normal(jax.random.key(0), (2, 6, 3, 5))
    params = conv.init(jax.random.key(1), x)["params"]
    params = {**params, "bias": jnp.arange(4.0)}
    y = conv.apply({"params": params}, x)
    assert y.shape == (2, 6, 3, 4)
    # Sums of at most 7·7·5 unit-size terms in float32: 245 roundings of 6e-8 at worst.
    np.testing.assert_allclose(
        y, conv_by_definition(x, params["kernel"], params["bias"]), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize(
    ("n_in", "n_out", "kernel_size", "sides"),
    [  # wide to narrow differs, and images smaller than the kernel reaches
        (6, 2, 3, (5, 8)),
        (6, 2, 3, (1, 4)),
        (6, 2, 7, (4, 9)),
        (2, 6, 3, (2, 3)),
        (3, 3, 3, (5, 8)),
    ],
)
def test_convolve_derivatives(x64, n_in, n_out, kernel_size, sides):
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(2, *sides, n_in), (kernel_size, kernel_size, n_in, n_out)]
    primals, tangents = (
        [jax.random.normal(k, s, jnp.float64) for k, s in zip(pair, shapes, strict=True)]
        for pair in (keys[:2], keys[2:4])
    )
    cotangent = jax.random.normal(keys[4], (2, *sides, n_out), jnp.float64)

    def plain(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    def derivatives(f):
        second = jax.grad(lambda x, kernel: jax.vjp(f, x, kernel)[1](cotangent)[1].sum())
        return (
            jax.jvp(f, primals, tangents),
            jax.vjp(f, *primals)[1](cotangent),
            second(*primals),
            jax.vmap(jax.grad(lambda k, x: (f(x, k) * cotangent).sum()), (None, 0))(
                primals[1], jnp.stack([primals[0], tangents[0]])
            ),
        )

    # 1e-12: rounding of sums of 600 float64 terms of size 1, in another order.
    chex.assert_trees_all_close(derivatives(convolve), derivatives(plain), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n_in", "kernel_size"), [(256, 1), (64, 3), (3, 7)])
def test_conv_initialisation(n_in, kernel_size):
    conv = Conv(n_in=n_in, n_out=512, kernel_size=kernel_size)
    params = conv.init(jax.random.key(2), jnp.zeros((1, 1, 1, n_in)))["params"]
    kernel = np.asarray(params["kernel"])
    assert kernel.dtype == np.float32
    assert not params["bias"].any()
    stddev = 1 / np.sqrt(n_in * kernel_size**2)
    # The sample deviation of n normal draws scatters by 1/sqrt(2n), their mean by 1/sqrt(n)
    # standard deviations; four of those are exceeded once in 16,000 seeds, and the seed is fixed.
    assert abs(kernel.std() / stddev - 1) < 4 / np.sqrt(2 * kernel.size)
    assert abs(kernel.mean() / stddev) < 4 / np.sqrt(kernel.size)
    # Not truncated: a normal beyond three deviations has probability 0.0027.
    assert (np.abs(kernel) > 3 * stddev).mean() == pytest.approx(0.0027, rel=0.35)


def test_conv_refuses_other_channels():
    conv = Conv(n_in=3, n_out=4, kernel_size=3)
    with pytest.raises(AssertionError):
        conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))


def test_lookup_is_the_one_hot_product():
    conv = Conv(n_in=6, n_out=4, kernel_size=1)
    variables = conv.init(jax.random.key(0), jnp.zeros((1, 1, 1, 6)))
    tokens = jnp.arange(6).reshape(1, 2, 3)
    got = conv.apply(variables, tokens, method="lookup")
    np.testing.assert_array_equal(got, conv.apply(variables, jax.nn.one_hot(tokens, 6)))
    outside = conv.apply(variables, jnp.array([[[-1, 0, 6]]]), method="lookup")
    assert jnp.isnan(outside).all(axis=-1).tolist() == [[[True, False, True]]]
    with pytest.raises(ValueError, match="1x1"):
        Conv(n_in=6, n_out=4, kernel_size=3).init(jax.random.key(0), tokens, method="lookup")


def windows(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_max_pool_value_and_gradient(seed, ties):
    rng = np.random.default_rng(seed)
    h, w = 2, 3
    shape = (2, 2 * h, 2 * w, 3)
    x = (rng.integers(0, 3, shape) if ties else rng.normal(size=shape)).astype(np.float32)
    weight = rng.normal(size=(2, h, w, 3)).astype(np.float32)
    y, pull = jax.vjp(max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(y, nn.max_pool(x, (2, 2), (2, 2)))
    (gradient,) = pull(jnp.asarray(weight))
    # Each window's first largest element takes the whole cotangent, and nothing else any.
    expected = np.zeros((weight.size, 4), np.float32)
    expected[np.arange(weight.size), windows(x).argmax(axis=1)] = weight.ravel()
    np.testing.assert_array_equal(windows(np.asarray(gradient)), expected)


def test_max_pool_forward_mode_and_second_order():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 2))
    dx = jax.random.normal(jax.random.key(1), x.shape)
    _, dy = jax.jvp(max_pool, (x,), (dx,))
    # A finite difference of a piecewise linear function is exact up to cancellation: 6e-8 / 1e-3.
    difference = (max_pool(x + 1e-3 * dx) - max_pool(x)) / 1e-3
    np.testing.assert_allclose(dy, difference, atol=1e-3)
    hessian = jax.hessian(lambda x: (max_pool(x) ** 2).sum())(x)
    assert hessian.sum() == 2 * 4  # one 2 on the diagonal for each of the 4 winners


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_layers_keep_the_dtype(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.ones((1, 2, 2, 1), dtype)
        assert max_pool(x).dtype == dtype
        assert upsample(x).dtype == dtype
        assert jax.grad(lambda x: max_pool(x).sum())(x).dtype == dtype


def test_max_pool_propagates_nan():
    x = jnp.array([1.0, jnp.nan, 0.0, 2.0]).reshape(1, 2, 2, 1)
    assert jnp.isnan(max_pool(x)).all()
    assert jnp.isnan(jax.jvp(max_pool, (x,), (x,))[0]).all()


def test_upsample_is_nearest():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    np.testing.assert_array_equal(upsample(x), jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2))
    gradient = jax.grad(lambda x: upsample(x).sum())(x)
    np.testing.assert_array_equal(gradient, np.full(x.shape, 4.0))


# --- The forms for other platforms ----------------------------------------------------------


def test_pooling_on_a_tpu_gives_the_same_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 5)).at[0, :4].set(1.0)  # with ties
    dy = jax.random.normal(jax.random.key(1), (2, 4, 3, 5))
    for form in (layers._own_jvp, layers._masked_jvp):
        y, tangent = form(x, x)
        (back,) = jax.linear_transpose(lambda dx, form=form: form(x, dx)[1], x)(dy)
        expected = jax.vjp(layers.max_pool, x)
        np.testing.assert_array_equal(y, expected[0])
        np.testing.assert_array_equal(tangent, y)  # of x along itself
        np.testing.assert_array_equal(back, expected[1](dy)[0])


def test_upsampling_on_a_tpu_gives_the_same_numbers_and_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 4, 3, 5)).at[0, 0, 0].set(jnp.inf)
    dy = jax.random.normal(jax.random.key(1), (2, 8, 6, 5))
    np.testing.assert_array_equal(layers._spread(x), layers._copied(x))
    one, other = (jax.vjp(form, x)[1](dy)[0] for form in (layers._spread, layers._copied))
    np.testing.assert_allclose(one, other, rtol=1e-6)  # four terms, added in another order
