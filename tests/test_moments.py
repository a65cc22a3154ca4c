"""Mean, variance, entropy and mode, against 20-digit vectors and against the density itself."""

import functools
import itertools
import json
import math

import jax
import jax.numpy as jnp
import moments_oracle
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import MP

import logit_laplace_jax as ll

U32, U64 = 2.0**-24, 2.0**-53
BOUND = {np.float32: 1e-5, np.float64: 1e-10}  # the contract's
VECTORS = json.loads(moments_oracle.VECTORS.read_text())
NAMES = ("mean", "variance", "entropy")


BLOCK = 2**12  # all calls have this shape, to compile but once


@jax.jit
def _values(loc, log_scale):
    return [getattr(ll, name)(loc, log_scale) for name in NAMES]


# Half the time to compile; the values hardly differ.
@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def _derivatives(loc, log_scale):
    """For each moment, d/dloc and d/ds forwards and backwards, and the Hessian: [2, n]
    twice, and [2, 2, n].

    The generic layers hold the other orders of differentiation against these.
    """
    out = []
    for name in NAMES:
        f = getattr(ll, name)

        def grad(*a, f=f):
            return jnp.stack(jax.grad(lambda *b: f(*b).sum(), (0, 1))(*a))

        def push(g, d):
            at = (loc, log_scale)
            return jax.jvp(g, at, tuple(c * jnp.ones_like(loc) for c in d))

        _, forward = jax.vmap(lambda d, f=f: push(f, d))(jnp.eye(2))
        slopes, hessian = jax.vmap(lambda d, g=grad: push(g, d), out_axes=(None, 0))(jnp.eye(2))
        out.append((forward, slopes, hessian))
    return out


def blocks(f, loc, log_scale):
    """f over arrays of one type and any shape, as numpy arrays, by blocks."""
    loc, log_scale = np.broadcast_arrays(loc, log_scale)
    assert loc.dtype == log_scale.dtype
    full = -(-loc.size // BLOCK) * BLOCK
    parts = [np.resize(a.ravel(), full).reshape(-1, BLOCK) for a in (loc, log_scale)]
    with jax.enable_x64(loc.dtype == np.float64):
        rows = [jax.tree.map(np.asarray, f(*row)) for row in zip(*parts, strict=True)]

    def join(*pieces):
        out = np.concatenate(pieces, -1)[..., : loc.size]
        return out.reshape(out.shape[:-1] + loc.shape)

    return jax.tree.map(join, *rows)


def values(loc, log_scale):
    return blocks(_values, loc, log_scale)


def in_range(loc, log_scale):
    return abs(loc) <= 20 and -7 <= log_scale <= 3


def rows_of(dtype, kind="values"):
    """Rows (loc, log_scale, ...) of the file that are numbers of this type; both signs of loc."""
    out = []
    for loc, log_scale, *rest in VECTORS[kind]:
        row = moments_oracle.numbers((loc, log_scale))
        if all(float(dtype(v)) == v for v in row):
            out += [(*row, *rest), (-row[0], row[1], *rest)]
    return out


# --- the oracle itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row", [(0, -1.3), (2.0, -1.0), (20, -7.0), (20, 3.0), (60, 10), (3, -0.7)]
)
def test_quadrature_agrees_with_hypergeometric_functions(row):
    row = [oracle.exact(np.float64(v)) for v in row]
    for k, (a, b) in enumerate(
        zip(moments_oracle.moments(*row), moments_oracle.closed_form(*row), strict=True)
    ):
        assert abs(a - b) <= MP.mpf("1e-40") * (1 if k == 3 else b)


