"""Kullback-Leibler divergence, maximum-likelihood fit, score and Fisher information."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import logit_laplace_jax as ll

U32, U64 = 2.0**-24, 2.0**-53
LOC_MAX, SCALE_MAX = 1e4, 80.0
kl = jax.jit(ll.kl_divergence)


# --- KL divergence ------------------------------------------------------------------------------


def kl_table(dtype):
    """(loc_p, log_scale_p, loc_q, log_scale_q): a product, and q at and beside p."""
    locs, scales = [0, -2.2, 20, LOC_MAX, -LOC_MAX], [-80, -30, -5, -0.3, 0, 2, 30, 80]
    rows = list(itertools.product(locs, scales, locs, scales))[::3]
    eps = float(np.finfo(dtype).eps)
    for m, s in itertools.product([0, 1e-30, 0.7, -5, LOC_MAX], [-80, -7, -1, 0, 1e-3, 3, 80]):
        m, s = float(dtype(m)), float(dtype(s))
        b = math.exp(s)
        for dm in (0, eps * max(abs(m), b), -1e-5 * b, 1e-2 * b, 0.3 * b):
            for ds in (0, eps * max(abs(s), 1), -1e-6, 1e-3, 0.2):
                if abs(m + dm) <= LOC_MAX and abs(s + ds) <= SCALE_MAX:
                    rows.append((m, s, m + dm, s + ds))
    return tuple(np.asarray(c, dtype) for c in zip(*rows, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kl_keeps_the_bound_also_near_zero(dtype):
    columns = kl_table(dtype)
    with jax.enable_x64(dtype == np.float64):
        got = np.asarray(kl(*columns))
    assert got.dtype == dtype
    assert np.all(got >= 0)
    worst = max(
        (oracle.excess_of_interval(v, *oracle.kl_divergence(*row)), row, v)
        for v, row in zip(got, zip(*columns, strict=True), strict=True)
    )
    assert worst[0] <= 1, worst


def signed_floats(bound):
    """All float32 numbers with |v| <= bound, as bit patterns, the subnormal ones with them."""
    top = int(np.float32(bound).view(np.uint32))
    bits = st.tuples(st.integers(0, top), st.booleans()).map(lambda p: p[0] | p[1] << 31)
    round_ = st.integers(-int(bound * 1000), int(bound * 1000)).map(lambda k: k / 1000)
    return bits.map(oracle.float32_from_bits) | round_.map(np.float32)


@settings(max_examples=300, deadline=None)
@given(
    signed_floats(LOC_MAX),
    signed_floats(SCALE_MAX),
    signed_floats(LOC_MAX) | st.integers(-9, 9) | st.floats(-3, 3),
    signed_floats(SCALE_MAX) | st.integers(-9, 9) | st.floats(-3, 3),
)
def test_no_counter_example_to_the_bound_of_kl(loc_p, log_scale_p, loc_q, log_scale_q):
    loc_p, log_scale_p = np.float32(loc_p), np.float32(log_scale_p)

    def beside(value, given, by):
        if isinstance(given, int):  # so many float32 steps away
            return np.float32(value + given * np.spacing(abs(value)))
        return np.float32(value + given * by) if isinstance(given, float) else np.float32(given)

    loc_q = np.clip(beside(loc_p, loc_q, math.exp(log_scale_p)), -LOC_MAX, LOC_MAX)
    log_scale_q = np.clip(beside(log_scale_p, log_scale_q, 1), -SCALE_MAX, SCALE_MAX)
    row = (loc_p, log_scale_p, np.float32(loc_q), np.float32(log_scale_q))
    value = np.asarray(kl(*row))
    assert value >= 0
    assert oracle.excess_of_interval(value, *oracle.kl_divergence(*row)) <= 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kl_of_equals_is_exactly_zero(dtype):
    rng = np.random.default_rng(0)
    loc = (rng.choice([-1, 1], 500) * 10 ** rng.uniform(-30, 4, 500)).astype(dtype)
    log_scale = rng.uniform(-80, 80, 500).astype(dtype)
    loc[0] = log_scale[1] = 0
    with jax.enable_x64(dtype == np.float64):
        got = kl(loc, log_scale, loc, log_scale)
        grads = jax.grad(lambda *a: ll.kl_divergence(*a).sum(), (0, 1, 2, 3))(
            loc, log_scale, loc, log_scale
        )
    np.testing.assert_array_equal(got, 0)
    np.testing.assert_array_equal(grads, 0)  # the least value there is


def test_kl_of_equals_bends_as_the_fisher_information(x64):
    """Its second derivatives in q at q = p."""
    for loc, log_scale in [(0.0, 0.0), (0.7, -2.0), (-3.0, 1.5)]:
        p = jnp.array([loc, log_scale])
        bend = jax.hessian(lambda q, p=p: ll.kl_divergence(*p, *q))(p)
        want = np.diag(np.asarray(ll.fisher_information(loc, log_scale)))
        np.testing.assert_allclose(bend, want, rtol=1e-12, atol=1e-12)  # a few roundings


def test_kl_is_the_integral(x64):
    """Gauss-Legendre over logit x, split at both locs, in panels of at most the narrower b."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    for (m, s), (n, r) in [((0.0, -1.0), (0.5, -0.5)), ((1.0, -1.5), (-0.5, -1.0))]:
        b = math.exp(s)
        ends = np.unique(np.concatenate([m + b * np.arange(-38, 39), [n]]))
        y = ends[:-1, None] + np.diff(ends)[:, None] * (nodes + 1) / 2
        x = 1 / (1 + np.exp(-y))
        log_p, log_q = ll.log_prob(x, m, s), ll.log_prob(x, n, r)
        mass = np.exp(log_p) * x * (1 - x) * weights * np.diff(ends)[:, None] / 2
        # As for the integral of the density; beyond 38 scales lies 38 e^-38 = 1e-15.
        total = float((mass * (log_p - log_q)).sum())
        assert ll.kl_divergence(m, s, n, r) == pytest.approx(total, rel=1e-12, abs=1e-13)


