"""CIFAR-10 at 32 x 32, f = 4, 1,024 codes: the smallest standard set, for one accelerator.

    python experiments/train.py cifar10

TFDS prepares CIFAR-10 on first use (162 MiB from its publisher). The KL's weight is the ELBO's own
at the end (β = 1): the paper's 6.6 is a choice for 256 x 256 web images.
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
    run_dir="runs/cifar10",
    data=DataConfig(source="tfds:cifar10"),
    steps=100_000,
    batch_size=256,
    image_size=32,
    likelihood=LikelihoodConfig(min_log_scale=-6.0),
    evaluation=EvaluationConfig(images=None),
    precision="bfloat16",
    log_every=20,
    beta=Schedule(0.0, 1.0, 5_000),
    temperature=Schedule(1.0, 1.0 / 16.0, 50_000),
    learning_rate=Schedule(5e-4, 5e-6),
    model=DVAEConfig(group_count=3, n_hid=128, vocab_size=1024, n_init=128),
)
