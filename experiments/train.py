"""Trains a discrete VAE with the logit-Laplace likelihood.

python experiments/train.py [PRESET] [--options]
python experiments/train.py [PRESET] --help
"""

import itertools
import json
import sys
from typing import TYPE_CHECKING

from _cli import fail, one_line_errors, parse, quiet, run_script

if TYPE_CHECKING:
    from logit_laplace_jax.training.config import TrainConfig

DESCRIPTION = """Trains a dVAE: python experiments/train.py [PRESET] [--options].

Presets:
{presets}

Running the same command again goes on where the run directory stands. Ctrl-C saves first."""


def main(args: list[str]) -> None:
    """Parses, trains, reports."""
    from configs import PRESETS, load

    from logit_laplace_jax.training.config import TrainConfig

    preset = "photos"
    if args and not args[0].startswith("-"):
        preset, args = args[0], args[1:]
        if preset not in PRESETS:
            fail(f"unknown preset {preset!r}; choose one of {', '.join(PRESETS)}")
    for before, word in itertools.pairwise(args):
        if word in PRESETS and not before.startswith("-"):
            fail(f"the preset comes first: train.py {word} --options")
    presets = "\n".join(f"  {name:<11}{text}" for name, text in PRESETS.items())
    config = parse(
        TrainConfig,
        args,
        default=load(preset),
        prog=f"train.py {preset}",
        description=DESCRIPTION.format(presets=presets),
    )
    quiet()
    from logit_laplace_jax.data import errors
    from logit_laplace_jax.training import checkpoints, loop, report

    show(preset, config)
    with one_line_errors(ValueError):
        run = loop.Run(config)
    try:
        with one_line_errors(checkpoints.CheckpointError, errors.DataError):
            trained = run.train()
    except loop.NonFiniteLoss as error:
        fail(str(error), status=1)
    except loop.Stopped as stop:
        print(stop, flush=True)
        sys.exit(128 + stop.signal_number)
    report.finish(run, trained)


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
