"""The configuration: checks, JSON, and which differences keep a run from going on."""

import dataclasses
import json

import pytest

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training.config import OptimizerConfig, TrainConfig
from logit_laplace_jax.training.schedules import Schedule

BASE = TrainConfig(run_dir="r", data="photos", steps=10, batch_size=4, image_size=16)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("steps", 0, "steps must be 1 or more"),
        ("batch_size", 0, "batch_size"),
        ("image_size", -8, "image_size"),
        ("image_size", 12, "multiples of 8"),
        ("keep_checkpoints", 0, "keep_checkpoints"),
        ("log_every", 0, "log_every"),
        ("eval_every", -1, "eval_every must be 0 or more"),
        ("checkpoint_every", -1, "checkpoint_every"),
        ("seed", -1, "seed"),
        ("seed", 2**32, "seed must be below"),
        ("min_crop", 0.0, "min_crop"),
        ("min_crop", 1.5, "min_crop"),
        ("eval_scale", 0.0, "eval_scale"),
        ("eval_images", 0, "eval_images"),
        ("temperature", Schedule(1.0, 0.0), "temperature must stay above 0"),
        ("learning_rate", Schedule(0.0, 1e-3), "learning_rate must stay above 0"),
        ("init", "xavier", "init must be openai or data"),
        ("init_logit_std", 0.0, "init_logit_std must be positive"),
        ("likelihood", "gauss", "unknown likelihood 'gauss'"),
        ("eps", 0.5, "eps"),
        ("objective", "elbo", "objective must be density or mass"),
        ("scale", "predicted", "scale"),
        ("coupled", True, "likelihood logit_laplace has no option --coupled"),
        ("components", 5, "likelihood logit_laplace has no option --components"),
        ("min_log_scale", float("nan"), "min_log_scale"),
    ],
)
def test_refused(field, value, words):
    with pytest.raises(ValueError, match=words) as caught:
        dataclasses.replace(BASE, **{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("b1", 1.0), ("b2", -0.1), ("ema_decay", 1.0), ("ema_decay", 2.0)]
)
def test_optimizer_refused(field, value):
    with pytest.raises(ValueError, match=field):
        OptimizerConfig(**{field: value})


@pytest.mark.parametrize(
    ("options", "maps", "constant"),
    [
        ({}, 2, "none"),
        ({"scale": "shared"}, 2, "shared"),
        ({"scale": "per_channel", "likelihood": "normal"}, 2, "per_channel"),
        ({"scale": "fixed", "fixed_scale": 0.05}, 1, "none"),
        ({"scale": "optimal"}, 1, "none"),
        ({"likelihood": "categorical"}, 256, "none"),
        ({"likelihood": "logistic_mixture", "components": 3}, 9, "none"),
        ({"likelihood": "logistic_mixture", "components": 3, "coupled": True}, 12, "none"),
    ],
)
def test_the_head_follows_the_likelihood(options, maps, constant):
    config = dataclasses.replace(BASE, model=DVAEConfig(stats_per_channel=5), **options)
    assert config.model.stats_per_channel == config.build_likelihood().num_stats == maps
    assert config.model.constant_scale == constant
    # And follows again when the likelihood changes back.
    plain = dataclasses.replace(
        config,
        likelihood="logit_laplace",
        scale="per_pixel",
        fixed_scale=0.1,
        components=10,
        coupled=False,
    )
    assert (plain.model.stats_per_channel, plain.model.constant_scale) == (2, "none")


def test_options_that_cannot_go_together():
    with pytest.raises(ValueError, match="dequantize is for objective density"):
        dataclasses.replace(BASE, dequantize=True, objective="mass")
    with pytest.raises(ValueError, match="categorical has no option --scale"):
        dataclasses.replace(BASE, likelihood="categorical", scale="shared")


