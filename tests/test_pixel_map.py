"""The pixel map and its inverse, against exact rational numbers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logit_laplace_jax as ll

U32, U64 = 2.0**-24, 2.0**-53
LEVELS = np.arange(256, dtype=np.uint8)
EPS = [0, 0.01, 0.1, 0.25, 0.4, 0.49]


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_map_pixels_is_the_affine_map(dtype, eps):
    with jax.enable_x64(dtype == "float64"):
        pixels = LEVELS if dtype == "uint8" else (LEVELS / 255).astype(dtype)
        x = np.asarray(ll.map_pixels(pixels, eps))
    unit = U64 if dtype == "float64" else U32
    assert x.dtype == (np.float64 if dtype == "float64" else np.float32)
    values = [Fraction(k, 255) if dtype == "uint8" else Fraction(float(k)) for k in pixels.tolist()]
    for got, value in zip(x.tolist(), values, strict=True):
        true = (1 - 2 * Fraction(eps)) * value + Fraction(eps)
        # Four roundings of positive terms: 1-2 eps (or it over 255), eps, their product, the sum.
        assert abs(Fraction(got) - true) <= 4 * Fraction(unit) * true
    assert np.all(np.diff(x) > 0)
    # The ends are eps and 1 - eps up to their own rounding.
    np.testing.assert_allclose(x[[0, -1]], [eps, 1 - eps], rtol=4 * unit)


def test_default_eps_and_shapes():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(ll.map_pixels(image), ll.map_pixels(image, eps=0.1))
    x = ll.map_pixels(image)
    assert x.shape == image.shape
    np.testing.assert_array_equal(ll.unmap_pixels(x), ll.unmap_pixels(x, eps=0.1))
    assert ll.map_pixels(np.uint8(0)) == np.float32(0.1)
    assert ll.map_pixels(image[:0]).shape == (0, 4, 3)


@pytest.mark.parametrize(
    "pixels",
    [
        *(np.zeros(2, t) for t in ("bool", "int8", "int16", "uint16", "int32", "complex64")),
        jnp.zeros(2, jnp.int32),
        128,
        True,
    ],
    ids=lambda p: str(getattr(p, "dtype", type(p).__name__)),
)
def test_other_dtypes_are_a_type_error(pixels):
    for f in (ll.map_pixels, lambda p: ll.logit_laplace_pixel_loss(p, 0.0, 0.0)):
        with pytest.raises(TypeError, match=r"uint8"):
            f(pixels)


def test_pixel_loss_takes_no_floats():
    with pytest.raises(TypeError, match="uint8"):
        ll.logit_laplace_pixel_loss(np.zeros(2, np.float32), 0.0, 0.0)


@pytest.mark.parametrize("eps", [-1e-9, -0.1, 0.5, 0.6, 1, np.nan, np.inf, -np.inf])
def test_eps_outside_its_range_is_a_value_error(eps):
    calls = [
        lambda: ll.map_pixels(LEVELS, eps),
        lambda: ll.unmap_pixels(np.float32([0.5]), eps),
        lambda: ll.logit_laplace_pixel_loss(LEVELS, 0.0, 0.0, eps),
        lambda: jax.jit(lambda p: ll.map_pixels(p, eps))(LEVELS),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="eps"):
            call()


@pytest.mark.parametrize("eps", [*EPS, 0.499])
def test_the_inverse_gives_back_every_level(eps):
    x = ll.map_pixels(LEVELS, eps)
    raw = np.asarray(ll.unmap_pixels(x, eps))
    assert raw.dtype == np.float32
    assert 0 <= raw.min() <= raw.max() <= 1
    np.testing.assert_array_equal(np.round(raw * 255), LEVELS)
    # x and x - eps carry 5 roundings of numbers up to 1, and the division magnifies them.
    np.testing.assert_allclose(raw, LEVELS / 255, atol=5 * U32 / (1 - 2 * eps) + 2 * U32)


def test_the_inverse_clips():
    x = np.float32([-np.inf, -1, 0, 0.05, 0.1, 0.5, 0.9, 0.95, 1, 2, np.inf])
    want = [0, 0, 0, 0, 0, 0.5, 1, 1, 1, 1, 1]
    # The map's and the inverse's roundings of 0.1 may differ by one, magnified by 1 / 0.8.
    np.testing.assert_allclose(ll.unmap_pixels(x), want, atol=4 * U32)
    raw = np.asarray(ll.unmap_pixels(x))
    assert raw.min() == 0
    assert raw.max() == 1
    assert np.isnan(ll.unmap_pixels(np.float32(np.nan)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sixteen_bit_floats_become_float32(dtype):
    v = jnp.linspace(0, 1, 9, dtype=dtype)
    for f in (ll.map_pixels, ll.unmap_pixels, ll.bits_per_dim):
        assert f(v).dtype == jnp.float32
        np.testing.assert_array_equal(f(v), f(v.astype(jnp.float32)))


def test_derivatives():
    v = np.linspace(0.05, 0.95, 7, dtype=np.float32)
    for eps in (0.0, 0.1, 0.25):
        slope = jax.vmap(jax.grad(lambda a, e=eps: ll.map_pixels(a, e)))(v)
        np.testing.assert_allclose(slope, 1 - 2 * eps, rtol=2 * U32)
        inverse = jax.vmap(jax.grad(lambda a, e=eps: ll.unmap_pixels(a, e)))(ll.map_pixels(v, eps))
        np.testing.assert_allclose(inverse, 1 / (1 - 2 * eps), rtol=4 * U32)


@pytest.mark.parametrize("f", [ll.map_pixels, ll.unmap_pixels, ll.bits_per_dim])
def test_transformations_of_float_functions(f, check_transforms):
    v = np.random.default_rng(0).uniform(0.15, 0.85, (4, 3)).astype(np.float32)
    check_transforms(f, (v,), (0,), 4 * U32)  # at most four roundings of numbers near 1


def test_transformations_of_uint8(strict):
    pixels = LEVELS.reshape(4, 64)
    plain = ll.map_pixels(pixels)
    scanned = jax.lax.scan(lambda c, row: (c, ll.map_pixels(row)), None, pixels)[1]
    forms = [f(ll.map_pixels)(pixels) for f in (jax.jit, jax.vmap, jax.pmap)]
    for out in [*forms, scanned]:
        np.testing.assert_allclose(out, plain, rtol=2 * U32)  # product and sum may fuse
    assert ll.unmap_pixels(plain).shape == pixels.shape


def test_uint8_is_mapped_in_the_precision_in_force():
    assert ll.map_pixels(LEVELS).dtype == jnp.float32
    with jax.enable_x64(True):
        assert ll.map_pixels(LEVELS).dtype == jnp.float64
        assert ll.unmap_pixels(np.float64([0.3])).dtype == jnp.float64
        assert ll.bits_per_dim(np.float64(1)).dtype == jnp.float64


def test_bits_per_dim():
    nats = np.float32([0, -1.5, 3.25, 1e-30, 1e30, np.inf])
    # One division by a rounded constant.
    np.testing.assert_allclose(ll.bits_per_dim(nats), nats / np.log(2.0), rtol=3 * U32)
    with jax.enable_x64(True):
        assert ll.bits_per_dim(np.log(256.0)) == pytest.approx(8, rel=3 * U64)
    assert ll.bits_per_dim(1).dtype == jnp.float32
    assert jax.grad(ll.bits_per_dim)(2.0) == pytest.approx(1 / np.log(2), rel=3 * U32)


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.1, 0.3, 0.49])
def test_the_ends_of_floats_map_to_the_ends_of_the_interval(eps):
    ends = np.asarray(ll.map_pixels(np.array([0.0, 1.0], np.float32), eps))
    # Not a unit in the last place beyond them: the same bits as 8-bit pixels.
    np.testing.assert_array_equal(ends, ll.map_pixels(np.array([0, 255], np.uint8), eps))
