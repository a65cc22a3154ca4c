"""The study that answers the question, for two CPU cores: some six hours in all.

    python experiments/compare.py main --images DIR

Hypotheses, measures and analysis: docs/study.md, written before the first final run.

Floors: half a grey level at mid grey for every family, ln b >= -5 in logit units (eps 0.1) and
>= -5.5 in units of y = 2v - 1. Without one the density objective has no optimum on pixels that are
exactly predictable, such as the black of MNIST.
"""

import dataclasses
from typing import Any

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.config import (
    DataConfig,
    EvaluationConfig,
    LikelihoodConfig,
    OptimizerConfig,
    TrainConfig,
)
from logit_laplace_jax.training.schedules import Schedule
from study.design import Cell, Study, Tuned

_LOGIT, _LINE = -5.0, -5.5

FAMILIES = (
    Cell("logit_laplace", LikelihoodConfig("logit_laplace", min_log_scale=_LOGIT)),
    Cell("logit_normal", LikelihoodConfig("logit_normal", min_log_scale=_LOGIT)),
    Cell("laplace", LikelihoodConfig("laplace", min_log_scale=_LINE)),
    Cell("normal", LikelihoodConfig("normal", min_log_scale=_LINE)),
    Cell("logistic", LikelihoodConfig("logistic", min_log_scale=_LINE)),
    Cell("truncated_laplace", LikelihoodConfig("truncated_laplace", min_log_scale=_LINE)),
    Cell("truncated_normal", LikelihoodConfig("truncated_normal", min_log_scale=_LINE)),
    Cell("continuous_bernoulli", LikelihoodConfig("continuous_bernoulli")),
    Cell(
        "logistic_mixture", LikelihoodConfig("logistic_mixture", min_log_scale=_LINE, components=5)
    ),
    # Nine times as slow, with 768 maps at full size: one seed, and not tuned on its own.
    Cell("categorical", LikelihoodConfig("categorical"), "logistic_mixture", seeds=1),
)


def _variant(name: str, beta_factor: float = 1.0, **changed: Any) -> Cell:
    """Logit-Laplace with one thing changed, at logit-Laplace's own tuning."""
    likelihood = dataclasses.replace(FAMILIES[0].likelihood, **changed)
    return Cell(name, likelihood, "logit_laplace", ("cifar10", "openmoji"), 3, beta_factor, True)


ABLATIONS = (
    _variant("scale_per_channel", scale="per_channel"),
    _variant("scale_shared", scale="shared"),
    _variant("scale_optimal", scale="optimal"),
    *(_variant(f"scale_{b:g}", scale="fixed", fixed_scale=b) for b in (0.03, 0.1, 0.3, 1.0)),
    _variant("eps_0.01", eps=0.01),
    _variant("eps_0.2", eps=0.2),
    _variant("no_floor", min_log_scale=None),
    _variant("objective_mass", objective="mass"),
    _variant("beta_x0.25", beta_factor=0.25),
    _variant("beta_x4", beta_factor=4.0),
)

STUDY = Study(
    base=TrainConfig(
        run_dir="",
        steps=1_200,
        batch_size=8,
        parallel="single",
        checkpoint_every=600,
        keep_checkpoints=1,
        log_every=50,
        data=DataConfig(min_crop=0.15, threads=1),
        evaluation=EvaluationConfig(every=0, images=64),
        init="codebook",
        beta=Schedule(3.0, 1.0),
        temperature=Schedule(1.0, 1.0 / 16.0),
        optimizer=OptimizerConfig(ema_decay=0.995),
        model=DVAEConfig(group_count=3, n_hid=32, n_blk_per_group=1, vocab_size=256, n_init=32),
    ),
    data=("cifar10", "openmoji", "mnist", "bsds500"),
    cells=FAMILIES + ABLATIONS,
    grid=tuple(Tuned(rate, beta) for rate in (2e-3, 6e-3) for beta in (0.5, 2.0)),
    seeds=5,
    held_out=512,
)
