"""The configuration: checks, JSON, and which differences keep a run from going on."""

import dataclasses
import json

import pytest
import tiny

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training.config import DataConfig, LikelihoodConfig, OptimizerConfig
from logit_laplace_jax.training.schedules import Schedule

BASE = tiny.config(
    run_dir="r",
    data=DataConfig(min_crop=0.25),
    steps=10,
    batch_size=4,
    image_size=16,
    likelihood=LikelihoodConfig(),
    model=DVAEConfig(),
)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("steps", 0, "steps must be 1 or more"),
        ("batch_size", 0, "batch_size"),
        ("image_size", -8, "image_size"),
        ("image_size", 12, "multiples of 8"),
        ("keep_checkpoints", 0, "keep_checkpoints"),
        ("log_every", 0, "log_every"),
        ("evaluation__every", -1, "every must be 0 or more"),
        ("checkpoint_every", -1, "checkpoint_every"),
        ("seed", -1, "seed"),
        ("seed", 2**32, "seed must be below"),
        ("data__min_crop", 0.0, "min_crop"),
        ("data__min_crop", 1.5, "min_crop"),
        ("data__max_crop", 0.2, "max_crop must be min_crop"),
        ("data__jitter", -1.0, "jitter must be 0 or more"),
        ("evaluation__resize", 0.0, "resize must"),
        ("evaluation__images", 0, "images must"),
        ("temperature", Schedule(1.0, 0.0), "temperature must stay above 0"),
        ("learning_rate", Schedule(0.0, 1e-3), "learning_rate must stay above 0"),
        ("init", "xavier", "init must be one of openai, data, codebook"),
        ("init_logit_std", 0.0, "init_logit_std must be positive"),
        ("likelihood__name", "gauss", "unknown likelihood 'gauss'"),
        ("likelihood__eps", 0.5, "eps"),
        ("likelihood__objective", "elbo", "objective must be one of density, mass"),
        ("likelihood__scale", "predicted", "scale"),
        ("likelihood__coupled", True, "likelihood logit_laplace has no option coupled"),
        ("likelihood__components", 5, "likelihood logit_laplace has no option components"),
        ("likelihood__min_log_scale", float("nan"), "min_log_scale"),
    ],
)
def test_refused(field, value, words):
    with pytest.raises(ValueError, match=words) as caught:
        tiny.change(BASE, **{field: value})
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
        ({"likelihood__scale": "shared"}, 2, "shared"),
        ({"likelihood__scale": "per_channel", "likelihood__name": "normal"}, 2, "per_channel"),
        ({"likelihood__scale": "fixed", "likelihood__fixed_scale": 0.05}, 1, "none"),
        ({"likelihood__scale": "optimal"}, 1, "none"),
        ({"likelihood__name": "categorical"}, 256, "none"),
        ({"likelihood__name": "logistic_mixture", "likelihood__components": 3}, 9, "none"),
        (
            {
                "likelihood__name": "logistic_mixture",
                "likelihood__components": 3,
                "likelihood__coupled": True,
            },
            12,
            "none",
        ),
    ],
)
def test_the_head_follows_the_likelihood(options, maps, constant):
    config = tiny.change(BASE, model=DVAEConfig(stats_per_channel=5), **options)
    assert config.model.stats_per_channel == config.likelihood.build().num_stats == maps
    assert config.model.constant_scale == constant
    # And follows again when the likelihood changes back.
    plain = tiny.change(
        config,
        likelihood__name="logit_laplace",
        likelihood__scale="per_pixel",
        likelihood__fixed_scale=0.1,
        likelihood__components=10,
        likelihood__coupled=False,
    )
    assert (plain.model.stats_per_channel, plain.model.constant_scale) == (2, "none")


def test_options_that_cannot_go_together():
    with pytest.raises(ValueError, match="dequantize is for objective density"):
        tiny.change(BASE, likelihood__dequantize=True, likelihood__objective="mass")
    with pytest.raises(ValueError, match="categorical has no option scale"):
        tiny.change(BASE, likelihood__name="categorical", likelihood__scale="shared")


def test_a_floor_not_given_is_the_familys_own():
    mixture = tiny.change(BASE, likelihood__name="logistic_mixture")
    assert mixture.likelihood.build().min_log_scale == -7.0
    assert BASE.likelihood.build().min_log_scale is None
    floored = tiny.change(mixture, likelihood__min_log_scale=-5.0)
    assert floored.likelihood.build().min_log_scale == -5.0


def test_resolved_fills_the_whole_run_in_and_nothing_else():
    config = dataclasses.replace(BASE, beta=Schedule(0.0, 1.0), temperature=Schedule(1.0, 0.5, 3))
    resolved = config.resolved()
    assert resolved.beta == Schedule(0.0, 1.0, 10)
    assert resolved.temperature == Schedule(1.0, 0.5, 3)
    assert resolved.resolved() == resolved


def test_json_there_and_back():
    config = tiny.change(
        BASE,
        evaluation__resize=0.25,
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
    "data__source": "folder:/elsewhere",
    "data__min_crop": 0.5,
    "data__max_crop": 0.5,
    "data__jitter": 0.5,
    "data__augment": False,
    "likelihood__eps": 0.2,
    "likelihood__min_log_scale": -3.0,
    "likelihood__name": "normal",
    "likelihood__objective": "mass",
    "likelihood__scale": "optimal",
    "likelihood__fixed_scale": 0.2,
    "likelihood__dequantize": True,
    "evaluation__resize": 0.5,
    "init": "data",
    "init_logit_std": 2.0,
    "init_from": "model.pt",
    "freeze": "encoder",
    "precision": "bfloat16",
    "beta": Schedule(0.0, 1.0, 5),
    "temperature": Schedule(1.0, 0.1, 5),
    "learning_rate": Schedule(1.0, 0.1, 5),
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
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
    "log_every": 1,
    "debug": True,
    "data__threads": 1,
    "data__data_dir": "/elsewhere",
    "evaluation__every": 1,
    "evaluation__images": 3,
}


@pytest.mark.parametrize("field", DECIDING)
def test_differences_that_decide_are_named_with_both_values(field):
    lines = configs.differences(BASE, tiny.change(BASE, **{field: DECIDING[field]}))
    assert lines
    for line in lines:
        # What follows the likelihood or the precision is told too.
        assert line.startswith((field.replace("__", "."), "model."))
        assert " there, " in line
        assert line.endswith(" here")


@pytest.mark.parametrize("field", FREE)
def test_differences_that_a_resumed_run_may_have(field):
    lasting = tiny.change(BASE, beta=Schedule(0.0, 1.0, 5), temperature=Schedule(1.0, 0.1, 5))
    lasting = tiny.change(lasting, learning_rate=Schedule(1.0, 0.1, 5))
    assert configs.differences(lasting, tiny.change(lasting, **{field: FREE[field]})) == []


def test_more_steps_change_a_schedule_that_lasts_the_whole_run():
    fixed = Schedule(1.0, 0.1, 5)
    whole = tiny.change(BASE, beta=Schedule(0.0, 1.0), temperature=fixed, learning_rate=fixed)
    assert configs.differences(whole, dataclasses.replace(whole, steps=20)) == [
        "beta.steps: 10 there, 20 here"
    ]


def test_every_field_is_either_deciding_or_free():
    # A new field must be put into one of the tables above; each stands for its whole dataclass.
    of_a_mixture = {"likelihood__components", "likelihood__coupled"}
    known = {name.replace("__", ".") for name in {*DECIDING, *FREE, *of_a_mixture}}
    for name in configs.flat(BASE):
        assert name in known or name.split(".")[0] in known, name
