"""Writes a trained run's averaged parameters as one file that other programs read.

python experiments/export.py RUN_DIR FILE.safetensors

The file holds encoder and decoder in torch's layout under the names of OpenAI's modules (torch:
safetensors.torch.load_file), and says what they are, so that --init-from and the token scripts take
it.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, quiet, run_script, say

if TYPE_CHECKING:
    from logit_laplace_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of export.py."""

    run_dir: Path
    """Run directory that train.py wrote."""
    file: Path
    """The file to write, NAME.safetensors; it must not exist."""
    checkpoint: str = "latest"
    """latest, best (fewest held-out bits/dim while training), or a number of updates."""


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
    from logit_laplace_jax.runs import directory
    from logit_laplace_jax.runs.errors import CheckpointError
    from logit_laplace_jax.weights import exchange

    if options.file.exists():
        fail(f"{options.file} exists; choose another name")
    if not options.file.parent.is_dir():
        fail(f"{options.file.parent} is not a folder; make it, or choose another name")
    with one_line_errors(ValueError, CheckpointError):
        exchange.check_ending(options.file)
        state = directory.load(options.run_dir, options.checkpoint)
        exchange.save(options.file, state.config.model, state.ema_params, metadata(state))
    say(f"{options.file}: {options.file.stat().st_size:,} bytes")


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
