"""Runs that start from trained weights, and runs that leave one half of the model alone."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs import directory, loop, tasks
from logit_laplace_jax.runs.errors import CheckpointError, RunError
from logit_laplace_jax.runs.warm_start import started_from
from logit_laplace_jax.tokens import Tokenizer
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import (
    DataConfig,
    EvaluationConfig,
    LikelihoodConfig,
    OptimizerConfig,
    TrainConfig,
)
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import train_step
from logit_laplace_jax.weights import exchange, openai

pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = Path(__file__).parents[1] / "weights" / "data"  # of a model with the sizes of MODEL below
MODEL = DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4)
STEPS = 4
BATCH = 8
TIMING = {"images_per_second", "data_wait_share"}


@pytest.fixture(scope="module")
def base(photographs):
    return TrainConfig(
        run_dir="run",
        data=DataConfig(f"folder:{photographs}"),
        steps=STEPS,
        batch_size=4,
        image_size=8,
        parallel="single",
        checkpoint_every=2,
        likelihood=LikelihoodConfig(min_log_scale=-5.0),
        evaluation=EvaluationConfig(every=2, images=2),
        beta=Schedule(0.0, 0.5, 4),
        temperature=Schedule(1.0, 0.5, STEPS),
        learning_rate=Schedule(1e-2, 1e-3, STEPS),
        optimizer=OptimizerConfig(ema_decay=0.5, weight_decay=0.1),
        model=MODEL,
    )


def train(config, folder, **changes):
    """The run, and what it said."""
    said = []
    folder.mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        run = loop.train(dataclasses.replace(config, **changes), say=said.append)
    return run, said


@pytest.fixture(scope="module")
def source(base, tmp_path_factory):
    """A finished run, a file of its weights, and its state."""
    folder = tmp_path_factory.mktemp("source")
    train(base, folder, seed=7)
    state = directory.load(folder / "run")
    exchange.save(folder / "model.safetensors", MODEL, jax.device_get(state.ema_params))
    return folder, state


def fresh_state(config):
    return create_state(config, jax.random.key(0))


def assert_same_bits(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def names_of(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


# --- Where weights come from -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "model.safetensors", "pkl", "pt", "two kinds"])
def test_a_state_with_the_weights_of_every_source(base, source, kind):
    folder, state = source
    if kind in ("run", "model.safetensors"):
        name, want = str(folder / kind), state.ema_params
    else:
        pair = {"two kinds": ("encoder_legacy.pkl", "decoder.pt")}.get(
            kind, (f"encoder.{kind}", f"decoder.{kind}")
        )
        name = ",".join(str(DATA / part) for part in pair)
        want = openai.load(DATA / "encoder.pkl", DATA / "decoder.pkl")[1]
    fresh = fresh_state(base)
    started, anew = started_from(fresh, name)
    assert not anew
    assert_same_bits((started.params, started.ema_params), (want, want))
    assert_same_bits((started.step, started.opt_state), (fresh.step, fresh.opt_state))
    # No buffer twice: the step donates them all.
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(started)]
    assert len(set(buffers)) == len(buffers)


def test_a_run_gives_its_average_not_its_last_parameters(source):
    _, state = source
    kernels = [tree["encoder"]["input"]["kernel"] for tree in (state.params, state.ema_params)]
    assert not np.array_equal(*kernels)  # or the test above would not tell them apart


OTHERS = {
    "categorical": (LikelihoodConfig("categorical"), {"bias", "kernel"}),
    "one statistic": (LikelihoodConfig("continuous_bernoulli"), {"bias", "kernel"}),
    "as many maps": (LikelihoodConfig("logit_normal"), set()),
    "a learned scale": (LikelihoodConfig("laplace", scale="per_channel"), {"bias", "kernel"}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_likelihood_starts_its_head_anew(base, source, name):
    likelihood, parts = OTHERS[name]
    anew = {f"decoder/output/{part}" for part in parts}
    if likelihood.scale == "per_channel":
        anew.add("decoder/log_scale")
    folder, state = source
    new = fresh_state(dataclasses.replace(base, likelihood=likelihood))
    started, said = started_from(new, str(folder / "model.safetensors"))
    assert set(said) == anew
    new, given = names_of(new.params), names_of(state.ema_params)
    for tree in (started.params, started.ema_params):
        for path, leaf in names_of(tree).items():
            want = new if path in anew else given
            np.testing.assert_array_equal(leaf, want[path], err_msg=path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_hid": 8}, ["n_hid 4 there, 8 here"]),
        ({"group_count": 3}, ["group_count 2 there, 3 here"]),
        ({"n_blk_per_group": 2}, ["n_blk_per_group 1 there, 2 here"]),
        ({"vocab_size": 16, "n_init": 8}, ["vocab_size 8 there, 16 here", "n_init 4 there, 8"]),
        ({"channels": 1}, ["channels 3 there, 1 here"]),
    ],
)
def test_other_sizes_are_refused(base, source, changes, words):
    folder, _ = source
    state = fresh_state(dataclasses.replace(base, model=dataclasses.replace(MODEL, **changes)))
    with pytest.raises(RunError, match="are of another model") as caught:
        started_from(state, str(folder / "model.safetensors"))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words)
    assert message.count(" there, ") == len(changes)  # and no other field


def test_sources_that_are_none(base, source, tmp_path):
    folder, _ = source
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.pt").write_bytes(b"no weights")
    (tmp_path / "started").mkdir()
    shutil.copy(folder / "run" / "config.json", tmp_path / "started")
    state = fresh_state(base)
    for name, kind, words in (
        ("nowhere", RunError, "nowhere does not exist"),
        (f"{DATA / 'encoder.pkl'},nowhere", RunError, "nowhere does not exist"),
        ("a,b,c", RunError, "ENCODER,DECODER"),
        (str(tmp_path / "empty"), RunError, "is not a run directory"),
        (str(tmp_path / "started"), CheckpointError, "no complete checkpoint"),
        (str(tmp_path / "junk.pt"), ValueError, "junk.pt"),
        (str(DATA / "encoder.pkl"), ValueError, "encoder.pkl"),
        (f"{DATA / 'decoder.pkl'},{DATA / 'decoder.pkl'}", ValueError, "decoder"),
    ):
        with pytest.raises(kind, match=words) as caught:
            started_from(state, name)
        assert "\n" not in str(caught.value)
    # The encoder would see other pixels than it was trained on.
    other = fresh_state(dataclasses.replace(base, likelihood=LikelihoodConfig(eps=0.2)))
    with pytest.raises(RunError, match=r"eps 0\.1 there, 0\.2 here"):
        started_from(other, str(folder / "run"))


# --- Runs -------------------------------------------------------------------------------------


def rows_of(folder):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def test_a_resumed_run_goes_on_from_its_own_checkpoint(base, source, tmp_path):
    shutil.copytree(source[0] / "run", tmp_path / "weights")
    name = str(tmp_path / "weights")
    whole, said = train(base, tmp_path / "whole", init_from=name)
    assert [line for line in said if line.startswith("weights") and name in line]
    # As a run leaves it that was killed after its first checkpoint.
    shutil.copytree(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    shutil.rmtree(tmp_path / "parts" / "run" / "checkpoints" / str(STEPS))
    shutil.rmtree(name)  # by then nobody needs it
    parts, said = train(base, tmp_path / "parts", init_from=name)
    assert not [line for line in said if line.startswith("weights")]
    assert any("resuming  at step 2" in line for line in said)
    assert_same_bits(parts.state, whole.state)
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    # Where the weights came from is part of the run.
    for other in (None, "elsewhere"):
        with pytest.raises(RunError, match=r"init_from: .* there, "):
            train(base, tmp_path / "parts", init_from=other)


def test_data_initialisation_leaves_given_weights_alone(base, source, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("the given weights would be lost")

    monkeypatch.setattr(tasks, "normalised_on_data", never)
    train(base, tmp_path, init_from=str(source[0] / "run"), init="data", steps=1)


def test_tokens_of_a_frozen_encoder_stay(base, source, tmp_path):
    folder, state = source
    name = str(folder / "model.safetensors")
    run, _ = train(base, tmp_path, init_from=name, freeze="encoder")
    pixels = np.random.default_rng(5).integers(0, 256, (6, 16, 12, 3)).astype(np.uint8)
    before = Tokenizer(MODEL, state.ema_params)
    after = Tokenizer(MODEL, run.state.ema_params)
    tokens = np.asarray(before.encode(pixels))
    np.testing.assert_array_equal(after.encode(pixels), tokens)
    assert len(np.unique(tokens)) > 1
    # The decoder did learn.
    assert not np.array_equal(before.decode(tokens), after.decode(tokens))
    # What is frozen cannot change within a run.
    with pytest.raises(RunError, match="freeze: encoder there, none here"):
        train(base, tmp_path, init_from=name, freeze="none")


@pytest.mark.parametrize(
    ("half", "name"),
    [("encoder", "pmap"), ("encoder", "mesh+fsdp"), ("decoder", "mesh+accumulate")],
)
def test_a_frozen_half_keeps_every_bit(base, monkeypatch, half, name):
    monkeypatch.setattr(devices, "_SMALLEST_SHARDED", 16)
    # Biases start at 0, where weight decay shows nothing; kernels do not.
    assert base.optimizer.weight_decay > 0
    mode, _, how = name.partition("+")
    parts = 2 if how == "accumulate" else 1
    config = dataclasses.replace(base, batch_size=BATCH, accumulate=parts, freeze=half).resolved()
    layout = devices.choose(mode, BATCH, accumulate=parts, fsdp=how == "fsdp")
    before = jax.device_get(create_state(config, jax.random.key(3)))
    running = layout.replicate(layout.place(jax.tree.map(np.array, before)))
    step = layout.compile(train_step, donate=True)
    rng = np.random.default_rng(0)
    for _ in range(3):
        batch = {"pixels": rng.integers(0, 256, (BATCH, 8, 8, 3)).astype(np.uint8)}
        running, _ = step(running, layout.shard(batch), jax.random.key(1))
    after = jax.device_get(layout.gather(layout.stored(running)))
    other = {"encoder": "decoder", "decoder": "encoder"}[half]
    for tree in ("params", "ema_params"):
        old, new = getattr(before, tree), getattr(after, tree)
        assert_same_bits(new[half], old[half])
        for path, leaf in names_of(new[other]).items():
            assert not np.array_equal(leaf, names_of(old[other])[path]), path
