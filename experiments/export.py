"""Writes a trained run's averaged parameters as weights that other programs read.

python experiments/export.py RUN_DIR FILE.safetensors
python experiments/export.py RUN_DIR FILE.pt
python experiments/export.py RUN_DIR ENCODER.pt DECODER.pt --openai

One file holds both halves and says what they are (models/exchange.py reads it again). With --openai
the two files are state_dicts for OpenAI's own torch modules.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _cli import fail, one_line_errors, parse, quiet, run_script

if TYPE_CHECKING:
    from logit_laplace_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of export.py."""

    run_dir: Path
    """Run directory that train.py wrote."""
    files: tuple[Path, ...]
    """The file to write, .safetensors or .pt; with --openai the encoder's and the decoder's. They
    must not exist."""
    checkpoint: str = "latest"
    """latest, best (fewest held-out bits/dim while training), or a number of updates."""
    openai: bool = False
    """Write two files for the load_state_dict of OpenAI's torch modules, which have four groups and
    a predicted scale."""


def main(args: list[str]) -> None:
    """Writes the averaged parameters of one of the run's checkpoints."""
    import tyro

    options = parse(
        Options,
        args,
        prog="export.py",
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    quiet()
    from logit_laplace_jax.runs import checkpoints, directory
    from logit_laplace_jax.weights import exchange, openai

    if options.openai and len(options.files) != 2:
        fail("--openai writes two files: export.py RUN_DIR ENCODER.pt DECODER.pt --openai")
    if not options.openai and len(options.files) != 1:
        fail("name one file to write: export.py RUN_DIR FILE")
    for path in options.files:
        if path.exists():
            fail(f"{path} exists; choose another name")
        if not path.parent.is_dir():
            fail(f"{path.parent} is not a folder; make it, or choose another name")
    with one_line_errors(ValueError, checkpoints.CheckpointError):
        if not options.openai:
            exchange.check_ending(options.files[0])
        state = directory.load(options.run_dir, options.checkpoint)
        if options.openai:
            openai.save(*options.files, state.config.model, state.ema_params)
        else:
            exchange.save(options.files[0], state.config.model, state.ema_params, metadata(state))
    for path in options.files:
        print(f"{path}: {path.stat().st_size:,} bytes")


def metadata(state: "TrainState") -> dict[str, Any]:
    """What a reader of the weights needs to use them, and where they come from."""
    import logit_laplace_jax

    config = state.config
    kind, _, place = config.data.source.partition(":")
    return {
        "package": f"logit_laplace_jax {logit_laplace_jax.__version__}",
        "parameters": "moving average",
        "step": int(state.step),
        "eps": config.likelihood.eps,
        "likelihood": config.likelihood.name,
        "likelihood_options": dataclasses.asdict(config.likelihood.build()),
        "objective": config.likelihood.objective,
        "image_size": config.image_size,
        # Where a folder stands is nobody else's business.
        "data": f"{kind}:{Path(place).name}" if kind == "folder" else config.data.source,
    }


if __name__ == "__main__":
    run_script(main)
