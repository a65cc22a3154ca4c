"""A prior's run: the same loop as a dVAE's, resumption, devices, draws, and a known entropy."""

import contextlib
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from logit_laplace_jax.data.all_images import open_images
from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.data.sources import open_source
from logit_laplace_jax.models.prior_config import PriorConfig
from logit_laplace_jax.runs import directory, loop, metrics, pictures, tokenizers
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.tokens import files, jobs
from logit_laplace_jax.training import devices, prior_step
from logit_laplace_jax.training.config import PriorTrainConfig, from_dict, to_dict
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import create_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 4
SIZES = PriorConfig(features=8, layers=1, heads=2)


@pytest.fixture(scope="module")
def classes(paint, tmp_path_factory):
    """Images of two classes, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("classes")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            paint(folder / split / name, {".": 2})
    return folder


@pytest.fixture(scope="module")
def dvae(classes, tmp_path_factory):
    """A dVAE of one update."""
    folder = tmp_path_factory.mktemp("dvae") / "run"
    # Normalised on data, so that images differ in their tokens.
    config = tiny.run_config(
        classes, run_dir=str(folder), steps=1, evaluation__every=0, init="data"
    )
    loop.train(config, say=lambda line: None)
    return folder


def config_of(dvae, **changes):
    own = directory.read_config(dvae).resolved()
    base = PriorTrainConfig(
        run_dir="prior",
        run=str(dvae),
        dvae=own,
        data=own.data,
        evaluation=dataclasses.replace(own.evaluation, every=2),
        classes=("cat", "dog"),
        conditional=True,
        steps=STEPS,
        batch_size=4,
        parallel="single",
        checkpoint_every=2,
        learning_rate=Schedule(1e-2, 1e-3),
        prior=SIZES,
    )
    return dataclasses.replace(base, **changes)


def train(config, folder):
    folder.mkdir(exist_ok=True)
    said = []
    with contextlib.chdir(folder):
        run = loop.train(config, say=said.append)
    return run, said


@pytest.fixture(scope="module")
def unbroken(dvae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    train(config_of(dvae), folder)
    return folder / "prior"


def rows_of(folder):
    timing = {"images_per_second", "data_wait_share"}
    rows = metrics.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in timing} for row in rows]


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_directory_is_a_runs(unbroken, dvae):
    assert directory.read_config(unbroken) == config_of(dvae).resolved()
    assert {p.name for p in (unbroken / "checkpoints").iterdir()} >= {"2", "4"}
    assert {p.name for p in (unbroken / "samples").iterdir()} == {
        "step_0000002.png",
        "step_0000004.png",
    }
    state = directory.load(unbroken, kind="prior")
    assert_same_bits(state.frozen, directory.load(dvae).ema_params)
    held_out = [row for row in rows_of(unbroken) if row["split"] == "validation"][-1]
    # Adding to the codes' bits: 16 tokens of 8 codes for 192 values.
    assert held_out["bpd_uniform_codes"] == 16 * 3 / 192
    assert held_out["bpd_prior_codes"] == pytest.approx(held_out["bits_per_token"] * 16 / 192)


def test_a_broken_run_goes_on_to_the_same_bits(unbroken, dvae, tmp_path):
    # Stopped after two updates: a schedule that is stated in full does not notice.
    stated = config_of(dvae).resolved()
    train(dataclasses.replace(stated, steps=2), tmp_path)
    # What the encoder has become meanwhile is no concern of the prior's.
    _, said = train(dataclasses.replace(stated, run="gone"), tmp_path)
    assert any("resuming  at step 2" in line for line in said)
    broken = directory.load(tmp_path / "prior", kind="prior")
    whole = directory.load(unbroken, kind="prior")
    for name in ("params", "ema_params", "opt_state", "frozen"):
        assert_same_bits(getattr(broken, name), getattr(whole, name))
    assert rows_of(tmp_path / "prior") == rows_of(unbroken)


def test_other_requests_are_refused(unbroken, dvae, tmp_path):
    deeper = config_of(dvae, prior=dataclasses.replace(SIZES, layers=2))
    with pytest.raises(RunError, match=r"prior.layers: 1 there, 2 here"):
        train(deeper, unbroken.parent)
    with pytest.raises(RunError, match="run of a prior: name that of a dVAE"):
        directory.load(unbroken)
    with pytest.raises(RunError, match="run of a dVAE: name that of a prior"):
        directory.load(dvae, kind="prior")
    with pytest.raises(DataError, match="no training image has"):
        train(config_of(dvae, classes=("cat", "horse")), tmp_path)
    cats = open_source(f"{directory.read_config(dvae).data.source}/train/cat", "train")
    with pytest.raises(DataError, match="single class"):
        cats.classes()


def test_configurations_come_back_from_json(dvae):
    config = config_of(dvae)
    assert from_dict(to_dict(config)) == config


def test_one_device_and_four_agree(dvae):
    config = config_of(dvae, batch_size=8, accumulate=2, parallel="auto").resolved()
    state = create_state(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {
        "pixels": rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8),
        "labels": rng.integers(0, 2, 8).astype(np.int32),
    }
    found = {}
    for mode, fsdp in [("single", False), ("pmap", False), ("mesh", True)]:
        config = dataclasses.replace(config, accumulate=2 if mode == "single" else 1)
        layout = devices.choose(mode, 8, fsdp=fsdp)
        step = layout.compile(prior_step.train_step, donate=True)
        running = layout.replicate(layout.place(jax.device_get(state.replace(config=config))))
        after, values = step(running, layout.shard(batch), jax.random.key(1))
        whole = layout.gather(layout.stored(after))
        found[mode] = jax.device_get((whole.params, layout.first(values)["loss"]))
        assert_same_bits(jax.device_get(whole.frozen), jax.device_get(state.frozen))
    for mode in ("pmap", "mesh"):
        # AdamW's first update is the learning rate times the gradient's sign, nearly: a gradient of
        # rounding's size may differ in full, so the parameters are compared to a part of the rate.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2.1e-2), found["single"], found[mode]
        )
        assert found["single"][1] == pytest.approx(found[mode][1], rel=1e-6)


@pytest.fixture(scope="module")
def token_file(dvae, classes, tmp_path_factory):
    """The training images' tokens, as tokens.py writes them."""
    path = tmp_path_factory.mktemp("tokens") / "train.npz"
    images = open_images([str(classes)], which="train")
    jobs.encode(tokenizers.tokenizer_of_run(dvae), images, path, how="crop", image_size=8)
    tokens = files.read(path)
    assert len({tokens[i].tobytes() for i in range(4)}) == 2  # the two of each class
    return path


