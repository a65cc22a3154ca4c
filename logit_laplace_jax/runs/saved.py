"""What a run left: the state of a checkpoint, and the keys of its chance."""

from collections.abc import Callable
from pathlib import Path

import jax

from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.runs.run_directory import RunError, read_config
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.state import TrainState, create_state


def keys(config: TrainConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of the initial parameters, of training and of evaluation."""
    init, train, evaluation = jax.random.split(jax.random.key(config.seed), 3)
    return init, train, evaluation


def evaluation_key(config: TrainConfig) -> jax.Array:
    """The key of all chance in an evaluation of a run, the same at every step."""
    return keys(config)[2]


def has_checkpoint(folder: Path) -> bool:
    """Whether a run directory holds a complete checkpoint."""
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any(p.name.isdecimal() for p in checkpoints.iterdir())


def load(
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
    checkpoint: str = "latest",
) -> TrainState:
    """The state of one of a run's checkpoints, on one device.

    Args:
      folder: the run directory.
      say: prints one line.
      checkpoint: latest, best (fewest held-out bits/dim), or the number of updates.

    Raises:
      RunError: not a run directory, or no such checkpoint.
      CheckpointError: no complete checkpoint, or a damaged one.
    """
    if checkpoint not in ("latest", "best") and not checkpoint.isdecimal():
        raise RunError(f"checkpoint must be latest, best or a number, got {checkpoint!r}")
    config = read_config(folder).resolved()
    shapes = jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))
    with Checkpoints(folder / "checkpoints", create=False) as checkpoints:
        step = int(checkpoint) if checkpoint.isdecimal() else None
        if checkpoint == "best":
            step = checkpoints.best
            if step is None:
                raise RunError(f"no checkpoint of {folder} was evaluated: give --checkpoint latest")
        state, _ = checkpoints.restore(shapes, step)
    say(f"{folder}: step {int(state.step)}")
    return state
