"""Runs that start from trained weights, and runs that leave one half of the model alone."""

import contextlib
import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from logit_laplace_jax.runs import directory, loop, metrics
from logit_laplace_jax.runs.errors import CheckpointError, RunError
from logit_laplace_jax.runs.warm_start import started_from
from logit_laplace_jax.tokens import Tokenizer
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import train_step
from logit_laplace_jax.weights import exchange, openai

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "weights" / "data"  # of a model with the sizes of MODEL below
MODEL = tiny.MODEL
STEPS = 4
TIMING = {"images_per_second", "data_wait_share"}


@pytest.fixture(scope="module")
def base(photographs):
    return tiny.run_config(photographs, steps=STEPS, evaluation__every=2)


def start(config, folder, **changes):
    """A new state with the weights, and the names of what is anew."""
    config = tiny.change(config, run_dir=str(folder), **changes)
    state = create_state(config, directory.keys(config)[0])
    return started_from(state, config.init_from)


def train(config, folder, **changes):
    folder.mkdir(exist_ok=True)
    said = []
    with contextlib.chdir(folder):
        run = loop.train(tiny.change(config, **changes), say=said.append)
    return run, said


@pytest.fixture(scope="module")
def source(base, tmp_path_factory):
    """A finished run, and a file of its weights."""
    folder = tmp_path_factory.mktemp("source")
    train(base, folder, seed=7)
    state = directory.load(folder / "run")
    exchange.save(folder / "model.safetensors", MODEL, jax.device_get(state.ema_params))
    return folder, state


def assert_same_bits(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def names_of(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


# --- Where weights come from -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["run", "model.safetensors", "published", "state_dicts", "halves"])
def test_weights_are_the_sources_before_the_first_step(base, source, tmp_path, kind):
    folder, state = source
    want = state.ema_params
    if kind == "halves":  # each half in a file of its own, in two formats
        name = f"{DATA / 'encoder_legacy.pkl'},{DATA / 'decoder.pt'}"
        want = openai.load(DATA / "encoder.pkl", DATA / "decoder.pkl")[1]
    elif kind in ("published", "state_dicts"):
        ending = {"published": "pkl", "state_dicts": "pt"}[kind]
        paths = [DATA / f"{half}.{ending}" for half in ("encoder", "decoder")]
        name, want = ",".join(map(str, paths)), openai.load(*paths)[1]
    else:
        name = str(folder / kind)
    state, fresh = start(base, tmp_path, init_from=name)
    assert_same_bits(state.params, want)
    assert_same_bits(state.ema_params, want)
    assert fresh == []
    # The rest is that of a new run.
    new = create_state(base, jax.random.key(0))
    assert_same_bits((state.step, state.opt_state), (new.step, new.opt_state))
    kernels = [tree["encoder"]["input"]["kernel"] for tree in (new.params, state.params)]
    assert not np.array_equal(*kernels)
    # No buffer twice: the step donates them all.
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)


def test_a_run_gives_its_average_not_its_last_parameters(source):
    _, state = source
    kernels = [tree["encoder"]["input"]["kernel"] for tree in (state.params, state.ema_params)]
    assert not np.array_equal(*kernels)  # or the test above would not tell them apart


OTHERS = {
    "categorical": ({"likelihood__name": "categorical"}, {"bias", "kernel"}),
    "one statistic": ({"likelihood__name": "continuous_bernoulli"}, {"bias", "kernel"}),
    "as many maps": ({"likelihood__name": "logit_normal"}, set()),
    "a learned scale": (
        {"likelihood__name": "laplace", "likelihood__scale": "per_channel"},
        {"bias", "kernel"},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_likelihood_starts_its_head_anew(base, source, tmp_path, name):
    changes, fresh = OTHERS[name]
    fresh = {f"decoder/output/{part}" for part in fresh}
    if "likelihood__scale" in changes:
        fresh.add("decoder/log_scale")
    folder, state = source
    started, named = start(base, tmp_path, init_from=str(folder / "model.safetensors"), **changes)
    given = names_of(state.ema_params)
    config = tiny.change(base, **changes)
    new = names_of(create_state(config, jax.random.split(jax.random.key(base.seed), 3)[0]).params)
    for tree in (started.params, started.ema_params):
        for path, leaf in names_of(tree).items():
            want = new if path in fresh else given
            np.testing.assert_array_equal(leaf, want[path], err_msg=path)
    assert set(named) == fresh


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"n_hid": 8}, ["n_hid 4 there, 8 here"]),
        ({"group_count": 3}, ["group_count 2 there, 3 here"]),
        ({"n_blk_per_group": 2}, ["n_blk_per_group 1 there, 2 here"]),
        ({"vocab_size": 16, "n_init": 8}, ["vocab_size 8 there, 16 here", "n_init 4 there, 8"]),
        ({"channels": 1}, ["channels 3 there, 1 here"]),
    ],
)
def test_other_sizes_are_refused(base, source, tmp_path, model, words):
    folder, _ = source
    for name in ("run", "model.safetensors"):
        with pytest.raises(RunError, match="are of another model") as caught:
            start(
                base,
                tmp_path,
                init_from=str(folder / name),
                model=dataclasses.replace(MODEL, **model),
            )
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in words)
        assert message.count(" there, ") == len(model)  # and no other field
    assert not list(tmp_path.iterdir())