def test_vectors_are_what_the_script_writes():
    rows = [moments_oracle.numbers(r[:2]) for r in VECTORS["values"]]
    assert rows == moments_oracle.grid()
    assert [
        moments_oracle.numbers(r[:2]) for r in VECTORS["derivatives"]
    ] == moments_oracle.derivative_grid()
    # By the other form, wherever that is quick; 20 digits are stored.
    for row, stored in zip(rows[::9], VECTORS["values"][::9], strict=True):
        if row[0] <= 300 and abs(row[1]) <= 10:
            exact = moments_oracle.closed_form(*(oracle.exact(np.float64(v)) for v in row), 300)
            for k, (a, b) in enumerate(zip(stored[2:], exact, strict=True)):
                assert abs(MP.mpf(a) - b) <= MP.mpf("1e-18") * (1 + abs(b) if k == 3 else b), row
    # The rest by quadrature, and two rows of derivatives.
    for stored in (VECTORS["values"][-1], VECTORS["values"][-30]):
        loc, log_scale = (oracle.exact(np.float64(v)) for v in moments_oracle.numbers(stored[:2]))
        for k, (a, b) in enumerate(
            zip(stored[2:], moments_oracle.moments(loc, log_scale), strict=True)
        ):
            assert abs(MP.mpf(a) - b) <= MP.mpf("1e-18") * (1 + abs(b) if k == 3 else b)
    stored = VECTORS["derivatives"][7]
    row = [oracle.exact(np.float64(v)) for v in moments_oracle.numbers(stored[:2])]
    for want, got in zip(moments_oracle.derivatives(*row), stored[2:], strict=True):
        for a, b in zip(want, got, strict=True):
            assert abs(a - MP.mpf(b)) <= MP.mpf("1e-15") * max(abs(v) for v in want)


# --- accuracy -----------------------------------------------------------------------------------


def ratios(dtype, rows):
    """Errors over the contract's bounds, [3, rows]; flushing subnormal results is no error."""
    loc, log_scale = (np.asarray([r[i] for r in rows], dtype) for i in (0, 1))
    got = values(loc, log_scale)
    assert all(a.dtype == dtype for a in got)
    tiny, out = oracle.exact(np.finfo(dtype).tiny), np.empty((3, len(rows)))
    for i, (m, _, mean, rest, variance, entropy) in enumerate(rows):
        for k, true in enumerate((rest if m < 0 else mean, variance, entropy)):
            true = MP.mpf(true)
            permitted = BOUND[dtype] * (1 if k == 2 else true) + tiny
            value = got[k][i]
            error = abs(oracle.exact(value) - true) if np.isfinite(value) else MP.inf
            out[k, i] = float(error / permitted)
    return out


