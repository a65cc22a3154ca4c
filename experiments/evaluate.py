"""Evaluates trained runs on held-out images: a table, JSON and a page of plots.

python experiments/evaluate.py RUN_DIR... [--options]

Writes evaluation.json and evaluation.png into each run directory, in place of older ones.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, quiet, run_script, say


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of evaluate.py."""

    run_dirs: tuple[Path, ...]
    """Run directories that train.py wrote."""
    data: str | None = None
    """Held-out images: photos, folder:PATH or tfds:NAME; default: what the run was trained on."""
    json: Path | None = None
    """Also write the numbers of all runs to this file; it must not exist."""
    split: Literal["validation", "train", "all"] = "validation"
    """Which of the images: of a folder without the folders train and val, all of them with all."""
    codecs: bool = False
    """Also what other codecs make of the images: k-means with as many codes, trained on the run's
    crops; JPEG at the rate of the tokens; PNG and WebP without loss."""
    whole: bool = False
    """Evaluate whole images of any size, padded where needed (padding never counts), not crops."""
    resize: float | None = None
    """Factor on the size of whole images, in (0, 1], with --whole; default: 1. (Crops are cut at
    the run's --evaluation.resize.)"""
    edges: Path | None = None
    """Folder of boundary maps (white on black) named like the images, with --whole; default: a
    Sobel filter."""
    limit: int | None = None
    """At most so many crops, or images with --whole; default: the run's --evaluation.images."""
    checkpoint: str = "latest"
    """latest, best (fewest held-out bits/dim while training), or a number of updates."""
    prior: Path | None = None
    """Run directory of a prior over the run's tokens, which then prices the codes too."""
    batch_size: int | None = None
    """Images at a time, over all devices; default: the run's; with --whole one
    per device."""


def main(args: list[str]) -> None:
    """Evaluates every run at one of its checkpoints."""
    import tyro

    options = parse(
        Options,
        args,
        prog="evaluate.py",
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    quiet()
    from logit_laplace_jax.data.errors import DataError
    from logit_laplace_jax.runs import (
        compiled_programs,
        directory,
        evaluation,
        report,
        report_page,
    )
    from logit_laplace_jax.runs.errors import CheckpointError

    compiled_programs.keep()
    if not options.run_dirs:
        fail("name at least one run directory: evaluate.py RUN_DIR...")
    if options.json is not None and options.json.exists():
        fail(f"{options.json} exists; choose another --json file")
    if options.json is not None and not options.json.parent.is_dir():
        fail(f"{options.json.parent} is not a folder; make it, or choose another --json file")
    for name in ("limit", "batch_size"):
        if (getattr(options, name) or 1) < 1:
            fail(f"--{name.replace('_', '-')} must be 1 or more")
    if options.prior is not None and len(options.run_dirs) > 1:
        fail("--prior belongs to one run: name a single run directory")
    results = {}
    for folder in options.run_dirs:
        started = time.perf_counter()
        with one_line_errors(ValueError, CheckpointError, DataError):
            values, pictures = evaluation.evaluate_run(
                folder,
                options.data,
                whole=options.whole,
                resize=options.resize,
                edge_maps=options.edges,
                limit=options.limit,
                batch_size=options.batch_size,
                checkpoint=options.checkpoint,
                prior=options.prior,
                split=options.split,
                codecs=options.codecs,
            )
        seconds = time.perf_counter() - started
        results[str(folder)] = values
        directory.write_whole(folder / "evaluation.json", _text(values))
        if options.json is not None:
            directory.write_whole(options.json, _text(results))
        page = folder / "evaluation.png"
        title = f"{folder.name}: {values['likelihood']}, step {values['step']}, {values['data']}"
        report_page.write_page(page, values, pictures, title)
        say(f"{folder}: step {values['step']}, evaluated in {seconds:.1f} s")
        say(report_page.table(values))
        say(f"numbers   {folder / 'evaluation.json'}")
        say(f"try it    {report.command('reconstruct.py', str(folder), 'YOUR_IMAGE.jpg')}")
        say(f"page      {page}")


def _text(values: Mapping[str, object]) -> str:
    return json.dumps(values, indent=2) + "\n"


if __name__ == "__main__":
    run_script(main)
