"""The loss, its hand-written derivatives, and its 8-bit form."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import logit_laplace_jax as ll

U32, U64 = 2.0**-24, 2.0**-53
RNG = np.random.default_rng(4)
X = RNG.uniform(0.05, 0.95, (4, 3)).astype(np.float32)
LOC = RNG.normal(size=(4, 3)).astype(np.float32)
LOG_SCALE = RNG.uniform(-2, 1, (4, 3)).astype(np.float32)
PIXELS = RNG.integers(0, 256, (4, 3)).astype(np.uint8)
LOSS = ll.logit_laplace_loss
LEVELS = np.arange(256, dtype=np.uint8)
EPS = [0.01, 0.1, 0.25, 0.49]
# Terms of the bound sum to less than 40 for the arrays above; two correct results differ by 16u.
TOL = 640 * U32


def wide(*arrays):
    return tuple(np.asarray(a, np.float64) for a in arrays)


def textbook(x, loc, log_scale):
    """The loss from its formula, for autodiff: right in float64 away from 1/2 and the edges."""
    t = jnp.log(x) - jnp.log1p(-x)
    laplace = jnp.abs(t - loc) * jnp.exp(-log_scale) + log_scale + jnp.log(2.0)
    return laplace + jnp.log(x) + jnp.log1p(-x)


def with_partials(f, wrt):
    return jax.jit(jax.vmap(lambda *a: (f(*a), *jax.grad(f, wrt)(*a))))


def assert_within_bound(got, columns, outputs=(0, 1, 2, 3)):
    """Value and partials of the loss against sixty digits, for rows (x, loc, log_scale)."""
    got = [np.asarray(a) for a in got]
    for i, row in enumerate(zip(*columns, strict=True)):
        reference = oracle.log_prob(*row)
        for a, k in zip(got, outputs, strict=True):
            truths, terms = reference[k]
            assert oracle.excess(a[i], [-v for v in truths], terms) <= 1, (k, row, a[i])


def pixel_rows(eps):
    """All levels, each with a broad, a sharp and a near-tie choice of parameters."""
    x = np.asarray(ll.map_pixels(LEVELS, eps))
    t = np.float32([float(oracle.logit(v)) for v in x])
    choices = [(np.full_like(t, m), s) for m, s in [(0, -5), (0.7, 0), (-2, 2), (300, -20)]]
    choices += [(t, -9), (np.nextafter(t, np.float32(9)), -16), (t * np.float32(1.001), -7)]
    return (
        np.tile(x, len(choices)),
        np.concatenate([m for m, _ in choices]),
        np.repeat(np.float32([s for _, s in choices]), len(LEVELS)),
    ), np.tile(LEVELS, len(choices))


# --- value and derivatives --------------------------------------------------------------------


def test_loss_is_minus_log_prob():
    np.testing.assert_array_equal(
        ll.logit_laplace_loss(X, LOC, LOG_SCALE), -ll.log_prob(X, LOC, LOG_SCALE)
    )
    assert ll.logit_laplace_loss(X, LOC[:1], LOG_SCALE[0, 0]).shape == X.shape


def test_loss_and_partials_keep_the_bound():
    half = [0x3F000000 + k for k in (-900, -1, 0, 1, 2, 900)]
    special = oracle.float32_from_bits([1, 0x400000, 0x7FFFFF, 0x800000, 0x3F7FFFFF, *half])
    xs = np.append(special, np.float32([0.1, 0.25, 0.4987, 0.6, 0.9]))
    locs, scales = np.float32([0, 0.3, -5, 1e4, -1e4]), np.float32([-80, -12, -1, 0, 2, 80])
    columns = [np.float32(c) for c in zip(*itertools.product(xs, locs, scales), strict=True)]
    got = with_partials(ll.logit_laplace_loss, (0, 1, 2))(*columns)
    assert_within_bound(got, columns)


def test_derivatives_against_autodiff_of_the_formula(x64):
    args = wide(X, LOC, LOG_SCALE)
    weights = RNG.normal(size=X.shape)
    directions = tuple(RNG.normal(size=X.shape) for _ in args)

    def derivatives(f):
        value, pullback = jax.vjp(f, *args)
        return value, *pullback(jnp.asarray(weights)), *jax.jvp(f, args, directions)

    got, want = (jax.jit(derivatives, static_argnums=0)(f) for f in (LOSS, textbook))
    for a, b in zip(got, want, strict=True):
        # The formula loses |t - loc| / b roundings of ln x - ln(1-x): below 1e3 u here.
        np.testing.assert_allclose(a, b, rtol=1e3 * U64, atol=1e3 * U64)


def test_derivatives_against_finite_differences_and_sixty_digits(x64):
    columns = [a.ravel() for a in wide(X, LOC, LOG_SCALE)]
    g = with_partials(ll.logit_laplace_loss, (0, 1, 2))
    got = g(*columns)
    assert_within_bound(got, columns)
    step = 1e-6
    for k in range(3):
        moved = [list(columns), list(columns)]
        moved[0][k], moved[1][k] = moved[0][k] + step, moved[1][k] - step
        slope = (g(*moved[0])[0] - g(*moved[1])[0]) / (2 * step)
        # u times 40 over the step, and step^2 times a third derivative below 1e4.
        np.testing.assert_allclose(slope, got[k + 1], rtol=1e-7, atol=2e-8)


def test_second_derivatives_in_every_order_of_the_modes(x64):
    at = np.stack([a.ravel() for a in wide(X, LOC, LOG_SCALE)], 1)

    def g(v):
        return ll.logit_laplace_loss(*v)

    want = jax.jit(jax.vmap(jax.hessian(lambda v: textbook(*v))))(at)
    orders = jax.jacfwd(jax.grad(g)), jax.jacfwd(jax.jacfwd(g)), jax.jacrev(jax.grad(g))
    for hessian in orders:
        got = jax.jit(jax.vmap(hessian))(at)
        np.testing.assert_allclose(got, want, rtol=1e4 * U64, atol=1e4 * U64)


def test_gradients_sum_over_broadcast_axes():
    x = RNG.uniform(0.1, 0.9, (5, 4, 3)).astype(np.float32)
    loc, log_scale = LOC[:, :1], LOG_SCALE[0]
    grads = jax.grad(lambda *a: ll.logit_laplace_loss(*a).sum(), (0, 1, 2))(x, loc, log_scale)
    full = jax.grad(lambda *a: ll.logit_laplace_loss(*a).sum(), (0, 1, 2))(
        *(jnp.array(a) for a in np.broadcast_arrays(x, loc, log_scale))
    )
    want = [full[0], full[1].sum((0, 2))[:, None], full[2].sum((0, 1))]
    for got, w in zip(grads, want, strict=True):
        assert got.shape == w.shape
        np.testing.assert_allclose(got, w, rtol=TOL, atol=20 * TOL)  # sums of up to 20 terms


def test_edges_are_infinite_with_zero_gradient():
    x = np.float32([-1, -0.0, 0, 1, 1.5, np.inf])
    params = np.full_like(x, 0.5), np.full_like(x, -3)
    value, *grads = with_partials(ll.logit_laplace_loss, (0, 1, 2))(x, *params)
    np.testing.assert_array_equal(value, np.inf)
    np.testing.assert_array_equal(grads, 0)
    # One such value does not spoil a gradient that is summed over a shared parameter.
    good = jax.grad(lambda m: ll.logit_laplace_loss(np.float32([0.3, 1]), m, -1.0).sum())(0.2)
    np.testing.assert_allclose(good, jax.grad(lambda m: ll.logit_laplace_loss(0.3, m, -1.0))(0.2))


# --- the 8-bit form ---------------------------------------------------------------------------


@pytest.mark.parametrize("eps", EPS)
def test_pixel_loss_keeps_the_bound_at_the_mapped_value(eps):
    """The oracle is taken at the float32 value that map_pixels gives: "equals" in the contract."""
    columns, levels = pixel_rows(eps)
    f = jax.jit(
        jax.vmap(
            lambda p, *a: (
                ll.logit_laplace_pixel_loss(p, *a, eps),
                *jax.grad(ll.logit_laplace_pixel_loss, (1, 2))(p, *a, eps),
            )
        )
    )
    assert_within_bound(f(levels, *columns[1:]), columns, outputs=(0, 2, 3))


@pytest.mark.parametrize("eps", EPS)
def test_pixel_loss_equals_the_float_path(eps):
    (x, loc, log_scale), levels = pixel_rows(eps)

    def eight_bit(m, s):
        return ll.logit_laplace_pixel_loss(levels, m, s, eps)

    def by_float(m, s):
        return ll.logit_laplace_loss(ll.map_pixels(levels, eps), m, s)

    value, terms = eight_bit(loc, log_scale), oracle.log_prob_float64(x, loc, log_scale)
    # Both are within the contract's bound, so they differ by two at most.
    assert np.all(np.abs(value - by_float(loc, log_scale)) <= 16 * U32 * terms[0][1])
    near = np.abs(terms[2][0]).min(0) == 0  # at a tie either side's slope is right
    grads = [
        jax.grad(lambda *a, f=f: f(*a).sum(), (0, 1))(loc, log_scale) for f in (eight_bit, by_float)
    ]
    for k, (a, b) in enumerate(zip(*grads, strict=True)):
        ok = np.abs(a - b) <= 16 * U32 * terms[k + 2][1]
        assert np.all(ok | (near if k == 0 else False))


def test_pixel_loss_with_eps_zero_has_edges():
    loc, log_scale = np.full(256, 0.3, np.float32), np.full(256, -1, np.float32)

    def f(p, m, s):
        return ll.logit_laplace_pixel_loss(p, m, s, eps=0)

    value, dloc, dscale = map(np.asarray, with_partials(f, (1, 2))(LEVELS, loc, log_scale))
    np.testing.assert_array_equal(np.isinf(value), (LEVELS == 0) | (LEVELS == 255))
    assert np.all(value[[0, 255]] > 0)
    for grad in (dloc, dscale):
        np.testing.assert_array_equal(grad[[0, 255]], 0)
    inner = slice(1, 255)
    x = np.asarray(ll.map_pixels(LEVELS, 0.0))
    assert_within_bound(
        [a[inner] for a in (value, dloc, dscale)],
        [a[inner] for a in (x, loc, log_scale)],
        outputs=(0, 2, 3),
    )


def test_pixel_loss_in_double_precision(x64):
    loc, log_scale = np.linspace(-3, 3, 256), np.linspace(-8, 2, 256)
    value = ll.logit_laplace_pixel_loss(LEVELS, loc, log_scale)
    assert value.dtype == jnp.float64
    assert_within_bound([value], [np.asarray(ll.map_pixels(LEVELS)), loc, log_scale], outputs=(0,))


# --- JAX ----------------------------------------------------------------------------------------


def test_loss_under_transformations(check_transforms):
    check_transforms(ll.logit_laplace_loss, (X, LOC, LOG_SCALE), (0, 1, 2), TOL)


def test_pixel_loss_under_transformations(check_transforms):
    check_transforms(ll.logit_laplace_pixel_loss, (PIXELS, LOC, LOG_SCALE), (1, 2), TOL)


@pytest.mark.parametrize(
    ("f", "target"), [(ll.logit_laplace_loss, X), (ll.logit_laplace_pixel_loss, PIXELS)]
)
def test_strict_promotion_and_dtypes(f, target, strict):
    plain = f(target, LOC, LOG_SCALE)
    assert plain.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(f)(target, LOC, LOG_SCALE), plain, rtol=TOL, atol=TOL)
    assert f(target, 0.5, -1).shape == target.shape
    for narrow in (jnp.bfloat16, jnp.float16):
        params = [jnp.asarray(a).astype(narrow) for a in (LOC, LOG_SCALE)]
        out = f(target, *params)
        assert out.dtype == jnp.float32
        np.testing.assert_array_equal(out, f(target, *(p.astype(jnp.float32) for p in params)))
        grads = jax.grad(lambda *a: f(target, *a).sum(), (0, 1))(*params)
        assert [g.dtype for g in grads] == [narrow] * 2


@pytest.mark.parametrize(
    ("f", "dtype"), [(ll.logit_laplace_loss, np.float32), (ll.logit_laplace_pixel_loss, np.uint8)]
)
def test_shapes_that_do_not_broadcast_are_named(f, dtype):
    with pytest.raises((ValueError, TypeError, AssertionError), match=r"\(2, 3\).*\(4,\)"):
        f(np.zeros((2, 3), dtype), np.zeros(4, np.float32), 0.0)


# --- beside a public demonstration -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relation_to_the_copied_pytorch_demonstration(dtype):
    """Its loss -Laplace(recon, 0.1).log_prob(logit(clamp(x, 1e-7, 1 - 1e-7))) lacks the Jacobian.

    With x inside the clamp, its mean plus the mean of ln x(1-x) is the mean of the density's loss.
    """
    rng = np.random.default_rng(8)
    x = rng.uniform(1e-3, 1 - 1e-3, 1000).astype(dtype)
    recon = rng.normal(size=1000).astype(dtype)
    clamped = np.clip(wide(x)[0], 1e-7, 1 - 1e-7)
    gap = np.abs(np.log(clamped / (1 - clamped)) - wide(recon)[0])
    demo = np.mean(gap / 0.1 + np.log(2 * 0.1))
    jacobian = np.mean(np.log(clamped * (1 - clamped)))
    log_scale = dtype(math.log(0.1))
    with jax.enable_x64(dtype == np.float64):
        ours = np.asarray(ll.logit_laplace_loss(x, recon, log_scale)).mean(dtype=np.float64)
    # Terms of the bound sum to 10 (|t| + gap) + 2.3 + |ln x(1-x)| + 1 < 200, and rounding ln 0.1
    # adds 2.3 u (gap / b): one more u * 230.
    assert demo + jacobian == pytest.approx(ours, abs=(8 * 200 + 230) * oracle.UNIT[x.dtype])
    assert abs(demo - ours) > 1  # without the Jacobian it is another number