def test_a_floor_not_given_is_the_familys_own():
    mixture = dataclasses.replace(BASE, likelihood="logistic_mixture")
    assert mixture.build_likelihood().min_log_scale == -7.0
    assert BASE.build_likelihood().min_log_scale is None
    floored = dataclasses.replace(mixture, min_log_scale=-5.0)
    assert floored.build_likelihood().min_log_scale == -5.0


def test_resolved_fills_the_whole_run_in_and_nothing_else():
    config = dataclasses.replace(BASE, beta=Schedule(0.0, 1.0), temperature=Schedule(1.0, 0.5, 3))
    resolved = config.resolved()
    assert resolved.beta == Schedule(0.0, 1.0, 10)
    assert resolved.temperature == Schedule(1.0, 0.5, 3)
    assert resolved.resolved() == resolved


def test_json_there_and_back():
    config = dataclasses.replace(
        BASE,
        eval_scale=0.25,
        beta=Schedule(0.0, 0.1),
        optimizer=OptimizerConfig(b1=0.8),
        precision="bfloat16",
        model=DVAEConfig(group_count=2),
    )
    assert configs.from_dict(json.loads(json.dumps(configs.to_dict(config)))) == config


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(surprise=1), "surprise"),
        (lambda v: v.pop("run_dir"), "run_dir"),
        (lambda v: v["model"].update(surprise=1), "surprise"),
        (lambda v: v.update(model=3), "not a configuration"),
        (lambda v: v.update(steps=-1), "steps"),
    ],
)
def test_a_file_of_another_version_is_a_value_error(change, words):
    values = configs.to_dict(BASE)
    change(values)
    with pytest.raises(ValueError, match=words):
        configs.from_dict(values)


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_json_that_is_no_configuration_is_a_value_error(values):
    with pytest.raises(ValueError, match="not a configuration"):
        configs.from_dict(values)


DECIDING = {
    "seed": 1,
    "batch_size": 8,
    "image_size": 32,
    "data": "folder:/elsewhere",
    "eps": 0.2,
    "min_log_scale": -3.0,
    "likelihood": "normal",
    "objective": "mass",
    "scale": "optimal",
    "fixed_scale": 0.2,
    "dequantize": True,
    "min_crop": 0.5,
    "eval_scale": 0.5,
    "init": "data",
    "init_logit_std": 2.0,
    "init_from": "model.pt",
    "freeze": "encoder",
    "precision": "bfloat16",
    "beta": Schedule(0.0, 1.0, 5),
    "optimizer": OptimizerConfig(b2=0.99),
    "model": DVAEConfig(n_hid=8),
}
FREE = {
    "run_dir": "elsewhere",
    "steps": 20,
    "parallel": "single",
    "fsdp": True,
    "devices": 1,
    "accumulate": 2,
    "data_threads": 1,
    "eval_every": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "log_every": 1,
    "data_dir": "/elsewhere",
    "eval_images": 3,
    "debug": True,
}


@pytest.mark.parametrize("field", DECIDING)
def test_differences_that_decide_are_named_with_both_values(field):
    lines = configs.differences(BASE, dataclasses.replace(BASE, **{field: DECIDING[field]}))
    assert lines
    for line in lines:
        assert line.startswith(field)
        assert " there, " in line
        assert line.endswith(" here")


@pytest.mark.parametrize("field", FREE)
def test_differences_that_a_resumed_run_may_have(field):
    assert configs.differences(BASE, dataclasses.replace(BASE, **{field: FREE[field]})) == []


def test_more_steps_change_a_schedule_that_lasts_the_whole_run():
    whole = dataclasses.replace(BASE, beta=Schedule(0.0, 1.0))
    assert configs.differences(whole, dataclasses.replace(whole, steps=20)) == [
        "beta.steps: 10 there, 20 here"
    ]


def test_every_field_is_either_deciding_or_free():
    # A new field must be put into one of the tables above.
    of_a_mixture = {"components", "coupled"}
    known = {*DECIDING, *FREE, *of_a_mixture, "temperature", "learning_rate"}
    assert {field.name for field in dataclasses.fields(TrainConfig)} == known
