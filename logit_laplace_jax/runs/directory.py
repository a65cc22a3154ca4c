"""The directory of a run: which run it holds, what it left, and that one process trains in it."""

import contextlib
import errno
import fcntl
import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import jax

from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training.config import PriorTrainConfig, RunConfig, TrainConfig
from logit_laplace_jax.training.state import TrainState, create_state

_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"

_AMBIENT = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
    "jax_random_seed_offset",
)
"""JAX's own settings that change a run's numbers; the shell sets them by the names in capitals."""


def write_whole(path: Path, text: str) -> None:
    """Writes a text file all or nothing, also in a kill."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def check(folder: Path, config: RunConfig) -> None:
    """Refuses a folder that holds another run, or something else.

    Raises:
      RunError: it does; the message names the fields that differ.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"run directory {folder} is a file; choose another --run-dir")
    if (folder / _CONFIG).exists():
        there = read_config(folder)
        lines = configs.differences(there, config)
        if lines and there.steps != config.steps:
            lines.append("--steps changes schedules that last the whole run")
        if lines:
            raise RunError(
                f"{folder} holds a run of another configuration ({'; '.join(lines)}): give the "
                f"same options to resume it, another --run-dir for a new run, or also "
                f"--init-from {shlex.quote(str(folder))} to start that one from these weights"
            )
        _check_environment(folder)
    elif folder.is_dir() and any(p.name != f"{_CONFIG}.part" for p in folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run; choose another --run-dir")


def write_config(folder: Path, config: RunConfig) -> None:
    """Writes config.json, which marks the folder as a run's, and JAX's settings beside it."""
    write_whole(folder / _CONFIG, json.dumps(configs.to_dict(config), indent=2) + "\n")
    if not (folder / _ENVIRONMENT).exists():
        write_whole(folder / _ENVIRONMENT, json.dumps(_environment(), indent=2) + "\n")


def _environment() -> dict[str, object]:
    return {name: jax.config.values[name] for name in _AMBIENT}


def _check_environment(folder: Path) -> None:
    path = folder / _ENVIRONMENT
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        lines = [
            f"{name.upper()}: {there[name]} there, {value} here"
            for name, value in _environment().items()
            if there[name] != value
        ]
    except FileNotFoundError:  # killed before it was written: nothing was computed yet
        return
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if lines:
        raise RunError(
            f"{folder} holds a run under other settings of JAX ({'; '.join(lines)}), which would "
            "change its numbers: set them as there, or choose another --run-dir"
        )


def read_config(folder: Path) -> TrainConfig | PriorTrainConfig:
    """The configuration of a run directory.

    Raises:
      RunError: there is none, or it cannot be read.
    """
    path = folder / _CONFIG
    try:
        return configs.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{folder} is not a run directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a run directory while inside; ends with the process.

    Raises:
      RunError: another process is inside.
    """
    # On the folder itself: nothing to leave behind, and the kernel frees it with the process.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks on folders: then nobody can look out.
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise RunError(
                f"another process is training in {folder}: wait for it, stop it, or choose "
                "another --run-dir"
            ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def has_checkpoint(folder: Path) -> bool:
    """Whether a run directory holds a complete checkpoint."""
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any(p.name.isdecimal() for p in checkpoints.iterdir())


def keys(config: RunConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random keys of the initial parameters, of training and of evaluation."""
    # Named, so that JAX_DEFAULT_PRNG_IMPL changes nothing of a run.
    key = jax.random.key(config.seed, impl="threefry2x32")
    init, train, evaluation = jax.random.split(key, 3)
    return init, train, evaluation


def load(folder: str | Path, checkpoint: str = "latest", kind: str = "dVAE") -> TrainState:
    """The state of one of a run's checkpoints, on one device.

    Args:
      folder: the run directory.
      checkpoint: latest, best (fewest held-out bits), or the number of updates.
      kind: dVAE or prior: what the run has to be of.

    Returns:
      The state; its ``config`` is the run's, its ``ema_params`` are what evaluation uses.

    Raises:
      RunError: not a run directory, or no such checkpoint.
      CheckpointError: no complete checkpoint, or a damaged one.

    Example:
      >>> load("nowhere")
      Traceback (most recent call last):
        ...
      logit_laplace_jax.runs.errors.RunError: nowhere is not a run directory: ...
    """
    folder = Path(folder)
    if checkpoint not in ("latest", "best") and not checkpoint.isdecimal():
        raise RunError(f"checkpoint must be latest, best or a number, got {checkpoint!r}")
    config = read_config(folder).resolved()
    found = "prior" if isinstance(config, PriorTrainConfig) else "dVAE"
    if found != kind:
        raise RunError(f"{folder} is the run of a {found}: name that of a {kind}")
    shapes = jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))
    with Checkpoints(folder / "checkpoints", create=False, measure=config.measure) as checkpoints:
        step = int(checkpoint) if checkpoint.isdecimal() else None
        if checkpoint == "best":
            step = checkpoints.best
            if step is None:
                raise RunError(f"no checkpoint of {folder} was evaluated: give --checkpoint latest")
        state, _ = checkpoints.restore(shapes, step)
    return state
