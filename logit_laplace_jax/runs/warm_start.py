"""A run that starts from trained weights: a run's, a file's, or OpenAI's published ones."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.runs.directory import load
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.training.state import TrainState
from logit_laplace_jax.weights import exchange, openai

_HEAD = ("decoder", "output")
"""The convolution to the likelihood's maps."""
_CONSTANT = ("decoder", "log_scale")
"""The learned scale of some likelihoods."""


def read_weights(source: str) -> exchange.Weights:
    """Weights from wherever they are.

    Args:
      source: a run directory (the averaged parameters of its latest checkpoint), a .safetensors or
        .pt file with both halves, or two files "ENCODER,DECODER" of either format or OpenAI's .pkl.

    Returns:
      The model's configuration, its float32 parameter tree, and what else is known: ``eps``.

    Raises:
      ValueError: no such weights, or they cannot be read; one line.
      CheckpointError: a run without a complete checkpoint.

    >>> read_weights("encoder.pkl")
    Traceback (most recent call last):
      ...
    logit_laplace_jax.runs.errors.RunError: --init-from encoder.pkl does not exist
    """
    paths = [Path(part) for part in source.split(",")]
    if len(paths) > 2:
        raise RunError("--init-from takes a run directory, a file, or ENCODER,DECODER")
    for path in paths:
        if not path.exists():
            raise RunError(f"--init-from {path} does not exist")
    if len(paths) == 2:
        return exchange.Weights(*openai.load(*paths), {})
    if paths[0].is_dir():
        state = load(paths[0])
        eps = state.config.likelihood.eps
        return exchange.Weights(state.config.model, state.ema_params, {"eps": eps})
    return exchange.load(paths[0])


def started_from(state: TrainState, source: str) -> tuple[TrainState, list[str]]:
    """A fresh state with the weights of a trained model.

    What belongs to the likelihood (the decoder's last convolution and a learned scale) stays fresh
    where the trained model has another number of maps.

    Args:
      state: a fresh state, held in full.
      source: as for :func:`read_weights`.

    Returns:
      The state, and the names of what stayed fresh.

    Raises:
      ValueError: as :func:`read_weights`, or the trained model has other sizes.
    """
    config, params, metadata = read_weights(source)
    wanted = state.config.model
    sizes = ("group_count", "n_hid", "n_blk_per_group", "vocab_size", "n_init", "channels")
    wrong = [
        f"{name} {getattr(config, name)} there, {getattr(wanted, name)} here"
        for name in sizes
        if getattr(config, name) != getattr(wanted, name)
    ]
    own_eps = state.config.likelihood.eps
    eps = metadata.get("eps", own_eps)
    if eps != own_eps:  # the encoder would see other pixels than it was trained on
        wrong.append(f"eps {eps} there, {own_eps} here")
    if wrong:
        raise RunError(f"the weights of {source} are of another model: {'; '.join(wrong)}")
    given = dict(_leaves(params))
    fresh: list[str] = []

    def choose(path: Any, leaf: jax.Array) -> jax.Array:
        name = tuple(key.key for key in path)
        value = given.get(name)
        if value is not None and value.shape == leaf.shape:
            return jnp.asarray(np.asarray(value), leaf.dtype)
        if name[:2] not in (_HEAD, _CONSTANT):
            raise RunError(f"the weights of {source} have no {'/'.join(name)} of {leaf.shape}")
        fresh.append("/".join(name))
        return leaf

    chosen = jax.tree_util.tree_map_with_path(choose, state.params)
    return state.replace(params=chosen, ema_params=jax.tree.map(jnp.copy, chosen)), fresh


def _leaves(params: Any) -> list[tuple[tuple[str, ...], Any]]:
    pairs = jax.tree_util.tree_leaves_with_path(params)
    return [(tuple(key.key for key in path), leaf) for path, leaf in pairs]
