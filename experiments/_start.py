"""What train.py and train_prior.py do alike: start a run, and end with the right status."""

import os
import sys
from collections.abc import Callable
from typing import Any

from _cli import fail, one_line_errors, quiet, say, say_error


def differing(values: dict[str, Any], usual: dict[str, Any]) -> list[str]:
    """The values that are not the usual ones, as text."""
    return [f"{name} {value}" for name, value in values.items() if value != usual.get(name)]


def start(config: Any, launch: Any, words: str, finish: Callable[[Any], None]) -> None:
    """Trains, or tells what it would take.

    Args:
      config: the run's configuration.
      launch: how to start.
      words: what was asked for, in a few words.
      finish: is given the run at its end, in the first process.
    """
    quiet()
    if launch.simulate is not None:
        simulate(launch.simulate)
    from logit_laplace_jax.data.errors import DataError
    from logit_laplace_jax.runs import compiled_programs, errors, preflight, processes

    compiled_programs.keep()
    with one_line_errors(ValueError):
        if launch.distributed:
            processes.initialize(launch.coordinator, launch.num_processes, launch.process_id)
    # A dry run is one process, and asking JAX would look for devices before its compiler is chosen.
    main_process = launch.dry_run or processes.is_main()
    head = [f"{os.path.basename(sys.argv[0])}  {words}"] if main_process else []

    def tell(line: str) -> None:
        """Says what runs before the first line of it, so that an error comes alone."""
        while head:
            say(head.pop())
        say(line)

    if launch.dry_run:
        with one_line_errors(ValueError):
            preflight.dry_run(config, launch, tell)
        return

    from logit_laplace_jax.runs import loop

    try:
        run = loop.train(config, launch=launch, say=tell)
        if main_process:
            with errors.clear_errors(run.folder, ""):
                finish(run)
        return
    except (errors.NonFiniteLoss, errors.OutOfMemory, errors.LostProcess) as error:
        status, message = 1, str(error)
    except (errors.CheckpointError, DataError, ValueError) as error:
        status, message = 2, str(error)
    except errors.Stopped as stop:
        if main_process:
            say(str(stop))
        sys.exit(128 + stop.signal_number)
    if launch.distributed:
        # Not by way of Python's exit, where JAX would wait for processes that may be gone.
        say_error(message)
        processes.leave(status)
    fail(message, status)


def simulate(devices: int) -> None:
    """Makes JAX, which must not have looked for devices yet, see so many on the CPU."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
