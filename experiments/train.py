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

from _cli import fail, parse, run_script, say
from _start import differing, start

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
    changed = differing(flat(config), flat(load(preset)))

    def finish(run):
        from logit_laplace_jax.runs import report

        report.finish(run, say)

    start(config, launch, ", ".join((preset, *changed)), finish)


if __name__ == "__main__":
    run_script(main)
