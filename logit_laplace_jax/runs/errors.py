"""What can end a run or refuse a request; each message is one clear line."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

import jax

LESS_MEMORY = (
    "take a smaller --batch-size, compute it in parts (--accumulate), recompute activations "
    "(--model.remat), or spread the state over several devices (--fsdp)"
)


class RunError(ValueError):
    """A request that cannot be carried out."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written."""


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the last good step and checkpoint."""


class OutOfMemory(RuntimeError):
    """A device's memory did not suffice; the message says what takes less."""


class LostProcess(RuntimeError):
    """The devices of another process no longer answer."""


class Stopped(RuntimeError):
    """A signal ended the run after a checkpoint; ``signal_number`` says which."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


@contextlib.contextmanager
def clear_errors(folder: Path, device_kind: str) -> Iterator[None]:
    """Inside, a full disk and the runtime's own errors become one of the errors above.

    Args:
      folder: the run directory.
      device_kind: what the devices are called.
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
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
            raise OutOfMemory(
                f"the memory of {device_kind} does not suffice: {LESS_MEMORY}; --memory-report "
                "tells the needs before"
            ) from error
        if jax.process_count() > 1:
            first = str(error).strip().splitlines()[0]
            raise LostProcess(
                "another process of this run is gone or cannot be reached "
                f"({first[:150]}); the same commands start it again from its last checkpoint"
            ) from error
        raise
