"""Parts of a batch, a spread state, and checkpoints that move between layouts."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import OptimizerConfig
from logit_laplace_jax.training.evaluation import Evaluator
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 8
KEY = 1
CONFIG = tiny.config(
    run_dir="",
    data__source="photos",
    steps=10,
    batch_size=BATCH,
    image_size=8,
    likelihood__min_log_scale=-5.0,
    beta=Schedule(0.5, 2.0),
    temperature=Schedule(0.7, 0.7),
    learning_rate=Schedule(0.2, 0.05),
    # Nearly linear in the gradient, so that a gradient too large or small shows in the update.
    optimizer=OptimizerConfig(b1=0.8, b2=0.9, eps=1.0, weight_decay=0.1, ema_decay=0.75),
    model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4),
).resolved()


def batch(number=0):
    rng = np.random.default_rng(number)
    low = rng.integers(0, 200, (BATCH, 1, 1, 1))  # every image has a brightness of its own
    return {"pixels": (low + rng.integers(0, 56, (BATCH, 8, 8, 3))).astype(np.uint8)}


@pytest.fixture(autouse=True)
def spread_small_arrays(monkeypatch):
    """The model here is so small that otherwise all of it would be copied everywhere."""
    monkeypatch.setattr(devices, "_SMALLEST_SHARDED", 16)


def initial(config):
    state = create_state(config, jax.random.key(0))
    # Wider logits than OpenAI's initialisation gives: then the KL has a weight in the gradient.
    wide = jax.tree.map(lambda p: np.asarray(p) * 2, state.params)
    return jax.device_get(state.replace(params=wide, ema_params=wide))


def layout_of(name, config):
    mode, _, spread = name.partition("+")
    return devices.choose(
        mode, config.batch_size, accumulate=config.accumulate, fsdp=spread == "fsdp"
    )


def run(name, config, state, updates=2):
    """The state (in full, on the host) and the metrics after some updates."""
    layout = layout_of(name, config)
    compiled = layout.compile(train_step, donate=True)
    running = layout.replicate(jax.tree.map(np.array, state))
    for number in range(updates):
        running, metrics = compiled(running, layout.shard(batch(number)), jax.random.key(KEY))
    full = layout.gather(layout.stored(running))
    return jax.device_get(full), jax.device_get(layout.first(metrics)), running


def assert_close(got, want):
    # Float32 sums of order 1 in another order: some ulp of 6e-8, through two updates.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), got, want)


@pytest.fixture(scope="module")
def whole():
    """Two updates on the whole batch, on one device."""
    state = initial(CONFIG)
    return state, run("single", CONFIG, state)


@pytest.mark.parametrize("name", ["single", "pmap", "mesh", "mesh+fsdp"])
def test_parts_of_a_batch_equal_the_whole(whole, name):
    state, (want, metrics, _) = whole
    config = dataclasses.replace(CONFIG, accumulate=2)
    got, got_metrics, _ = run(name, config, state.replace(config=config))
    assert_close(got.replace(config=CONFIG), want)
    assert_close(got_metrics, metrics)
    # And the update moves far more than that tolerance.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), want.params, state.params)
    assert max(jax.tree.leaves(moved)) > 1e-2


def test_an_optimal_scale_is_the_whole_batchs_also_in_parts():
    config = tiny.change(CONFIG, likelihood__name="laplace", likelihood__scale="optimal").resolved()
    state = initial(config)
    want, metrics, _ = run("single", config, state)
    parts = dataclasses.replace(config, accumulate=4)
    for name, accumulated in (
        ("single", parts),
        ("pmap", dataclasses.replace(parts, accumulate=2)),
    ):
        got, got_metrics, _ = run(name, accumulated, state.replace(config=accumulated))
        assert_close(got.replace(config=config), want)
        assert_close(got_metrics, metrics)


def test_fsdp_spreads_the_state_and_changes_no_number(whole):
    state, (want, metrics, _) = whole
    got, got_metrics, running = run("mesh+fsdp", CONFIG, state)
    assert_close(got, want)
    assert_close(got_metrics, metrics)
    for tree in (running.params, running.ema_params, running.opt_state[0].mu):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            held = leaf.addressable_data(0).size
            divisible = leaf.size >= 16 and any(side % 4 == 0 for side in leaf.shape)
            assert held == (leaf.size // 4 if divisible else leaf.size), path
    held = sum(leaf.addressable_data(0).size for leaf in jax.tree.leaves(running))
    # A quarter, and the small arrays: biases, and kernels with no side that 4 divides.
    assert held < 0.45 * sum(leaf.size for leaf in jax.tree.leaves(running))


def test_fsdp_creates_the_state_in_its_place():
    layout = devices.choose("auto", BATCH, fsdp=True)
    assert layout.mode == "mesh"
    made = layout.create(lambda key: create_state(CONFIG, key), jax.random.key(0))
    kernel = made.params["decoder"]["group_2"]["block_1"]["conv_4"]["kernel"]
    assert kernel.addressable_data(0).size == kernel.size // 4
    # The same random numbers; another fusion may round a kernel's scale once more.
    plain = create_state(CONFIG, jax.random.key(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-7), jax.device_get(made), plain
    )


def test_evaluation_of_a_spread_state(whole):
    state, _ = whole
    rows = [{**batch(), "mask": np.ones(BATCH, np.float32), "id": np.arange(BATCH, dtype=np.int32)}]
    results = {}
    for name in ("single", "mesh+fsdp"):
        layout = layout_of(name, CONFIG)
        placed = layout.replicate(jax.tree.map(np.array, state))
        results[name] = Evaluator(layout, CONFIG)(placed, rows, jax.random.key(3))
    for key, value in results["single"].items():
        # Rounding of float32 inside an image.
        assert results["mesh+fsdp"][key] == pytest.approx(value, rel=1e-5, abs=1e-5), key


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"mode": "mesh", "batch_size": 8, "accumulate": 4}, "over 4 devices in 4 parts each"),
        ({"mode": "pmap", "batch_size": 8, "fsdp": True}, "needs --parallel mesh"),
        ({"mode": "auto", "batch_size": 8, "devices": 5}, "5 devices were asked for"),
    ],
)
def test_layouts_that_cannot_be(request_, words):
    with pytest.raises(ValueError, match=words):
        devices.choose(**request_)


def test_fewer_devices_than_there_are():
    assert devices.choose("auto", 8, devices=2).count == 2
    assert devices.choose("auto", 7, devices=1).count == 1
    layout = devices.choose("mesh", 8, devices=2)
    placed = layout.shard(batch())["pixels"]
    assert {shard.device for shard in placed.addressable_shards} == set(jax.devices()[:2])


# --- Checkpoints -----------------------------------------------------------------------------

TRAVEL = """
import json, sys
import jax, numpy as np
from logit_laplace_jax.training import devices
from logit_laplace_jax.runs.checkpoints import Checkpoints
sys.path[:0] = sys.argv[1].split(":")
import test_layouts as t

