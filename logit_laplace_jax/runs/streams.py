"""The images of a run: its training crops and its held-out ones, for this process."""

import os
from typing import Any

import jax
import numpy as np

from logit_laplace_jax.data import pipeline
from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.data.sources import Source, Split, open_source
from logit_laplace_jax.tokens import files
from logit_laplace_jax.training.config import Config, PriorTrainConfig


def images_of(config: Config, source: Any = None) -> Any:
    """The caller's own data set, or the configuration's."""
    return config.data.source if source is None else source


def open_split(config: Config, source: Any, split: Split) -> Source:
    """One split of the caller's own data set, or of the configuration's; an open one stays so."""
    if isinstance(source, Source):
        return source
    return open_source(
        images_of(config, source),
        split,
        data_dir=config.data.data_dir,
        channels=config.model.channels,
    )


def train_stream(
    config: Config, source: Any = None, *, batch_size: int | None = None, sharded: bool = False
) -> pipeline.TrainBatches:
    """The configuration's training crops in batches, or their tokens from a file.

    Args:
      config: the run's.
      source: a data set of the caller's own; None: the configuration's.
      batch_size: crops in a batch, over all processes; None: the run's.
      sharded: give this process's part of each batch; else all of it.

    Raises:
      DataError: the images, or the file of tokens, cannot be used.
    """
    shared: dict[str, Any] = {
        "batch_size": batch_size or config.batch_size,
        "seed": config.seed,
        "classes": config.classes or None,
        "threads": config.data.threads,
        "shard_index": jax.process_index() if sharded else 0,
        "shard_count": jax.process_count() if sharded else 1,
    }
    if isinstance(config, PriorTrainConfig) and config.tokens is not None:
        return pipeline.token_batches(*_tokens_of_file(config), **shared)
    return _crop_stream(config, source, shared)


def _crop_stream(config: Config, source: Any, shared: dict[str, Any]) -> pipeline.TrainBatches:
    return pipeline.train_batches(
        open_split(config, source, "train"),
        image_size=config.image_size,
        min_crop=config.data.min_crop,
        max_crop=config.data.max_crop,
        jitter=config.data.jitter,
        augment=config.data.augment,
        **shared,
    )


def token_file(config: PriorTrainConfig) -> files.Tokens:
    """The file of a prior's training tokens.

    Raises:
      DataError: it cannot be read, or its grids are not the prior's.
    """
    assert config.tokens is not None
    tokens = files.read(config.tokens)
    grid = (config.prior.height, config.prior.width)
    others = {tuple(g) for g in tokens.grids.tolist()} - {grid}
    if others:
        rows, columns = min(others)
        raise DataError(
            f"{config.tokens} holds grids of {rows} x {columns} tokens, the prior is of "
            f"{grid[0]} x {grid[1]}: give tokens.py encode --image-size {config.image_size}"
        )
    return tokens


def _tokens_of_file(config: PriorTrainConfig) -> tuple[Source, np.ndarray]:
    tokens = token_file(config)
    source = Source(
        f"tokens {config.tokens}",
        "train",
        read=lambda index: tokens[index],
        name=lambda index: tokens.names[index],
        count=len(tokens),
        # As in folders of images: the name of the folder that an image lay in.
        label=lambda index: os.path.basename(os.path.dirname(tokens.names[index])),
    )
    return source, tokens.flat.reshape(len(tokens), -1).astype(np.int32)


def training_crops(config: Config, count: int, source: Any = None) -> np.ndarray:
    """The first crops of the training stream at that batch size: uint8 [count, S, S, C]."""
    shared = {"batch_size": count, "seed": config.seed, "threads": config.data.threads}
    batches = _crop_stream(config, source, shared)
    crops: np.ndarray = next(batches)["pixels"]
    batches.close()
    return crops


def held_out(
    config: Config,
    source: Any = None,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
    sharded: bool = False,
) -> pipeline.EvalBatches:
    """The held-out crops of a configuration, or those of another data set cut in the same way.

    Args:
      config: the run's.
      source: other images; None: the run's own.
      batch_size: crops in a batch, over all processes; None: the run's.
      limit: at most so many crops; None: the run's limit.
      sharded: give this process's part of each batch; else all of it.
    """
    return pipeline.eval_batches(
        open_split(config, source, "validation"),
        image_size=config.image_size,
        batch_size=batch_size or config.batch_size,
        limit=limit or config.evaluation.images,
        resize=config.evaluation.resize,
        classes=config.classes or None,
        shard_index=jax.process_index() if sharded else 0,
        shard_count=jax.process_count() if sharded else 1,
    )


def stack_crops(batches: pipeline.EvalBatches, limit: int | None = None) -> np.ndarray:
    """The crops of masked batches without padding: uint8 [N, H, W, C]."""
    rows = [batch["pixels"][batch["mask"] > 0] for batch in batches]
    return np.concatenate(rows)[:limit]
