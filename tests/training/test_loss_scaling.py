"""Mixed precision: what is computed in 16 bits, and float16's loss scaling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training import devices, loss_scaling
from logit_laplace_jax.training.config import OptimizerConfig
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = tiny.config(
    run_dir="",
    data__source="photos",
    steps=10,
    batch_size=4,
    image_size=8,
    precision="float16",
    likelihood__min_log_scale=-5.0,
    temperature=Schedule(0.7, 0.7),
    learning_rate=Schedule(0.1, 0.1),
    optimizer=OptimizerConfig(eps=1.0, ema_decay=0.5, loss_scale=1024.0, loss_scale_growth=2),
    model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4),
).resolved()


def pixels(number=0):
    rng = np.random.default_rng(number)
    return {"pixels": rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)}


def update(state, number=0, mode="single"):
    layout = devices.choose(mode, 4)
    step = layout.compile(train_step)
    after, metrics = step(layout.replicate(state), layout.shard(pixels(number)), jax.random.key(1))
    return jax.device_get((layout.first(after), layout.first(metrics)))


@pytest.fixture(scope="module")
def fresh():
    return jax.device_get(create_state(CONFIG, jax.random.key(0)))


def ruined(state):
    """A state whose activations overflow float16, though every parameter is finite."""
    params = jax.tree.map(np.array, state.params)
    params["encoder"]["input"]["bias"][:] = 1e5  # float16 ends at 65,504
    return state.replace(params=params)


@pytest.mark.parametrize("mode", ["single", "pmap", "mesh"])
def test_an_update_that_overflows_is_skipped_and_counted(fresh, mode):
    before = ruined(fresh)
    after, metrics = update(before, mode=mode)
    assert metrics["skipped"] == 1
    assert metrics["skipped_steps"] == 1
    assert metrics["loss_scale"] == 1024  # that of this update
    assert after.loss_scale.factor == 512
    assert after.step == 1  # the images were seen, schedules go on
    for name in ("params", "ema_params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))


def test_good_updates_double_the_factor(fresh):
    state, factors = fresh, []
    for number in range(4):
        state, metrics = update(state, number)
        assert metrics["skipped"] == 0
        factors.append(float(state.loss_scale.factor))
    assert factors == [1024, 2048, 2048, 4096]
    assert int(state.opt_state[0].count) == 4


def test_the_scale_changes_no_number_that_is_shown(fresh):
    # Powers of two: in float16 the scaled gradient has the same digits, unless it is subnormal.
    results = []
    for factor in (2.0**8, 2.0**12):
        scale = loss_scaling.initial(factor)
        results.append(update(fresh.replace(loss_scale=jax.device_get(scale))))
    (one, first), (other, second) = results
    for name in ("loss", "nll", "kl", "grad_norm"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, err_msg=name)
    # Gradients differ by what float16 rounds off of the smallest ones, 6e-8/256.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        one.params,
        other.params,
    )


def test_scaling_saves_gradients_that_float16_would_lose():
    # The smallest float16 is 6e-8. A loss averaged over 512^2 x 3 values has such gradients.
    def gradient(factor):
        def loss(w):
            h = (jnp.float16(1) * w.astype(jnp.float16)).astype(jnp.float32)
            return h * 2e-9 * factor

        return float(jax.grad(loss)(jnp.float32(1)) / factor)

    assert gradient(1.0) == 0.0
    assert gradient(32768.0) == pytest.approx(2e-9, rel=1e-3)  # float16 has 11 bits


def test_float16_is_close_to_float32(fresh):
    plain = dataclasses.replace(CONFIG, precision="float32")
    assert plain.model.dtype == "float32"
    _, half = update(fresh)
    _, full = update(fresh.replace(config=plain, loss_scale=None))
    # Activations of order 1 with 11 bits, some tens of layers: about 1e-3.
    for name in ("loss", "nll", "grad_norm"):
        assert half[name] == pytest.approx(float(full[name]), rel=2e-2, abs=5e-3), name
    assert half["loss"] != full["loss"]
    assert "loss_scale" not in full


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_what_must_stay_float32_does(kind):
    config = dataclasses.replace(CONFIG, precision=kind)
    key = jax.random.key(0)
    state = jax.eval_shape(lambda k: create_state(config, k), key)
    batch = {"pixels": jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.uint8)}
    jaxpr, (after, metrics) = jax.make_jaxpr(train_step, return_shape=True)(state, batch, key)
    short = {"float16": "f16", "bfloat16": "bf16"}[kind]
    assert f"{short}[" in str(jaxpr)
    for leaf in jax.tree.leaves((state, after, metrics)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    # The softmax over the codes, its logarithms and the loss's: nothing 16 bits wide goes in.
    primitives = _equations(jaxpr.jaxpr)
    for equation in primitives:
        if equation.primitive.name in ("exp", "log", "log1p", "expm1", "logistic", "div"):
            assert all(v.aval.dtype.itemsize >= 4 for v in equation.invars), equation
    assert any(e.primitive.name == "exp" for e in primitives)


def _equations(jaxpr):
    found = []
    for equation in jaxpr.eqns:
        found.append(equation)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                found += _equations(getattr(value, "jaxpr", value))
    return found


def _is_jaxpr(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def test_the_factor_stays_within_its_bounds():
    low = loss_scaling.initial(loss_scaling.SMALLEST)
    assert loss_scaling.adjusted(low, jnp.array(False), 1).factor == loss_scaling.SMALLEST
    high = loss_scaling.initial(loss_scaling.LARGEST)
    assert loss_scaling.adjusted(high, jnp.array(True), 1).factor == loss_scaling.LARGEST


@pytest.mark.parametrize("factor", [0.5, 3.0, 2.0**25])
def test_a_start_that_is_no_power_of_two_is_refused(factor):
    with pytest.raises(ValueError, match="loss_scale must be a power of two"):
        OptimizerConfig(loss_scale=factor)
