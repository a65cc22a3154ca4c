"""One table over all families and options: what every likelihood must satisfy."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats

from logit_laplace_jax import likelihoods

U = 2.0**-24
FLOAT32 = np.finfo(np.float32)
LEVELS = np.arange(256, dtype=np.uint8)
EXTREMES = [1e30, -1e30, 3e38, -3e38, 1e3, -1e3, 88, -88, 30, -30, 5, -5, 1, -1, 1e-30, 0]
N = 24  # rows of each kind


def case(name, **options):
    label = "-".join([name, *(f"{key}={value}" for key, value in options.items())])
    channels = options.pop("channels", 2)
    likelihood = likelihoods.get(name, **options)
    return pytest.param(SimpleNamespace(likelihood=likelihood, channels=channels), id=label)


CASES = [
    case("logit_laplace"),
    case("laplace", min_log_scale=-6.0),
    case("normal"),
    case("logistic"),
    case("logit_normal", eps=0.0, min_log_scale=-6.0),
    case("truncated_normal"),
    case("truncated_laplace"),
    case("continuous_bernoulli"),
    case("logistic_mixture", components=3),
    case("logistic_mixture", components=3, coupled=True, channels=3),
    case("categorical", channels=1),
]
# One of each kind of code, for what costs a compilation and hardly depends on the family.
MAPPED = ("logit_laplace", "logistic_mixture", "truncated_laplace", "continuous", "categorical")
each = pytest.mark.parametrize("case", CASES)


def random_stats(case, n, seed, sharpest=-7.0):
    """Stats of the order of those in use: [n, C · num_stats] float32."""
    likelihood, rng = case.likelihood, np.random.default_rng(seed)
    maps = rng.normal(0, 1, (n, likelihood.num_stats, case.channels))
    if likelihood.has_scale:
        maps[:, 1] = rng.uniform(sharpest, 1, maps[:, 1].shape)
    elif likelihood.name == "logistic_mixture":
        k = likelihood.components
        maps[:, 2 * k : 3 * k] = rng.uniform(sharpest, 1, maps[:, 2 * k : 3 * k].shape)
    else:
        maps *= 3
    return maps.reshape(n, -1).astype(np.float32)


def extreme_stats(case, n, seed):
    """Stats drawn from the extremes, and rows of one extreme alone."""
    rng = np.random.default_rng(seed)
    width = case.likelihood.num_stats * case.channels
    rows = np.asarray(EXTREMES)[rng.integers(0, len(EXTREMES), (n, width))]
    rows[: len(EXTREMES)] = np.asarray(EXTREMES)[:n, None]
    return rows.astype(np.float32)


@functools.cache
def results(case_id):
    """Everything of a case at once, for one compilation: random rows first, then extreme ones."""
    (case,) = (c.values[0] for c in CASES if c.id == case_id)
    likelihood = case.likelihood
    stats = np.concatenate([random_stats(case, N, 0), extreme_stats(case, N, 1)])
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 256, (2 * N, case.channels), dtype=np.uint8)
    pixels[::5], pixels[1::5] = 0, 255
    noise = rng.uniform(-0.5, 0.5, pixels.shape).astype(np.float32)

    @jax.jit
    def compute(pixels, stats, noise):
        def differentiable(stats):
            parts = likelihood.loss(pixels, stats), likelihood.log_mass(pixels, stats)
            return sum(jnp.where(jnp.isfinite(part), part, 0.0).sum() for part in parts), parts

        gradient, (loss, log_mass) = jax.grad(differentiable, has_aux=True)(stats)
        grid = jnp.broadcast_to(LEVELS[:, None, None], (256, *pixels.shape))
        every = jnp.broadcast_to(stats, (256, *stats.shape))
        low, high = likelihood.bin_cdf(grid, every)
        mean, median = likelihood.mean_and_median(stats)
        return {
            "loss": loss,
            "noisy": likelihood.loss(pixels, stats, noise),
            "log_mass": log_mass,
            "gradient": gradient,
            "table": likelihood.log_mass(grid, every),
            "low": low,
            "high": high,
            "mean": mean,
            "median": median,
            "reconstruct": likelihood.reconstruct(stats),
            "at_floor": likelihood.at_floor(stats),
        }

    out = jax.device_get(compute(pixels, stats, noise))
    return SimpleNamespace(pixels=pixels, stats=stats, noise=noise, **out)


@pytest.fixture
def seen(case, request):
    return results(request.node.callspec.id)


@each
def test_values_are_float32_and_of_the_pixels_shape(case, seen):
    for name in ("loss", "noisy", "log_mass", "mean", "median", "reconstruct"):
        value = getattr(seen, name)
        assert (value.shape, value.dtype) == (seen.pixels.shape, np.float32), name
    assert (seen.at_floor.shape, seen.at_floor.dtype) == (seen.pixels.shape, bool)


@each
def test_256_masses_sum_to_one(case, seen):
    if getattr(case.likelihood, "coupled", False):
        # Given all levels of all channels at once, each conditions on itself: see the mixture's.
        return
    total = np.exp(seen.table.astype(np.float64)).sum(axis=0)
    np.testing.assert_allclose(total, 1, atol=1e-5)  # the contract's
    assert seen.table.max() <= 0


@each
def test_finite_for_any_finite_statistics(case, seen):
    # With eps = 0 the two outer levels lie on the edge, where the density is 0.
    edge = (getattr(case.likelihood, "eps", 0.1) == 0) & np.isin(seen.pixels, [0, 255])
    assert np.all(np.isfinite(seen.loss) | (edge & (seen.loss == np.inf)))
    assert np.isfinite(seen.table).all()
    assert np.isfinite(seen.log_mass).all()
    assert np.isfinite(seen.gradient).all()


@each
def test_estimates_lie_in_the_unit_interval(case, seen):
    for value in (seen.mean, seen.median, seen.reconstruct):
        assert np.isfinite(value).all()
        assert value.min() >= 0
        assert value.max() <= 1


@pytest.mark.parametrize("name", likelihoods.names())
def test_statistics_that_are_nan_give_nan(name):
    """One NaN among the statistics of a value: nothing of that value is a plausible number."""
    likelihood = likelihoods.get(name)
    n = likelihood.num_stats
    places = sorted({0, n // 2, n - 1})
    stats = np.zeros((len(places) + 1, n), np.float32)
    stats[range(len(places)), places] = np.nan
    pixels = np.full((len(stats), 1), 77, np.uint8)

    @jax.jit
    def everything(pixels, stats):
        return (
            likelihood.loss(pixels, stats),
            likelihood.log_mass(pixels, stats),
            likelihood.bin_cdf(pixels, stats),
            likelihood.reconstruct(stats),
            likelihood.mean_and_median(stats),
            likelihood.sample(jax.random.key(0), stats),
        )

    for out in jax.tree.leaves(everything(pixels, stats)):
        assert np.isnan(out[:-1]).all()
        assert np.isfinite(out[-1]).all()


@pytest.mark.parametrize(
    ("name", "level", "stats", "loss"),
    [  # from sixty digits; a division by 255 would cost the last two
        ("continuous_bernoulli", 254, [1e5], 380.643937),
        ("truncated_normal", 2, [-0.9, -4.0], 7.514468),
    ],
)
def test_levels_are_not_divided(name, level, stats, loss):
    got = likelihoods.get(name).loss(np.array([[level]], np.uint8), np.float32([stats]))
    np.testing.assert_allclose(got, loss, rtol=3 * 2.0**-24)


@each
def test_cdf_of_the_bins(case, seen):
    assert np.all(seen.low[0] == 0)
    assert np.all(seen.high[-1] == 1)
    assert np.all(seen.low <= seen.high)
    if getattr(case.likelihood, "coupled", False):
        return  # the conditional's cdf: its own test, and the integral transform below
    # One formula at one end, compiled twice: products and sums may be fused in one of them, which
    # shows in the logarithms of the cdf, up to some ten in size where it is not small.
    np.testing.assert_allclose(seen.low[1:], seen.high[:-1], atol=16 * U)
    # As far as the masses' sum is permitted to err; a corner of the cdf is no worse than a middle.
    difference = seen.high.astype(np.float64) - seen.low
    np.testing.assert_allclose(difference, np.exp(seen.table), atol=1e-5)


@each
def test_mean_and_median_are_those_of_the_masses(case, seen):
    if getattr(case.likelihood, "coupled", False):
        return
    mass = np.exp(seen.table.astype(np.float64))
    levels = np.arange(256)[:, None, None]
    np.testing.assert_allclose(255 * seen.mean, (mass * levels).sum(0), atol=255 * 1e-5)
    cdf = np.cumsum(mass, axis=0)
    median = np.rint(255 * seen.median).astype(int)
    at = np.take_along_axis(cdf, median[None], 0)[0]
    before = np.where(median > 0, np.take_along_axis(cdf, np.maximum(median - 1, 0)[None], 0)[0], 0)
    assert np.all(at >= 0.5 - 1e-5)  # the masses' tolerance: a tie may fall to either side
    assert np.all(before < 0.5 + 1e-5)


# --- The density ----------------------------------------------------------------------------------


def density_volume(likelihood):
    """Width of a level in the variable that the density is one of."""
    if likelihood.name.startswith("logit_"):
        return (1 - 2 * likelihood.eps) / 255
    return 1 / 255 if likelihood.name == "continuous_bernoulli" else 2 / 255


def reference_loss(case, pixels, stats):
    """The loss by scipy's densities, in float64."""
    likelihood = case.likelihood
    maps = stats.astype(np.float64).reshape(len(stats), likelihood.num_stats, case.channels)
    v = pixels / 255.0
    y = 2 * v - 1
    name = likelihood.name
    if name == "categorical":
        logits = np.moveaxis(special.log_softmax(maps, axis=1), 1, -1)
        return -np.take_along_axis(logits, pixels[..., None].astype(int), -1)[..., 0]
    if name == "continuous_bernoulli":
        eta = maps[:, 0]
        return -(np.log(eta / np.expm1(eta)) + eta * v)
    if name == "logistic_mixture":
        logits, means, log_scales = np.split(maps, 3, axis=1)
        parts = scipy_stats.logistic.logpdf(
            y[:, None], means, np.exp(log_scales_of(likelihood, log_scales))
        )
        return -special.logsumexp(parts + special.log_softmax(logits, axis=1), axis=1)
    loc, scale = maps[:, 0], np.exp(log_scales_of(likelihood, maps[:, 1]))
    if name.startswith("logit_"):
        x = likelihood.eps + (1 - 2 * likelihood.eps) * v
        frozen = {"logit_laplace": Laplace, "logit_normal": scipy_stats.norm}[name]
        edge = (x <= 0) | (x >= 1)
        x = np.where(edge, 0.5, x)
        value = -frozen.logpdf(special.logit(x), loc, scale) + np.log(x) + np.log1p(-x)
        return np.where(edge, np.inf, value)
    if name == "truncated_normal":
        a, b = (-1 - loc) / scale, (1 - loc) / scale
        return -scipy_stats.truncnorm.logpdf(y, a, b, loc, scale)
    if name == "truncated_laplace":
        tails = scipy_stats.laplace(loc, scale)
        whole = np.where(loc > 0, tails.cdf(1) - tails.cdf(-1), tails.sf(-1) - tails.sf(1))
        return -Laplace.logpdf(y, loc, scale) + np.log(whole)
    frozen = {"laplace": Laplace, "normal": scipy_stats.norm}.get(name, scipy_stats.logistic)
    return -frozen.logpdf(y, loc, scale)


