"""How real do the images look that priors draw? Distances to held-out images, over seeds.

python experiments/realism.py PRIOR_DIR... [--options]

Sliced Wasserstein distances between patches (Karras et al. 2018), power spectra and the nearest
training images: measures that need no downloaded network. Priors are told together by data set,
likelihood and scale, with an interval over the dVAEs' seeds; each group beside the first. Writes
realism.json and realism.png into each PRIOR_DIR, in place of older ones.
"""

import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, quiet, run_script, say


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of realism.py."""

    prior_dirs: tuple[Path, ...]
    """Directories of priors that train_prior.py wrote."""
    output: Path | None = None
    """Folder, made anew, for realism.json, realism.md and spectra.png of all of them."""
    num: int = 2_048
    """Images that are drawn, and held-out images they are compared with, at most."""
    among: int = 8_192
    """Training images among which the nearest to each draw is looked for."""
    seed: int = 0
    """Seed of the draws and of the measures' patches and directions."""
    checkpoint: str = "latest"
    """latest, best (fewest held-out bits per token), or a number of updates."""


def main(args: list[str]) -> None:
    """Measures every prior, then tells them by group."""
    import tyro

    options = parse(
        Options,
        args,
        prog="realism.py",
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    quiet()
    from logit_laplace_jax.data.errors import DataError
    from logit_laplace_jax.evaluation import figures
    from logit_laplace_jax.runs import compiled_programs, realism, realism_report
    from logit_laplace_jax.runs.directory import write_whole
    from logit_laplace_jax.runs.errors import CheckpointError

    compiled_programs.keep()
    if not options.prior_dirs:
        fail("name at least one prior's directory: realism.py PRIOR_DIR...")
    if min(options.num, options.among) < 1 or not 0 <= options.seed < 2**32:
        fail("--num and --among must be 1 or more, --seed must lie in 0..2**32 - 1")
    if options.output is not None and options.output.exists():
        fail(f"{options.output} exists; choose another --output folder")
    settings = realism.Settings(options.num, options.seed, options.among, options.checkpoint)
    results = []
    for folder in options.prior_dirs:
        with one_line_errors(ValueError, CheckpointError, DataError):
            values, sheet = realism.measure(folder, settings)
        write_whole(folder / "realism.json", json.dumps(values) + "\n")
        figures.save_png(folder / "realism.png", sheet, scale=3)
        results.append(values)
        own = values["sets"]["prior"]
        say(
            f"{folder}: {values['likelihood']}, seed {values['seed']}: "
            f"{own['sliced_wasserstein_mean']:.4f} sliced Wasserstein, "
            f"{own['spectrum_error']:.2f} dB spectrum; {folder / 'realism.png'}"
        )
    text = realism_report.text(results)
    if options.output is not None:
        options.output.mkdir(parents=True)
        lines = ",\n".join(json.dumps(values) for values in results)
        write_whole(options.output / "realism.json", f"[\n{lines}\n]\n")
        write_whole(options.output / "realism.md", text)
        realism_report.spectra(options.output / "spectra.png", results)
    say(text)
    if options.output is not None:
        say(f"report    {options.output}")


if __name__ == "__main__":
    run_script(main)
