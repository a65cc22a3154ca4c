"""Draws images from a trained prior and its dVAE: a sheet as PNG.

python experiments/sample.py PRIOR_DIR [--options]
python experiments/sample.py PRIOR_DIR --complete IMAGE...
"""

import dataclasses
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, quiet, run_script, say


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of sample.py."""

    prior_dir: Path
    """Directory of the prior that train_prior.py wrote."""
    num: int | None = None
    """Images; with --complete, completions per image. Default: 64, or 7."""
    seed: int = 0
    """Seed of the draws: the same seed gives the same sheet, whatever the batch size."""
    label: str | None = None
    """Class to draw, by its name, with a conditional prior; default: all of them in turn."""
    temperature: float = 1.0
    """Of every token's distribution: below 1 likelier codes, at 0 the likeliest."""
    top_k: int | None = None
    """Draw every token among the k likeliest codes only."""
    top_p: float | None = None
    """Draw every token among the fewest codes that together have this probability, in (0, 1]."""
    complete: tuple[Path, ...] = ()
    """Images whose upper half is given and whose lower half is drawn."""
    output: Path | None = None
    """PNG file, which must not exist; default: a new one in PRIOR_DIR/samples."""
    columns: int = 8
    """Images in a row of the sheet."""
    enlarge: int = 3
    """Enlarge the sheet by this whole factor, with sharp pixels."""
    batch_size: int = 64
    """Images drawn at a time."""
    checkpoint: str = "latest"
    """latest, best (fewest held-out bits per token), or a number of updates."""
    timing: bool = False
    """Also tell the speed with and without the cache of keys and values, compilation left out."""


def main(args: list[str]) -> None:
    """Draws tokens, decodes them, writes a sheet."""
    import tyro

    options = parse(
        Options,
        args,
        prog="sample.py",
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    quiet()
    import numpy as np

    from logit_laplace_jax.evaluation import figures
    from logit_laplace_jax.runs import compiled_programs, directory, pictures
    from logit_laplace_jax.runs.errors import CheckpointError

    compiled_programs.keep()
    for name, low, high in (("columns", 1, 64), ("enlarge", 1, 16), ("batch_size", 1, 2**16)):
        if not low <= getattr(options, name) <= high:
            fail(f"--{name.replace('_', '-')} must lie in {low}..{high}")
    if not 0 <= options.seed < 2**32:
        fail(f"--seed must lie in 0..2**32 - 1, got {options.seed}")
    if options.num is not None and options.num < 1:
        fail(f"--num must be 1 or more, got {options.num}")
    output = options.output
    if output is not None and output.exists():
        fail(f"{output} exists; choose another --output file")
    with one_line_errors(ValueError, CheckpointError):
        state = directory.load(options.prior_dir, options.checkpoint, kind="prior")
        crops = pictures.crops_of(options.complete, state.config)
        num = (options.num or 7) * len(crops) if len(crops) else options.num or 64
        labels = pictures.labels(state.config, options.label, num)
        draws = pictures.Draws(
            options.seed, options.temperature, options.top_k, options.top_p, options.batch_size
        )
        known = None
        if len(crops):
            known = np.repeat(pictures.upper_half(state, crops), num // len(crops), axis=0)
        started = time.perf_counter()
        tokens = draws.tokens(state, num, labels, known)
    images = pictures.decoded(state.frozen, tokens, state.config.dvae)
    seconds = time.perf_counter() - started
    if len(crops):
        rows = [np.concatenate(pair) for pair in _pairs(crops, images)]
        columns = 1 + num // len(crops)
    else:
        columns = min(options.columns, num)
        missing = -num % columns
        filled = np.concatenate([images, np.ones((missing, *images.shape[1:]), images.dtype)])
        rows = list(filled.reshape(-1, columns, *images.shape[1:]))
    if output is None:
        step, folder = int(state.step), options.prior_dir / "samples"
        names = (
            f"draw_step{step}_seed{options.seed}{f'_{i}' if i else ''}.png"
            for i in itertools.count()
        )
        output = next(folder / name for name in names if not (folder / name).exists())
    figures.save_png(output, figures.grid(rows, columns), options.enlarge)
    what = "completed" if len(crops) else "drawn"
    say(f"{output}: {num} images {what} in {seconds:.1f} s, compilation included")
    if options.timing:
        for cache in (True, False):
            rate = pictures.images_per_second(state, labels, draws, cache)
            say(f"{'with' if cache else 'without'} the cache: {rate:.1f} images per second")


def _pairs(crops, images):
    """Each given image, and what was drawn for it."""
    per = len(images) // len(crops)
    for place, crop in enumerate(crops):
        yield crop[None] / 255.0, images[place * per : (place + 1) * per]


if __name__ == "__main__":
    run_script(main)