def test_kl_overflows_only_where_the_true_value_does():
    rng = np.random.default_rng(4)
    n = 2**16
    locs = rng.choice([-1, 1], (2, n)) * 10 ** rng.uniform(-30, 4, (2, n))
    locs[:, ::3] = rng.choice([0, LOC_MAX, -LOC_MAX, 1], locs[:, ::3].shape)
    scales = rng.uniform(-80, 80, (2, n))
    scales[:, ::4] = rng.choice([-80, 80, 0], scales[:, ::4].shape)
    columns = tuple(a.astype(np.float32) for a in (locs[0], scales[0], locs[1], scales[1]))
    value = np.asarray(kl(*columns))
    m, s, q, r = (a.astype(float) for a in columns)
    d = np.abs(m - q) * np.exp(-s)  # up to 1e39, for which float64 is wide enough
    true = np.expm1(s - r) - (s - r) + np.exp(s - r) * (d + np.expm1(-d))
    largest = float(np.finfo(np.float32).max)
    assert not np.isnan(value).any()
    # log_scale differences up to 160 carry u, and exp makes that relative: 16u * 160.
    assert np.all(np.isfinite(value[true < largest * (1 - 16 * U32 * 161)]))
    assert np.all(np.isinf(value[true > largest * (1 + 16 * U32 * 161)]))
    big = (true > 1e-3) & np.isfinite(value)
    np.testing.assert_allclose(value[big], true[big], rtol=16 * U32 * 161)


# --- fit ----------------------------------------------------------------------------------------

RNG = np.random.default_rng(12)
DATA = RNG.uniform(0.03, 0.97, (4, 5, 6)).astype(np.float32)
MASK = RNG.random((4, 5, 6)) < 0.6


