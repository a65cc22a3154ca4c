"""The mean loss in one pass: the C function, and the elementwise form that it stands for."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import logit_laplace_jax as ll
from logit_laplace_jax import mean_losses
from logit_laplace_jax.native import library

U = 2.0**-24
N = 2**17  # a power of two: the mean's weight rounds nothing; and two tasks, for two threads
ROOT = Path(ll.__file__).parents[1]


def results(loss):
    """The compiled mean, and its gradients in loc and log_scale."""
    return jax.jit(jax.value_and_grad(lambda x, m, s: loss(x, m, s).mean(), (1, 2)))


def uses_c(function, *args):
    return library.TARGET in jax.jit(function).lower(*args).as_text()


@pytest.fixture
def compiler():
    """Where there is one, the C source must compile."""
    if not (os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("there is no C compiler")
    assert library.ready()


@pytest.fixture
def one_pass(compiler, monkeypatch):
    """The C function, as on a machine with one device; the tests see four."""
    jax.clear_caches()
    monkeypatch.setattr(mean_losses, "_one_pass", lambda *arrays: True)
    yield
    jax.clear_caches()


def ordinary(n, seed=0):
    """Rows (x, loc, log_scale) of the usual sizes, many of them near x = 1/2 and near ties."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(1e-6, 1 - 1e-6, n).astype(np.float32)
    x[::5] = np.float32(0.5) + np.float32(2.0**-24) * rng.integers(-9, 9, x[::5].size)
    x[1::5] = 2.0 ** -rng.uniform(0, 126, x[1::5].size)
    x[2::5] = 1 - 2.0 ** -rng.uniform(1, 24, x[2::5].size)
    x = np.clip(x, np.float32(2.0**-126), np.float32(1 - U))
    wide = x.astype(np.float64)
    t = np.log(wide) - np.log1p(-wide)
    loc = np.where(rng.random(n) < 0.5, t * (1 + 1e-3 * rng.normal(size=n)), 4 * rng.normal(size=n))
    return x, loc.astype(np.float32), rng.uniform(-45, 45, n).astype(np.float32)


def wild(n, seed=1):
    """What the contract bounds: all exponents of x, of 1 - x and of loc, and |ln b| up to 80."""
    rng = np.random.default_rng(seed)
    x, _, _ = ordinary(n)
    x[::2] = oracle.float32_from_bits(rng.integers(1, 0x3F800000, x[::2].size))
    loc = rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-126, 127, n)
    loc[::3] = 2.0 ** rng.uniform(20, 60, loc[::3].size)
    return x, loc.astype(np.float32), rng.uniform(-80, 80, n).astype(np.float32)


SPECIAL = [
    (x, m, s)
    for x in (0.3, 0.5, 0.0, -0.0, 1.0, -1.0, 2.0, 1e-40, np.inf, -np.inf, np.nan)
    for m in (0.0, 1.0, 1e12, -3e38, np.inf, -np.inf, np.nan)
    for s in (0.0, -39.0, -79.0, -100.0, 100.0, 3e38, np.inf, -np.inf, np.nan)
]


# --- The numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [ordinary(N), wild(N)], ids=["ordinary", "wild"])
def test_gradients_are_within_the_bound(one_pass, rows):
    _, gradients = results(ll.logit_laplace_mean_loss)(*rows)
    for got, (truths, terms) in zip(gradients, oracle.log_prob_float64(*rows)[2:], strict=True):
        # The contract's 8u times the terms. Below 2**-126 a gradient of the mean may be flushed.
        got = np.asarray(got) * np.float32(N)
        assert np.isfinite(got).all()  # a derivative that overflows is the largest number
        flushed = np.abs(truths[0]) < N * 2.0**-125
        excess = oracle.excess_float64(got, -truths, terms)
        worst = np.argmax(np.where(flushed, 0, excess))
        assert excess[worst] <= 1, [float(a[worst]) for a in (*rows, got)]
        np.testing.assert_array_less(np.abs(got[flushed]), N * 2.0**-124)


