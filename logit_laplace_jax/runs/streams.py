"""The images of a run: its training crops and its held-out ones, for this process."""

import jax
import numpy as np

from logit_laplace_jax.data import pipeline
from logit_laplace_jax.training.config import TrainConfig


def train_stream(
    config: TrainConfig, batch_size: int, *, sharded: bool = False
) -> pipeline.TrainBatches:
    """The configuration's training crops in batches of any size.

    Args:
      config: the run's.
      batch_size: crops in a batch, over all processes.
      sharded: give this process's part of each batch; else all of it.
    """
    return pipeline.train_batches(
        config.data,
        image_size=config.image_size,
        batch_size=batch_size,
        seed=config.seed,
        channels=config.model.channels,
        min_crop=config.min_crop,
        data_dir=config.data_dir,
        threads=config.data_threads,
        shard_index=jax.process_index() if sharded else 0,
        shard_count=jax.process_count() if sharded else 1,
    )


def training_crops(config: TrainConfig, count: int) -> np.ndarray:
    """The first crops of the training stream at that batch size: uint8 [count, S, S, C]."""
    batches = train_stream(config, count)
    crops = next(batches)["pixels"]
    batches.close()
    return crops


def held_out(
    config: TrainConfig,
    data: str | None = None,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    sharded: bool = False,
) -> pipeline.EvalBatches:
    """The held-out crops of a configuration, or those of other ``data`` cut in the same way.

    Args:
      config: the run's.
      data: other images; None: the run's own.
      batch_size: crops in a batch, over all processes; None: the run's.
      limit: at most so many crops; None: the run's limit.
      sharded: give this process's part of each batch; else all of it.
    """
    return pipeline.eval_batches(
        data or config.data,
        image_size=config.image_size,
        batch_size=batch_size or config.batch_size,
        channels=config.model.channels,
        data_dir=config.data_dir,
        limit=limit or config.eval_images,
        grid_scale=config.eval_scale,
        shard_index=jax.process_index() if sharded else 0,
        shard_count=jax.process_count() if sharded else 1,
    )


def stack_crops(batches: pipeline.EvalBatches, limit: int | None = None) -> np.ndarray:
    """The crops of masked batches without padding: uint8 [N, H, W, C]."""
    rows = [batch["pixels"][batch["mask"] > 0] for batch in batches]
    return np.concatenate(rows)[:limit]