@pytest.mark.parametrize("region", ["contract", "outside"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_match_the_vectors(dtype, region):
    """In the contract's range, and outside it, where entropies reach -1e35: relatively."""
    rows = [r for r in rows_of(dtype) if in_range(*r[:2]) == (region == "contract")]
    assert len(rows) >= 80
    ratio = ratios(dtype, rows)
    if region == "outside":
        ratio[2] /= [max(1, abs(float(r[5]))) for r in rows]
    for k, name in enumerate(NAMES):
        i = int(ratio[k].argmax())
        assert ratio[k, i] <= 1, (name, ratio[k, i], rows[i][:2])


@settings(max_examples=150, deadline=None)
@given(
    st.floats(-20, 20, width=32) | st.integers(-20, 20).map(float),
    st.floats(-7, 3, width=32)
    | st.tuples(st.integers(1, 30), st.integers(-4, 4)).map(  # so many steps beside a pole
        lambda p: float(np.float32(-math.log(p[0])) + p[1] * np.spacing(np.float32(math.log(4))))
    ),
)
def test_no_counter_example_in_the_range(loc, log_scale):
    true = moments_oracle.closed_form(oracle.exact(np.float64(abs(loc))), MP.mpf(log_scale))
    mean, rest, variance, entropy = true
    row = (loc, log_scale, mean, rest, variance, entropy)
    for dtype in BOUND:
        ratio = ratios(dtype, [row])
        assert ratio.max() <= 1, (dtype, ratio)


def test_float32_against_float64():
    """The float64 results are checked above; here are many more points for the float32 ones."""
    rng = np.random.default_rng(3)
    n = 2**16
    loc = rng.uniform(-20, 20, n).astype(np.float32)
    loc[::4] = (rng.choice([-1, 1], n // 4) * 10 ** rng.uniform(-12, 1.3, n // 4)).astype("f4")
    log_scale = rng.uniform(-7, 3, n).astype(np.float32)
    poles = -np.log(rng.integers(1, 1000, n // 4))
    log_scale[1::4] = poles + rng.normal(size=n // 4) * 10.0 ** rng.uniform(-9, -1, n // 4)
    log_scale = np.clip(log_scale, -7, 3)
    single, double = values(loc, log_scale), values(oracle.widen(loc), oracle.widen(log_scale))
    for name, a, b in zip(NAMES, single, double, strict=True):
        error = np.abs(oracle.widen(a) - b) / (1e-5 + 1e-10)
        error /= 1 if name == "entropy" else b
        i = int(error.argmax())
        assert error[i] <= 1, (name, error[i], loc[i], log_scale[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_derivatives_match_the_vectors(dtype):
    """Once, forwards and backwards, and twice.

    The contract names no bound for them. Here: ten times that of the value, relative to the
    largest of the two (three) true derivatives of the first (second) order, and for the entropy,
    whose own bound is absolute, to that or 1. Differentiation of a smooth approximation loses
    about one digit for each order.
    """
    rows = rows_of(dtype, "derivatives")
    assert len(rows) >= 40
    loc, log_scale = (np.asarray([r[i] for r in rows], dtype) for i in (0, 1))
    got = blocks(_derivatives, loc, log_scale)
    sign = np.where(loc < 0, -1.0, 1.0)
    for k, name in enumerate(NAMES):
        true = np.asarray([r[2 + k] for r in rows], float).T
        # x -> 1-x: the mean is odd about 1/2 in loc, the others are even.
        odd = np.asarray([0, 1, 1, 0, 1] if name == "mean" else [1, 0, 0, 1, 0])[:, None]
        true = np.where(odd == 1, sign * true, true)
        hessian = np.stack([true[[2, 3]], true[[3, 4]]])
        wants = {"forward": true[:2], "reverse": true[:2], "twice": hessian}
        for (way, want), one in zip(wants.items(), got[k], strict=True):
            axes = tuple(range(want.ndim - 1))
            size = np.abs(want).max(axes)
            if name == "entropy":
                size = np.maximum(size, 1)
            digits = 100 if way == "twice" else 10
            error = (np.abs(one - want) / (size * digits * BOUND[dtype])).max(axes)
            i = int(np.nan_to_num(error, nan=np.inf).argmax())
            assert error[i] <= 1, (
                name, way, error[i], (error > 1).sum(), loc[i], log_scale[i],
                one[..., i], want[..., i],
            )  # fmt: skip


def test_known_values():
    """At loc = 0 and b = 1, E x(1-x) = ln 2 - 1/2."""
    mean, variance, entropy = values(np.zeros(1), np.zeros(1))
    np.testing.assert_allclose(mean, 0.5, rtol=1e-10)
    np.testing.assert_allclose(variance, 0.75 - math.log(2), rtol=1e-10)
    np.testing.assert_allclose(entropy, 2 - 3 * math.log(2), atol=1e-10)


# --- against the density ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loc", "b"), [(0.0, 0.2), (1.3, 0.5), (-2.0, 0.3), (0.4, 1.0), (0.0, 0.01), (-1.0, 0.9)]
)
def test_integrals_of_the_density(x64, loc, b):
    """Gauss-Legendre over logit x in panels of width b: exp(-y/b) is smooth on each."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    y = loc + b * (np.arange(-36, 36)[:, None] + (nodes + 1) / 2)
    x = 1 / (1 + np.exp(-y))
    log_f = np.asarray(ll.log_prob(x, loc, math.log(b)))
    mass = np.exp(log_f) * x * (1 - x) * weights * b / 2
    s = math.log(b)
    mean = (mass * x).sum()
    # 1e-10 is the contract's; beyond 36 scales lies 2e-16, and near 1 the rounding of x costs
    # 100u / b as in the integral of the density.
    slack = 1e-10 + 100 * U64 / b
    got = values(np.float64(loc), np.float64(s))
    np.testing.assert_allclose(got[0], mean, rtol=slack)
    np.testing.assert_allclose(got[1], (mass * (x - mean) ** 2).sum(), rtol=slack)
    np.testing.assert_allclose(got[2], -(mass * log_f).sum(), atol=10 * slack)


@pytest.mark.parametrize(("loc", "log_scale"), [(0.0, 0.0), (1.5, -2.0), (-3.0, 0.7)])
def test_moments_of_samples(loc, log_scale):
    n = 100_000
    x = np.asarray(ll.sample(jax.random.key(4), loc, log_scale, shape=(n,)), float)
    # Five standard errors; the key is fixed, so it does not flake.
    mean, variance = x.mean(), x.var()
    got = values(np.float32(loc), np.float32(log_scale))
    assert abs(got[0] - mean) <= 5 * math.sqrt(variance / n)
    spread = ((x - mean) ** 2).std() / math.sqrt(n)
    assert abs(got[1] - variance) <= 5 * spread
    log_f = np.asarray(ll.log_prob(x.astype(np.float32), loc, log_scale), float)
    assert abs(got[2] + log_f.mean()) <= 5 * log_f.std() / math.sqrt(n)


def test_symmetry_about_one_half():
    loc, log_scale = np.meshgrid(np.linspace(0, 25, 26), np.linspace(-7.5, 3.5, 45))
    there, back = values(loc, log_scale), values(-loc, log_scale)
    np.testing.assert_allclose(there[0] + back[0], 1, atol=2e-10)  # twice the bound
    np.testing.assert_allclose(there[1], back[1], rtol=2e-10)
    np.testing.assert_allclose(there[2], back[2], atol=2e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_possible_values_everywhere(dtype):
    """0 <= mean <= 1 and 0 <= variance <= mean (1 - mean) <= 1/4."""
    locs = np.asarray([0, 1e-30, 1e-6, 0.3, 5, 17, 25, 40, 80, 100, 700, 1e4], dtype)
    scales = np.linspace(-80, 80, 321).astype(dtype)
    loc, log_scale = (g.ravel() for g in np.meshgrid(np.concatenate([-locs, locs]), scales))
    mean, variance, entropy = values(loc, log_scale)
    rest = values(-loc, log_scale)[0]
    slack = 1 + 2 * BOUND[dtype]
    assert np.all((mean >= 0) & (mean <= 1))
    assert np.all(variance >= 0)
    assert np.all(variance <= np.minimum(mean * rest, 0.25) * slack + np.finfo(dtype).tiny)
    # The uniform distribution has the largest entropy, 0.
    assert np.all(entropy <= 10 * BOUND[dtype])
    assert np.all(np.isfinite(entropy))


# --- mode ---------------------------------------------------------------------------------------


def test_mode_is_sigmoid_of_loc_where_b_is_below_one():
    locs = np.float32([-80, -20, -1, -1e-6, 0, 1e-6, 1, 20, 100, 1e4, -1e4])
    for log_scale in np.float32([-80, -1, -1e-7, -(2.0**-126)]):
        got = np.asarray(ll.mode(locs, np.full_like(locs, log_scale)))
        for loc, value in zip(locs, got, strict=True):
            assert oracle.excess_of_interval(value, *oracle.mode(loc, log_scale)) <= 1, loc
    for log_scale in np.float32([0, -0.0, 1e-7, 1, 80]):
        assert np.all(np.isnan(ll.mode(locs, np.full_like(locs, log_scale))))


def test_mode_gradients():
    locs = np.float32([-1e4, -3, 0, 3, 1e4] * 2)
    log_scales = np.float32([-1] * 5 + [1] * 5)
    dloc, dscale = jax.grad(lambda *a: ll.mode(*a)[:5].sum(), (0, 1))(locs, log_scales)
    s = 1 / (1 + np.exp(-locs[:5].astype(float)))
    np.testing.assert_allclose(dloc[:5], s * (1 - s), rtol=16 * U32)  # roundings of sigmoid
    np.testing.assert_array_equal(dscale, 0)
    np.testing.assert_array_equal(dloc[5:], 0)


def test_mode_is_the_highest_point():
    x = np.linspace(0.001, 0.999, 999, dtype=np.float32)
    for loc, log_scale in itertools.product(
        np.float32([-2, 0, 0.7]), np.float32([-3, -0.5, -0.05])
    ):
        # Below the mode the density rises, above it falls: by b < 1 alone.
        top = ll.log_prob(ll.mode(loc, log_scale), loc, log_scale)
        around = np.asarray(ll.log_prob(x, loc, log_scale))
        # The mode itself is rounded: |t - loc| / b = 16u / (1-x) / b, below 100u / b.
        assert np.all(around <= top + 100 * U32 * math.exp(-log_scale) * 4)
        assert abs(x[around.argmax()] - ll.mode(loc, log_scale)) <= 1e-3  # one step of the grid
