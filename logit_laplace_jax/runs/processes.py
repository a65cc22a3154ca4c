"""Several processes as one run: start, agreement, and what happens when one is lost.

JAX's own runtime does the work (``jax.distributed``): one process per host, or several on one host.
"""

import os
import socket
import sys
import time
import zlib
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from logit_laplace_jax.runs.errors import RunError

HEARTBEAT_SECONDS = 30
"""A process that was silent for so long counts as lost."""

ANSWER_SECONDS = 60.0
"""For so long the others try to reach process 0, which may be started a little later."""

_REPORT_SECONDS = 24 * 3600
"""For so long they wait for it at the end, while it writes the report. JAX's own five minutes are
few for large pictures; a process 0 that is gone is noticed by its heartbeat."""


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


def initialize(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of a run; before anything else touches a device.

    On TPU pods, under Slurm and under Open MPI everything is found out; elsewhere give all three.

    Args:
      coordinator: HOST:PORT of process 0, reachable from all.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      RunError: the others could not be found.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise RunError("give all of --coordinator, --num-processes and --process-id, or none")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise RunError(f"--coordinator must be HOST:PORT, got {coordinator!r}")
    if process_id is not None and process_id not in range(num_processes or 0):
        raise RunError(f"--process-id must lie in [0, {num_processes}), got {process_id}")
    if coordinator is not None and process_id != 0:
        _reach(coordinator)
    elif coordinator is not None:
        _check_free(coordinator)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_REPORT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        hint = "" if all(given) else "; give --coordinator, --num-processes and --process-id"
        raise RunError(f"the run's processes could not be joined ({reason[:200]}){hint}") from error


def _check_free(coordinator: str) -> None:
    """Makes sure that process 0 can listen: JAX's runtime would crash this process.

    Raises:
      RunError: another program has the port.
    """
    port = coordinator.rpartition(":")[2]
    try:
        with socket.create_server(("", int(port))):  # where JAX's runtime listens too
            return
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"process 0 cannot listen on port {port} of --coordinator ({reason}): take another one"
        ) from None


def _reach(coordinator: str) -> None:
    """Waits until process 0 answers: JAX's runtime would abort this process after minutes.

    Raises:
      RunError: it does not, or its name is unknown.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            if isinstance(error, OverflowError) or time.monotonic() > deadline:
                raise RunError(
                    f"process 0 does not answer at --coordinator {coordinator} "
                    f"({reason or error}): start it too, and check address, port and firewall"
                ) from None
        time.sleep(0.2)


def require_agreement(what: str, value: str) -> None:
    """Makes sure that all processes hold the same value.

    Raises:
      RunError: this one's differs from process 0's.
    """
    if jax.process_count() == 1:
        return
    own = zlib.crc32(value.encode())
    everyone = np.asarray(multihost_utils.process_allgather(np.uint32(own))).reshape(-1)
    others = [i for i, other in enumerate(everyone) if other != everyone[0]]
    if others:
        raise RunError(
            f"{what} of process {others[0]} differs from that of process 0: start all processes "
            "with the same command on the same data"
        )


def leave(status: int) -> NoReturn:
    """Ends this process at once, without waiting for others that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
