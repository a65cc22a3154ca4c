"""Every likelihood as the decoder's: one update of a tiny model, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from logit_laplace_jax import likelihoods
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import DVAE
from logit_laplace_jax.training import devices, optimal_scale
from logit_laplace_jax.training.config import OptimizerConfig
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import reconstruction_loss, train_step
from logit_laplace_jax.training.update import global_indices

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = tiny.config(
    run_dir="",
    data__source="photos",
    steps=10,
    batch_size=4,
    image_size=4,
    learning_rate=Schedule(0.2, 0.1),
    # With an epsilon of 1 the update is nearly linear in the gradient: a wrong size would show.
    optimizer=OptimizerConfig(eps=1.0),
    model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=4, n_init=4),
).resolved()
CASES = {name: {"likelihood__name": name} for name in likelihoods.names()}
CASES |= {
    "mass": {"likelihood__objective": "mass"},
    "dequantize": {"likelihood__dequantize": True},
    "shared": {"likelihood__scale": "shared"},
    "per_channel": {"likelihood__scale": "per_channel", "likelihood__name": "normal"},
    "fixed": {"likelihood__scale": "fixed", "likelihood__fixed_scale": 0.2},
    "optimal": {"likelihood__scale": "optimal"},
    "coupled": {
        "likelihood__name": "logistic_mixture",
        "likelihood__components": 2,
        "likelihood__coupled": True,
    },
}
ON_SEVERAL = ["optimal", "dequantize"]
"""What looks at more than its own example, or draws for it."""


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 200, (4, 1, 1, 1))  # its own brightness for every image
    return (low + rng.integers(0, 56, (4, 4, 4, 3))).astype(np.uint8)


def update(config, pixels, mode="single"):
    layout = devices.choose(mode, 4)
    state = create_state(config, jax.random.key(0))
    before = jax.device_get(state.params)
    step = layout.compile(train_step)
    after, metrics = step(
        layout.replicate(state), layout.shard({"pixels": pixels}), jax.random.key(1)
    )
    return before, jax.device_get(layout.first(after).params), jax.device_get(layout.first(metrics))


@pytest.mark.parametrize("case", CASES)
def test_one_update(case, pixels):
    config = tiny.change(CONFIG, **CASES[case])
    before, after, metrics = update(config, pixels)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["grad_norm"] > 0
    leaves = jax.tree.leaves(jax.tree.map(lambda a, b: (a, b), before, after))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
    assert moved["decoder"]["output"]["kernel"]
    assert moved["encoder"]["output"]["kernel"]
    assert moved["decoder"].get("log_scale", True)  # a learned constant scale is learned


@pytest.mark.parametrize("case", ON_SEVERAL)
def test_several_devices_equal_one(case, pixels):
    config = tiny.change(CONFIG, **CASES[case])
    _, one, metrics = update(config, pixels)
    for mode in ("pmap", "mesh"):
        _, many, others = update(config, pixels, mode)
        for name, value in metrics.items():
            # float32 sums in another order, of values below 10.
            np.testing.assert_allclose(others[name], value, rtol=2e-5, atol=1e-6, err_msg=name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), many, one)


@pytest.mark.parametrize(("kind", "count"), [("shared", 1), ("per_channel", 3)])
def test_a_constant_scale_is_one_parameter_that_reaches_every_pixel(kind, count):
    config = tiny.change(CONFIG, likelihood__scale=kind, likelihood__min_log_scale=None)
    params = create_state(config, jax.random.key(0)).params
    assert params["decoder"]["log_scale"].shape == (count,)
    params["decoder"]["log_scale"] = jnp.arange(count) - 2.0
    stats = DVAE(config.model).apply(
        {"params": params}, jnp.zeros((1, 2, 2), jnp.int32), method="decode_tokens"
    )
    assert stats.shape == (1, 4, 4, 6)
    expected = np.broadcast_to(np.arange(count) - 2.0, (3,))
    np.testing.assert_array_equal(stats[..., 3:], np.broadcast_to(expected, (1, 4, 4, 3)))
    log_scale = config.likelihood.build().parameters(stats)[1]
    np.testing.assert_allclose(log_scale, np.broadcast_to(expected, (1, 4, 4, 3)), rtol=1e-6)


def loss_of(config, pixels, stats, seed=2):
    indices = global_indices(4, None)
    loss, floor = reconstruction_loss(pixels, stats, jax.random.key(seed), config, indices, None)
    return float(loss), float(floor)


def test_objectives_are_what_they_say(pixels):
    stats = jax.random.normal(jax.random.key(0), (4, 4, 4, 6))
    family = CONFIG.likelihood.build()
    assert loss_of(CONFIG, pixels, stats)[0] == pytest.approx(
        float(family.loss(pixels, stats).mean())
    )
    mass = tiny.change(CONFIG, likelihood__objective="mass")
    expected = -float(family.log_mass(pixels, stats).mean())
    assert loss_of(mass, pixels, stats)[0] == pytest.approx(expected)
    noisy = tiny.change(CONFIG, likelihood__dequantize=True)
    draws = [loss_of(noisy, pixels, stats, seed)[0] for seed in range(8)]
    plain = loss_of(CONFIG, pixels, stats)[0]
    # Noise of half a grey level moves a value's loss by some 0.05 at b near 1; 192 are averaged.
    assert 0 < np.std(draws) < 0.02
    assert np.mean(draws) == pytest.approx(plain, abs=0.02)


def test_the_optimal_scale_is_the_least_loss(pixels):
    """Against the same statistics with a fixed scale, a little to either side."""
    config = tiny.change(CONFIG, likelihood__scale="optimal")
    stats = jax.random.normal(jax.random.key(0), (4, 4, 4, 3))
    family = config.likelihood.build()
    assert optimal_scale.is_optimal(family)
    best = float(
        jnp.exp(
            optimal_scale.log_scale_of(
                family, optimal_scale.batch_moment(family, pixels, stats, None)
            )
        )
    )
    loss = loss_of(config, pixels, stats)[0]
    for factor in (0.9, 1.0, 1.1):
        fixed = tiny.change(
            CONFIG, likelihood__scale="fixed", likelihood__fixed_scale=best * factor
        )
        other = loss_of(fixed, pixels, stats)[0]
        # ln 1.1 + 1/1.1 - 1 = 0.0044 nats, against 1e-6 of rounding.
        assert other == pytest.approx(loss, abs=1e-5) if factor == 1.0 else other > loss + 0.004


def test_the_floor_holds_for_an_optimal_scale():
    config = tiny.change(CONFIG, likelihood__scale="optimal", likelihood__min_log_scale=-3.0)
    pixels = np.full((2, 2, 2, 3), 100, np.uint8)
    x = 0.8 * 100 / 255 + 0.1
    stats = jnp.full((2, 2, 2, 3), np.log(x / (1 - x)), jnp.float32)  # predicted exactly
    family = config.likelihood.build()
    assert float(
        optimal_scale.log_scale_of(family, optimal_scale.batch_moment(family, pixels, stats, None))
    ) == pytest.approx(-3.0)
