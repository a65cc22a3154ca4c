"""The same questions at the paper's size: one accelerator, ImageNet (by TFDS) at 128 x 128 pixels.

    python experiments/compare.py main_large

The paper's architecture (f = 8, 8,192 codes, 98 million parameters), five families, three seeds,
100,000 updates of 64 images: 6.4 million images in each run, five epochs. What it costs: an image
takes 0.39 TFLOP, forward and backward (XLA's count of the step), so a run takes 2.5e18 FLOP, and
the 4 x 5 tuning and 3 x 5 final runs together 8.7e19: at 150 TFLOP/s, which bfloat16 convolutions
of these sizes might reach on an H100 (an assumption, not a measurement), some 160 hours of one.
ImageNet must have been downloaded by hand for TFDS (imagenet2012, 150 GB).
"""

import dataclasses

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.config import DataConfig, EvaluationConfig, OptimizerConfig
from logit_laplace_jax.training.schedules import Schedule
from study.design import Study, Tuned
from study.main import FAMILIES
from study.main import STUDY as MAIN

_COMPARED = ("logit_laplace", "logit_normal", "laplace", "normal", "logistic")

STUDY = Study(
    base=dataclasses.replace(
        MAIN.base,
        steps=100_000,
        batch_size=64,
        image_size=128,
        precision="bfloat16",
        checkpoint_every=5_000,
        data=DataConfig(),
        evaluation=EvaluationConfig(every=10_000, images=512),
        init="openai",
        beta=Schedule(0.0, 6.6, 5_000),
        optimizer=OptimizerConfig(ema_decay=0.999),
        model=DVAEConfig(),
    ),
    data=("imagenet",),
    cells=tuple(cell for cell in FAMILIES if cell.name in _COMPARED),
    grid=tuple(Tuned(rate, beta) for rate in (1e-4, 3e-4) for beta in (2.2, 6.6)),
    seeds=3,
    held_out=2_048,
)