class Laplace:
    """scipy's takes the logarithm of a density that underflows."""

    @staticmethod
    def logpdf(x, loc, scale):
        return -np.abs(x - loc) / scale - np.log(2 * scale)


def log_scales_of(likelihood, raw):
    floor = likelihood.min_log_scale
    return raw if floor is None else floor + np.logaddexp(0, raw - floor)


@each
def test_loss_is_the_density_of_scipy(case, seen):
    if getattr(case.likelihood, "coupled", False):
        return
    expected = reference_loss(case, seen.pixels[:N], seen.stats[:N])
    # Distances of order 1 in float32 over scales from e^-7, squared in a normal: up to 1e5 u |z|.
    np.testing.assert_allclose(seen.loss[:N], expected, rtol=1e-4, atol=1e-4)


@each
def test_loss_integrates_to_the_mass_over_a_bin(case):
    """Gauss-Legendre nodes as noise: ∫ exp(-loss) over an interior bin is its mass."""
    if case.likelihood.name == "categorical" or getattr(case.likelihood, "coupled", False):
        return  # no density; the joint alone integrates (test_logistic_mixture)
    likelihood = case.likelihood
    stats = random_stats(case, N, 3, sharpest=-3.0)
    rng = np.random.default_rng(4)
    pixels = rng.integers(1, 255, (N, case.channels), dtype=np.uint8)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    noise = np.broadcast_to(0.5 * nodes[:, None, None], (16, *pixels.shape)).astype(np.float32)
    grid = np.broadcast_to(pixels, noise.shape)
    every = np.broadcast_to(stats, (16, *stats.shape))
    loss = np.asarray(likelihood.loss(grid, every, noise), np.float64)
    share = (0.5 * weights)[:, None, None]
    volume = density_volume(likelihood)
    log_mass = np.asarray(likelihood.log_mass(pixels, stats), np.float64)
    log_integral = special.logsumexp(-loss, b=share, axis=0) + np.log(volume)
    # float32 distances over scales from e^-3: 20 u |z|, |z| < 60; a corner inside the bin (width
    # 0.2 scales) costs the 16 nodes 1e-4 of it.
    np.testing.assert_allclose(log_integral, log_mass, atol=4e-4)
    # Jensen: the mean loss under uniform dequantisation bounds the negative log mass from above.
    bound = (share * loss).sum(0) - np.log(volume)
    assert np.all(bound >= -log_mass - 4e-4)


