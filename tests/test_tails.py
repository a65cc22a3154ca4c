"""Both tails, their logarithms and their inverses, against sixty digits and against each other."""

import itertools
import math

import jax
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import logit_laplace_jax as ll

U32, U64 = 2.0**-24, 2.0**-53
ONE_BITS, HALF_BITS = 0x3F800000, 0x3F000000  # of 1.0 and of 0.5 in float32
LOC_MAX, SCALE_MAX = 1e4, 80.0
NAMES = ("cdf", "log_cdf", "survival", "log_survival")


@jax.jit
def tails(x, loc, log_scale):
    return [getattr(ll, name)(x, loc, log_scale) for name in NAMES]


def table(dtype):
    """(x, loc, log_scale): a product of grids, thinned, and loc at and beside logit x."""
    whole = {np.float32: (np.uint32, ONE_BITS), np.float64: (np.uint64, 0x3FF0000000000000)}
    unsigned, one = whole[dtype]
    half = one - 2 ** {np.float32: 23, np.float64: 52}[dtype]
    bits = [1, 2, 3, half // 5, *(one - k for k in (1, 2, 3, 1000))]
    bits += [half + k for k in (-1000, -2, -1, 0, 1, 2, 1000)]
    xs = np.concatenate(
        [np.asarray(bits, unsigned).view(dtype), (np.arange(10) + 0.37).astype(dtype) / 10]
    )
    xs = np.concatenate([xs, np.asarray([2.0**-k for k in (5, 20, 60, 125)], dtype)])
    locs = np.asarray([0, 1e-30, -1e-3, 1, -2.2, 20, -100, 300, LOC_MAX, -LOC_MAX], dtype)
    log_scales = np.asarray([-SCALE_MAX, -30, -12, -5, -2.3, -1e-3, 0, 1, 3, 30, SCALE_MAX], dtype)
    rows = list(itertools.product(xs, locs, log_scales))[::3]  # 3 divides no side: all values
    for x in xs:
        near = dtype(float(oracle.logit(x)))
        beside = [near, np.nextafter(near, dtype(-np.inf)), near * dtype(1 + 1e-5)]
        beside += [near + dtype(s) for s in (0.7, -0.7, 1e-3, 90, -90)]
        rows += list(itertools.product([x], beside, log_scales))[::2]
    return tuple(np.asarray(column, dtype) for column in zip(*rows, strict=True))


# --- accuracy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tails_keep_the_bound(dtype):
    columns = table(dtype)
    with jax.enable_x64(dtype == np.float64):
        got = [np.asarray(a) for a in tails(*columns)]
    assert all(a.dtype == dtype for a in got)
    for name, values in zip(NAMES, got, strict=True):
        worst = max(
            (oracle.excess_of_interval(v, *oracle.tail(name, *row)), row)
            for v, row in zip(values, zip(*columns, strict=True), strict=True)
        )
        assert worst[0] <= 1, (name, worst)


def test_double_precision_reference_agrees_with_sixty_digits():
    columns = tuple(c[::5] for c in table(np.float32))
    for name in NAMES:
        fast = oracle.tail_float64(name, *columns)
        for row, _, true, _ in zip(zip(*columns, strict=True), *fast, strict=True):
            # 2^-29 of the bound itself, in z and in the value.
            low, _, high = oracle.tail(name, *row, roundings=32 * 2.0**-29)
            assert low - 2.0**-1022 <= true <= high + 2.0**-1022, (name, row, true)


def test_bound_on_random_bit_patterns():
    rng = np.random.default_rng(20240224)
    n = 2**18
    x = oracle.float32_from_bits(rng.integers(1, ONE_BITS, n))
    x[: n // 2] = rng.uniform(0.05, 0.95, n // 2)
    x[n // 2 : 3 * n // 4] = 0.5 + rng.uniform(-1, 1, n // 4) * 2.0 ** -rng.uniform(12, 24, n // 4)
    loc = rng.choice([-1, 1], n) * 10 ** rng.uniform(-6, 4, n)
    t = np.log(oracle.widen(x)) - np.log1p(-oracle.widen(x))
    near = rng.random(n) < 0.25
    loc = np.where(near, t * (1 + rng.normal(size=n) * 10 ** rng.uniform(-8, 0, n)), loc)
    loc = loc.astype(np.float32)
    log_scale = rng.uniform(-SCALE_MAX, SCALE_MAX, n).astype(np.float32)
    log_scale[::2] = rng.uniform(-8, 3, n // 2)
    for name, got in zip(NAMES, tails(x, loc, log_scale), strict=True):
        triple = oracle.tail_float64(name, x, loc, log_scale)
        ratio = oracle.excess_of_interval_float64(got, *triple)
        i = int(ratio.argmax())
        assert ratio[i] <= 1, (name, ratio[i], x[i], loc[i], log_scale[i])


def signed_floats(bound):
    """All float32 numbers with |v| <= bound, as bit patterns, the subnormal ones with them."""
    top = int(np.float32(bound).view(np.uint32))
    bits = st.tuples(st.integers(0, top), st.booleans()).map(lambda p: p[0] | p[1] << 31)
    round_ = st.integers(-int(bound * 1000), int(bound * 1000)).map(lambda k: k / 1000)
    return bits.map(oracle.float32_from_bits) | round_.map(np.float32)


INTERIOR = st.one_of(
    st.integers(1, ONE_BITS - 1),
    st.integers(HALF_BITS - 2**16, HALF_BITS + 2**16),
    st.integers(ONE_BITS - 2**8, ONE_BITS - 1),
    st.integers(1, 2**23 + 2**8),
).map(oracle.float32_from_bits)


@settings(max_examples=200, deadline=None)
@given(INTERIOR, signed_floats(LOC_MAX) | st.floats(-90, 90), signed_floats(SCALE_MAX))
def test_no_counter_example_to_the_bound(x, loc, log_scale):
    if isinstance(loc, float):  # so far from logit x, in scales
        loc = float(oracle.logit(x)) + loc * math.exp(log_scale)
        loc = min(max(loc, -LOC_MAX), LOC_MAX)
    row = (np.float32(x), np.float32(loc), np.float32(log_scale))
    for name, value in zip(NAMES, tails(*row), strict=True):
        assert oracle.excess_of_interval(np.asarray(value), *oracle.tail(name, *row)) <= 1, name


@pytest.mark.parametrize("nats", [1e2, 1e4, 1e6, 1e12])
def test_far_tail_by_name(nats):
    """Below the median ln F = z - ln 2 exactly, with derivatives 1 / (b x (1-x)), -1/b and -z."""
    x, b = np.float32(0.25), np.float32(2.0**-10)
    log_scale = np.log(b)  # and what it is exactly:
    b = math.exp(float(log_scale))
    loc = np.float32(nats * b)
    z = (-math.log(3) - float(loc)) / b
    for f, at, sign in ((ll.log_cdf, (x, loc), 1), (ll.log_survival, (1 - x, -loc), -1)):
        # Four roundings of terms of z; the contract's bound would be eight times as much.
        value, grads = jax.value_and_grad(f, (0, 1, 2))(*at, log_scale)
        np.testing.assert_allclose(value, z - math.log(2), rtol=16 * U32)
        want = [sign * 16 / 3 / b, -sign / b, -z]
        np.testing.assert_allclose(grads, want, rtol=16 * U32)
    # On the other side: 1 - tiny, whose logarithm is -tiny.
    near = -0.5 * math.exp(-min(nats, 100) / 2)
    loc = np.float32(-math.log(3) - min(nats, 100) / 2)
    np.testing.assert_allclose(ll.log_cdf(x, loc, np.float32(0)), near, rtol=32 * U32 * 110)


# --- edges --------------------------------------------------------------------------------------

MIN_SUBNORMAL = oracle.float32_from_bits(1)
OUTSIDE = np.asarray(
    [-np.inf, -3e38, -1, -MIN_SUBNORMAL, -0.0, 0.0, 1, 1 + 2 * U32, 2, 3e38, np.inf], np.float32
)
ABOVE = OUTSIDE >= 1


@pytest.mark.parametrize("log_scale", [-SCALE_MAX, -2, 0, 3, SCALE_MAX])
@pytest.mark.parametrize("loc", [0.0, 3, -LOC_MAX, LOC_MAX])
def test_outside_the_interval(loc, log_scale):
    params = np.full_like(OUTSIDE, loc), np.full_like(OUTSIDE, log_scale)
    with np.errstate(divide="ignore"):
        wants = [ABOVE, np.log(ABOVE), ~ABOVE, np.log(~ABOVE)]
    for name, value, want in zip(NAMES, tails(OUTSIDE, *params), wants, strict=True):
        np.testing.assert_array_equal(value, want, err_msg=name)
    # As documented: no value can be observed there.
    assert np.all(np.isnan(ll.pit(OUTSIDE, *params)))
    np.testing.assert_array_equal(outside_gradients(OUTSIDE, *params), 0)
    np.testing.assert_array_equal(outside_tangents(OUTSIDE, *params), 0)


@jax.jit
def outside_gradients(*args):
    return [jax.grad(lambda *a, k=k: tails(*a)[k].sum(), (0, 1, 2))(*args) for k in range(4)]


@jax.jit
def outside_tangents(*args):
    return jax.jvp(tails, args, tuple(np.ones(len(OUTSIDE), np.float32) for _ in args))[1]


# --- against each other -------------------------------------------------------------------------


def test_cdf_and_survival_are_complements(x64):
    x = np.linspace(0.001, 0.999, 301)
    for loc, log_scale in itertools.product([0.0, -4, 7], [-3.0, 0, 1.5]):
        cdf, log_cdf, survival, log_survival = tails(x, loc, log_scale)
        # Each is relatively exact; conditions stay below (7 + 7 + 14) e^3, but c F <= c exp(1 - c).
        slack = 32 * U64 * (1 + 7 * math.exp(-log_scale))
        np.testing.assert_allclose(cdf + survival, 1, atol=2 * slack)
        np.testing.assert_allclose(np.exp(log_cdf) + np.exp(log_survival), 1, atol=2 * slack)
        np.testing.assert_allclose(np.exp(log_cdf), cdf, rtol=64 * U64 * 600)
        np.testing.assert_allclose(np.exp(log_survival), survival, rtol=64 * U64 * 600)


def test_symmetry_about_one_half():
    """S(x; loc) = F(1-x; -loc), where 1-x is exact."""
    x = (np.arange(1, 4096, dtype=np.float32) * 2**-12).astype(np.float32)
    for loc, log_scale in itertools.product(np.float32([0, 0.3, -5]), np.float32([-6, -1, 0, 2])):
        there, back = tails(x, loc, log_scale), tails(1 - x, -loc, log_scale)
        for a, b, name in ((0, 2, "survival"), (2, 0, "cdf"), (1, 3, "log_survival")):
            low, _, high = oracle.tail_float64(
                name, 1 - x, np.full_like(x, -loc), np.full_like(x, log_scale)
            )
            # Both lie in the interval around the one true value.
            gap = np.abs(np.float64(there[a]) - np.float64(back[b]))
            assert np.all(gap <= high - low + 2.0**-126), name


def test_derivatives_in_x_are_the_density_and_the_hazards(x64):
    x = np.linspace(0.02, 0.98, 61)
    slope = jax.jit(
        lambda *args: [
            jax.grad(lambda x, k=k: tails(x, *args[1:])[k].sum())(args[0]) for k in range(4)
        ]
    )
    for loc, log_scale in itertools.product([0.0, -1.5, 4], [-2.0, 0, 1.2]):
        dcdf, dlog_cdf, dsurvival, dlog_survival = slope(x, loc, log_scale)
        log_f = ll.log_prob(x, loc, log_scale)
        _, log_cdf, _, log_survival = tails(x, loc, log_scale)
        # Terms of all logarithms sum to less than 200 here, and exp makes them relative errors.
        tol = 64 * U64 * 200
        np.testing.assert_allclose(dcdf, np.exp(log_f), rtol=tol)
        np.testing.assert_allclose(dsurvival, -np.exp(log_f), rtol=tol)
        np.testing.assert_allclose(dlog_cdf, np.exp(log_f - log_cdf), rtol=tol)
        np.testing.assert_allclose(dlog_survival, -np.exp(log_f - log_survival), rtol=tol)


@pytest.mark.parametrize(("loc", "b"), [(0.0, 0.2), (1.3, 0.5), (-2.0, 0.3), (0.4, 1.0)])
def test_survival_is_the_integral_from_above(x64, loc, b):
    """Gauss-Legendre over logit x in panels of width b."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    y = loc + b * (np.arange(-40, 40)[:, None] + (nodes + 1) / 2)
    x = 1 / (1 + np.exp(-y))
    mass = np.exp(ll.log_prob(x, loc, math.log(b))) * x * (1 - x) * weights * b / 2
    beyond = np.cumsum(mass.sum(1)[::-1])[::-1][30:50]
    ends = 1 / (1 + np.exp(-(loc + b * np.arange(-10, 10))))
    # The last of these are e^-9; beyond 40 scales lies e^-40, relatively 1e-13.
    np.testing.assert_allclose(ll.survival(ends, loc, math.log(b)), beyond, rtol=1e-11)
    np.testing.assert_allclose(
        np.asarray(ll.log_survival(ends, loc, math.log(b))), np.log(beyond), rtol=1e-11
    )


@pytest.mark.parametrize(("loc", "log_scale"), [(0.0, 0.0), (1.5, -2.0), (-3.0, 0.7)])
def test_tails_of_samples_are_uniform(loc, log_scale):
    n = 20_000
    draws = ll.sample(jax.random.key(21), loc, log_scale, shape=(n,))
    for f in (ll.survival, ll.pit):
        # Kolmogorov-Smirnov at the 0.1 % level; the key is fixed.
        level = np.asarray(f(draws, loc, log_scale))
        assert stats.kstest(level, stats.uniform.cdf).statistic < 1.95 / math.sqrt(n)
    np.testing.assert_array_equal(ll.pit(draws, loc, log_scale), ll.cdf(draws, loc, log_scale))


# --- isf and central_interval -------------------------------------------------------------------

TAIL_LOCS, TAIL_SCALES = [0, 0.5, -3, 12, -60, 100], [-30, -5, -1, 0, 1.5, 4]


def inverse_rows(dtype, levels):
    rows = itertools.product(*(np.asarray(v, dtype) for v in (levels, TAIL_LOCS, TAIL_SCALES)))
    return tuple(np.asarray(c, dtype) for c in zip(*rows, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_isf_matches_sixty_digits(dtype):
    half, unit = dtype(0.5), oracle.UNIT[np.dtype(dtype)]
    qs = [1e-37, 1e-30, 1e-7, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - unit, 1 - 1e-5]
    qs += [np.nextafter(half, dtype(1)), np.nextafter(half, dtype(0))]
    qs += [np.asarray(1, {4: "u4", 8: "u8"}[dtype().itemsize]).view(dtype)]  # the least of all
    columns = inverse_rows(dtype, qs)
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(ll.isf(*columns))
    assert got.dtype == dtype
    for value, row in zip(got, zip(*columns, strict=True), strict=True):
        assert oracle.excess_of_interval(value, *oracle.isf(*row)) <= 1, (row, value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_central_interval_matches_sixty_digits(dtype):
    unit = oracle.UNIT[np.dtype(dtype)]
    masses = [0, 1e-37, 1e-7, 0.1, 0.5, 0.9, 0.999, 1 - 1e-5, 1 - 2 * unit, 1 - unit]
    columns = inverse_rows(dtype, masses)
    with jax.enable_x64(dtype == np.float64):
        got = [np.asarray(a) for a in ll.central_interval(*columns)]
    assert all(a.dtype == dtype for a in got)
    assert np.all(got[0] <= got[1])
    for *ends, row in zip(*got, zip(*columns, strict=True), strict=True):
        for value, triple in zip(ends, oracle.central_interval(*row), strict=True):
            assert oracle.excess_of_interval(value, *triple) <= 1, (row, value)


def test_central_interval_has_its_mass(x64):
    mass = np.concatenate([np.linspace(0, 0.999, 41), 1 - np.geomspace(1e-14, 1e-4, 11)])
    for loc, log_scale in itertools.product([0.0, -2, 3], [-3.0, -1, 0]):
        low, high = ll.central_interval(mass, loc, log_scale)
        tail = (1 - mass) / 2
        # As for the inverse of the cdf: rounding x moves ln F by u / ((1-x) b), and so on.
        for x, f in ((low, ll.cdf), (high, ll.survival)):
            x = np.asarray(x)
            condition = (abs(np.log(x)) + abs(loc) + 1 / (1 - x)) * math.exp(-log_scale) + 40
            assert np.all(np.abs(f(x, loc, log_scale) - tail) <= 32 * U64 * condition * tail)
        np.testing.assert_allclose(low[0], ll.median(loc, log_scale), rtol=32 * U64 * 4)
        np.testing.assert_allclose(low, ll.quantile(tail, loc, log_scale), rtol=64 * U64 * 60)
        # High quantiles by p lose 1-p; by isf nothing is lost.
        np.testing.assert_allclose(high, ll.isf(tail, loc, log_scale), rtol=64 * U64 * 60)


def test_isf_inverts_survival(x64):
    q = np.concatenate([np.linspace(0.001, 0.999, 101), [1e-300, 1e-12, 1e-6, 0.5]])
    for loc, log_scale in itertools.product([0.0, -2, 3], [-3.0, -1, -5]):
        x = np.asarray(ll.isf(q, loc, log_scale))
        back = np.asarray(ll.survival(x, loc, log_scale))
        condition = (np.abs(np.log(x)) + abs(loc) + 1 / (1 - x)) * math.exp(-log_scale) + 750
        inside = x < 1 - 1e-9  # x itself is too coarse nearer to 1
        assert np.all((np.abs(back - q) <= 32 * U64 * condition * q)[inside])
        assert inside.sum() > 90
        # 1 - q is rounded by u, which q, at least 1e-3 here, and b magnify.
        other = ll.quantile(1 - q[:101], loc, log_scale)
        np.testing.assert_allclose(x[:101], other, rtol=1e4 * U64)


IMPROPER = np.float32([-np.inf, -1, -1e-7, -MIN_SUBNORMAL, 1 + 2 * U32, 2, np.inf, np.nan])


def test_improper_levels_are_nan_and_the_ends_are_exact():
    for log_scale in np.float32([-SCALE_MAX, -2, 0, 3, SCALE_MAX]):
        for loc in np.float32([0.7, LOC_MAX, -LOC_MAX]):
            assert np.all(np.isnan(ll.isf(IMPROPER, loc, log_scale)))
            assert np.all(np.isnan(ll.central_interval(IMPROPER, loc, log_scale)))
            ends = np.float32([0, -0.0, 1])
            np.testing.assert_array_equal(ll.isf(ends, loc, log_scale), [1, 1, 0])
            whole = ll.central_interval(np.float32(1), loc, log_scale)
            np.testing.assert_array_equal(whole, [0, 1])
    params = np.float32(0.7), np.float32(-1)
    for f, at in (
        (ll.isf, ends),
        (lambda *a: ll.central_interval(*a)[0], ends[2:]),
        (lambda *a: ll.central_interval(*a)[1], ends[2:]),
    ):
        grads = jax.vmap(jax.grad(f, (1, 2)), (0, None, None))(at, *params)
        np.testing.assert_array_equal(grads, 0)  # the parameters do not move either edge