@pytest.mark.parametrize("rows", [ordinary(300), wild(300)], ids=["ordinary", "wild"])
def test_values_are_within_the_bound(one_pass, rows):
    """Sixteen equal values are one step of the vector loop, and their mean is their value."""
    loss = jax.jit(ll.logit_laplace_mean_loss)
    truths, terms = oracle.log_prob_float64(*rows)[0]
    got = np.float32([loss(*(np.full(16, a) for a in row)) for row in zip(*rows, strict=True)])
    excess = oracle.excess_float64(got, -truths, terms)
    assert excess.max() <= 1, [float(a[excess.argmax()]) for a in (*rows, got)]


@pytest.mark.parametrize("n", [1, 16], ids=["value by value", "in vectors"])
def test_special_values_are_those_of_the_elementwise_loss(one_pass, n):
    fused, plain = results(ll.logit_laplace_mean_loss), results(ll.logit_laplace_loss)
    for row in SPECIAL:
        args = [np.full(n, a, np.float32) for a in row]
        # Largest numbers overflow in a sum: the elementwise value itself is what to expect.
        value = ll.logit_laplace_loss(*args)[0]
        expected = (value, plain(*args)[1])
        # 16u: either is within 8u of the truth, whose terms are of the size of the results here.
        chex.assert_trees_all_close(fused(*args), expected, rtol=16 * U, atol=16 * U)


def test_one_bad_value_leaves_its_neighbours_alone(one_pass):
    x, loc, log_scale = ordinary(3000)
    log_scale = np.clip(log_scale, -3, 3)
    bad = np.array([5, 1030, 2999])
    x[bad], loc[17] = (0.0, 1.0, np.nan), np.nan
    value, gradients = results(ll.logit_laplace_mean_loss)(x, loc, log_scale)
    _, expected = results(ll.logit_laplace_loss)(x, loc, log_scale)
    assert np.isnan(value)
    t = np.abs(np.log(np.clip(x.astype(float), 1e-38, 0.5)))
    # 8u each for ours and theirs, times terms: |logit x|/b here.
    atol = 16 * U * np.nanmax((2 * t + 5) * np.exp(3.0)) / 3000
    chex.assert_trees_all_close(gradients, expected, rtol=16 * U, atol=atol)
    assert gradients[0][5] == gradients[0][1030] == 0
    assert np.isnan(gradients[0][2999])


@pytest.mark.parametrize("shape", [(), (1,), (15,), (3, 5, 7), (1024,), (1025,), (70_001,)])
def test_shapes_and_broadcasting(one_pass, shape):
    x, loc, log_scale = (a.reshape(shape) for a in ordinary(int(np.prod(shape))))
    log_scale = np.clip(log_scale, -2, 2)
    for args in ((x, loc, log_scale), (x, 0.5, log_scale), (x, loc, -1.0)):
        got, expected = (
            results(f)(*args) for f in (ll.logit_laplace_mean_loss, ll.logit_laplace_loss)
        )
        # Values up to 200 in sums of float32 by XLA, in another order: 1e-5 of them.
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("eps", [0.0, 0.01, 0.1, 0.49])
def test_pixels(one_pass, eps):
    pixels = np.tile(np.arange(256, dtype=np.uint8), 16)
    _, loc, log_scale = ordinary(pixels.size)
    loc, log_scale = np.clip(loc, -5, 5), np.clip(log_scale, -3, 3)
    fused, plain = (
        results(lambda *a, f=f: f(*a, eps))
        for f in (ll.logit_laplace_pixel_mean_loss, ll.logit_laplace_pixel_loss)
    )
    got, expected = fused(pixels, loc, log_scale), plain(pixels, loc, log_scale)
    n = pixels.size
    # A target that is one rounding (2u of it) off moves logit x by 2u/(1-x) or less than 2u/eps,
    # and the gradient in log_scale by that over b >= exp(-3).
    atol = 2 * U / max(eps, 1 / 255) * np.exp(3.0) + 100 * U
    chex.assert_trees_all_close([n * g for g in got[1]], [n * g for g in expected[1]], atol=atol)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)


