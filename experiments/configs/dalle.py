"""The dVAE of DALL-E, every number as in Ramesh et al. 2021 (arXiv:2102.12092), appendix A.

    python experiments/train.py dalle --data folder:/path/to/images --parallel pmap

Hardware in the paper: 64 GPUs with 8 images each. Images: 250 million of the web, not published;
bring your own. Fewer devices: --accumulate. TPUs: --precision bfloat16 (it needs no scaling).
"""

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.config import (
    DataConfig,
    LikelihoodConfig,
    OptimizerConfig,
    TrainConfig,
)
from logit_laplace_jax.training.schedules import Schedule

CONFIG = TrainConfig(
    run_dir="runs/dalle",
    data=DataConfig(source="tfds:imagenet2012", min_crop=1.0),
    steps=3_000_000,
    batch_size=512,
    image_size=256,
    precision="float16",
    log_every=50,
    likelihood=LikelihoodConfig(eps=0.1, min_log_scale=None),
    beta=Schedule(0.0, 6.6, 5_000),
    temperature=Schedule(1.0, 1.0 / 16.0, 150_000),
    learning_rate=Schedule(1e-4, 1.25e-6, 1_200_000),
    optimizer=OptimizerConfig(b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-4, ema_decay=0.999),
    model=DVAEConfig(
        group_count=4,
        n_hid=256,
        n_blk_per_group=2,
        vocab_size=8192,
        n_init=128,
        channels=3,
    ),
)