def test_another_eps_is_refused(base, source, tmp_path):
    # Its encoder would see other pixels than it was trained on.
    folder, _ = source
    with pytest.raises(RunError, match=r"eps 0\.1 there, 0\.2 here"):
        start(base, tmp_path, init_from=str(folder / "run"), likelihood__eps=0.2)
    assert not list(tmp_path.iterdir())


def test_sources_that_are_none(base, source, tmp_path):
    folder, _ = source
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.pt").write_bytes(b"no weights")
    started = tmp_path / "started"
    started.mkdir()
    shutil.copy(folder / "run" / "config.json", started)
    for name, kind, words in (
        ("nowhere", ValueError, "nowhere does not exist"),
        (f"{DATA / 'encoder.pkl'},nowhere", ValueError, "nowhere does not exist"),
        ("a,b,c", ValueError, "ENCODER,DECODER"),
        (str(tmp_path / "empty"), ValueError, "is not a run directory"),
        (str(started), CheckpointError, "no complete checkpoint"),
        (str(tmp_path / "junk.pt"), ValueError, "junk.pt"),
        (str(DATA / "encoder.pkl"), ValueError, "encoder.pkl"),
        (f"{DATA / 'decoder.pkl'},{DATA / 'decoder.pkl'}", ValueError, "decoder"),
    ):
        with pytest.raises(kind, match=words) as caught:
            start(base, tmp_path, init_from=name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# --- Going on --------------------------------------------------------------------------------


def rows_of(folder):
    rows = metrics.read(folder / "run" / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def test_a_start_that_saved_nothing_takes_the_weights_again(base, source, tmp_path):
    # As a run leaves it that was killed before its first checkpoint.
    name = str(source[0] / "run")
    whole, _ = train(base, tmp_path / "whole", init_from=name)
    folder = tmp_path / "parts" / "run"
    shutil.copytree(tmp_path / "whole" / "run", folder)
    for step in list((folder / "checkpoints").iterdir()):
        shutil.rmtree(step)
    (folder / "checkpoints" / "2.orbax-checkpoint-tmp").mkdir()
    parts, said = train(base, tmp_path / "parts", init_from=name)
    assert [line for line in said if line.startswith("weights")]
    assert_same_bits(parts.state, whole.state)


def test_data_initialisation_leaves_given_weights_alone(base, source, tmp_path, monkeypatch):
    def never(*args):
        raise AssertionError("the given weights would be lost")

    monkeypatch.setattr(loop, "normalised_on_data", never)
    train(base, tmp_path, init_from=str(source[0] / "run"), init="data")


# --- One half alone --------------------------------------------------------------------------

BATCH = 8


def updated(config, name, updates=3):
    """The state before and after some updates, in full and on the host."""
    mode, _, how = name.partition("+")
    parts = 2 if how == "accumulate" else 1
    config = dataclasses.replace(config, batch_size=BATCH, accumulate=parts).resolved()
    layout = devices.choose(mode, BATCH, accumulate=parts, fsdp=how == "fsdp")
    before = jax.device_get(create_state(config, jax.random.key(3)))
    running = layout.replicate(jax.tree.map(np.array, before))
    step = layout.compile(train_step, donate=True)
    rng = np.random.default_rng(0)
    for _ in range(updates):
        batch = {"pixels": rng.integers(0, 256, (BATCH, 8, 8, 3)).astype(np.uint8)}
        running, _ = step(running, layout.shard(batch), jax.random.key(1))
    return before, jax.device_get(layout.gather(layout.stored(running)))


@pytest.mark.parametrize(
    ("half", "name"),
    [
        ("encoder", "single"),
        ("encoder", "pmap"),
        ("encoder", "mesh+fsdp"),
        ("decoder", "single+accumulate"),
    ],
)
def test_a_frozen_half_keeps_every_bit(base, monkeypatch, half, name):
    monkeypatch.setattr(devices, "_SMALLEST_SHARDED", 16)
    # Biases start at 0, where weight decay shows nothing; kernels do not.
    assert base.optimizer.weight_decay > 0
    before, after = updated(dataclasses.replace(base, freeze=half), name)
    assert after.step == 3
    other = {"encoder": "decoder", "decoder": "encoder"}[half]
    for tree in ("params", "ema_params"):
        old, new = getattr(before, tree), getattr(after, tree)
        assert_same_bits(new[half], old[half])
        for path, leaf in names_of(new[other]).items():
            assert not np.array_equal(leaf, names_of(old[other])[path]), path


def test_tokens_of_a_frozen_encoder_stay(base, source, tmp_path):
    folder, state = source
    run, _ = train(base, tmp_path, init_from=str(folder / "model.safetensors"), freeze="encoder")
    pixels = np.random.default_rng(5).integers(0, 256, (6, 16, 12, 3)).astype(np.uint8)
    before = Tokenizer(MODEL, state.ema_params, eps=base.likelihood.eps)
    after = Tokenizer(MODEL, directory.load(tmp_path / "run").ema_params, eps=base.likelihood.eps)
    tokens = np.asarray(before.encode(pixels))
    np.testing.assert_array_equal(after.encode(pixels), tokens)
    assert len(np.unique(tokens)) > 1
    # The decoder did learn.
    assert not np.array_equal(before.decode(tokens), after.decode(tokens))
    assert_same_bits(run.state.params["encoder"], state.ema_params["encoder"])
    # What is frozen cannot change within a run.
    for other in ("none", "decoder"):
        with pytest.raises(RunError, match=f"freeze: encoder there, {other} here"):
            train(base, tmp_path, init_from=str(folder / "model.safetensors"), freeze=other)
