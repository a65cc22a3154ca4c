"""Trains a discrete VAE with the logit-Laplace likelihood.

python experiments/train.py [PRESET] [--options]
python experiments/train.py [PRESET] --help
"""

import dataclasses
import itertools
import json
import sys
from typing import TYPE_CHECKING, Annotated

from _cli import fail, one_line_errors, parse, quiet, run_script, say_error
from _supervisor import supervise

if TYPE_CHECKING:
    from logit_laplace_jax.training.config import TrainConfig

DESCRIPTION = """Trains a dVAE: python experiments/train.py [PRESET] [--options].

Presets:
{presets}

Running the same command again goes on where the run directory stands. Ctrl-C saves first."""


def main(args: list[str]) -> None:
    """Parses, trains, reports."""
    if "--distributed" in args:
        supervise("train.py")  # before anything starts threads: it forks
    import tyro
    from configs import PRESETS, load

    from logit_laplace_jax.training.config import FOLLOWS, Launch, TrainConfig

    preset = "photos"
    if args and not args[0].startswith("-"):
        preset, args = args[0], args[1:]
        if preset not in PRESETS:
            fail(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    for before, word in itertools.pairwise(args):
        if word in PRESETS and not before.startswith("-"):
            fail(f"the preset comes first: train.py {word} --options")
    presets = "\n".join(f"  {name:<11}{text}" for name, text in PRESETS.items())
    for flag, source in FOLLOWS.items():
        option = f"--{flag}".replace("_", "-")
        if any(arg.split("=")[0].replace("_", "-") == option for arg in args):
            fail(f"{option} follows --{source}: give that")

    @dataclasses.dataclass(frozen=True)
    class Command:
        config: Annotated[TrainConfig, tyro.conf.arg(name="")]
        launch: Annotated[Launch, tyro.conf.arg(name="")]

    command = parse(
        Command,
        args,
        default=Command(load(preset), Launch()),
        prog=f"train.py {preset}",
        description=DESCRIPTION.format(presets=presets),
    )
    config, launch = command.config, command.launch
    quiet()
    from logit_laplace_jax.data import errors
    from logit_laplace_jax.runs import (
        checkpoints,
        compiled_programs,
        loop,
        processes,
        report,
        run_directory,
    )

    if launch.simulate is not None:
        simulate(launch.simulate)
    compiled_programs.keep()
    with one_line_errors(ValueError):
        if launch.distributed:
            processes.initialize(launch.coordinator, launch.num_processes, launch.process_id)
        if launch.dry_run:
            show(preset, config)
            dry_run(config, launch.simulate is not None)
            return
    main_process = processes.is_main()
    if main_process:
        show(preset, config)
    status, message = 2, ""
    try:
        run = loop.Run(config, launch=launch)
        trained = run.train()
        if main_process:
            with run_directory.full_disk_in_one_line(run.folder):
                report.finish(run, trained)
        return
    except (loop.NonFiniteLoss, loop.OutOfMemory, processes.LostProcess) as error:
        status, message = 1, str(error)
    except (checkpoints.CheckpointError, errors.DataError, ValueError) as error:
        message = str(error)
    except loop.Stopped as stop:
        if main_process:
            print(stop, flush=True)
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


def dry_run(config: "TrainConfig", simulated: bool) -> None:
    """Tells what an update needs, from shapes alone."""
    from logit_laplace_jax.runs import preflight
    from logit_laplace_jax.training import devices
    from logit_laplace_jax.training.step import train_step

    config = config.resolved()
    layout = devices.choose(
        config.parallel,
        config.batch_size,
        accumulate=config.accumulate,
        fsdp=config.fsdp,
        devices=config.devices,
    )
    step = layout.compile(train_step, donate=True)
    needs = preflight.measure(config, layout, step)
    # Simulated devices share one memory: theirs says nothing.
    available = None if simulated else preflight.available_bytes(layout)
    for line in preflight.lines(needs, config, available):
        print(line)


def show(preset: str, config: "TrainConfig") -> None:
    """Prints the configuration: one line a group."""
    from logit_laplace_jax.training.config import to_dict

    values = to_dict(config)
    groups = {key: values.pop(key) for key in list(values) if isinstance(values[key], dict)}
    print(f"train.py {preset}")
    for name, group in {"run": values, **groups}.items():
        text = ", ".join(f"{key} {json.dumps(value)}" for key, value in group.items())
        print(f"  {name:<14}{text}")


if __name__ == "__main__":
    run_script(main)