def test_repeated_runs_have_the_same_bits(one_pass):
    rows = ordinary(5 * N, seed=3)
    loss = jax.jit(ll.logit_laplace_mean_loss)
    assert len({float(loss(*rows)) for _ in range(20)}) == 1


def test_bfloat16_statistics_accumulate_in_float32(one_pass):
    x, loc, log_scale = ordinary(N + 5)
    loc[7], log_scale[N + 1] = np.nan, np.nan
    loc, log_scale = (jnp.asarray(np.clip(a, -3, 3), jnp.bfloat16) for a in (loc, log_scale))
    wide = [a.astype(jnp.float32) for a in (loc, log_scale)]
    loss = results(ll.logit_laplace_mean_loss)
    (value, gradients), (expected, float_gradients) = loss(x, loc, log_scale), loss(x, *wide)
    assert value.dtype == jnp.float32
    (call,) = re.findall(f".*@{library.TARGET}.*", loss.lower(x, loc, log_scale).as_text())
    assert call.count("bf16") == 4  # two statistics and their gradients: nothing is widened first
    np.testing.assert_array_equal(value, expected)
    rounded = [g.astype(jnp.bfloat16) for g in float_gradients]
    chex.assert_trees_all_equal_shapes_and_dtypes(list(gradients), rounded)
    for got, want in zip(gradients, rounded, strict=True):
        np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))
    finite = ordinary(64)
    loc, log_scale = (jnp.asarray(np.clip(a, -3, 3), jnp.bfloat16) for a in finite[1:])
    mixed = loss(finite[0], loc, np.float32(0.5))
    assert mixed[1][0].dtype == jnp.bfloat16
    # Gradients rounded to bfloat16: 2**-8.
    plain = results(ll.logit_laplace_loss)(finite[0], loc, log_scale)
    chex.assert_trees_all_close(loss(finite[0], loc, log_scale), plain, rtol=2.0**-7, atol=1e-4)


# --- Transformations, each against those of the elementwise form ----------------------------------


def transformed(loss):
    x, loc, log_scale = (jnp.asarray(a.reshape(4, 8)) for a in ordinary(32))
    log_scale = jnp.clip(log_scale, -1, 1)
    x = jnp.clip(x, 0.01, 0.99)

    def mean(*args):
        return loss(*args).mean()

    def hessian(s):
        return jax.hessian(lambda s: mean(x, loc, s))(s)

    args = (x, loc, log_scale)
    return {
        "value": mean(*args),
        "all gradients": jax.grad(mean, (0, 1, 2))(*args),
        "jvp": jax.jvp(mean, args, args),
        "jvp in loc": jax.jvp(lambda m: mean(x, m, log_scale), (loc,), (loc,)),
        "cotangent": jax.grad(lambda m: 3 * mean(x, m, log_scale) ** 2)(loc),
        "vmap": jax.vmap(mean)(*args),
        "vmap of one": jax.vmap(lambda s: mean(x[0], loc[0], s))(log_scale),
        "vmap of grad": jax.vmap(jax.grad(mean, (1, 2)))(*args),
        "grad of vmap": jax.grad(lambda m: jax.vmap(mean)(x, m, log_scale).sum())(loc),
        "scan": jax.lax.scan(lambda c, row: (c + mean(*row), mean(*row)), 0.0, args)[1],
        "remat": jax.grad(jax.checkpoint(mean), 1)(*args),
        "hessian": hessian(log_scale),
    }


@pytest.mark.parametrize("jit", [False, True])
def test_transformations(one_pass, jit):
    assert uses_c(ll.logit_laplace_mean_loss, *ordinary(32))
    wrap = jax.jit if jit else lambda f: f
    got = wrap(lambda: transformed(ll.logit_laplace_mean_loss))()
    expected = transformed(ll.logit_laplace_loss)
    # Sums of 32 values below 100, in another order.
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-5)


