"""The objective and the update: formula, AdamW, averages, and the same on any devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.experimental import checkify

from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training import devices
from logit_laplace_jax.training import step as step_module
from logit_laplace_jax.training.config import OptimizerConfig
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import create_state, make_optimizer, parameter_count
from logit_laplace_jax.training.step import elbo_loss, forward, train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

MODES = ("single", "mesh", "pmap")
BATCH = 8
STEPS = 3

# With AdamW's usual epsilon the first update is the gradient's sign: a gradient four times too
# large would go unseen. With an epsilon of 1 the update is nearly linear in the gradient.
ADAM = OptimizerConfig(b1=0.8, b2=0.9, eps=1.0, weight_decay=0.1, ema_decay=0.75)
CONFIG = tiny.config(
    run_dir="",
    data__source="photos",
    steps=10,
    batch_size=BATCH,
    image_size=8,
    likelihood__min_log_scale=-5.0,
    beta=Schedule(0.5, 2.0),
    temperature=Schedule(0.7, 0.7),  # constant: then only the noise tells two steps' NLL apart
    learning_rate=Schedule(0.2, 0.05),
    optimizer=ADAM,
    model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4),
).resolved()


def batch(number=0, size=BATCH, height=8, width=8):
    rng = np.random.default_rng(number)
    # Every image has its own brightness, so that devices disagree about the gradient.
    low = rng.integers(0, 200, (size, 1, 1, 1))
    return (low + rng.integers(0, 56, (size, height, width, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def initial():
    state = create_state(CONFIG, jax.random.key(0))
    # OpenAI's initialisation gives logits near 0; wider ones give the KL a weight in the gradient.
    wide = jax.tree.map(lambda p: np.asarray(p) * 2, state.params)
    return jax.device_get(state.replace(params=wide, ema_params=wide))


@dataclasses.dataclass
class Trajectory:
    """Host copies after 0, 1, ... updates, and what the compiled step left behind."""

    states: list
    metrics: list
    replicas_equal: bool
    donated: bool
    compiled: object
    layout: devices.Layout


@pytest.fixture(scope="module")
def trajectories(initial):
    """Three updates under every layout, compiled once."""

    def run(mode):
        layout = devices.choose(mode, BATCH)
        assert len(layout.devices) == (1 if mode == "single" else 4)
        compiled = layout.compile(train_step, donate=True)
        state = layout.replicate(jax.tree.map(np.array, initial))
        result = Trajectory([initial], [], True, False, compiled, layout)
        for number in range(STEPS):
            old = jax.tree.leaves(state)
            state, metrics = compiled(
                state, layout.shard({"pixels": batch(number)}), jax.random.key(1)
            )
            jax.block_until_ready(state)
            if number == 0:  # Later states were read, and on a CPU a reader shares the buffer.
                result.donated = all(leaf.is_deleted() for leaf in old)
            for leaf in jax.tree.leaves((state, metrics)):
                shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
                result.replicas_equal &= all((s == shards[0]).all() for s in shards)
            result.states.append(jax.device_get(layout.first(state)))
            result.metrics.append(jax.device_get(layout.first(metrics)))
        return result

    return {mode: run(mode) for mode in MODES}


# --- Many devices ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mesh", "pmap"])
@pytest.mark.parametrize("updates", [1, STEPS])
def test_many_devices_equal_one_on_the_whole_batch(trajectories, mode, updates):
    one, many = trajectories["single"], trajectories[mode]
    got, want = many.states[updates], one.states[updates]
    # The optimiser's moments are in the tree: the gradient itself is compared. Only the order of
    # float32 sums over 8 images and 64 positions differs: some ulp of 6e-8 of terms of order 1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), got, want)
    for name, value in one.metrics[updates - 1].items():
        np.testing.assert_allclose(
            many.metrics[updates - 1][name], value, rtol=2e-5, atol=1e-6, err_msg=name
        )


def test_a_wrong_reduction_would_be_seen(trajectories):
    # A sum in place of the mean multiplies the gradient by 4, one device's own gradient changes it
    # as a whole: both move the parameters by about as much as the right update does.
    before, after = trajectories["single"].states[:2]
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params, after.params)
    assert max(jax.tree.leaves(moved)) > 100 * 1e-5
    assert trajectories["single"].metrics[0]["grad_norm"] > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_every_device_holds_the_same(trajectories, mode):
    assert trajectories[mode].replicas_equal


@pytest.mark.parametrize("mode", MODES)
def test_the_old_state_is_donated(trajectories, mode):
    assert trajectories[mode].donated


def test_devices_that_do_not_divide_the_batch():
    for mode in ("auto", "pmap", "mesh"):
        with pytest.raises(ValueError, match="batch size 6 cannot be split over 4 devices"):
            devices.choose(mode, 6)
    assert devices.choose("single", 6).count == 1
    assert devices.choose("auto", 8).mode == "pmap"
    with pytest.raises(ValueError, match="parallel must be"):
        devices.choose("warp", 8)


# --- The update ------------------------------------------------------------------------------


def test_adamw_and_averages_by_hand(trajectories):
    run = trajectories["single"]
    leaves = jax.tree.leaves
    moments = [[np.zeros_like(p, np.float64) for p in leaves(run.states[0].params)]] * 2
    for number in range(STEPS):
        before, after = run.states[number], run.states[number + 1]
        adam = after.opt_state[0]
        # The gradient, recovered from the first moment; its norm is reported independently.
        old_m, old_v = moments
        g = [(m - 0.8 * o) / 0.2 for m, o in zip(leaves(adam.mu), old_m, strict=True)]
        norm = np.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in g))
        # Differences of float32 moments up to 20, divided by 0.2: errors of some 1e-5 of 0.3.
        np.testing.assert_allclose(norm, run.metrics[number]["grad_norm"], rtol=1e-4)
        m = [0.8 * o + 0.2 * x for o, x in zip(old_m, g, strict=True)]
        v = [0.9 * o + 0.1 * x**2 for o, x in zip(old_v, g, strict=True)]
        rate = 0.05 + 0.15 * (1 + np.cos(np.pi * number / 10)) / 2
        t = number + 1
        for p, mi, vi, new in zip(leaves(before.params), m, v, leaves(after.params), strict=True):
            mean, square = mi / (1 - 0.8**t), vi / (1 - 0.9**t)
            # Decoupled weight decay, multiplied by the step size.
            expected = p - rate * (mean / (np.sqrt(square) + 1.0) + 0.1 * p)
            # Parameters below 3 and steps below 1 in float32.
            np.testing.assert_allclose(new, expected, rtol=2e-6, atol=1e-6)
        moments = [m, v]
        for e, p, new in zip(
            leaves(before.ema_params), leaves(after.params), leaves(after.ema_params), strict=True
        ):
            np.testing.assert_allclose(new, 0.75 * e + 0.25 * p, rtol=1e-6, atol=1e-6)
        assert int(after.step) == t


def test_schedules_arrive_in_the_metrics(trajectories):
    for number, metrics in enumerate(trajectories["single"].metrics):
        share = (1 - np.cos(np.pi * number / 10)) / 2
        expected = {
            "beta": 0.5 + 1.5 * share,
            "temperature": 0.7,
            "learning_rate": 0.2 - 0.15 * share,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)  # float32


def test_weight_decay_alone_shrinks_by_the_step_size():
    # Plain arithmetic on one number, without a model: a zero gradient leaves the decay alone. The
    # step size, 1 here, is the step's affair.
    optimizer = make_optimizer(CONFIG)
    parameters = {"w": jnp.float32(3.0)}
    updates, _ = optimizer.update({"w": jnp.float32(0.0)}, optimizer.init(parameters), parameters)
    np.testing.assert_allclose(updates["w"], -0.1 * 3.0, rtol=1e-6)  # float32


def test_step_and_key_decide_the_noise(trajectories, initial):
    run = trajectories["single"]

    def nll(step, key):
        state = run.layout.replicate(jax.tree.map(np.array, initial.replace(step=np.int32(step))))
        _, metrics = run.compiled(state, run.layout.shard({"pixels": batch()}), key)
        return float(metrics["nll"])

    first = nll(0, jax.random.key(1))
    assert first == nll(0, jax.random.key(1))
    assert first != nll(1, jax.random.key(1))
    assert first != nll(0, jax.random.key(2))


def test_parameters_stay_float32_where_the_blocks_compute_in_bfloat16():
    config = dataclasses.replace(CONFIG, precision="bfloat16")
    key = jax.random.key(0)
    state = jax.eval_shape(lambda k: create_state(config, k), key)
    pixels = {"pixels": jax.ShapeDtypeStruct((BATCH, 8, 8, 3), jnp.uint8)}
    jaxpr, (after, metrics) = jax.make_jaxpr(train_step, return_shape=True)(state, pixels, key)
    assert "bf16" in str(jaxpr)
    floats = [
        leaf.dtype
        for tree in (state, after)
        for leaf in jax.tree.leaves((tree.params, tree.ema_params, tree.opt_state))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert set(floats) == {jnp.dtype("float32")}
    assert all(value.dtype == jnp.float32 for value in metrics.values())


def test_a_batch_of_another_kind_is_refused_at_trace_time(initial):
    for wrong in (np.zeros((8, 8, 8, 3), np.float32), np.zeros((8, 8, 8, 1), np.uint8)):
        with pytest.raises(AssertionError):
            jax.eval_shape(train_step, initial, {"pixels": wrong}, jax.random.key(0))


def test_parameter_count():
    assert parameter_count({"a": np.zeros((2, 3)), "b": {"c": np.zeros(4)}}) == 10


# --- The objective ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objective():
    """A jitted elbo_loss, and the outputs that it is computed from, for a configuration."""

    def loss_and_outputs(params, pixels, key, step, config):
        indices = jnp.arange(pixels.shape[0], dtype=jnp.int32)
        loss, metrics = elbo_loss(params, pixels, key, step, config, indices)
        done = jnp.minimum(step / config.temperature.steps, 1.0)
        start, end = config.temperature.start, config.temperature.end
        temperature = end + (start - end) * (1 + jnp.cos(jnp.pi * done)) / 2
        output = forward(params, pixels, temperature, key, config, indices)
        return loss, metrics, output.logits, output.stats

    return jax.jit(loss_and_outputs, static_argnames="config")


EIGHT = tiny.change(
    CONFIG,
    temperature=Schedule(1.0, 0.25, 10),
    likelihood__min_log_scale=None,
    model=dataclasses.replace(CONFIG.model, group_count=4),
)


@pytest.mark.parametrize(
    ("config", "height", "width"), [(EIGHT, 8, 16), (CONFIG, 8, 8)], ids=["f = 8", "f = 2"]
)
def test_the_objective_is_the_papers(objective, initial, config, height, width):
    params = initial.params
    if config is EIGHT:
        params = jax.tree.map(lambda p: 2 * p, create_state(EIGHT, jax.random.key(3)).params)
    pixels, step = batch(5, 3, height, width), jnp.int32(4)
    loss, metrics, logits, stats = objective(params, pixels, jax.random.key(2), step, config)
    logits, stats = np.asarray(logits, np.float64), np.asarray(stats, np.float64)

    x = 0.8 * pixels / 255.0 + 0.1
    mu, log_scale = stats[..., :3], stats[..., 3:]
    if config.likelihood.min_log_scale is not None:
        log_scale = config.likelihood.min_log_scale + np.logaddexp(
            0, log_scale - config.likelihood.min_log_scale
        )
    nll = np.abs(np.log(x / (1 - x)) - mu) * np.exp(-log_scale) + log_scale
    nll += np.log(2 * x * (1 - x))
    log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    kl = (np.exp(log_p) * (log_p + np.log(config.model.vocab_size))).sum(axis=-1)
    beta = 0.5 + 1.5 * (1 - np.cos(np.pi * 0.4)) / 2
    sums = nll.sum(axis=(1, 2, 3)) + beta * kl.sum(axis=(1, 2))
    expected = np.mean(sums / (height * width * 3))

    assert kl.mean() > 0.01  # otherwise its weight would not show
    # float32 sums of some hundred terms of the order of 1.
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(metrics["nll"], nll.mean(), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(metrics["kl"], kl.mean(), rtol=1e-5, atol=1e-6)
    # β/192 for f = 8, as in the paper, although this image is not 256 x 256.
    weight = {4: 192, 2: 12}[config.model.group_count]
    np.testing.assert_allclose(
        loss, metrics["nll"] + beta * metrics["kl"] / weight, rtol=1e-6, atol=1e-6
    )


def test_kl_is_never_negative(objective, initial):
    # Logits that are all 0, and nearly so: where rounding would show a negative KL.
    for factor in (0.0, 1e-4, 1e-2, 0.1, 1.0):
        params = jax.tree.map(lambda p, f=factor: p * np.float32(f), initial.params)
        _, metrics, logits, _ = objective(
            params, batch(5, 3), jax.random.key(2), jnp.int32(4), CONFIG
        )
        assert metrics["kl"] >= 0
        if factor == 0:
            assert not np.any(logits)
            assert metrics["kl"] == 0


def test_doubling_the_batch_changes_nothing(monkeypatch, initial):
    # Every example has its own noise, so for this comparison there is none.
    monkeypatch.setattr(
        bottleneck,
        "gumbel_noise",
        lambda key, indices, shape: jnp.zeros((len(indices), *shape), jnp.float32),
    )

    @jax.jit
    def loss(params, pixels):
        indices = jnp.arange(pixels.shape[0], dtype=jnp.int32)
        return elbo_loss(params, pixels, jax.random.key(0), jnp.int32(0), CONFIG, indices)

    pixels = batch(7, 3)
    once = loss(initial.params, pixels)
    twice = loss(initial.params, np.concatenate([pixels, pixels]))
    # A mean of twice as many float32 numbers: the order of the sum.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-6), once, twice)
    assert step_module.bottleneck is bottleneck  # or the noise above would not have been replaced


def test_the_gradient_is_the_objectives(objective, trajectories, initial):
    # Along the gradient itself the loss changes by |g|² h; recovered as in the AdamW test.
    g = jax.tree.map(lambda m: m / 0.2, trajectories["single"].states[1].opt_state[0].mu)
    norm = float(trajectories["single"].metrics[0]["grad_norm"])
    key, pixels = jax.random.fold_in(jax.random.key(1), 0), batch(0)

    def along(h):
        params = jax.tree.map(lambda p, d: p + np.float32(h / norm) * d, initial.params, g)
        return float(objective(params, pixels, key, jnp.int32(0), CONFIG)[0])

    assert along(0.0) == pytest.approx(trajectories["single"].metrics[0]["loss"], abs=1e-5)
    h = 2e-3
    # Rounding of the losses, some 2e-7 / h = 1e-4, and the objective's kinks and curvature.
    assert (along(h) - along(-h)) / (2 * h) == pytest.approx(norm, rel=2e-2)


# --- Debugging -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_debug_names_what_is_not_finite(trajectories, initial, mode):
    layout = devices.choose(mode, BATCH)
    # Without donation: the state of the right run is compared below.
    compiled = layout.compile(train_step, debug=True)
    pixels, key = layout.shard({"pixels": batch(0)}), jax.random.key(1)
    _, metrics = compiled(layout.replicate(initial), pixels, key)
    plain = trajectories[mode].metrics[0]
    for name, value in jax.device_get(layout.first(metrics)).items():
        # The checks change what the compiler fuses.
        np.testing.assert_allclose(value, plain[name], rtol=2e-5, atol=1e-6, err_msg=name)
    broken = initial.replace(params=jax.tree.map(lambda p: p * np.nan, initial.params))
    with pytest.raises(checkify.JaxRuntimeError, match=r"must be finite|is not finite"):
        compiled(layout.replicate(broken), pixels, key)
    # Without debug the same goes through, and the run's own check of the loss finds it.
    state = layout.replicate(jax.tree.map(np.array, broken))
    _, metrics = trajectories[mode].compiled(state, pixels, key)
    assert np.isnan(jax.device_get(layout.first(metrics))["loss"])