devices._SMALLEST_SHARDED = 16
state = t.initial(t.CONFIG)
like = jax.eval_shape(lambda: t.create_state(t.CONFIG, jax.random.key(0)))
losses, sizes = [], []
from pathlib import Path
folder = Path(sys.argv[2])
stations = [("single", 1), ("mesh+fsdp", 2), ("pmap", 4), ("mesh+fsdp", 8), ("mesh", 4)]
stations += [("single", 1)]
for number, (name, count) in enumerate(stations):
    mode, _, spread = name.partition("+")
    layout = devices.choose(mode, t.BATCH, fsdp=spread == "fsdp", devices=count)
    assert layout.count == count
    with Checkpoints(folder, keep=2) as checkpoints:
        if number:
            stored, _ = checkpoints.restore(like, shardings=layout.state_shardings(like))
        else:
            stored = layout.place(state)
        running = layout.replicate(stored)
        running, metrics = layout.compile(t.train_step, donate=True)(
            running, layout.shard(t.batch(number)), jax.random.key(t.KEY)
        )
        losses.append(float(jax.device_get(layout.first(metrics))["loss"]))
        checkpoints.save(layout.stored(running), {"batch": number})
print(json.dumps(losses))
"""


def test_a_checkpoint_travels_between_1_2_4_and_8_devices(tmp_path):
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    here = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    result = subprocess.run(
        [sys.executable, "-c", TRAVEL, here, str(tmp_path / "checkpoints")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    travelled = json.loads(result.stdout.splitlines()[-1])
    layout = devices.choose("single", BATCH)
    compiled = layout.compile(train_step, donate=True)
    running = layout.replicate(jax.tree.map(np.array, initial(CONFIG)))
    for number, loss in enumerate(travelled):
        running, metrics = compiled(running, layout.shard(batch(number)), jax.random.key(KEY))
        # As above, through six updates.
        assert loss == pytest.approx(float(metrics["loss"]), abs=5e-5), number
    assert len(set(travelled)) == 6


def test_a_spread_state_is_saved_whole_and_read_by_one_device(tmp_path, whole):
    state, _ = whole
    layout = devices.choose("mesh", BATCH, fsdp=True)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(layout.place(jax.tree.map(np.array, state)), {"place": 3})
        checkpoints.wait()
        like = jax.eval_shape(lambda: create_state(CONFIG, jax.random.key(0)))
        read, place = checkpoints.restore(like)
    assert place == {"place": 3}
    jax.tree.map(np.testing.assert_array_equal, read.params, state.params)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(read))
    assert jnp.array_equal(read.step, state.step)