def test_debug_checks_hold(one_pass):
    checked = jax.experimental.checkify.checkify(
        lambda x: ll.logit_laplace_mean_loss(x, 0.0, 0.0), jax.experimental.checkify.user_checks
    )
    with ll.debug_checks():
        error, _ = checked(jnp.array([0.5, 1.5]))
    assert "x must lie in (0, 1)" in str(error.get())


# --- When it is used, and what happens where it cannot be built ---------------------------------


def test_several_devices_and_double_precision_leave_it_to_xla(x64):
    rows = ordinary(32)
    assert jax.device_count() > 1
    assert not uses_c(ll.logit_laplace_mean_loss, *rows)
    wide = [a.astype(np.float64) for a in rows]
    assert ll.logit_laplace_mean_loss(*wide).dtype == np.float64


def test_mistakes_are_refused():
    with pytest.raises(TypeError, match="map 8-bit pixels with map_pixels"):
        ll.logit_laplace_mean_loss(np.zeros(2, np.uint8), 0.0, 0.0)
    with pytest.raises(TypeError, match="uint8"):
        ll.logit_laplace_pixel_mean_loss(np.zeros(2), 0.0, 0.0)
    with pytest.raises(ValueError, match="do not broadcast"):
        ll.logit_laplace_mean_loss(np.full(2, 0.5), np.zeros(3), 0.0)
    with pytest.raises(ValueError, match="do not broadcast"):
        ll.logit_laplace_pixel_mean_loss(np.zeros(2, np.uint8), np.zeros(3), 0.0)
    with pytest.raises(ValueError, match="eps"):
        ll.logit_laplace_pixel_mean_loss(np.zeros(2, np.uint8), 0.0, 0.0, eps=0.5)


FRESH = """
import jax, numpy as np, logit_laplace_jax as ll
half = np.full(40, 0.5, np.float32)
print("LOWERED", jax.jit(ll.logit_laplace_mean_loss).lower(half, half, half).as_text().count("{}"))
print("VALUE", ll.logit_laplace_mean_loss(half, half, half))
"""


@pytest.mark.parametrize(("switch", "used"), [("1", True), ("0", False)])
def test_a_fresh_process_with_one_device(compiler, switch, used):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(library.TARGET)],
        cwd=ROOT,
        env=environment | {library.SWITCH: switch, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert (int(words[1]) > 0) == used
    # |0 - 1/2| exp(-1/2) + 1/2 + ln 2 + 2 ln(1/2)
    assert float(words[3]) == pytest.approx(0.5 * np.exp(-0.5) + 0.5 - np.log(2), rel=1e-6)


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """What `ready` does at first, in an empty cache folder."""
    monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv(library.SWITCH, raising=False)
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *args, **kwargs: None)
    return library._prepared.__wrapped__


def test_it_is_built_once_and_kept(compiler, anew, monkeypatch, tmp_path):
    assert anew()
    (made,) = (tmp_path / "native").iterdir()
    monkeypatch.setattr(library.subprocess, "run", None)  # not to be called again
    assert anew()
    assert list((tmp_path / "native").iterdir()) == [made]


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CC", "false", "returned non-zero exit status"),
        ("CC", "no-such-compiler", "no-such-compiler"),
        ("PATH", "", "there is no C compiler"),
        ("LOGIT_LAPLACE_JAX_CACHE", "", "there is no cache folder"),
    ],
)
def test_where_it_cannot_be_built_xla_does_the_work(
    anew, monkeypatch, caplog, variable, value, message
):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv(variable, value)
    with caplog.at_level(logging.INFO, library.logger.name):
        assert not anew()
    assert len(caplog.records) == 1
    assert message in caplog.text


def test_a_damaged_library_is_taken_away(compiler, anew):
    made = library._built()
    made.write_bytes(b"half a library")
    assert not anew()
    assert not made.exists()
    assert anew()
