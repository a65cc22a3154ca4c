"""A tiny model for a few updates: does every part run? For tests.

    python experiments/train.py smoke

Expected: seconds on two CPU cores, once compiled; the pictures mean nothing.
"""

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.config import (
    DataConfig,
    EvaluationConfig,
    LikelihoodConfig,
    TrainConfig,
)
from logit_laplace_jax.training.schedules import Schedule

CONFIG = TrainConfig(
    run_dir="runs/smoke",
    data=DataConfig(source="photos", min_crop=0.2),
    steps=8,
    batch_size=8,
    image_size=16,
    evaluation=EvaluationConfig(every=4, resize=0.25, images=24),
    checkpoint_every=4,
    log_every=1,
    likelihood=LikelihoodConfig(min_log_scale=-5.0),
    beta=Schedule(0.0, 0.1),
    temperature=Schedule(1.0, 0.5),
    learning_rate=Schedule(1e-3, 1e-4),
    model=DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=32, n_init=8),
)