@pytest.mark.parametrize("n", [2, 3, 8, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fit_matches_sixty_digits(dtype, n):
    rng = np.random.default_rng(n)
    rows = [rng.uniform(0.01, 0.99, n), 0.5 + rng.normal(size=n) * 1e-4, rng.uniform(0, 1e-20, n)]
    rows.append(rng.choice([0.25, 0.75, 0.8], n))  # ties
    rows = [r.astype(dtype) for r in rows]
    rows.append(np.asarray([1e-30, *[1 - oracle.UNIT[np.dtype(dtype)]] * (n - 1)], dtype))
    for x in rows:
        with jax.enable_x64(dtype == np.float64):
            got = [np.asarray(a) for a in ll.fit(x)]
        assert all(a.dtype == dtype and a.shape == () for a in got)
        for value, triple in zip(got, oracle.fit(x), strict=True):
            assert oracle.excess_of_interval(value, *triple) <= 1, (x, got)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (1, -1), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("where", ["none", "full", "row", "column", "all", "padded"])
def test_fit_over_axes_and_masks(axis, where):
    mask = {
        "none": None,
        "full": MASK,
        "row": np.array([True, False, True, True, False, True]),
        "column": np.array([True, False, True, True, False])[:, None],
        "all": np.True_,
        "padded": MASK,
    }[where]
    x = DATA.copy()
    if where == "padded":  # what is not selected does not matter, whatever it is
        bad = np.resize(np.float32([np.nan, 0, 1, -3, np.inf]), x.shape)
        x = np.where(MASK, x, bad)
    got = ll.fit(x, axis=axis, where=mask)
    t = np.log(DATA.astype(float)) - np.log1p(-DATA.astype(float))
    t = np.where(True if mask is None else mask, t, np.nan)
    loc = np.nanmedian(t, axis=axis, keepdims=True)
    spread = np.nanmean(np.abs(t - loc), axis=axis)
    assert all(a.dtype == jnp.float32 for a in got)
    # Below 32u of logits up to 3.5, and of these over a spread of at least 0.3 for its logarithm.
    np.testing.assert_allclose(got[0], loc.reshape(spread.shape), atol=32 * U32 * 3.5)
    np.testing.assert_allclose(got[1], np.log(spread), atol=32 * U32 * 12)


def test_fit_of_little_or_nothing():
    nothing = ll.fit(np.float32([0.2, 0.3]), where=np.array([False, False]))
    assert np.all(np.isnan(nothing))
    assert np.all(np.isnan(ll.fit(np.zeros(0, np.float32))))
    mask = np.array([[False] * 3, [True, False, False], [True] * 3])
    x = np.float32([[0.2, 0.4, 0.9], [0.3, 0.4, 0.5], [0.25, 0.25, 0.25]])
    loc, log_scale = (np.asarray(a) for a in ll.fit(x, axis=1, where=mask))
    np.testing.assert_array_equal(np.isnan(loc), [True, False, False])
    # ln(3/7) and -ln 3, each within four roundings.
    np.testing.assert_allclose(loc[1:], [math.log(3 / 7), -math.log(3)], rtol=4 * U32)
    np.testing.assert_array_equal(log_scale, [np.nan, -np.inf, -np.inf])
    # Equal values of any size and number: no rounding in the mean makes them differ.
    for value in np.float32([1e-30, 0.1, 0.3, 0.5, 0.7, 1 - U32]):
        for n in (1, 2, 3, 7, 10):
            assert ll.fit(np.full(n, value))[1] == -np.inf, (value, n)
    assert np.all(np.isnan(ll.fit(np.float32([0.2, np.nan, 0.4]))))


@pytest.mark.parametrize("n", [7, 8, 100])
def test_fit_has_the_highest_likelihood(x64, n):
    x = np.random.default_rng(n).uniform(0.05, 0.95, n)
    loc, log_scale = ll.fit(x)

    def total(loc, log_scale):
        return ll.log_prob(x, loc, log_scale).sum()

    best = total(loc, log_scale)
    for dm, ds in itertools.product([-0.1, -1e-3, 0, 1e-3, 0.1], repeat=2):
        # Exactly flat directions (between the two middle values) may round either way.
        assert total(loc + dm, log_scale + ds) <= best + 1e-12 * n, (dm, ds)
    assert total(loc, log_scale + 0.1) < best - 1e-3 * n
    assert total(loc, log_scale - 0.1) < best - 1e-3 * n
    assert total(loc + 2, log_scale) < best
    # There the score vanishes: sum of signs 0 (odd n: the middle one has none), mean |z| = 1.
    in_loc, in_scale = ll.score(x, loc, log_scale)
    assert abs((in_loc * np.exp(log_scale)).sum()) < 1e-9
    assert abs(in_scale.sum()) < 1e-12 * n


def test_fit_finds_the_parameters_of_samples():
    n, loc, log_scale = 20_000, np.float32([0, 1.5, -3]), np.float32([0, -2, 0.7])
    x = ll.sample(jax.random.key(6), loc, log_scale, shape=(n, 3))
    got = ll.fit(x, axis=0)
    # The standard errors are b / sqrt(n) and 1 / sqrt(n), by the Fisher information; five of them.
    assert np.all(np.abs(got[0] - loc) <= 5 * np.exp(log_scale) / math.sqrt(n))
    assert np.all(np.abs(got[1] - log_scale) <= 5 / math.sqrt(n))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("n", [7, 8])
def test_fit_gradients_match_finite_differences(x64, n, masked):
    rng = np.random.default_rng(n)
    x, step = rng.uniform(0.1, 0.9, (3, n)), 1e-6
    mask = np.ones((3, n), bool)
    if masked:
        mask[:, 1] = mask[1, :3] = False

    def f(x):
        return jnp.stack(ll.fit(x, axis=1, where=mask if masked else None))

    weights = np.array([[1.0, 0.3, -2], [0.7, 1, 0.2]])
    grad = np.asarray(jax.grad(lambda x: (f(x) * weights).sum())(x))
    for i, j in itertools.product(range(3), range(n)):
        bump = np.zeros_like(x)
        bump[i, j] = step
        slope = float(((f(x + bump) - f(x - bump)) * weights).sum()) / (2 * step)
        # u / step = 1e-10, and step^2 times third derivatives of logit, up to 1e4.
        assert grad[i, j] == pytest.approx(slope, abs=1e-7)
        tangent = jax.jvp(f, (x,), (bump / step,))[1]
        assert float((tangent * weights).sum()) == pytest.approx(grad[i, j], abs=1e-10)
    assert np.all(grad[~mask] == 0)
    # Values that are not selected, of whatever kind, send back no NaN.
    if masked:
        bad = np.where(mask, x, np.resize([0.0, 1, np.nan], x.shape))
        np.testing.assert_allclose(
            jax.grad(lambda x: (f(x) * weights).sum())(bad), grad, rtol=1e-12
        )


def test_fit_under_transformations(strict):
    x, mask = DATA, MASK
    plain = ll.fit(x, axis=(1, 2), where=mask)

    def close(got):
        for a, b in zip(got, plain, strict=True):
            # Sums in another order: a few roundings of the logits over a spread above 0.3.
            np.testing.assert_allclose(a, b, atol=32 * U32 * 12)

    def one(x, m):
        return ll.fit(x, where=m)

    close(jax.jit(lambda x, m: ll.fit(x, axis=(1, 2), where=m))(x, mask))
    close(jax.vmap(one)(x, mask))
    close(jax.jit(jax.vmap(one))(x, mask))
    close(jax.pmap(one)(x, mask))
    close(jax.lax.scan(lambda c, row: (c, one(*row)), None, (x, mask))[1])
    np.testing.assert_array_equal(ll.fit(x, axis=1), jax.tree.map(jnp.stack, ll.fit(x, axis=1)))


def test_fit_precision_and_the_class():
    for narrow in (jnp.bfloat16, jnp.float16):
        x = jnp.asarray(DATA, narrow)
        got = ll.fit(x, axis=0)
        assert all(a.dtype == jnp.float32 for a in got)
        np.testing.assert_array_equal(got, ll.fit(x.astype(jnp.float32), axis=0))
        assert jax.grad(lambda x: sum(ll.fit(x)))(x).dtype == narrow
    with jax.enable_x64(True):
        assert all(a.dtype == jnp.float64 for a in ll.fit(DATA.astype(float)))
    d = ll.LogitLaplace.fit(DATA, axis=1, where=MASK)
    assert isinstance(d, ll.LogitLaplace)
    np.testing.assert_array_equal((d.loc, d.log_scale), ll.fit(DATA, axis=1, where=MASK))
    assert ll.LogitLaplace.fit(DATA).loc.shape == ()
    for bad in (np.zeros(4, np.uint8), np.zeros(4, np.int32), np.zeros(4, np.complex64)):
        with pytest.raises((TypeError, ValueError)):
            ll.fit(bad)


# --- score and Fisher information ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_score_keeps_the_bound_of_the_partials(dtype):
    xs = np.asarray([1e-37, 1e-20, 0.1, 0.3, 0.5, 0.5 + 1e-7, 0.7, 0.999, 1 - 1e-7], dtype)
    locs = np.asarray([0, 1e-30, -1e-3, 1, -2.2, 20, -100, LOC_MAX, -LOC_MAX], dtype)
    scales = np.asarray([-80, -30, -5, -1e-3, 0, 1, 30, 80], dtype)
    rows = list(itertools.product(xs, locs, scales))
    for x in xs:
        near = dtype(float(oracle.logit(x)))
        beside = (near, np.nextafter(near, dtype(-99)), near * dtype(1.001))
        rows += itertools.product([x], beside, scales)
    columns = [np.asarray(c, dtype) for c in zip(*rows, strict=True)]
    with jax.enable_x64(dtype == np.float64):
        got = [np.asarray(a) for a in ll.score(*columns)]
    assert all(a.dtype == dtype for a in got)
    for k in (0, 1):
        worst = max(
            (oracle.excess(v, *oracle.score(*row)[k]), row, v)
            for v, row in zip(got[k], rows, strict=True)
        )
        assert worst[0] <= 1, worst


def test_score_is_the_gradient_of_the_density():
    rng = np.random.default_rng(0)
    x, loc, log_scale = rng.uniform(0.01, 0.99, 99), rng.normal(size=99), rng.uniform(-3, 2, 99)
    args = [a.astype(np.float32) for a in (x, loc, log_scale)]
    want = jax.grad(lambda *a: ll.log_prob(*a).sum(), (1, 2))(*args)
    for a, b in zip(ll.score(*args), want, strict=True):
        # Two bounds of 8u times terms, |t|/b + |t-loc|/b + 1 <= 300.
        np.testing.assert_allclose(a, b, atol=16 * U32 * 300)
    outside = np.float32([-np.inf, -1, -0.0, 0, 1, 2, np.inf])
    for log_scale in np.float32([-80, -1, 0, 80]):
        np.testing.assert_array_equal(ll.score(outside, np.float32(0.3), log_scale), 0)
        # At logit x = loc the corner: 0, and -1.
        tie = ll.score(np.float32(0.5), np.float32(0), log_scale)
        np.testing.assert_array_equal(tie, [0, -1])
    assert np.all(np.isnan(ll.score(np.float32(np.nan), 0.0, 0.0)))


@pytest.mark.parametrize(("loc", "b"), [(0.0, 0.2), (1.3, 0.5), (-2.0, 0.9)])
def test_score_has_mean_zero_and_the_fisher_information_as_variance(x64, loc, b):
    nodes, weights = np.polynomial.legendre.leggauss(20)
    z = np.arange(-24, 24)[:, None] + (nodes + 1) / 2
    mass = np.exp(-np.abs(z)) / 2 * weights / 2
    in_loc, in_scale = ll.score(1 / (1 + np.exp(-(loc + b * z))), loc, math.log(b))
    information = ll.fisher_information(loc, math.log(b))
    # Beyond 24 scales lies 24^2 e^-24 = 2e-8.
    assert float((mass * in_loc).sum()) == pytest.approx(0, abs=1e-7 / b)
    assert float((mass * in_scale).sum()) == pytest.approx(0, abs=1e-7)
    assert float((mass * in_loc**2).sum()) == pytest.approx(float(information[0]), rel=1e-7)
    assert float((mass * in_scale**2).sum()) == pytest.approx(float(information[1]), rel=1e-7)
    assert float((mass * in_loc * in_scale).sum()) == pytest.approx(0, abs=1e-7 / b)


def test_fisher_information():
    scales = np.float32([-80, -43, -7, -1, -1e-3, 0, 1e-3, 1, 7, 43, 80])
    for loc in np.float32([0, -3, 1e4]):
        in_loc, in_scale = ll.fisher_information(np.full_like(scales, loc), scales)
        for value, s in zip(np.asarray(in_loc), scales, strict=True):
            triple = oracle.fisher_information(loc, s)[0]
            assert oracle.excess_of_interval(value, *triple) <= 1, (loc, s, value)
        np.testing.assert_array_equal(in_scale, 1)
        assert in_scale.shape == scales.shape
        assert in_scale.dtype == jnp.float32
    slope = jax.grad(lambda s: ll.fisher_information(np.float32(0), s)[0])(np.float32(0.3))
    assert slope == pytest.approx(-2 * math.exp(-0.6), rel=16 * U32)
