"""export.py as a user runs it."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from logit_laplace_jax import likelihoods
from logit_laplace_jax.models import DVAEConfig
from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.weights import exchange, openai

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY = DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4)


def write_run(folder, model=TINY, **options):
    """A run directory as train.py leaves it, without the training."""
    config = tiny.config(
        run_dir=str(folder),
        data__source="folder:some/where/pictures",
        image_size=8,
        steps=4,
        model=model,
    )
    config = tiny.change(config, **options)
    state = create_state(config, jax.random.key(0))
    # The average differs from the parameters, so that exporting the wrong one shows.
    state = state.replace(
        step=state.step + 3, ema_params=jax.tree.map(lambda leaf: leaf + 1, state.params)
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(configs.to_dict(config)))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, {})
    return state


@pytest.fixture
def here(run_script):
    """Run export.py: exit status, stdout and stderr."""
    return lambda *args: run_script("export.py", *args)[:3]


def assert_same(got, expected):
    same = jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), got, expected)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("ending", exchange.ENDINGS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"likelihood__eps": 0.05, "likelihood__min_log_scale": -5.0},
        {"likelihood__name": "laplace", "likelihood__scale": "shared"},
        {"likelihood__name": "categorical"},
    ],
)
def test_one_file_holds_the_average_and_says_what_it_is(ending, options, here, tmp_path):
    if ending == ".safetensors":
        pytest.importorskip("safetensors")
    state = write_run(tmp_path / "run", **options)
    status, out, err = here("run", f"model{ending}")
    assert status == 0, err
    assert f"model{ending}" in out
    weights = exchange.load(tmp_path / f"model{ending}")
    assert weights.config == state.config.model
    assert_same(weights.params, state.ema_params)
    metadata = weights.metadata
    assert metadata["step"] == 3
    assert metadata["eps"] == state.config.likelihood.eps
    # Its own folder's name, not where that folder stands.
    assert metadata["data"] == "folder:pictures"
    assert metadata["package"].startswith("logit_laplace_jax ")
    likelihood = likelihoods.get(metadata["likelihood"], **metadata["likelihood_options"])
    assert likelihood == state.config.likelihood.build()


def test_two_files_for_openais_modules(here, tmp_path):
    model = DVAEConfig(n_hid=64, n_blk_per_group=1, vocab_size=512, n_init=8)
    state = write_run(tmp_path / "run", model)
    status, _, err = here("run", "encoder.pt", "decoder.pt", "--openai")
    assert status == 0, err
    config, params = openai.load(tmp_path / "encoder.pt", tmp_path / "decoder.pt")
    assert config == model
    assert_same(params, state.ema_params)


def test_what_cannot_be_done_is_one_line_and_writes_nothing(here, tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "mine.pt").write_text("mine")
    for args, words in (
        (("run",), "name one file"),
        (("run", "a.pt", "b.pt"), "name one file"),
        (("run", "a.pt", "--openai"), "--openai writes two files"),
        (("run", "mine.pt"), "mine.pt exists"),
        (("run", "mine.pt", "b.pt", "--openai"), "mine.pt exists"),
        (("run", "a.npz"), "ending must be .safetensors or .pt"),
        (("run", "no/a.pt"), "no is not a folder"),
        (("run", "a.pt", "b.pt", "--openai"), "group_count is 2, not 4"),
        (("nowhere", "a.pt"), "not a run directory"),
        (("run", "a.pt", "--opneai"), "--opneai"),
    ):
        status, _, err = here(*args)
        assert status == 2, err
        assert err.startswith("export.py: error: ")
        assert len(err.splitlines()) == 1
        assert words in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pt", "run"]
    assert (tmp_path / "mine.pt").read_text() == "mine"
