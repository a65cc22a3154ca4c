"""The smallest configuration that trains, and changes of nested configurations in one call."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import param_shapes
from logit_laplace_jax.training.config import LikelihoodConfig, OptimizerConfig, TrainConfig
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.weights import names

MODEL = DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4)

BASE = TrainConfig(
    run_dir="",
    steps=10,
    batch_size=8,
    image_size=8,
    likelihood=LikelihoodConfig(min_log_scale=-5.0),
    beta=Schedule(0.5, 2.0),
    temperature=Schedule(0.7, 0.7),
    learning_rate=Schedule(0.2, 0.05),
    # With AdamW's usual epsilon the first update is the gradient's sign: a gradient four times too
    # large would go unseen. With an epsilon of 1 the update is nearly linear in the gradient.
    optimizer=OptimizerConfig(b1=0.8, b2=0.9, eps=1.0, weight_decay=0.1, ema_decay=0.75),
    model=MODEL,
)


def change(config, **values):
    """The configuration with other values; ``data__source`` stands for ``data.source``."""
    parts = {}
    for name, value in values.items():
        part, _, field = name.partition("__")
        if field:
            parts.setdefault(part, {})[field] = value
        else:
            parts[part] = value
    for name, value in parts.items():
        if isinstance(value, dict):
            parts[name] = dataclasses.replace(getattr(config, name), **value)
    return dataclasses.replace(config, **parts)


def config(**values):
    """:data:`BASE` with other values."""
    return change(BASE, **values)


def run_config(folder, **values):
    """A configuration that trains for six updates on a folder of images."""
    base = dict(
        run_dir="run",
        data__source=f"folder:{folder}",
        data__min_crop=0.6,
        steps=6,
        batch_size=4,
        parallel="single",
        checkpoint_every=2,
        keep_checkpoints=2,
        evaluation__every=3,
        evaluation__resize=1.0,
        evaluation__images=6,
        beta=Schedule(0.0, 0.5, 4),
        temperature=Schedule(1.0, 0.5, 6),
        learning_rate=Schedule(1e-2, 1e-3, 6),
        optimizer=OptimizerConfig(ema_decay=0.5, weight_decay=0.1),
    )
    return config(**base | values)


def params(config, seed=0):
    """Random parameters of a dVAE, loud enough for different tokens; nothing is compiled."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.25, leaf.shape), jnp.float32),
        param_shapes(config),
    )


def save_pair(encoder, decoder, params):
    """Writes a model's halves as two state dicts under OpenAI's names, in safetensors."""
    for path in (encoder, decoder):
        half = path.stem
        arrays = {
            name.removeprefix(f"{half}."): np.ascontiguousarray(names.to_torch(np.asarray(leaf)))
            for name, leaf in names.flatten(params).items()
            if name.startswith(f"{half}.")
        }
        safetensors.numpy.save_file(arrays, path)
