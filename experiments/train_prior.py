"""Trains a prior over the tokens of a trained dVAE: a causal transformer.

python experiments/train_prior.py RUN_DIR [--options]
python experiments/train_prior.py RUN_DIR --help
"""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, run_script, say
from _start import differing, start

DESCRIPTION = """Trains a prior over the tokens of a run's dVAE, on that run's images:
python experiments/train_prior.py RUN_DIR [--size SIZE] [--options].

Sizes (--size):
{sizes}

Running the same command again goes on where the prior's directory stands. Ctrl-C saves first."""

SIZES = {
    "small": "4 blocks of 128 features: minutes on two CPU cores (default)",
    "medium": "8 blocks of 512 features, bfloat16: one accelerator",
    "large": "24 blocks of 1,024 features, bfloat16: one large accelerator",
    "paper": "64 blocks of 3,968 features, 12 billion parameters: a pod",
}

SHORT = {
    "--prior-dir": "--run-dir",
    "--data": "--data.source",
    "--eval-every": "--evaluation.every",
}
"""Options that every user meets, by what they are called in the configuration."""


def main(args: list[str]) -> None:
    """Parses, trains, says how to go on."""
    import tyro

    from logit_laplace_jax.models.prior_config import PRIORS
    from logit_laplace_jax.runs.launch import Launch
    from logit_laplace_jax.training.config import (
        FOLLOWS,
        PriorTrainConfig,
        PriorTrainOptions,
        flat,
    )

    run_dir, args = _positional(args)
    size, args = _size(args)
    given = {arg.split("=")[0].replace("_", "-") for arg in args}
    for name, source in FOLLOWS.items():
        option = f"--{name.replace('_', '-')}"
        if option in given:
            fail(f"{option} follows {f'--{source}' if source != 'run' else 'the run'}")
    if "--run-dir" in given:
        fail("the first word is the dVAE's run; the prior's own directory is --prior-dir DIR")
    shape = PRIORS[size]
    default = PriorTrainOptions(
        run_dir=str(Path(run_dir or "RUN_DIR") / "prior"), prior=shape, precision=shape.dtype
    )
    dvae = None
    if run_dir is not None:
        dvae = _dvae(Path(run_dir))
        evaluation = dataclasses.replace(dvae.evaluation, every=500)
        default = dataclasses.replace(default, data=dvae.data, evaluation=evaluation)

    @dataclasses.dataclass(frozen=True)
    class Command:
        config: Annotated[PriorTrainOptions, tyro.conf.arg(name="")]
        launch: Annotated[Launch, tyro.conf.arg(name="")]

    command = parse(
        Command,
        args,
        SHORT,
        default=Command(default, Launch()),
        prog="train_prior.py RUN_DIR",
        description=DESCRIPTION.format(
            sizes="\n".join(f"  {name:<8}{text}" for name, text in SIZES.items())
        ),
    )
    if dvae is None:
        fail("name the run directory of a dVAE: train_prior.py RUN_DIR [--options]")
    options = command.config
    values = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    with one_line_errors(ValueError):
        classes = _classes(options, dvae) if options.conditional else ()
        config = PriorTrainConfig(**values, run=run_dir, dvae=dvae, classes=classes)
    words = ", ".join((size, *differing(flat(options), flat(default))))

    def finish(run):
        here = Path(sys.argv[0]).parent
        folder = str(run.folder)
        commands = {
            "draw": ["sample.py", folder],
            "evaluate": ["evaluate.py", run_dir, "--prior", folder],
        }
        say(f"pictures  {run.folder / 'samples'}")
        for what, (script, *rest) in commands.items():
            say(f"{what:<9} {shlex.join([sys.executable, str(here / script), *rest])}")

    start(config, command.launch, f"{run_dir}, {words}", finish)


def _positional(args: list[str]) -> tuple[str | None, list[str]]:
    if args and not args[0].startswith("-"):
        return args[0], args[1:]
    return None, args


def _size(args: list[str]) -> tuple[str, list[str]]:
    """The size asked for, which decides the other options' defaults, and the other arguments."""
    size, rest = "small", list(args)
    for place, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name == "--size":
            size = value if equals else "".join(args[place + 1 : place + 2])
            rest = args[:place] + args[place + (1 if equals else 2) :]
    if size not in SIZES:
        fail(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
    return size, rest


def _dvae(folder: Path):
    from logit_laplace_jax.runs import directory
    from logit_laplace_jax.training.config import TrainConfig

    with one_line_errors(ValueError):
        config = directory.read_config(folder).resolved()
    if not isinstance(config, TrainConfig):
        fail(f"{folder} is the run of a prior: name that of a dVAE")
    return config


def _classes(options, dvae) -> tuple[str, ...]:
    from logit_laplace_jax.data.sources import open_source

    source = open_source(
        options.data.source,
        "train",
        data_dir=options.data.data_dir,
        channels=dvae.model.channels,
        cache_mib=0,
    )
    return source.classes()


if __name__ == "__main__":
    run_script(main)
