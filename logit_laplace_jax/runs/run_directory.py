"""The directory of a run: which run it holds, and that only one process at a time trains in it."""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training.config import TrainConfig

_CONFIG = "config.json"
_CONFIG_PART = "config.json.part"


class RunError(ValueError):
    """A request that cannot be carried out; one clear line."""


@contextlib.contextmanager
def full_disk_in_one_line(folder: Path) -> Iterator[None]:
    """Inside, a write that finds the disk full raises a RunError.

    Args:
      folder: the run directory.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what = f"{error.filename} could not be written" if error.filename else "a write failed"
        raise RunError(
            f"the disk of {folder} is full ({what}); free some space, and the same command goes "
            "on from the last complete checkpoint"
        ) from error


def check_folder(folder: Path, config: TrainConfig) -> None:
    """Refuses a folder that holds another run, or something else.

    Raises:
      RunError: it does; the message names the fields that differ.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"run directory {folder} is a file; choose another --run-dir")
    if (folder / _CONFIG).exists():
        saved_config = read_config(folder)
        lines = configs.differences(saved_config, config)
        if lines and saved_config.steps != config.steps:
            lines.append("--steps changes schedules that last the whole run")
        if lines:
            raise RunError(
                f"{folder} holds a run of another configuration ({'; '.join(lines)}); "
                "choose another --run-dir, or give the same options to resume"
            )
    elif folder.is_dir() and any(p.name != _CONFIG_PART for p in folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run; choose another --run-dir")


def write_config(folder: Path, config: TrainConfig) -> None:
    """Writes config.json, making the folder if need be; atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / _CONFIG_PART
    part.write_text(json.dumps(configs.to_dict(config), indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / _CONFIG)


def read_config(folder: Path) -> TrainConfig:
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


class Lock:
    """Keeps other processes out of a run directory while inside; ends with the process.

    Raises:
      RunError: another process is inside.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        # On the folder itself: nothing to leave behind, and the kernel frees it with the process.
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise RunError(
                    f"another process is training in {self._folder}: wait for it, stop it, or "
                    "choose another --run-dir"
                ) from None
            # Some network file systems know no locks on folders: then nobody can look out.
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
