from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.config import OptimizerConfig, TrainConfig
from logit_laplace_jax.training.schedules import Schedule

CONFIG = TrainConfig(
    run_dir="runs/photos",
    data="photos",
    steps=100,
    batch_size=16,
    image_size=32,
    eval_every=50,
    checkpoint_every=50,
    log_every=1,
    min_log_scale=-5.0,
    min_crop=0.2,
    eval_scale=0.5,
    beta=Schedule(0.0, 0.0),
    temperature=Schedule(1.0, 1 / 16),
    learning_rate=Schedule(3e-3, 5e-5),
    optimizer=OptimizerConfig(ema_decay=0.98),
    model=DVAEConfig(group_count=3, n_hid=16, n_blk_per_group=1, vocab_size=512, n_init=32),
)
