"""Generic layers over the table of functions in reference/cases.py.

Wide and nasty regions have files of their own: test_tails, test_moments, test_masses and
test_inference.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from cases import CASES, CONDITION, LOC_MAX, SCALE_MAX, SHAPE

import logit_laplace_jax as ll

U32, U64 = 2.0**-24, 2.0**-53
# Two results within their bounds, 32u (1 + condition), differ by no more than both bounds. The
# moments' bound is 1e-5.
TOLERANCE = max(64 * U32 * (1 + CONDITION), 2e-5)

each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


# --- numbers of all kinds -----------------------------------------------------------------------


def random_bits(rng, n, low, high):
    """Numbers of all exponents, subnormal ones included, in [low, high]; low is 0 or -high."""
    bits = rng.integers(0, int(np.float32(high).view(np.uint32)) + 1, n).astype(np.uint32)
    if low < 0:
        bits |= rng.integers(0, 2, n).astype(np.uint32) << 31
    return oracle.float32_from_bits(bits)


N_FUZZ = 2**13


def fuzz(kind, rng):
    """Anything that the contract permits: all exponents in half, ordinary numbers in half."""
    half = N_FUZZ // 2
    uniform = rng.random(half).astype(np.float32)
    match kind:
        case "x":
            anything = oracle.float32_from_bits(rng.integers(0, 2**32, half))
            anything = np.where(np.isnan(anything), np.float32(0.5), anything)
            edges = np.float32([0, -0.0, 1, -1, 2, np.inf, -np.inf, 1 - U32, 2**-126, 2**-149])
            anything[: edges.size] = edges
            plain = random_bits(rng, half, 0, 1)
            plain[: half // 2] = uniform[: half // 2]
        case "p" | "interior":
            anything, plain = random_bits(rng, half, 0, 1), uniform
            anything = np.where(anything == 0, np.float32(0.5), np.minimum(anything, 1 - U32))
        case "loc" | "loc_q":
            anything = random_bits(rng, half, -LOC_MAX, LOC_MAX)
            plain = rng.choice(np.float32([0, LOC_MAX, -LOC_MAX, 1, -3, 20, -20, 0.01]), half)
        case "log_scale" | "log_scale_q":
            anything = random_bits(rng, half, -SCALE_MAX, SCALE_MAX)
            plain = (uniform * 2 - 1) * np.float32(SCALE_MAX)
            plain[: half // 2] = rng.choice(np.float32([0, -80, 80, -1, 1, 3, -7]), half // 2)
        case "negative_log_scale":
            return -np.abs(fuzz("log_scale", rng)) - np.float32(2.0**-126)
        case "pixel":
            return rng.integers(0, 256, N_FUZZ).astype(np.uint8)
    return rng.permutation(np.concatenate([anything, plain]).astype(np.float32))


# --- one run of everything ----------------------------------------------------------------------


@functools.cache
def compiled(case):
    """Value and all partials, elementwise."""
    return jax.jit(
        lambda *args: (case.f(*args), jax.grad(lambda *a: case.f(*a).sum(), case.wrt)(*args))
    )


def wide(args):
    return tuple(a if a.dtype == np.uint8 else _widen(a) for a in args)


def _widen(values):
    """float32 to float64, exactly, subnormal numbers included."""
    finite = np.isfinite(values)
    return np.where(finite, oracle.widen(np.where(finite, values, np.float32(0))), values)


@functools.cache
def arguments(case):
    """Numbers of all kinds, and the sample of the table in front of them."""
    rng = np.random.default_rng(5)
    rows = [fuzz(kind, rng) for kind in case.kinds]
    for row, sample in zip(rows, case.args, strict=True):
        row[: sample.size] = sample.ravel()
    return tuple(rows)


@functools.cache
def results(case, x64):
    """(value, partials) at `arguments`, by one compilation for each precision."""
    args = wide(arguments(case)) if x64 else arguments(case)
    with jax.enable_x64(x64):
        return jax.tree.map(np.asarray, compiled(case)(*args))


N = math.prod(SHAPE)


@each
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_sixty_digits(case, x64):
    rows = [a[:N] for a in (wide(arguments(case)) if x64 else arguments(case))]
    got = results(case, x64)[0]
    assert got.dtype == (np.float64 if x64 else np.float32)
    for value, row in zip(got[:N], zip(*rows, strict=True), strict=True):
        assert oracle.excess_of_interval(value, *case.oracle(*row)) <= 1, (row, value)


@each
def test_float32_against_float64(case):
    (single, single_grads), (double, double_grads) = (results(case, x) for x in (False, True))
    np.testing.assert_allclose(single[:N], double[:N], rtol=TOLERANCE, atol=TOLERANCE)
    for a, b in zip(single_grads, double_grads, strict=True):
        assert (a.dtype, b.dtype) == (np.float32, np.float64)
        # The partials err by their own terms, which are no larger than the largest of a row.
        scale = np.abs(b[:N]).max()
        np.testing.assert_allclose(a[:N], b[:N], rtol=TOLERANCE, atol=TOLERANCE * scale)


@each
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_no_nan_where_none_is_due(case, x64):
    value, grads = results(case, x64)
    for out in (value, *grads):
        bad = np.isnan(out)
        assert not bad.any(), (int(bad.sum()), [a[bad][:3] for a in arguments(case)])


@each
def test_nan_gives_nan(case):
    for i in case.wrt:
        if case.name.startswith("fisher") or (case.name == "score.0" and i == 1):
            continue  # they do not depend on every argument
        args = [a.copy() for a in arguments(case)]
        args[i][3:6] = np.nan
        value = compiled(case)(*args)[0]
        np.testing.assert_array_equal(np.isnan(value[:N]), [3 <= k < 6 for k in range(N)])


# --- transformations and derivatives ------------------------------------------------------------


def _family(case):
    return case.kinds, case.name if case.slow else ""


FAMILIES = [tuple(f) for _, f in itertools.groupby(sorted(CASES, key=_family), _family)]
# Half the time to compile; the values hardly differ.
QUICK = {"xla_backend_optimization_level": 0}


def combination(family):
    """One function for those of the same arguments, to save compilations; all partials count."""

    def f(*args):
        return sum((1 + i / 7) * case.f(*args) for i, case in enumerate(family))

    return f


families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: "+".join(c.name for c in f))


@families
def test_transformations_give_what_the_plain_call_gives(family, check_transforms):
    args, wrt = family[0].args, family[0].wrt
    if family[0].slow and family[0].name != "mean":  # their gradients are in the layers below
        f = family[0].f
        plain = f(*args)
        forms = [jax.jit(jax.vmap(jax.vmap(f)))(*args), jax.pmap(f)(*args)]
        for out in [*forms, jax.lax.scan(lambda c, row: (c, f(*row)), None, args)[1]]:
            np.testing.assert_allclose(out, plain, rtol=TOLERANCE)
        return
    # Weights sum to less than this.
    tolerance = TOLERANCE * len(family) * (1 + len(family) / 7)
    check_transforms(jax.jit(combination(family)), args, wrt, tolerance)


@families
def test_gradients_and_hessians_match_finite_differences(family, x64):
    step, wrt = 1e-6, family[0].wrt
    k, args, combined = len(wrt), wide(family[0].args), combination(family)
    fixed, params = args[: wrt[0]], args[wrt[0] :]  # pixels, and what is differentiable

    @functools.partial(jax.jit, compiler_options=QUICK)
    def derivatives(*args):
        def f(*a):
            return combined(*fixed, *a)

        def grad(*a):
            return jax.grad(lambda *b: f(*b).sum(), range(k))(*a)

        def push(g, direction):  # forward mode
            return jax.jvp(g, args, tuple(d * jnp.ones(SHAPE) for d in direction))

        value, forward = jax.vmap(lambda d: push(f, d), out_axes=(None, 0))(jnp.eye(k))
        slopes, bend = jax.vmap(lambda d: push(grad, d), out_axes=(None, 0))(jnp.eye(k))
        weights = jnp.arange(1.0, k + 1)
        twice_back = jax.grad(
            lambda *a: sum(w * g.sum() for w, g in zip(weights, grad(*a), strict=True)), range(k)
        )(*args)
        return [jnp.stack(a) for a in (value, slopes, forward, bend, twice_back)]

    # `bend[i, j]`: of the partial in i along j.
    _, grad, forward, bend, twice_back = (np.asarray(a) for a in derivatives(*params))
    size = 1 + np.abs(bend).max((0, 1))
    np.testing.assert_allclose(forward, grad, rtol=1e-9, atol=1e-9)
    # The two orders of differentiation, in one direction; the Hessian is symmetric.
    weighted = np.tensordot(np.arange(1.0, k + 1), bend, 1)
    np.testing.assert_allclose(weighted / size, twice_back / size, atol=1e-9)
    for i in range(k):
        above, below = (
            derivatives(*(a + by * (i == j) for j, a in enumerate(params))) for by in (step, -step)
        )
        slope, slopes = (np.asarray(above[m] - below[m]) / (2 * step) for m in (0, 1))
        # u / step = 1e-10 times values up to 1e2, and step^2 = 1e-12 times higher derivatives up
        # to 1e5.
        assert np.abs((slope - grad[i]) / size).max() <= 1e-6
        assert np.abs((slopes - bend[:, i]) / size).max() <= 1e-6


# --- dtypes and shapes: by tracing --------------------------------------------------------------


def gradients(case):
    return lambda *args: jax.grad(lambda *a: case.f(*a).sum(), case.wrt)(*args)


@each
def test_sixteen_bit_inputs_are_computed_in_float32(case):
    for narrow in (jnp.bfloat16, jnp.float16):
        args = [jnp.asarray(a, narrow) if a.dtype == np.float32 else a for a in case.args]
        full = [a.astype(jnp.float32) if a.dtype == narrow else a for a in args]
        for mixed in (args, [*full[:-1], args[-1]], [*args[:-1], full[-1]]):
            assert jax.eval_shape(case.f, *mixed).dtype == jnp.float32
        assert all(g.dtype == narrow for g in jax.eval_shape(gradients(case), *args))
    # float16 holds these exactly in float32, and nothing is rounded on the way.
    np.testing.assert_allclose(case.f(*args), case.f(*full), rtol=4 * U32, atol=4 * U32)


@each
def test_precision_in_force(case):
    scalars = [a[1, 1].item() if a.dtype == np.float32 else a[1, 1] for a in case.args]

    def dtype_of(*args):
        return jax.eval_shape(lambda: case.f(*args)).dtype  # so that Python numbers stay such

    assert dtype_of(*scalars) == jnp.float32
    assert dtype_of(*scalars[:-1], np.float64(scalars[-1])) == jnp.float32
    with jax.enable_x64(True):
        assert dtype_of(*scalars) == jnp.float64
        assert dtype_of(*case.args[:-1], np.float64(scalars[-1])) == jnp.float64
        if case.kinds[0] != "pixel":  # an image is mapped in the precision in force
            assert dtype_of(*case.args) == jnp.float32
            assert dtype_of(wide(case.args)[0], *case.args[1:]) == jnp.float64


@each
def test_strict_promotion(case, strict):
    weak = [a[1, 1].item() if a.dtype == np.float32 else a for a in case.args]
    assert jax.eval_shape(case.f, *case.args).shape == SHAPE
    assert jax.eval_shape(lambda a: case.f(a, *weak[1:]), case.args[0]).shape == SHAPE
    assert len(jax.eval_shape(gradients(case), *case.args)) == len(case.wrt)
    assert jax.eval_shape(case.f, *(a[0, 0] for a in case.args)).shape == ()


@each
def test_broadcasting(case):
    """A column with a row with scalars."""
    views = [(slice(None), slice(0, 1)), 0, (0, 0), (0, 0)]
    args = [a[view] for a, view in zip(case.args, views, strict=False)]
    full = case.f(*np.broadcast_arrays(*args))
    assert full.shape == SHAPE
    np.testing.assert_allclose(case.f(*args), full, rtol=TOLERANCE, atol=TOLERANCE)
    grads = jax.eval_shape(gradients(case), *args)
    assert [g.shape for g in grads] == [args[i].shape for i in case.wrt]
    assert jax.eval_shape(case.f, args[0][:0], *args[1:]).shape == (0, 3)


@each
def test_unsuitable_arguments_are_named(case):
    args = [np.broadcast_to(a[0, 0], (2, 3)) for a in case.args]
    with pytest.raises((ValueError, TypeError, AssertionError), match=r"\(2, 3\).*\(4,\)"):
        case.f(*args[:-1], args[-1][:1, :1].repeat(4).reshape(4))
    for i in case.wrt:
        with pytest.raises((ValueError, TypeError, AssertionError), match="complex"):
            case.f(*args[:i], args[i].astype(np.complex64), *args[i + 1 :])


@each
def test_methods_are_the_functions(case):
    np.testing.assert_array_equal(case.method(*case.args), case.f(*case.args))


@pytest.mark.parametrize("name", ["pixel_log_prob", "pixel_pit"])
def test_methods_pass_eps_and_key_on(name):
    pixels, loc, log_scale = np.arange(9, dtype=np.uint8), np.float32(0.1), np.float32(-1)
    d, options = ll.LogitLaplace(loc, log_scale), [{"eps": 0.0}, {"eps": 0.3}]
    if name == "pixel_pit":
        options.append({"eps": 0.3, "key": jax.random.key(1)})
    for option in options:
        got = getattr(d, name)(pixels, **option)
        np.testing.assert_array_equal(got, getattr(ll, name)(pixels, loc, log_scale, **option))
        assert np.any(got != getattr(d, name)(pixels))
