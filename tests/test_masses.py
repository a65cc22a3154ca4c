"""Exact log masses of 8-bit values and their probability integral transform."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import MP
from scipy import stats

import logit_laplace_jax as ll

U32, U64 = 2.0**-24, 2.0**-53
LEVELS = np.arange(256, dtype=np.uint8)
PIXELS = [0, 1, 2, 63, 126, 127, 128, 129, 200, 253, 254, 255]
EPS = [0.0, 0.1, 0.3, 0.49]
LOC_MAX, SCALE_MAX = 1e3, 30.0  # the contract's range for finite masses


def table(dtype, eps):
    """(pixel, loc, log_scale): a product, and loc at, beside and between the edges of the bin."""
    locs = np.asarray([0, 1e-20, -1e-3, 0.9, -2.2, 7, -50, 300, LOC_MAX, -LOC_MAX], dtype)
    log_scales = np.asarray([-SCALE_MAX, -12, -7, -5, -3.1, -1e-3, 0, 1, 3, SCALE_MAX], dtype)
    rows = list(itertools.product(PIXELS, locs, log_scales))[:: 1 if eps == 0.1 else 3]
    for pixel in PIXELS:
        edges = [dtype(float(t)) for t in oracle.pixel_edges(pixel, eps) if abs(t) < MP.inf]
        middle = sum(edges) / dtype(len(edges))
        beside = [*edges, np.nextafter(edges[0], dtype(9)), middle, edges[-1] + dtype(1e-4)]
        rows += itertools.product([pixel], beside, log_scales)
    pixels, *params = zip(*rows, strict=True)
    return np.asarray(pixels, np.uint8), *(np.asarray(c, dtype) for c in params)


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_mass_keeps_the_bound(dtype, eps):
    columns = table(dtype, eps)
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(ll.pixel_log_prob(*columns, eps=eps))
    assert got.dtype == dtype
    worst = max(
        (oracle.excess_of_interval(v, *oracle.pixel_log_prob(*row, eps=eps)), row)
        for v, row in zip(got, zip(*columns, strict=True), strict=True)
    )
    assert worst[0] <= 1, worst


log_masses = jax.jit(jax.vmap(ll.pixel_log_prob, (None, 0, 0)))
log_mass = jax.jit(ll.pixel_log_prob)


def signed_floats(bound):
    """All float32 numbers with |v| <= bound, as bit patterns, the subnormal ones with them."""
    top = int(np.float32(bound).view(np.uint32))
    bits = st.tuples(st.integers(0, top), st.booleans()).map(lambda p: p[0] | p[1] << 31)
    round_ = st.integers(-int(bound * 1000), int(bound * 1000)).map(lambda k: k / 1000)
    return bits.map(oracle.float32_from_bits) | round_.map(np.float32)


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 255),
    signed_floats(LOC_MAX) | st.floats(-40, 40),
    signed_floats(SCALE_MAX) | st.floats(-8, 3),
)
def test_no_counter_example_to_the_bound(pixel, loc, log_scale):
    if isinstance(loc, float):  # so far from an edge, in scales
        edge = oracle.pixel_edges(pixel, 0.1)[pixel == 0]
        loc = float(edge) + loc * math.exp(log_scale)
        loc = min(max(loc, -LOC_MAX), LOC_MAX)
    row = (np.uint8(pixel), np.float32(loc), np.float32(log_scale))
    value = np.asarray(log_mass(*row))
    assert oracle.excess_of_interval(value, *oracle.pixel_log_prob(*row)) <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masses_sum_to_one(dtype):
    rng = np.random.default_rng(0)
    loc = np.concatenate([rng.uniform(-4, 4, 200), rng.uniform(-1000, 1000, 56)]).astype(dtype)
    log_scale = np.concatenate([rng.uniform(-8, 4, 200), rng.uniform(-30, 30, 56)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        logs = np.asarray(log_masses(LEVELS, loc, log_scale), float)
    total = np.exp(logs).sum(1)
    # Each mass errs by 32u (|V| + |loc dV/dloc| + |ln b dV/dlnb|) relatively. Weighted with the
    # masses these are at most the entropy, ln 256, and |loc| / b, and 2 |ln b|. Where |loc| / b is
    # huge the mass sits in one bin, as a rule exactly, but a loc on an edge is in either.
    unit = oracle.UNIT[np.dtype(dtype)]
    slack = 32 * unit * (6 + np.minimum(np.abs(loc) * np.exp(-log_scale), 1e5) + 2 * abs(log_scale))
    i = int((np.abs(total - 1) / slack).argmax())
    assert abs(total[i] - 1) <= slack[i], (total[i], loc[i], log_scale[i])


def test_masses_are_differences_of_the_cdf(x64):
    for eps, loc, log_scale in itertools.product([0.1, 0.25], [-1.0, 0, 0.6], [-2.0, -1, 0.5]):
        ends = (1 - 2 * eps) * (np.arange(1, 256) - 0.5) / 255 + eps
        levels = np.concatenate([[0], ll.cdf(ends, loc, log_scale), [1]])
        got = np.exp(ll.pixel_log_prob(LEVELS, loc, log_scale, eps=eps))
        # Differences of numbers up to 1, which err by 32u c F, c F <= 3 e^2.
        np.testing.assert_allclose(got, np.diff(levels), atol=64 * U64 * 25)


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_symmetry_of_black_and_white(x64, eps):
    for loc, log_scale in itertools.product([0.0, 0.3, -5, 40], [-6.0, -1, 0, 2]):
        there = ll.pixel_log_prob(LEVELS, loc, log_scale, eps=eps)
        back = ll.pixel_log_prob(255 - LEVELS, -loc, log_scale, eps=eps)
        # Both are within 32u (1 + condition) of one value; |loc| / b <= 2e4 here.
        slack = 64 * U64 * (np.abs(there) * 10 + abs(loc) * math.exp(-log_scale) + 1)
        assert np.all(np.abs(there - back) <= slack)


value_and_grads = jax.jit(
    lambda p, *a: (
        ll.pixel_log_prob(p, *a),
        jax.grad(lambda *b: ll.pixel_log_prob(p, *b).sum(), (0, 1))(*a),
    )
)


def test_finite_everywhere():
    """For every uint8, |loc| <= 1e3 and |log_scale| <= 30, with finite gradients."""
    rng = np.random.default_rng(1)
    n = 2**16
    pixel = np.resize(LEVELS, n)
    loc = rng.choice([-1, 1], n) * 10 ** rng.uniform(-30, 3, n)
    loc[::2] = rng.choice([0, -1000, 1000, 1e-3, -2.2, 2.2, 1e-40, 6.9], n // 2)
    log_scale = rng.uniform(-30, 30, n)
    log_scale[::5] = rng.choice([-30, 30, 0, -7, -15], n)[::5]
    params = loc.astype(np.float32), log_scale.astype(np.float32)
    value, grads = value_and_grads(pixel, *params)
    for out in (value, *grads):
        bad = ~np.isfinite(out)
        assert not bad.any(), (int(bad.sum()), [a[bad][:3] for a in (pixel, *params)])
    assert np.all(np.asarray(value) <= 0)
    # At loc on an edge, to the last bit, with the sharpest scale.
    edges = np.float32([float(oracle.pixel_edges(k, 0.1)[1]) for k in range(255)])
    for k in (LEVELS[:-1], LEVELS[1:]):
        for log_scale in np.float32([-30, -10, 0, 30]):
            value, grads = value_and_grads(k, edges, np.full_like(edges, log_scale))
            assert all(np.all(np.isfinite(a)) for a in (value, *grads))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_match_sixty_digits(dtype):
    locs, log_scales = [0.003, -0.9, 1.4, -4, 30], [-5, -3.1, -1, 0.4, 2, 9]
    rows = list(itertools.product(PIXELS, locs, log_scales))
    pixel = np.asarray([r[0] for r in rows], np.uint8)
    loc, log_scale = (np.asarray([r[i] for r in rows], dtype) for i in (1, 2))
    with jax.enable_x64(dtype == np.float64):
        grads = [np.asarray(g) for g in value_and_grads(pixel, loc, log_scale)[1]]
    unit, step = oracle.UNIT[np.dtype(dtype)], MP.mpf("1e-15")
    for i, (k, m, s) in enumerate(zip(pixel, loc, log_scale, strict=True)):
        edges = oracle.pixel_edges(int(k), 0.1)
        m, s = oracle.exact(m), oracle.exact(s)

        def value(m, s, edges=edges):
            return oracle._log_mass(*edges, m, MP.exp(-s))

        true = [
            (value(m + step, s) - value(m - step, s)) / (2 * step),
            (value(m, s + step) - value(m, s - step)) / (2 * step),
        ]
        # The partials are ratios of densities at the edges to the mass, or their products with z:
        # an error in z is one in their logarithm, and where the mass is small, its width
        # counts: 2.2 is the largest logit of an edge and 1/140 the least width of a bin.
        inv_b = float(MP.exp(-s))
        z = (2.2 + abs(float(m))) * inv_b
        for j, size in enumerate((inv_b, 1 + z)):
            permitted = 64 * unit * size * (1 + z + 2.2 * 140)
            assert abs(float(grads[j][i]) - float(true[j])) <= permitted, (k, m, s, j)


PIXEL_CALLS = {
    "pixel_log_prob": lambda p, **k: ll.pixel_log_prob(p, 0.1, -1.0, **k),
    "pixel_pit": lambda p, **k: ll.pixel_pit(p, 0.1, -1.0, **k),
    "pixel_pit with a key": lambda p, **k: ll.pixel_pit(p, 0.1, -1.0, key=jax.random.key(0), **k),
    "method": lambda p, **k: ll.LogitLaplace(0.1, -1.0).pixel_log_prob(p, **k),
}


@pytest.mark.parametrize("name", PIXEL_CALLS)
def test_unsuitable_pixels_and_eps(name):
    f = PIXEL_CALLS[name]
    for dtype in ("bool", "int8", "int16", "uint16", "int32", "float16", "float32"):
        with pytest.raises(TypeError, match="uint8"):
            f(np.zeros(2, dtype))
    for bad in (3, 0.5, True):
        with pytest.raises(TypeError, match="uint8"):
            f(bad)
    for eps in (-1e-9, -0.1, 0.5, 0.6, 1, np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="eps"):
            f(LEVELS, eps=eps)
        with pytest.raises(ValueError, match="eps"):
            jax.jit(lambda p, e=eps: f(p, eps=e))(LEVELS)
    np.testing.assert_array_equal(f(LEVELS), f(LEVELS, eps=0.1))
    assert np.all(np.isfinite(f(LEVELS, eps=0.0)))
    assert f(np.uint8(3)).shape == ()
    assert f(LEVELS[:0]).shape == (0,)


# --- the probability integral transform of pixels -----------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pit_without_a_key_is_the_middle_of_the_levels(dtype, eps):
    columns = tuple(c[::3] for c in table(dtype, eps))
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(ll.pixel_pit(*columns, eps=eps))
    assert got.dtype == dtype
    worst = max(
        (oracle.excess_of_interval(v, *oracle.pixel_pit(*row, eps=eps)), row)
        for v, row in zip(got, zip(*columns, strict=True), strict=True)
    )
    assert worst[0] <= 1, worst


def test_pit_with_a_key_lies_between_the_levels():
    key = jax.random.key(1)
    columns = table(np.float32, 0.1)
    draws = np.asarray(ll.pixel_pit(*columns, key=key))
    assert draws.dtype == np.float32
    assert np.all((draws >= 0) & (draws <= 1))
    for value, row in zip(draws[::5], list(zip(*columns, strict=True))[::5], strict=True):
        low, high = oracle.pixel_levels(*row)
        assert low[0] - 2.0**-126 <= oracle.exact(value) <= high[2] + 2.0**-126, row
    np.testing.assert_array_equal(ll.pixel_pit(*columns, key=key), draws)


@pytest.mark.parametrize(("pixel", "eps"), [(0, 0.1), (77, 0.1), (128, 0.3), (255, 0.1)])
def test_pit_with_a_key_is_uniform_between_the_levels(pixel, eps):
    n, params = 20_000, (np.float32(0.2), np.float32(-1))
    pixels = np.full(n, pixel, np.uint8)
    draws = np.asarray(ll.pixel_pit(pixels, *params, eps=eps, key=jax.random.key(2)), float)
    low, high = (float(v[1]) for v in oracle.pixel_levels(np.uint8(pixel), *params, eps=eps))
    # Independent draws, one an element: the 0.1 % level of Kolmogorov and Smirnov, and as many
    # different ones as there are among so many grains of 2^-24, the coarsest that uniform draws
    # and float32 numbers below 1 have.
    level = (draws - low) / (high - low)
    assert stats.kstest(level, stats.uniform.cdf).statistic < 1.95 / math.sqrt(n)
    grains = (high - low) * 2**24
    assert len(np.unique(draws)) > 0.9 * grains * -math.expm1(-n / grains)
    assert abs(np.corrcoef(level[1:], level[:-1])[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize(("loc", "log_scale"), [(0.0, 0.0), (1.5, -2.0), (-3.0, 0.7), (0.01, -6.0)])
def test_pit_of_pixels_from_the_model_is_uniform(loc, log_scale):
    n, eps = 20_000, 0.1
    logs = np.asarray(ll.pixel_log_prob(LEVELS, loc, log_scale), float)
    masses = np.exp(logs) / np.exp(logs).sum()
    pixels = np.random.default_rng(9).choice(LEVELS, n, p=masses)
    level = np.asarray(ll.pixel_pit(pixels, loc, log_scale, eps=eps, key=jax.random.key(3)))
    assert stats.kstest(level, stats.uniform.cdf).statistic < 1.95 / math.sqrt(n)
    # A wrong scale shows.
    wrong = np.asarray(ll.pixel_pit(pixels, loc, log_scale + 0.5, key=jax.random.key(3)))
    assert stats.kstest(wrong, stats.uniform.cdf).statistic > 1.95 / math.sqrt(n)


def test_pit_takes_old_keys():
    draws = [ll.pixel_pit(LEVELS, 0.0, 0.0, key=f(7)) for f in (jax.random.key, jax.random.PRNGKey)]
    np.testing.assert_array_equal(*draws)


def test_pit_keys_shapes_and_transformations():
    key = jax.random.key(7)
    pixels, loc = LEVELS.reshape(4, 64)[:, :8], np.float32([-1, 0, 1, 2])[:, None]

    def draw(key, p, m):
        return ll.pixel_pit(p, m, np.float32(-1), key=key)

    plain = draw(key, pixels, loc)
    assert plain.shape == (4, 8)
    assert np.all(plain != draw(jax.random.fold_in(key, 1), pixels, loc))
    # One pixel under many parameters: a draw for each.
    assert len(np.unique(draw(key, np.uint8(100), np.zeros((8, 8), np.float32)))) > 60
    np.testing.assert_allclose(jax.jit(draw)(key, pixels, loc), plain, atol=32 * U32)
    keys = jax.random.split(key, 4)
    rows = np.stack([draw(*row) for row in zip(keys, pixels, loc, strict=True)])
    scanned = jax.lax.scan(lambda c, row: (c, draw(*row)), None, (keys, pixels, loc))[1]
    for out in (jax.vmap(draw)(keys, pixels, loc), scanned, jax.pmap(draw)(keys, pixels, loc)):
        np.testing.assert_allclose(out, rows, atol=32 * U32)  # levels err by less, u c F
    for narrow in (jnp.bfloat16, jnp.float16):
        assert draw(key, pixels, jnp.asarray(loc, narrow)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert ll.pixel_pit(pixels, np.zeros((4, 1)), -1.0, key=key).dtype == jnp.float64
    with jax.numpy_dtype_promotion("strict"):
        assert draw(key, pixels, loc).dtype == jnp.float32
