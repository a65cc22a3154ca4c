"""Where arrays lie: Explicit axes, in any mixture of sharded, replicated and Python; transfers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import logit_laplace_jax as ll

RNG = np.random.default_rng(0)
X = RNG.uniform(0.1, 0.9, (8, 4)).astype(np.float32)
PIXELS = RNG.integers(0, 256, (8, 4), dtype=np.uint8)
LOC = RNG.normal(size=(8, 4)).astype(np.float32)
KEY = jax.random.key(0)

FUNCTIONS = {
    "log_prob": lambda x, p, m: ll.log_prob(x, m, -1.0),
    "loss": lambda x, p, m: ll.logit_laplace_loss(x, x, -1.0),
    "loss of rows": lambda x, p, m: ll.logit_laplace_loss(x, m[:, :1], 0.3),
    "pixel loss": lambda x, p, m: ll.logit_laplace_pixel_loss(p, m, -1.0),
    "pixel_log_prob": lambda x, p, m: ll.pixel_log_prob(p, m, -1.0),
    "pixel_pit": lambda x, p, m: ll.pixel_pit(p, m, -1.0, key=KEY),
    "map": lambda x, p, m: (ll.map_pixels(p), ll.map_pixels(x), ll.unmap_pixels(x)),
    "cdf": lambda x, p, m: (ll.cdf(x, m, -1.0), ll.survival(x, 0.2, -1.0)),
    "log_cdf": lambda x, p, m: (ll.log_cdf(x, m, -1.0), ll.log_survival(x, 0.2, -1.0)),
    "pit": lambda x, p, m: ll.pit(x, m, -1.0),
    "quantile": lambda x, p, m: (ll.quantile(x, m, -1.0), ll.isf(0.3, m, -1.0)),
    "central_interval": lambda x, p, m: ll.central_interval(0.9, m, -1.0),
    "sample": lambda x, p, m: ll.sample(KEY, m, -1.0),
    "sample shape": lambda x, p, m: ll.sample(KEY, m, -1.0, shape=(2, 8, 4)),
    "moments": lambda x, p, m: (ll.mean(m, -1.0), ll.variance(m, -1.0)),
    "median": lambda x, p, m: (ll.median(m, -1.0), ll.mode(m, -1.0)),
    "entropy": lambda x, p, m: ll.entropy(m, -1.0),
    "kl_divergence": lambda x, p, m: ll.kl_divergence(m, -1.0, x, 0.3),
    "fit": lambda x, p, m: (ll.fit(x), ll.fit(x, axis=0), ll.fit(x, axis=1, where=m > 0)),
    "score": lambda x, p, m: (ll.score(x, m, -1.0), ll.fisher_information(m, -1.0)),
    "bits_per_dim": lambda x, p, m: ll.bits_per_dim(x),
    "class": lambda x, p, m: ll.LogitLaplace(m, -1.0).log_prob(x),
}


def likelihood_calls(name):
    likelihood = ll.likelihoods.get(name)

    def f(x, p, m):
        stats = jnp.concatenate(
            [(0.1 + 0.01 * i) * m[..., None] for i in range(likelihood.num_stats)], axis=-1
        )
        p = p[..., None]
        return (
            likelihood.loss(p, stats),
            likelihood.log_mass(p, stats),
            likelihood.bin_cdf(p, stats),
            likelihood.reconstruct(stats),
            likelihood.mean_and_median(stats),
            *([] if name == "truncated_normal" else [likelihood.sample(KEY, stats)]),  # as Laplace
        )

    return f


def check(f, devices, placements):
    f = jax.jit(f)
    plain = f(X, PIXELS, LOC)
    mesh = jax.make_mesh(
        (devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Explicit,)
    )
    with jax.set_mesh(mesh):
        sharded, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("data",), ()))
        for placement in placements:
            shardings = (sharded if letter == "s" else whole for letter in placement)
            out = f(*map(jax.device_put, (X, PIXELS, LOC), shardings))
            # Sums may be taken in another order; the values are of order 1 to 10.
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), out, plain
            )


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, devices, quick_compilation):
    check(FUNCTIONS[name], devices, ["sss", "wws"])


@pytest.mark.parametrize("name", ll.likelihoods.names())
def test_likelihoods(name, quick_compilation):
    check(likelihood_calls(name), 4, ["ssw"])


@pytest.mark.parametrize("loss", [ll.logit_laplace_loss, ll.logit_laplace_pixel_loss])
def test_gradients_under_explicit_axes(loss):
    target = X if loss is ll.logit_laplace_loss else PIXELS

    def mean(m, s, target):
        return loss(target, m, s).mean()

    want = jax.grad(mean, (0, 1))(LOC, np.float32(-1), target)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        args = jax.device_put((LOC, target), sharding)
        got = jax.grad(mean, (0, 1))(args[0], jnp.float32(-1), args[1])
        assert jax.typeof(got[0]).sharding.spec == PartitionSpec("data", None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


ON_DEVICE = {
    "map_pixels": lambda x, p, m, s: (ll.map_pixels(p), ll.map_pixels(x), ll.unmap_pixels(x)),
    "fit": lambda x, p, m, s: (ll.fit(x), ll.fit(x, axis=0), ll.fit(x, where=x > s)),
    "loss": lambda x, p, m, s: ll.logit_laplace_loss(x, m, s),
    "pixel_loss": lambda x, p, m, s: ll.logit_laplace_pixel_loss(p, m, s),
    "pixel_log_prob": lambda x, p, m, s: (ll.pixel_log_prob(p, m, s), ll.pixel_pit(p, m, s)),
    "sample": lambda x, p, m, s: ll.sample(KEY, m, s, shape=(2, 8, 4)),
    "tails": lambda x, p, m, s: (ll.cdf(x, m, s), ll.log_survival(x, m, s), ll.pit(x, m, s)),
    "quantiles": lambda x, p, m, s: (ll.quantile(x, m, s), ll.central_interval(x, m, s)),
    "moments": lambda x, p, m, s: (ll.mean(m, s), ll.entropy(m, s), ll.mode(m, s)),
    "rest": lambda x, p, m, s: (
        ll.kl_divergence(m, s, m, s),
        ll.bits_per_dim(x),
        ll.score(x, m, s),
    ),
}
for _name in ("logit_laplace", "categorical", "logistic_mixture"):
    _likelihood = ll.likelihoods.get(_name)
    ON_DEVICE[_name] = lambda x, p, m, s, f=_likelihood: (
        f.loss(p, jnp.tile(m, f.num_stats)),
        f.log_mass(p, jnp.tile(m, f.num_stats)),
        f.reconstruct(jnp.tile(m, f.num_stats)),
        f.at_floor(jnp.tile(m, f.num_stats)),
    )


@pytest.mark.parametrize("name", ON_DEVICE)
def test_arrays_on_the_device_need_no_transfer(name, quick_compilation):
    args = jax.device_put((X, PIXELS, LOC, np.float32(-1)))
    with jax.transfer_guard("disallow"):
        ON_DEVICE[name](*args)
