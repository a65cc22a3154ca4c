"""Presets: every one builds, and the paper's run has the paper's numbers."""

import dataclasses
import importlib
import sys
from pathlib import Path

import pytest
import tiny

from logit_laplace_jax.training.config import TrainConfig

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
NAMES = ("photos", "smoke", "cifar10", "imagenet64", "dalle")


@pytest.fixture(scope="module")
def configs():
    sys.path.insert(0, str(EXPERIMENTS))
    yield importlib.import_module("configs")
    sys.path.remove(str(EXPERIMENTS))


def test_the_presets_are_the_contracts(configs):
    assert set(configs.PRESETS) == set(NAMES)
    modules = {p.stem for p in (EXPERIMENTS / "configs").glob("*.py")} - {"__init__"}
    assert modules == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_builds(configs, name):
    config = configs.load(name)
    assert isinstance(config, TrainConfig)
    assert config.run_dir == f"runs/{name}"
    assert config.likelihood.build().num_stats == config.model.stats_per_channel
    # The schedules end within the run, so that it ends as it was meant to.
    resolved = config.resolved()
    for schedule in (resolved.beta, resolved.temperature, resolved.learning_rate):
        assert schedule.steps <= config.steps
    # Its own header names the preset, or nothing could tell what it is for.
    module = importlib.import_module(f"configs.{name}")
    assert module.__doc__
    assert f"experiments/train.py {name}".removesuffix(" photos") in module.__doc__


def test_what_runs_without_a_network(configs):
    # The default and the test preset read the embedded photographs.
    for name in ("photos", "smoke"):
        assert configs.load(name).data.source == "photos"


def test_dalle_is_the_recipe_number_by_number(configs):
    config = configs.load("dalle")
    # Ramesh et al. 2021, appendix A.2.
    assert config.steps == 3_000_000
    assert config.batch_size == 512
    assert config.image_size == 256
    assert config.likelihood.name == "logit_laplace"
    schedules = {
        "beta": (0.0, 6.6, 5_000, "cosine"),
        "temperature": (1.0, 1 / 16, 150_000, "cosine"),
        "learning_rate": (1e-4, 1.25e-6, 1_200_000, "cosine"),
    }
    for name, values in schedules.items():
        assert dataclasses.astuple(getattr(config, name)) == values, name
    assert dataclasses.asdict(config.optimizer) == {
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 1e-4,
        "ema_decay": 0.999,
        "loss_scale": 32_768.0,  # the paper says "global loss scaling" and no number
        "loss_scale_growth": 2_000,
    }
    # Appendix A.3: ε of the pixel map, no floor of ln b; listing 1: the square of the short side.
    assert config.likelihood.eps == 0.1
    assert config.likelihood.min_log_scale is None
    likelihood = config.likelihood
    assert (likelihood.objective, likelihood.scale, likelihood.dequantize) == (
        "density",
        "per_pixel",
        False,
    )
    assert config.data.min_crop == 1.0
    # openai/DALL-E encoder.py and decoder.py.
    assert config.init == "openai"
    model = dataclasses.asdict(config.model)
    assert model.pop("dtype") == config.precision == "float16"
    assert model.pop("remat") in (False, True)  # changes memory, not numbers
    assert model == {
        "group_count": 4,
        "n_hid": 256,
        "n_blk_per_group": 2,
        "vocab_size": 8192,
        "n_init": 128,
        "channels": 3,
        "stats_per_channel": 2,
        "constant_scale": "none",
        "straight_through": False,
    }
    assert config.model.token_grid(256, 256) == (32, 32)
    assert config.model.post_gain == 1 / 64
    # β/192: eight by eight pixels of three values share a token.
    assert config.model.downsampling**2 * config.model.channels == 192


def test_the_defaults_are_the_papers_too(configs):
    # The class says that its defaults are the paper's: what the preset spells out must equal them.
    default = tiny.change(TrainConfig(run_dir="runs/dalle"), data__source="tfds:imagenet2012")
    # The class's float32 runs everywhere; how often metrics are written is no part of the recipe.
    expected = dataclasses.replace(default, precision="float16", log_every=50)
    assert configs.load("dalle") == expected
