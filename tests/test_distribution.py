"""The density and what follows from it, against sixty-digit arithmetic and against itself."""

import copy
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from scipy import stats

import logit_laplace_jax as ll

U32, U64 = 2.0**-24, 2.0**-53
TINY32 = float(np.finfo(np.float32).tiny)
ONE_BITS, HALF_BITS = 0x3F800000, 0x3F000000  # of 1.0 and of 0.5 in float32
LOC_MAX, SCALE_MAX = 1e4, 80.0  # ranges that the contract names for loc and |log_scale|


def value_and_partials(x, loc, log_scale):
    partials = jax.grad(ll.log_prob, (0, 1, 2))(x, loc, log_scale)
    return ll.log_prob(x, loc, log_scale), *partials


evaluate = jax.jit(jax.vmap(value_and_partials))


def x_values(dtype):
    """Numbers in (0, 1): a uniform grid, both tails, subnormal ones, and the middle's near side."""
    if dtype == np.float32:
        special = [1, 2, 3, 0x155555, 0x400000, 0x7FFFFF, 0x800000, 0x800001]
        special += [ONE_BITS - k for k in (1, 2, 3, 1000)]
        special += [HALF_BITS + k for k in (-1000, -37, -2, -1, 0, 1, 2, 11, 1000)]
        bits = np.asarray(special, np.uint32)
        powers = [2.0**-k for k in (2, 5, 10, 24, 40, 64, 100, 125)]
    else:
        half, one = 0x3FE0000000000000, 0x3FF0000000000000
        special = [1, 2, 3, 2**51, 2**52 - 1, 2**52, 2**52 + 1]
        special += [one - k for k in (1, 2, 3, 10**6)]
        special += [half + k for k in (-(10**6), -37, -2, -1, 0, 1, 2, 11, 10**6)]
        bits = np.asarray(special, np.uint64)
        powers = [2.0**-k for k in (2, 5, 10, 53, 100, 500, 1000)]
    grid = (np.arange(24) + 0.37) / 24
    # Where logit changes from one formula to the other.
    seams = [np.nextafter(dtype(x), dtype(to)) for x in (1 / 3, 2 / 3) for to in (0, x, 1)]
    return np.concatenate([bits.view(dtype), np.asarray([*powers, *grid, *seams], dtype)])


def table(dtype):
    """Triples (x, loc, log_scale): a product of grids, and loc at and beside logit x."""
    xs = x_values(dtype)
    locs = np.asarray([0, 1e-30, -1e-3, 1, -2.2, 20, -100, 300, LOC_MAX, -LOC_MAX], dtype)
    log_scales = np.asarray([-SCALE_MAX, -30, -12, -5, -2.3, -1e-3, 0, 1, 3, 30, SCALE_MAX], dtype)
    rows = list(itertools.product(xs, locs, log_scales))
    for x in xs:
        near = dtype(float(oracle.logit(x)))
        beside = [near, np.nextafter(near, dtype(-np.inf)), np.nextafter(near, dtype(np.inf))]
        beside += [near * dtype(1 + 1e-5), near * dtype(1 - 1e-3)]
        rows += itertools.product([x], beside, log_scales)
    return tuple(np.asarray(column, dtype) for column in zip(*rows, strict=True))


def worst(got, columns):
    """Largest excess of each of the four outputs over the contract's bound, with where it is."""
    rows = list(zip(*columns, strict=True))
    top = [(0.0, None)] * len(got)
    for i, row in enumerate(rows):
        for k, (truths, terms) in enumerate(oracle.log_prob(*row)[: len(got)]):
            ratio = oracle.excess(got[k][i], truths, terms)
            top[k] = max(top[k], (ratio, row), key=lambda pair: pair[0])
    return top


OUTPUTS = ("value", "x", "loc", "log_scale")


# --- accuracy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_prob_and_partials_keep_the_bound(dtype):
    columns = tuple(c[::7] for c in table(dtype))  # 7 divides no side of the product: all values
    with jax.enable_x64(dtype == np.float64):
        got = [np.asarray(a) for a in evaluate(*columns)]
    assert all(a.dtype == dtype for a in got)
    for name, (ratio, row) in zip(OUTPUTS, worst(got, columns), strict=True):
        assert ratio <= 1, (name, ratio, row)


def test_textbook_logit_breaks_the_bound():
    """ln x - ln(1-x) cancels near 1/2 and b multiplies what is left: the bound can be failed."""

    def textbook(x, loc, log_scale):
        gap = jnp.abs(jnp.log(x) - jnp.log1p(-x) - loc)
        value = -gap * jnp.exp(-log_scale) - log_scale - jnp.log(2.0)
        return value - jnp.log(x) - jnp.log1p(-x)

    x = (0.5 + np.geomspace(2**-12, 2**-9, 50)).astype(np.float32)
    columns = (x, np.zeros_like(x), np.full_like(x, -12))
    assert worst([np.asarray(textbook(*columns))], columns)[0][0] > 10
    assert worst([np.asarray(ll.log_prob(*columns))], columns)[0][0] <= 1


