"""Ranges of pixel values: what is accepted, proven wrong, or only suspected; and back again."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from logit_laplace_jax.checks import debug_checks
from logit_laplace_jax.pixel_map import map_pixels
from logit_laplace_jax.tokens.ranges import RangeWarning, as_pixels, from_unit

LEVELS = np.arange(256, dtype=np.uint8)


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- Accepted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value_range", [None, "uint8"])
def test_bytes_pass_as_they_are(value_range):
    assert as_pixels(LEVELS, value_range) is LEVELS
    held = jnp.asarray(LEVELS)
    assert as_pixels(held, value_range) is held


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_every_level_arrives_in_either_range(dtype, place):
    unit = LEVELS.astype(dtype) / dtype(255)
    for values, value_range in ((unit, "unit"), (2 * unit - 1, "symmetric")):
        got = as_pixels(place(values), value_range)
        assert got.dtype == jnp.float32
        # 2v - 1 and its inverse round by 2^-25 each at most, and the division by 2^-25.
        np.testing.assert_allclose(got, LEVELS / 255, rtol=0, atol=2**-23)
        np.testing.assert_array_equal(from_unit(got, "uint8"), LEVELS)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sixteen_bits(dtype):
    values = jnp.asarray([0.0, 0.25, 1.0], dtype)
    np.testing.assert_array_equal(as_pixels(values, "unit"), [0, 0.25, 1])
    over = jnp.asarray([0.0, 1.0], dtype) * (1 + 2 * jnp.finfo(dtype).eps)
    np.testing.assert_array_equal(as_pixels(over, "unit"), [0, 1])


def test_floats_between_the_levels_stay_there():
    assert float(as_pixels(np.float32([0.1234, 0.9]), "unit")[0]) == np.float32(0.1234)


@pytest.mark.parametrize(("low", "value_range"), [(0.0, "unit"), (-1.0, "symmetric")])
def test_rounding_beyond_the_ends_is_clipped_and_more_is_refused(low, value_range):
    step = float(np.finfo(np.float32).eps)
    ends = np.array([low - 4 * step, 1 + 4 * step], np.float32)
    np.testing.assert_array_equal(as_pixels(ends, value_range), [0, 1])
    for wrong in ([low - 10 * step, 1], [low, 1 + 10 * step]):
        with pytest.raises(ValueError, match="but the pixels go from"):
            as_pixels(np.array(wrong, np.float32), value_range)


def test_no_image_at_all():
    assert as_pixels(np.zeros((0, 8, 8, 3), np.float32), "unit").shape == (0, 8, 8, 3)


# --- Proven wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "value_range", "error", "words"),
    [
        (np.float32([0, 1]), None, TypeError, ["'unit'", "'symmetric'", "look like 0..1"]),
        (np.float32([-1, 1]), None, TypeError, ["'symmetric'", "look like -1..1"]),
        (np.float32([0, 255]), None, TypeError, ["look like 0..255", "astype(np.uint8)"]),
        (np.int64([0, 255]), None, TypeError, ["uint8", "int64"]),
        (np.int64([0, 255]), "uint8", TypeError, ["uint8", "int64"]),
        (np.array([True]), "unit", TypeError, ["bool"]),
        ([0.0, 1.0], "unit", TypeError, ["list"]),
        (LEVELS, "unit", ValueError, ["'unit'", "are uint8", "leave value_range out"]),
        (LEVELS, "symmetric", ValueError, ["'symmetric'", "are uint8"]),
        (LEVELS, "0..1", ValueError, ["'0..1'", "'unit'"]),
        (np.float32([0, 255]), "uint8", ValueError, ["astype(np.uint8)"]),
        (np.float32([0, 255]), "unit", ValueError, ["from 0 to 255", "look like 0..255"]),
        (np.float32([0, 255]), "symmetric", ValueError, ["from 0 to 255", "look like 0..255"]),
        (np.float32([-1, 1]), "unit", ValueError, ["from -1 to 1", "value_range='symmetric'"]),
        (np.float32([-2.1, 2.6]), "symmetric", ValueError, ["mean and a deviation"]),
        (np.float32([-2.1, 2.6]), "unit", ValueError, ["mean and a deviation"]),
        (np.float32([0, 1.05]), "unit", ValueError, ["overshot", "clip"]),
        (np.float32([0, 65535]), "unit", ValueError, ["fit no range"]),
        (np.float32([0, np.nan]), "unit", ValueError, ["NaN"]),
        (np.float32([np.nan] * 2), "symmetric", ValueError, ["NaN"]),
        (np.float32([0, np.inf]), "unit", ValueError, ["inf"]),
        (np.float32([-np.inf, 0]), "symmetric", ValueError, ["-inf"]),
        (jnp.array([0.0, jnp.nan]), "unit", ValueError, ["NaN"]),
    ],
)
def test_what_cannot_be_right_is_one_line(values, value_range, error, words):
    with pytest.raises(error) as info:
        as_pixels(values, value_range)
    assert "\n" not in str(info.value)
    for word in words:
        assert word in str(info.value)


def test_one_wrong_value_among_many_is_found():
    values = np.full((4, 64, 64, 3), 0.5, np.float32)
    for index, wrong in ((0, -0.1), (values.size // 2, np.nan), (values.size - 1, 1.1)):
        broken = values.copy()
        broken.ravel()[index] = wrong
        with pytest.raises(ValueError, match="pixels"):
            as_pixels(broken, "unit")


# --- Suspected ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "value_range", "words"),
    [
        (np.linspace(0, 1, 9), "symmetric", "no value is negative"),
        (np.linspace(0, 1, 9) / 255, "unit", "divided by 255 twice"),
        (np.asarray(map_pixels(LEVELS)), "unit", "mapped by map_pixels already"),
        (np.uint8([0, 1, 1]), None, "cast to uint8"),
    ],
)
def test_what_is_suspect_warns_and_goes_through(values, value_range, words):
    with pytest.warns(RangeWarning, match=words):
        assert as_pixels(values, value_range).shape == values.shape


@pytest.mark.parametrize(
    ("values", "value_range"),
    [
        (np.zeros(9, np.uint8), None),
        (np.uint8([0, 2]), None),
        (np.zeros(9), "unit"),
        (np.ones(9), "symmetric"),  # white
        (np.zeros(9), "symmetric"),  # mid-grey
        (np.linspace(0.2, 0.9, 9), "unit"),
        (np.linspace(0, 2, 9) / 255, "unit"),
    ],
)
def test_what_may_well_be_right_does_not_warn(values, value_range):
    as_pixels(values, value_range)


def test_the_map_is_recognised_at_its_own_epsilon():
    mapped = np.asarray(map_pixels(LEVELS, 0.05))
    as_pixels(mapped, "unit", eps=0.1)
    with pytest.warns(RangeWarning, match="already"):
        as_pixels(mapped, "unit", eps=0.05)


# --- Under jit ---------------------------------------------------------------------------------


def test_inside_jit_names_and_dtypes_are_still_checked():
    values = jnp.linspace(-1, 1, 5)
    got = jax.jit(lambda v: as_pixels(v, "symmetric"))(values)
    np.testing.assert_allclose(got, np.linspace(0, 1, 5), atol=1e-7)  # 2^-24, and the linspace
    with pytest.raises(TypeError, match="need a value_range"):
        jax.jit(as_pixels)(values)
    with pytest.raises(ValueError, match="unknown value_range"):
        jax.jit(lambda v: as_pixels(v, "pm1"))(values)


def test_checkify_reports_what_jit_hides():
    unit = checkify.checkify(jax.jit(lambda v: as_pixels(v, "unit")), checkify.user_checks)
    with debug_checks():
        for values, wrong in (([0.0, 1.0], False), ([0.0, 255.0], True), ([0.0, np.nan], True)):
            error, _ = unit(jnp.array(values))
            assert (error.get() is not None) == wrong


# --- Back --------------------------------------------------------------------------------------


def test_halves_go_to_the_even_byte():
    # 255 v is exact in float32 for these: 0.5, 1.5, 2.5 and 127.5 are halves after rounding v.
    v = jnp.array([0.5, 0.25, 0.75, 0.0, 1.0])
    np.testing.assert_array_equal(from_unit(v, "uint8"), [128, 64, 191, 0, 255])
    assert 255 * 0.5 == 127.5  # so 128 is the even neighbour; half up would agree, truncation not
    even = jnp.float32(0.5 / 255)  # 255 times it is 0.5 in float32
    assert float(jnp.float32(255) * even) == 0.5
    assert int(from_unit(even, "uint8")) == 0


def test_ranges_of_what_comes_out():
    v = jnp.linspace(0, 1, 256)
    np.testing.assert_array_equal(from_unit(v), v)
    symmetric = from_unit(v, "symmetric")
    assert (float(symmetric.min()), float(symmetric.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(from_unit(as_pixels(symmetric, "symmetric"), "uint8"), LEVELS)
    with pytest.raises(ValueError, match="unknown value_range"):
        from_unit(v, "bytes")
