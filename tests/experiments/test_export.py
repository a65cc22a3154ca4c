"""export.py as a user runs it."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from logit_laplace_jax import likelihoods
from logit_laplace_jax.models import DVAEConfig
from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training.config import DataConfig, LikelihoodConfig
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.weights import exchange

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4)


def write_run(folder, likelihood=LikelihoodConfig()):  # noqa: B008 (frozen)
    """A run directory as train.py leaves it, without the training."""
    config = configs.TrainConfig(
        run_dir=str(folder),
        data=DataConfig("folder:some/where/pictures"),
        image_size=8,
        steps=4,
        likelihood=likelihood,
        model=TINY,
    )
    state = create_state(config, jax.random.key(0))
    # The average differs from the parameters, so that exporting the wrong one shows.
    average = jax.tree.map(lambda leaf: leaf + 1, state.params)
    state = state.replace(step=state.step + 3, ema_params=average)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(configs.to_dict(config)))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, {})
    return state


@pytest.mark.parametrize(
    "likelihood",
    [
        LikelihoodConfig(eps=0.05, min_log_scale=-5.0),
        LikelihoodConfig("laplace", scale="shared"),
        LikelihoodConfig("categorical"),
    ],
    ids=lambda likelihood: likelihood.name,
)
def test_the_file_holds_the_average_and_says_what_it_is(likelihood, run_script, tmp_path):
    state = write_run(tmp_path / "run", likelihood)
    status, out, err, changed = run_script("export.py", "run", "model.safetensors")
    assert status == 0, err
    assert out.startswith("model.safetensors: ")
    assert changed == {"model.safetensors"}
    weights = exchange.load(tmp_path / "model.safetensors")
    assert weights.config == state.config.model
    jax.tree.map(np.testing.assert_array_equal, weights.params, state.ema_params)
    metadata = weights.metadata
    assert metadata["step"] == 3
    assert metadata["eps"] == likelihood.eps
    # Its own folder's name, not where that folder stands.
    assert metadata["data"] == "folder:pictures"
    assert metadata["package"].startswith("logit_laplace_jax ")
    found = likelihoods.get(metadata["likelihood"], **metadata["likelihood_options"])
    assert found == dataclasses.replace(likelihood).build()


def test_what_cannot_be_done_is_one_line_and_writes_nothing(run_script, tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "mine.safetensors").write_text("mine")
    for args, words in (
        (("run",), "required"),
        (("run", "a.safetensors", "b.safetensors"), "b.safetensors"),
        (("run", "mine.safetensors"), "mine.safetensors exists"),
        (("run", "a.pt"), "ending must be .safetensors"),
        (("run", "no/a.safetensors"), "no is not a folder"),
        (("nowhere", "a.safetensors"), "not a run directory"),
        (("run", "a.safetensors", "--opneai"), "--opneai"),
    ):
        status, _, err, changed = run_script("export.py", *args)
        assert status == 2, err
        assert err.startswith("export.py: error: ")
        assert len(err.splitlines()) == 1
        assert words in err
        assert not changed