def test_double_precision_reference_agrees_with_sixty_digits():
    columns = tuple(c[::13] for c in table(np.float32))
    fast = oracle.log_prob_float64(*columns)
    for i, row in enumerate(zip(*columns, strict=True)):
        for (truths, terms), (fast_truths, fast_terms) in zip(
            oracle.log_prob(*row), fast, strict=True
        ):
            # A few hundred roundings of 2^-53, against the bound's 8 * 2^-24.
            fast_values = [float(v) for v in fast_truths[:, i]]
            gap = min(abs(truths[0] - v) for v in fast_values)
            assert gap <= 1e-13 * terms, row
            assert float(fast_terms[i]) == pytest.approx(float(terms), rel=1e-13)


def test_bound_on_half_a_million_random_bit_patterns():
    rng = np.random.default_rng(20210224)
    n = 2**19
    x = oracle.float32_from_bits(rng.integers(1, ONE_BITS, n))
    # Half of them where pixels live, a quarter within 2^-12 of 1/2, a quarter over all exponents.
    x[: n // 2] = rng.uniform(0.05, 0.95, n // 2)
    x[n // 2 : 3 * n // 4] = 0.5 + rng.uniform(-1, 1, n // 4) * 2.0 ** -rng.uniform(12, 24, n // 4)
    loc = rng.choice([-1, 1], n) * 10 ** rng.uniform(-6, 4, n)
    near = rng.random(n) < 0.25
    t = np.log(oracle.widen(x)) - np.log1p(-oracle.widen(x))
    loc = np.where(near, t * (1 + rng.normal(size=n) * 10 ** rng.uniform(-8, -1, n)), loc)
    loc = loc.astype(np.float32)
    log_scale = rng.uniform(-SCALE_MAX, SCALE_MAX, n).astype(np.float32)
    log_scale[::2] = rng.uniform(-8, 3, n // 2)
    x, loc, log_scale = map(np.append, (x, loc, log_scale), table(np.float32))
    got = evaluate(x, loc, log_scale)
    for name, a, (truths, terms) in zip(
        OUTPUTS, got, oracle.log_prob_float64(x, loc, log_scale), strict=True
    ):
        ratio = oracle.excess_float64(a, truths, terms)
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


@settings(max_examples=300, deadline=None)
@given(
    INTERIOR,
    signed_floats(LOC_MAX) | st.integers(-4, 4),
    signed_floats(SCALE_MAX),
)
def test_no_counter_example_to_the_bound(x, loc, log_scale):
    if isinstance(loc, int):  # so many float32 steps away from logit x
        near = np.float32(float(oracle.logit(x)))
        loc = near + np.float32(loc) * np.spacing(near)
    row = (np.float32(x), np.float32(loc), np.float32(log_scale))
    for a, (truths, terms) in zip(
        evaluate(*(np.reshape(v, 1) for v in row)), oracle.log_prob(*row), strict=True
    ):
        assert oracle.excess(np.asarray(a)[0], truths, terms) <= 1


@jax.jit
def everything(x, p, loc, log_scale):
    """All functions and their gradients in the parameters, at one x and one probability p."""
    params = (loc, log_scale)
    calls = {
        "log_prob": lambda loc, s: ll.log_prob(x, loc, s),
        "loss": lambda loc, s: ll.logit_laplace_loss(x, loc, s),
        "cdf": lambda loc, s: ll.cdf(x, loc, s),
        "quantile": lambda loc, s: ll.quantile(p, loc, s),
        "median": ll.median,
    }
    out = {name: (f(*params), jax.grad(f, (0, 1))(*params)) for name, f in calls.items()}
    in_x = {n: jax.grad(getattr(ll, n))(x, *params) for n in ("log_prob", "cdf")}
    return out, in_x


ALL_BITS = st.integers(0, 2**32 - 1).map(oracle.float32_from_bits)


@settings(max_examples=200, deadline=None)
@given(
    INTERIOR | ALL_BITS.filter(lambda v: not np.isnan(v)),
    st.integers(0, ONE_BITS).map(oracle.float32_from_bits),
    signed_floats(LOC_MAX),
    signed_floats(SCALE_MAX),
)
def test_nothing_gives_nan_in_the_contract_ranges(x, p, loc, log_scale):
    out = everything(x, p, np.float32(loc), np.float32(log_scale))
    bad = [path for path, leaf in jax.tree.leaves_with_path(out) if np.isnan(leaf)]
    assert not bad


# --- edges ------------------------------------------------------------------------------------

MIN_SUBNORMAL = oracle.float32_from_bits(1)
OUTSIDE = np.asarray(
    [-np.inf, -3e38, -1, -MIN_SUBNORMAL, -0.0, 0.0, 1, 1 + 2 * U32, 2, 3e38, np.inf], np.float32
)


@pytest.mark.parametrize("log_scale", [-SCALE_MAX, -2, 0, SCALE_MAX, -1000, 1000, -3e38, 3e38])
@pytest.mark.parametrize("loc", [0.0, 3, -LOC_MAX, LOC_MAX])
def test_outside_the_interval_is_minus_infinity_with_zero_gradient(loc, log_scale):
    params = np.full_like(OUTSIDE, loc), np.full_like(OUTSIDE, log_scale)
    value, *partials = evaluate(OUTSIDE, *params)
    np.testing.assert_array_equal(value, -np.inf)
    np.testing.assert_array_equal(partials, 0)
    tangent = jax.jvp(ll.log_prob, (OUTSIDE, *params), (np.ones_like(OUTSIDE),) * 3)[1]
    np.testing.assert_array_equal(tangent, 0)


@pytest.mark.parametrize("f", [ll.log_prob, ll.cdf, ll.quantile, ll.logit_laplace_loss])
def test_nan_gives_nan(f):
    for args in ((np.nan, 0.0, 0.0), (0.3, np.nan, 0.0), (0.3, 0.0, np.nan)):
        assert np.isnan(f(*args)), args


@pytest.mark.parametrize("log_scale", [0, -SCALE_MAX, SCALE_MAX, -1000, 1000, -3e38, 3e38])
def test_tie_is_finite_for_every_finite_log_scale(log_scale):
    """At x = 1/2, loc = 0 (the only exact tie): f = 2 / b, and b has no other influence."""
    s = np.float32(log_scale)
    value, dx, dloc, dscale = value_and_partials(np.float32(0.5), np.float32(0), s)
    # -ln b - ln 2 - 2 ln(1/2); its terms are |ln b|, two ln 2, and 1.
    assert value == pytest.approx(math.log(2) - float(s), abs=8 * U32 * (abs(float(s)) + 2.4))
    assert (dx, dloc, dscale) == (0, 0, -1)


@pytest.mark.parametrize("log_scale", [-SCALE_MAX, -2, 0, 3, SCALE_MAX])
def test_cdf_and_quantile_at_the_edges(log_scale):
    params = np.float32(0.7), np.float32(log_scale)
    np.testing.assert_array_equal(ll.cdf(OUTSIDE, *params), OUTSIDE >= 1)
    np.testing.assert_array_equal(ll.quantile(np.float32([0, -0.0, 1]), *params), [0, 0, 1])
    for f, args in ((ll.cdf, OUTSIDE), (ll.quantile, np.float32([0, 1]))):
        grads = jax.vmap(jax.grad(f, (1, 2)), (0, None, None))(args, *params)
        np.testing.assert_array_equal(grads, 0)  # the parameters do not move either edge


IMPROPER = np.float32([-np.inf, -1, -1e-7, -MIN_SUBNORMAL, 1 + 2 * U32, 2, np.inf])


@pytest.mark.parametrize("p", IMPROPER, ids=str)
def test_quantile_of_no_probability_is_nan(p):
    assert np.isnan(ll.quantile(p, 0.7, -1.0))


# --- cdf, quantile, median --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cdf_is_exact_far_into_the_tail(dtype):
    """Relative error at most 32u (1 + condition), the contract's bound for the log cdf."""
    with jax.enable_x64(dtype == np.float64):
        columns = tuple(c[::13] for c in table(dtype))
        got = np.asarray(ll.cdf(*columns))
    assert got.dtype == dtype
    # Below the smallest normal number a processor may flush to zero.
    tiny = oracle.exact(np.finfo(dtype).tiny)
    for value, row in zip(got, zip(*columns, strict=True), strict=True):
        low, high = oracle.cdf(*row, roundings=32)
        assert 0 <= value <= 1, row
        assert low - tiny <= oracle.exact(value) <= high + tiny, (row, value, float(low))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_quantile_matches_sixty_digits(dtype):
    half = dtype(0.5)
    ps = [1e-30, 1e-7, 0.01, 0.3, 0.5, 0.7, 0.99, np.nextafter(half, 1), np.nextafter(half, 0)]
    ps += [np.nextafter(dtype(1), dtype(0)), dtype(1) - dtype(1e-5)]
    locs, log_scales = [0, 0.5, -3, 12, -60, 100], [-30, -5, -1, 0, 1.5, 4]
    rows = list(itertools.product(*(np.asarray(v, dtype) for v in (ps, locs, log_scales))))
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(ll.quantile(*(np.asarray(c, dtype) for c in zip(*rows, strict=True))))
    assert got.dtype == dtype
    unit, tiny = oracle.UNIT[got.dtype], oracle.exact(np.finfo(dtype).tiny)
    for value, row in zip(got, rows, strict=True):
        true, condition = oracle.quantile(*row)
        # x = sigmoid(y) turns an error d in y into x (1-x) d; y's own error is its condition.
        permitted = 32 * unit * true * (1 + (1 - true) * condition) + tiny
        assert abs(oracle.exact(value) - true) <= permitted, (row, value, float(true))


def test_quantile_inverts_cdf(x64):
    p = np.concatenate([np.linspace(0.001, 0.999, 101), [1e-12, 1e-6, 0.5]])
    for loc, log_scale in itertools.product([0.0, -2, 3], [-3.0, -1, 0, 0.7]):
        x = np.asarray(ll.quantile(p, loc, log_scale))
        level = np.asarray(ll.cdf(x, loc, log_scale))
        # Rounding x moves logit x by u / (1-x) at most, and ln F or ln(1-F) by that over b; the
        # inner functions err by 32u times the condition, |logit x| / b + |loc| / b + |z| + 1.
        condition = (np.abs(np.log(x)) + abs(loc) + 1 / (1 - x)) * math.exp(-log_scale) + 30
        assert np.all(np.abs(level - p) <= 32 * U64 * condition * p)
        back = np.asarray(ll.quantile(level, loc, log_scale))
        # The other way, u / (1-p) of rounding in p is magnified by b: below 1e6 u.
        np.testing.assert_allclose(back, x, rtol=1e6 * U64)


def test_cdf_derivative_is_the_density():
    x = np.linspace(0.02, 0.98, 61, dtype=np.float32)
    for loc, log_scale in itertools.product(np.float32([0, -1.5, 4]), np.float32([-2, 0, 1.2])):
        slope = jax.vmap(jax.grad(ll.cdf), (0, None, None))(x, loc, log_scale)
        density = [float(oracle.MP.exp(oracle.log_prob(v, loc, log_scale)[0][0][0])) for v in x]
        # |log f| terms stay below 60 here, and exp turns them into a relative error.
        np.testing.assert_allclose(slope, density, rtol=8 * U32 * 60)
        np.testing.assert_allclose(slope, np.exp(ll.log_prob(x, loc, log_scale)), rtol=8 * U32 * 60)


def test_median_is_sigmoid_of_loc_whatever_the_scale():
    locs = np.float32([-80, -20, -1, -1e-6, 0, 1e-6, 1, 20, 100, LOC_MAX, -LOC_MAX])
    for log_scale in np.float32([-80, -1, 0, 5, 80]):
        got = ll.median(locs, np.full_like(locs, log_scale))
        want = [float(1 / (1 + oracle.MP.exp(-oracle.exact(v)))) for v in locs]
        # sigmoid: one exp, one sum, one quotient, below 4 roundings each.
        np.testing.assert_allclose(got, want, rtol=16 * U32, atol=TINY32)
    np.testing.assert_allclose(
        ll.median(np.float32(0.7), 0.0), ll.quantile(0.5, np.float32(0.7), 0.0), rtol=8 * U32
    )
    assert jax.grad(ll.median, 1)(0.3, 0.5) == 0


# --- the density as a whole -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loc", "b"), [(0.0, 0.2), (1.3, 0.5), (-2.0, 0.3), (0.4, 1.0), (0.0, 0.01), (-1.0, 0.9)]
)
def test_density_integrates_to_one(x64, loc, b):
    """Gauss-Legendre over logit x in panels of width b: exp(-y/b) is smooth on each."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    y = loc + b * (np.arange(-36, 36)[:, None] + (nodes + 1) / 2)
    x = 1 / (1 + np.exp(-y))
    density = np.exp(ll.log_prob(x, loc, math.log(b))) * x * (1 - x)
    # Beyond 36 scales lies exp(-36) = 2e-16; near 1 rounding x costs u / ((1-x) b) = u e^y / b
    # times the density e^(-(y-loc)/b), summing to no more than 100u / b over these cases.
    total = float((density * weights * b / 2).sum())
    assert total == pytest.approx(1, abs=100 * U64 / b + 1e-14)
    # The same sum up to any panel's end is the cdf.
    partial = np.cumsum((density * weights * b / 2).sum(1))[30:42]
    ends = 1 / (1 + np.exp(-(loc + b * np.arange(-5, 7))))
    np.testing.assert_allclose(partial, ll.cdf(ends, loc, math.log(b)), rtol=1e-12)


def test_symmetry_about_one_half():
    """f(x; loc) = f(1-x; -loc) and F(x; loc) + F(1-x; -loc) = 1, where 1-x is exact."""
    x = (np.arange(1, 4096, dtype=np.float32) * 2**-12).astype(np.float32)
    for loc, log_scale in itertools.product(np.float32([0, 0.3, -5]), np.float32([-6, -1, 0, 2])):
        there, back = ll.log_prob(x, loc, log_scale), ll.log_prob(1 - x, -loc, log_scale)
        terms = oracle.log_prob_float64(x, loc, log_scale)[0][1]
        # Each side may err by the bound; true values are equal.
        assert np.all(np.abs(there - back) <= 16 * U32 * terms)
        total = ll.cdf(x, loc, log_scale) + ll.cdf(1 - x, -loc, log_scale)
        # The smaller cdf errs by 32u (1 + c) F with c F <= c exp(1 - c)...: under 64u with |t| < 9.
        np.testing.assert_allclose(total, 1, atol=32 * U32 * (1 + 9 * math.exp(-log_scale)))


# --- samples ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [jax.random.key(7), jax.random.PRNGKey(7)], ids=["new", "old"])
def test_sample_shapes_and_keys(key):
    loc, log_scale = np.zeros((4, 1), np.float32), np.zeros(3, np.float32)
    assert ll.sample(key, 0.0, 0.0).shape == ()
    assert ll.sample(key, loc, log_scale).shape == (4, 3)
    draws = ll.sample(key, loc, log_scale, shape=(5, 4, 3))
    assert draws.shape == (5, 4, 3)
    assert len(np.unique(draws)) > 55  # 60 independent draws: float32 collisions are rare
    assert ll.sample(key, loc, log_scale, shape=(0, 4, 3)).shape == (0, 4, 3)
    np.testing.assert_array_equal(draws, ll.sample(key, loc, log_scale, shape=(5, 4, 3)))
    assert np.all(draws != ll.sample(jax.random.fold_in(key, 1), loc, log_scale, shape=(5, 4, 3)))
    with pytest.raises((ValueError, TypeError, AssertionError)):
        ll.sample(key, loc, log_scale, shape=(5, 3))


def test_sample_dtypes():
    key = jax.random.key(0)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        assert ll.sample(key, jnp.zeros(3, dtype), jnp.zeros(3, dtype)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert ll.sample(key, np.zeros(3), np.zeros(3)).dtype == jnp.float64


@pytest.mark.parametrize("log_scale", [-10.0, 0, 4, SCALE_MAX])
@pytest.mark.parametrize("loc", [0.0, -17, 17, 100, -100, LOC_MAX, -LOC_MAX])
def test_samples_stay_inside_the_open_interval(loc, log_scale):
    """Also where sigmoid rounds to 0 or 1; by bit patterns, as a flush would hide a zero."""
    draws = ll.sample(jax.random.key(3), loc, log_scale, shape=(4096,))
    bits = np.asarray(draws).view(np.uint32)
    assert bits.min() > 0
    assert bits.max() < ONE_BITS
    assert np.all(np.isfinite(ll.log_prob(draws, loc, log_scale)))


@pytest.mark.parametrize(("loc", "log_scale"), [(0.0, 0.0), (1.5, -2.0), (-3.0, 0.7), (0.0, -9.0)])
def test_samples_follow_the_density(loc, log_scale):
    n = 20_000
    draws = np.asarray(ll.sample(jax.random.key(11), loc, log_scale, shape=(n,)))
    wide = draws.astype(np.float64)
    z = (np.log(wide) - np.log1p(-wide) - loc) / math.exp(log_scale)
    # Kolmogorov-Smirnov at the 0.1 % level, 1.95 / sqrt(n): the key is fixed, so it does not flake.
    assert stats.kstest(z, stats.laplace.cdf).statistic < 1.95 / math.sqrt(n)
    level = np.asarray(ll.cdf(draws, loc, log_scale))
    assert stats.kstest(level, stats.uniform.cdf).statistic < 1.95 / math.sqrt(n)
    # b is the mean absolute deviation, whose standard error is b / sqrt(n); four of them.
    assert np.abs(z).mean() == pytest.approx(1, abs=4 / math.sqrt(n))


def test_sample_is_reparameterised(x64):
    key, n, step = jax.random.key(5), 64, 1e-5
    loc, log_scale = np.linspace(-4, 4, n), np.linspace(-3, 1, n)

    def draw(loc, log_scale):
        return ll.sample(key, loc, log_scale)

    x = np.asarray(draw(loc, log_scale))
    noise = np.log(x) - np.log1p(-x) - loc
    for wrt, slope in ((0, x * (1 - x)), (1, x * (1 - x) * noise)):
        moved = [[loc, log_scale], [loc, log_scale]]
        moved[0][wrt], moved[1][wrt] = moved[0][wrt] + step, moved[1][wrt] - step
        difference = (draw(*moved[0]) - draw(*moved[1])) / (2 * step)
        grad = jax.grad(lambda *a: draw(*a).sum(), wrt)(loc, log_scale)
        forward = jax.jvp(draw, (loc, log_scale), tuple(np.eye(2)[wrt][:, None] * np.ones(n)))[1]
        # Central differences err by step^2 times a third derivative below 1e3 here, and u / step.
        np.testing.assert_allclose(grad, difference, atol=1e-7)
        np.testing.assert_allclose(grad, slope, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(forward, grad, rtol=1e-12)


def test_sample_under_transformations():
    keys = jax.random.split(jax.random.key(2), 4)
    loc = np.float32([-1, 0, 1, 2])
    plain = np.stack([ll.sample(k, m, -1.0, shape=(5,)) for k, m in zip(keys, loc, strict=True)])

    def draw(key, m):
        return ll.sample(key, m, -1.0, shape=(5,))

    scanned = jax.lax.scan(lambda c, kl: (c, draw(*kl)), None, (keys, loc))[1]
    mapped = jax.pmap(draw)(keys, loc)
    for out in (jax.vmap(draw)(keys, loc), jax.jit(jax.vmap(draw))(keys, loc), scanned, mapped):
        np.testing.assert_allclose(out, plain, rtol=16 * U32)  # a few ulps: fusion may differ


# --- JAX: transformations, dtypes, shapes ------------------------------------------------------

RNG = np.random.default_rng(1)
X = RNG.uniform(0.05, 0.95, (4, 3)).astype(np.float32)
LOC = RNG.normal(size=(4, 3)).astype(np.float32)
LOG_SCALE = RNG.uniform(-2, 1, (4, 3)).astype(np.float32)
THREE = {"log_prob": ll.log_prob, "cdf": ll.cdf, "quantile": ll.quantile}


@pytest.mark.parametrize("name", THREE)
def test_transformations_give_what_the_plain_call_gives(name, check_transforms):
    # Terms sum to less than 40 here, and two correct results differ by two bounds: 16u * 40.
    check_transforms(THREE[name], (X, LOC, LOG_SCALE), (0, 1, 2), 640 * U32)


def test_median_under_transformations(check_transforms):
    check_transforms(ll.median, (LOC, LOG_SCALE), (0, 1), 32 * U32)


@pytest.mark.parametrize("name", THREE)
def test_gradients_and_hessians_match_finite_differences(name, x64):
    f, step = THREE[name], 1e-6
    at = np.stack([np.asarray(a, np.float64).ravel() for a in (X, LOC, LOG_SCALE)], 1)

    def g(v):
        return f(*v)

    @jax.jit
    @jax.vmap
    def derivatives(v):
        grad = jax.grad(g)
        return g(v), grad(v), jax.hessian(g)(v), jax.jacrev(grad)(v)

    _, grad, hessian, twice_back = derivatives(at)
    for k, direction in enumerate(np.eye(3) * step):
        above, below = derivatives(at + direction), derivatives(at - direction)
        slope, bend = ((a - b) / (2 * step) for a, b in zip(above[:2], below[:2], strict=True))
        # u / step = 1e-10 times values up to 1e3, and step^2 = 1e-12 times higher derivatives up
        # to 1e5: both within 1e-6, relative to the largest derivative of the row.
        size = 1 + np.abs(hessian).max((1, 2))
        np.testing.assert_array_less(np.abs(slope - grad[:, k]) / size, 1e-6)
        np.testing.assert_array_less(np.abs(bend - hessian[:, k]).max(1) / size, 1e-6)
    # Reverse over reverse gives what forward over reverse gives.
    np.testing.assert_allclose(twice_back, hessian, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("narrow", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", THREE)
def test_sixteen_bit_inputs_are_computed_in_float32(name, narrow):
    args = [jnp.asarray(a, narrow) for a in (X, LOC, LOG_SCALE)]
    wide = [a.astype(jnp.float32) for a in args]
    for mixed in (args, [args[0], *wide[1:]], [wide[0], args[1], wide[2]]):
        out = THREE[name](*mixed)
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, THREE[name](*wide))
    grads = jax.grad(lambda *a: THREE[name](*a).sum(), (0, 1, 2))(*args)
    assert all(g.dtype == narrow for g in grads)
    assert ll.median(args[1], args[2]).dtype == jnp.float32


def test_dtypes_follow_the_precision_in_force():
    assert ll.log_prob(0.3, 0.0, 0.0).dtype == jnp.float32
    assert ll.log_prob(np.float64(0.3), 0, 0).dtype == jnp.float32
    with jax.enable_x64(True):
        for f in THREE.values():
            assert f(0.3, 0.0, 0.0).dtype == jnp.float64
            assert f(X.astype(np.float64), LOC, 0).dtype == jnp.float64
        assert ll.median(0.3, 0.0).dtype == jnp.float64


@pytest.mark.parametrize("name", THREE)
def test_strict_promotion(name, strict):
    f = THREE[name]
    plain = f(X, LOC, LOG_SCALE)
    np.testing.assert_array_equal(jax.jit(f)(X, LOC, LOG_SCALE), plain)
    assert f(X, 0.5, -1).shape == X.shape  # Python numbers are weakly typed
    grads = jax.grad(lambda *a: f(*a).sum(), (0, 1, 2))(X, LOC, LOG_SCALE)
    assert all(np.all(np.isfinite(g)) for g in grads)
    assert ll.median(LOC, LOG_SCALE).shape == X.shape
    assert ll.sample(jax.random.key(0), LOC, LOG_SCALE, shape=(2, 4, 3)).shape == (2, 4, 3)


@pytest.mark.parametrize("name", THREE)
def test_broadcasting(name):
    f = THREE[name]
    x, loc, log_scale = X[0, 0], LOC[:, :1], LOG_SCALE[0]
    full = f(*np.broadcast_arrays(x, loc, log_scale))
    np.testing.assert_allclose(f(x, loc, log_scale), full, rtol=16 * U32, atol=16 * U32)
    shapes = jax.grad(lambda *a: f(*a).sum(), (0, 1, 2))(x, loc, log_scale)
    assert [g.shape for g in shapes] == [(), (4, 1), (3,)]
    assert f(np.zeros((0, 3), np.float32), loc[:0], log_scale).shape == (0, 3)


@pytest.mark.parametrize("name", THREE)
def test_unsuitable_arguments_are_named(name):
    f = THREE[name]
    with pytest.raises((ValueError, TypeError, AssertionError), match=r"\(2, 3\).*\(4,\)"):
        f(np.full((2, 3), 0.5, np.float32), np.zeros(4, np.float32), 0.0)
    with pytest.raises((ValueError, TypeError, AssertionError), match="complex"):
        f(np.complex64(0.5), 0.0, 0.0)


# --- the distribution as a value ---------------------------------------------------------------


def test_methods_are_the_functions():
    d = ll.LogitLaplace(LOC, LOG_SCALE)
    key = jax.random.key(0)
    pairs = [
        (d.log_prob(X), ll.log_prob(X, LOC, LOG_SCALE)),
        (d.cdf(X), ll.cdf(X, LOC, LOG_SCALE)),
        (d.quantile(X), ll.quantile(X, LOC, LOG_SCALE)),
        (d.median(), ll.median(LOC, LOG_SCALE)),
        (d.sample(key), ll.sample(key, LOC, LOG_SCALE)),
        (d.sample(key, shape=(2, 4, 3)), ll.sample(key, LOC, LOG_SCALE, shape=(2, 4, 3))),
    ]
    for method, function in pairs:
        np.testing.assert_array_equal(method, function)


def test_parts_of_a_batch_and_the_everyday_names():
    d = ll.LogitLaplace(jnp.zeros((3, 1)), jnp.array([-1.0, 0.0]))
    assert d[1].batch_shape == (2,)
    assert d[1] == ll.LogitLaplace(jnp.zeros(2), jnp.array([-1.0, 0.0]))
    assert d[..., 0].batch_shape == (3,)
    assert [part.batch_shape for part in d] == [(2,)] * 3
    # One rounding of exp and of the square root.
    np.testing.assert_allclose(d.prob(0.3), np.exp(d.log_prob(0.3)), rtol=1e-6)
    np.testing.assert_allclose(d.stddev() ** 2, d.variance(), rtol=1e-6)


def test_distribution_is_a_frozen_pytree():
    d = ll.LogitLaplace(LOC, log_scale=LOG_SCALE)
    for name in ("loc", "log_scale"):
        with pytest.raises(AttributeError):
            setattr(d, name, 0.0)
    leaves, structure = jax.tree.flatten(d)
    assert len(leaves) == 2
    assert leaves[0] is d.loc
    assert leaves[1] is d.log_scale
    assert structure == jax.tree.structure(ll.LogitLaplace(0.0, 1.0))  # values are no part of it
    assert structure != jax.tree.structure((0.0, 1.0))
    moved = jax.tree.map(lambda a: a + 1, d)
    assert isinstance(moved, ll.LogitLaplace)
    np.testing.assert_array_equal(moved.loc, LOC + 1)
    # JAX itself puts things other than arrays into a tree: axes, specifications, None.
    odd = jax.tree.unflatten(structure, [None, object()])
    assert isinstance(odd, ll.LogitLaplace)
    shapes = jax.eval_shape(lambda: d)
    assert (shapes.loc.shape, shapes.log_scale.dtype) == (LOC.shape, jnp.float32)
    np.testing.assert_array_equal(copy.deepcopy(d).loc, LOC)


def test_distributions_are_equal_by_type_shape_and_value():
    d = ll.LogitLaplace(LOC, LOG_SCALE)
    assert d == ll.LogitLaplace(jnp.asarray(LOC), LOG_SCALE.copy())
    assert d != ll.LogitLaplace(LOC, LOG_SCALE + 1)
    assert d != ll.LogitLaplace(LOC[0], LOG_SCALE)  # broadcasts to it, and is another tree
    assert d != ll.LogitLaplace(LOC.astype(np.float16), LOG_SCALE)
    assert d != (LOC, LOG_SCALE)
    with pytest.raises(TypeError, match="unhashable"):
        hash(d)  # its parameters are arrays


def test_distribution_shows_and_broadcasts_its_parameters():
    d = ll.LogitLaplace(0.5, np.float32([-1, 0]))
    assert repr(d) == "LogitLaplace(loc=0.5, log_scale=array([-1.,  0.], dtype=float32))"
    full = d.broadcast_to((3, 2))
    assert full.batch_shape == full.loc.shape == full.log_scale.shape == (3, 2)
    np.testing.assert_array_equal(full.mean(), np.broadcast_to(d.mean(), (3, 2)))
    with pytest.raises(ValueError, match="broadcast"):
        d.broadcast_to((3,))


def test_distribution_nests_in_transformations():
    d = ll.LogitLaplace(jnp.asarray(LOC), jnp.asarray(LOG_SCALE))
    plain, tol = ll.log_prob(X, LOC, LOG_SCALE), 640 * U32  # as for the function's table above

    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=tol, atol=tol)

    close(jax.jit(lambda d, x: d.log_prob(x))(d, X), plain)
    close(jax.vmap(lambda d, x: d.log_prob(x))(d, X), plain)
    close(jax.pmap(lambda d, x: d.log_prob(x))(d, X), plain)
    shared = jax.vmap(lambda d: d.cdf(0.3), in_axes=(ll.LogitLaplace(0, None),))(
        ll.LogitLaplace(LOC[:, 0], 0.5)
    )
    close(shared, ll.cdf(0.3, LOC[:, 0], 0.5))
    made = jax.vmap(ll.LogitLaplace)(LOC, LOG_SCALE)
    assert isinstance(made, ll.LogitLaplace)
    assert made.loc.shape == LOC.shape

    def step(carry, x):
        value, grad = jax.value_and_grad(lambda d: d.log_prob(x).sum())(carry)
        return jax.tree.map(lambda p, g: p + 0.0 * g, carry, grad), value

    last, values = jax.lax.scan(step, ll.LogitLaplace(d.loc[0], d.log_scale[0]), X)
    assert isinstance(last, ll.LogitLaplace)
    close(values, ll.log_prob(X, LOC[0], LOG_SCALE[0]).sum(1))
    grad = jax.grad(lambda d: d.log_prob(X).sum())(d)
    assert isinstance(grad, ll.LogitLaplace)
    close(grad.loc, jax.grad(lambda m: ll.log_prob(X, m, LOG_SCALE).sum())(d.loc))


# --- checks behind checkify --------------------------------------------------------------------

BAD_PARAMETERS = [(np.nan, 0.0), (np.inf, 0.0), (0.0, np.nan), (0.0, -np.inf)]
OF_PARAMETERS = {
    "log_prob": lambda m, s: ll.log_prob(0.3, m, s),
    "cdf": lambda m, s: ll.cdf(0.3, m, s),
    "quantile": lambda m, s: ll.quantile(0.3, m, s),
    "logit_laplace_loss": lambda m, s: ll.logit_laplace_loss(0.3, m, s),
    "logit_laplace_pixel_loss": lambda m, s: ll.logit_laplace_pixel_loss(np.uint8(9), m, s),
}


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_checkify_reports_parameters_that_are_not_finite(name):
    checked = jax.jit(checkify.checkify(OF_PARAMETERS[name]))
    with ll.debug_checks():
        assert checked(jnp.float32(0.2), jnp.float32(-1))[0].get() is None
        for loc, log_scale in BAD_PARAMETERS:
            message = checked(jnp.float32(loc), jnp.float32(log_scale))[0].get()
            assert message is not None, (loc, log_scale)
            assert ("log_scale" if loc == 0 else "loc") in message


@pytest.mark.parametrize("f", [ll.log_prob, ll.logit_laplace_loss])
def test_checkify_reports_x_outside_the_interval(f):
    checked = checkify.checkify(jax.jit(jax.vmap(f, (0, None, None))))
    with ll.debug_checks():
        assert checked(X[:, 0], 0.0, 0.0)[0].get() is None
        for bad in (-0.1, 0.0, 1.0, 1.5, np.nan):
            error, _ = checked(np.float32([0.5, bad]), 0.0, 0.0)
            with pytest.raises(checkify.JaxRuntimeError, match="x"):
                error.throw()
        error, _ = checkify.checkify(jax.grad(f, 1))(jnp.float32(2), 0.0, 0.0)
        assert error.get() is not None


def test_checks_are_switched_by_block_and_seen_through_the_cache_of_jit():
    f = jax.jit(ll.log_prob)
    checked = checkify.checkify(f)
    bad = (jnp.float32(2), 0.0, 0.0)
    assert checked(*bad)[0].get() is None
    with ll.debug_checks():
        assert checked(*bad)[0].get() is not None
        with ll.debug_checks(False):
            assert checked(*bad)[0].get() is None
        assert f(*bad) == -jnp.inf  # without checkify nothing is raised
    assert checked(*bad)[0].get() is None


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_nothing_of_the_checks_is_left_in_a_program(name):
    # An effect would send every call of the compiled program through Python.
    assert not jax.make_jaxpr(OF_PARAMETERS[name])(0.0, 0.0).effects
    with ll.debug_checks():
        assert jax.make_jaxpr(OF_PARAMETERS[name])(0.0, 0.0).effects


@pytest.mark.parametrize("name", OF_PARAMETERS)
def test_without_checkify_nothing_is_raised(name):
    loc, log_scale = np.float32(BAD_PARAMETERS).T
    plain = jax.vmap(OF_PARAMETERS[name])(loc, log_scale)
    values, grads = jax.jit(jax.vmap(jax.value_and_grad(OF_PARAMETERS[name], (0, 1))))(
        loc, log_scale
    )
    np.testing.assert_array_equal(values, plain)
    assert [g.shape for g in grads] == [loc.shape] * 2