# --- Transformations and precision ----------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in CASES if c.id.startswith(MAPPED)])
def test_vmap_gives_what_the_plain_call_gives(case, seen):
    likelihood = case.likelihood

    def row(pixels, stats, noise):
        return likelihood.loss(pixels, stats, noise), likelihood.log_mass(pixels, stats)

    rows = seen.pixels[:N], seen.stats[:N], seen.noise[:N]
    loss, log_mass = jax.jit(jax.vmap(row))(*rows)
    # The compiler may contract and reorder: a rounding of z in each of two ways.
    np.testing.assert_allclose(loss, seen.noisy[:N], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(log_mass, seen.log_mass[:N], rtol=2e-5, atol=2e-5)


@each
def test_gradients_match_finite_differences_in_float64(case, seen, x64):
    likelihood = case.likelihood
    rng = np.random.default_rng(5)
    stats = jnp.asarray(seen.stats[:N], jnp.float64)
    direction = jnp.asarray(rng.normal(size=stats.shape))

    @jax.jit
    def compute(stats):
        def values(stats):
            return jnp.stack(
                [
                    likelihood.loss(seen.pixels[:N], stats),
                    likelihood.log_mass(seen.pixels[:N], stats),
                ]
            )

        return jax.jvp(values, (stats,), (direction,))

    step = 1e-6
    value, slope = compute(stats)
    assert value.dtype == jnp.float64
    above, below = (compute(stats + sign * step * direction)[0] for sign in (1, -1))
    value, slope, above, below = map(np.asarray, (value, slope, above, below))
    finite = np.isfinite(value)
    numeric = np.where(finite, above, 0) - np.where(finite, below, 0)
    size = 1 + np.abs(np.where(finite, value, 0)) + np.abs(slope)
    # step² times third derivatives, up to e^7 a power, and u |value| / step; a corner of |z| lies
    # within the step of none of these rows.
    assert np.all(np.abs(numeric / (2 * step) - slope)[finite] <= 1e-4 * size[finite])
    np.testing.assert_allclose(value[1], seen.log_mass[:N], rtol=1e-4, atol=1e-4)


@each
def test_sixteen_bit_statistics_are_cast_up(case, seen):
    likelihood = case.likelihood
    pixels = jax.ShapeDtypeStruct(seen.pixels.shape, jnp.uint8)
    for dtype in (jnp.bfloat16, jnp.float16)[: 1 + likelihood.has_scale]:
        stats = jax.ShapeDtypeStruct(seen.stats.shape, dtype)
        shapes = [
            jax.eval_shape(likelihood.loss, pixels, stats),
            jax.eval_shape(likelihood.log_mass, pixels, stats),
            jax.eval_shape(likelihood.reconstruct, stats),
        ]
        assert {s.dtype for s in shapes} == {jnp.dtype("float32")}
    half = jnp.asarray(seen.stats[:N], jnp.bfloat16)
    np.testing.assert_array_equal(
        likelihood.reconstruct(half), likelihood.reconstruct(half.astype(jnp.float32))
    )


# --- Samples --------------------------------------------------------------------------------------


@each
def test_samples(case):
    """Rounded to 8 bits they follow the bins' (conditional) cdf: their transform is uniform."""
    likelihood = case.likelihood
    n = 1000 if likelihood.name == "categorical" else 3000
    stats = np.concatenate([random_stats(case, n, 6), extreme_stats(case, N, 6)])
    draws, again, other = (
        np.asarray(likelihood.sample(jax.random.key(k), stats)) for k in (1, 1, 2)
    )
    assert (draws.shape, draws.dtype) == ((n + N, case.channels), np.float32)
    assert np.isfinite(draws).all()
    assert draws.min() >= 0
    assert draws.max() <= 1
    np.testing.assert_array_equal(draws, again)
    assert np.mean(draws != other) > 0.3  # clipped ones may agree
    pixels = np.rint(255 * draws).astype(np.uint8)
    low, high = map(np.asarray, likelihood.bin_cdf(pixels, stats))
    share = np.random.default_rng(7).uniform(size=low.shape)
    for channel in range(case.channels):
        transformed = (low + share * (high - low))[:n, channel]
        # The seeds are fixed: 1e-3 is where a right sampler fails once in 1,000.
        assert scipy_stats.kstest(transformed, "uniform").pvalue > 1e-3


# --- Errors ---------------------------------------------------------------------------------------


@each
def test_wrong_shapes_and_dtypes_are_refused(case):
    likelihood, c = case.likelihood, case.channels
    maps = c * likelihood.num_stats
    pixels, stats = jnp.zeros((2, c), jnp.uint8), jnp.zeros((2, maps))
    wrong = [
        (jnp.zeros((2, c)), stats),
        (jnp.zeros((3, c), jnp.uint8), stats),
        (jnp.zeros((2, c + 1), jnp.uint8), stats),
        (pixels, jnp.zeros((2, maps), jnp.int32)),
    ]
    for method in (likelihood.loss, likelihood.log_mass, likelihood.bin_cdf):
        for arguments in wrong:
            with pytest.raises(AssertionError):
                method(*arguments)
    for noise in (jnp.zeros((2, c + 1)), jnp.zeros((2, c), jnp.int32)):
        with pytest.raises(AssertionError):
            likelihood.loss(pixels, stats, noise)
    if likelihood.num_stats > 1:
        with pytest.raises(ValueError, match="no multiple"):
            likelihood.log_mass(pixels, jnp.zeros((2, maps + 1)))


@each
def test_frozen_hashable_and_equal(case):
    likelihood = case.likelihood
    options = {name: getattr(likelihood, name) for name in likelihoods.options(likelihood.name)}
    twin = likelihoods.get(likelihood.name, **options)
    assert (twin, hash(twin)) == (likelihood, hash(likelihood))
    assert isinstance(likelihood, likelihoods.Likelihood)
    assert likelihood.has_scale == isinstance(likelihood, likelihoods.LocationScale)
