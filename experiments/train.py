"""Trains a discrete VAE with the logit-Laplace likelihood.

python experiments/train.py [PRESET] [--options]
python experiments/train.py [PRESET] --help
"""

import dataclasses
import itertools
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, quiet, run_script, say, say_error

DESCRIPTION = """Trains a dVAE: python experiments/train.py [PRESET] [--options].

Presets:
{presets}

Running the same command again goes on where the run directory stands. Ctrl-C saves first."""

SHORT = {
    "--data": "--data.source",
    "--likelihood": "--likelihood.name",
    "--eval-every": "--evaluation.every",
}
"""Options that every user meets, by what they are called in the configuration."""


def main(args: list[str]) -> None:
    """Parses, trains, reports."""
    import tyro
    from configs import PRESETS, load

    from logit_laplace_jax.runs.launch import Launch
    from logit_laplace_jax.training.config import FOLLOWS, TrainConfig, flat

    preset = "photos"
    if args and not args[0].startswith("-"):
        preset, args = args[0], args[1:]
        if preset not in PRESETS:
            fail(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    for before, word in itertools.pairwise(args):
        if word in PRESETS and not before.startswith("-"):
            fail(f"the preset comes first: train.py {word} --options")
    given = {arg.split("=")[0].replace("_", "-") for arg in args}
    for name, source in FOLLOWS.items():
        option = f"--{name.replace('_', '-')}"
        if option in given:
            fail(f"{option} follows --{source}: give that")

    @dataclasses.dataclass(frozen=True)
    class Command:
        config: Annotated[TrainConfig, tyro.conf.arg(name="")]
        launch: Annotated[Launch, tyro.conf.arg(name="")]

    command = parse(
        Command,
        args,
        SHORT,
        default=Command(load(preset), Launch()),
        prog=f"train.py {preset}",
        description=DESCRIPTION.format(
            presets="\n".join(f"  {name:<11}{text}" for name, text in PRESETS.items())
        ),
    )
    config, launch = command.config, command.launch
    quiet()
    if launch.simulate is not None:
        simulate(launch.simulate)
    from logit_laplace_jax.data.errors import DataError
    from logit_laplace_jax.runs import compiled_programs, errors, preflight, processes

    compiled_programs.keep()
    with one_line_errors(ValueError):
        if launch.distributed:
            processes.initialize(launch.coordinator, launch.num_processes, launch.process_id)
    main_process = processes.is_main()
    head: list[str] = []
    if main_process:
        usual = flat(load(preset))
        changed = [f"{k} {v}" for k, v in flat(config).items() if v != usual[k]]
        head = [f"train.py  {', '.join((preset, *changed))}"]

    def tell(line: str) -> None:
        """Says what runs before the first line of it, so that an error comes alone."""
        while head:
            say(head.pop())
        say(line)

    if launch.dry_run:
        with one_line_errors(ValueError):
            preflight.dry_run(config, launch.simulate is not None, tell)
        return

    from logit_laplace_jax.runs import loop, report

    try:
        run = loop.train(config, launch=launch, say=tell)
        if main_process:
            with errors.clear_errors(run.folder, ""):
                report.finish(run, tell)
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


if __name__ == "__main__":
    run_script(main)
