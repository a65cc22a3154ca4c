"""The default: real photographs from scikit-image's wheel, two CPU cores, minutes.

    python experiments/train.py

Crops of 32 x 32 at half the photographs' size and below, f = 4, 256 codes (8 bits per token). The
photographs astronaut and chelsea are held out. Expected on two CPU cores: some 3 minutes, held-out
PSNR above 22.5 dB through the hard codes, more than half of the codes in use.

What differs from the paper, and why: the encoder is normalised on data first (init), because so
short a run cannot recover from a collapsed codebook; the KL's weight falls from 3 to 2 (a token
has 16 pixels here and 64 in the paper, so that is like 12 to 8 there), for it is the early KL that
keeps codes alive; the step size is thirty times the paper's, for a model 700 times smaller;
ln b has a floor.
"""

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.config import (
    DataConfig,
    EvaluationConfig,
    LikelihoodConfig,
    OptimizerConfig,
    TrainConfig,
)
from logit_laplace_jax.training.schedules import Schedule

CONFIG = TrainConfig(
    run_dir="runs/photos",
    data=DataConfig(source="photos", min_crop=0.2),
    steps=2_000,
    batch_size=16,
    image_size=32,
    evaluation=EvaluationConfig(every=500, resize=0.5, images=None),
    checkpoint_every=500,
    log_every=1,
    likelihood=LikelihoodConfig(min_log_scale=-5.0),
    init="data",
    init_logit_std=3.0,
    beta=Schedule(3.0, 2.0),
    temperature=Schedule(1.0, 1.0 / 16.0),
    learning_rate=Schedule(3e-3, 5e-5),
    optimizer=OptimizerConfig(ema_decay=0.99),
    model=DVAEConfig(group_count=3, n_hid=24, n_blk_per_group=1, vocab_size=256, n_init=64),
)
