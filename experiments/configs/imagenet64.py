"""ImageNet at 64 x 64, f = 4, 4,096 codes, for one accelerator.

    python experiments/train.py imagenet64

Downsampled ImageNet by TFDS (imagenet_resized/64x64), prepared on first use.
"""

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.config import DataConfig, LikelihoodConfig, TrainConfig
from logit_laplace_jax.training.schedules import Schedule

CONFIG = TrainConfig(
    run_dir="runs/imagenet64",
    data=DataConfig(source="tfds:imagenet_resized/64x64"),
    steps=300_000,
    batch_size=256,
    image_size=64,
    precision="bfloat16",
    log_every=20,
    likelihood=LikelihoodConfig(min_log_scale=-6.0),
    beta=Schedule(0.0, 1.0, 5_000),
    temperature=Schedule(1.0, 1.0 / 16.0, 150_000),
    learning_rate=Schedule(3e-4, 3e-6),
    model=DVAEConfig(group_count=3, n_hid=192, vocab_size=4096, n_init=128),
)