def test_tokens_from_a_file_train_the_same_as_their_images(dvae, token_file, tmp_path):
    config = config_of(dvae, steps=2)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, augment=False))
    found = []
    for name, tokens in (("images", None), ("file", str(token_file))):
        run, said = train(dataclasses.replace(config, tokens=tokens), tmp_path / name)
        found.append((run.state.params, rows_of(tmp_path / name / "prior")))
    assert any("4 images in" in line for line in said)
    # The same tokens, in the same order, under the same labels.
    assert_same_bits(*(params for params, _ in found))
    assert found[0][1] == found[1][1]

    # Resumed, wherever the file is by now; but not with other tokens.
    moved = tmp_path / "moved.npz"
    moved.write_bytes(token_file.read_bytes())
    stated = dataclasses.replace(config.resolved(), tokens=str(moved), steps=3)
    _, said = train(stated, tmp_path / "file")
    assert any("resuming" in line for line in said)
    with pytest.raises(DataError, match="start a new run"):
        train(dataclasses.replace(stated, tokens=None, steps=4), tmp_path / "file")


def test_tokens_that_are_not_the_runs_are_refused(dvae, token_file, tmp_path):
    tokens = files.read(token_file)
    other = tmp_path / "other.npz"
    files.write(other, [tokens], tokens.metadata | {"model": "0123456789abcdef"})
    with pytest.raises(RunError, match="tokens of model 0123456789abcdef"):
        train(config_of(dvae, tokens=str(other)), tmp_path / "a")
    small = files.from_grids([tokens[0][:2]], [(4, 8)], ["cat/a.png"], tokens.metadata)
    files.write(tmp_path / "small.npz", [small], tokens.metadata)
    with pytest.raises(DataError, match="grids of 2 x 4 tokens, the prior is of 4 x 4"):
        train(config_of(dvae, tokens=str(tmp_path / "small.npz")), tmp_path / "b")
    with pytest.raises(DataError, match="does not exist"):
        train(config_of(dvae, tokens="nowhere.npz"), tmp_path / "c")
    assert not (tmp_path / "c" / "prior").exists()


def test_tokens_of_known_entropy_are_learned_to_it(dvae, monkeypatch):
    """The tokens are a Markov chain over two codes: the loss ends at its entropy rate."""
    sizes = dataclasses.replace(SIZES, features=16)
    config = config_of(dvae, classes=(), conditional=False, prior=sizes, batch_size=64)
    config = dataclasses.replace(config, steps=150, learning_rate=Schedule(2e-2, 1e-3)).resolved()
    rng = np.random.default_rng(0)
    stay = 0.9

    def chain(count):
        flips = rng.random((count, config.prior.length)) > stay
        flips[:, 0] = rng.random(count) < 0.5
        return (np.cumsum(flips, axis=1) % 2).astype(np.int32)

    monkeypatch.setattr(prior_step, "token_rows", lambda frozen, pixels, config: pixels)
    state = create_state(config, jax.random.key(0))
    step = jax.jit(prior_step.train_step)
    for _ in range(config.steps):
        state, _ = step(state, {"pixels": jnp.asarray(chain(64))}, jax.random.key(0))
    tokens = jnp.asarray(chain(4096))
    found = -prior_step.log_prob(state.ema_params, tokens, {}, config).mean()
    rate = -(stay * math.log(stay) + (1 - stay) * math.log(1 - stay))
    length = config.prior.length
    entropy = (math.log(2) + (length - 1) * rate) / length
    # Above it by what is not yet learned; the sample's own mean has a deviation of
    # 0.66 / sqrt(4096 * 16) = 0.003 nats.
    assert entropy - 0.01 < found < entropy + 0.03


def test_the_same_seed_gives_the_same_draws_whatever_the_batch(unbroken):
    state = directory.load(unbroken, kind="prior")
    labels = pictures.labels(state.config, None, 7)
    draws = [pictures.Draws(seed=3, batch_size=size).tokens(state, 7, labels) for size in (7, 2)]
    np.testing.assert_array_equal(*draws)
    again = pictures.Draws(seed=3).tokens(state, 7, labels, cache=False)
    np.testing.assert_array_equal(draws[0], again)
    assert (pictures.Draws(seed=4).tokens(state, 7, labels) != draws[0]).any()
    with pytest.raises(RunError, match="no class is called 'cow'; there are cat, dog"):
        pictures.labels(state.config, "cow", 1)
