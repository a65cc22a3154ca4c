"""What a likelihood without a floor under its scale does on flat regions of 8-bit images.

python experiments/flat_regions.py [--options]

Frames the embedded photographs in pure white (half of every picture, exactly predictable), trains
the default model on them with a floor under ln b and without, and prints what the held-out metrics
show at every evaluation, and at the end on the white values and on the others. A finished part is
not done again. Expected: some six minutes on two CPU cores. On white the exact code cannot go below
0 bits, while the density gains 0.69 nats whenever b is halved.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

import numpy as np
from _cli import one_line_errors, parse, quiet, run_script, say


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of flat_regions.py."""

    out: Path = Path("runs/flat_regions")
    """Folder for the framed pictures, the two runs and results.json."""
    steps: int = 1_500
    """Updates of each run."""
    seed: int = 0
    """Seed of both runs."""


def framed(photo: np.ndarray) -> np.ndarray:
    """The photograph in a white frame that covers as much as itself."""
    sides = [(round(0.21 * n),) * 2 for n in photo.shape[:2]]  # (1 + 2 · 0.21)² = 2
    return np.pad(photo, [*sides, (0, 0)], constant_values=255)


def main(args: list[str]) -> None:
    """Trains both, stores what they show, and prints it."""
    options = parse(Options, args, prog="flat_regions.py", description=__doc__)
    quiet()
    from configs import load

    from logit_laplace_jax.data.errors import DataError
    from logit_laplace_jax.data.sources import open_source
    from logit_laplace_jax.evaluation import figures
    from logit_laplace_jax.runs import compiled_programs, directory, errors, loop, metrics
    from logit_laplace_jax.runs.streams import held_out

    compiled_programs.keep()
    base, pictures, every = load("photos"), options.out / "pictures", max(1, options.steps // 5)
    with one_line_errors(ValueError):
        config = dataclasses.replace(
            base,
            data=dataclasses.replace(base.data, source=f"folder:{pictures}"),
            steps=options.steps,
            seed=options.seed,
            evaluation=dataclasses.replace(base.evaluation, every=every),
            checkpoint_every=every,  # without a floor the loss may end the run
        )
    for split in ("train", "validation"):
        source = open_source("photos", split)
        for index in range(len(source)):
            target = pictures / split / f"{Path(source.name(index)).stem}.png"
            if not target.exists():
                figures.save_png(target, framed(source[index]))
    course, ends = [], []
    for name, floor in (("with floor", -5.0), ("without", None)):
        run_dir = options.out / name.replace(" ", "_")
        likelihood = dataclasses.replace(base.likelihood, min_log_scale=floor)
        config = dataclasses.replace(config, run_dir=str(run_dir), likelihood=likelihood)
        say(f"--- {name}")
        with one_line_errors(ValueError, DataError, errors.CheckpointError):
            try:
                loop.train(config, say=say)
            except errors.NonFiniteLoss as error:
                say(str(error))
            state = directory.load(run_dir)
        rows = metrics.read(run_dir / "metrics.jsonl")
        course += [{"run": name, **row} for row in rows if row["split"] == "validation"]
        ends += [{"run": name, **row} for row in by_region(state, held_out(config))]
    results = {"course": course, "ends": ends}
    directory.write_whole(options.out / "results.json", json.dumps(results, indent=1) + "\n")
    columns = ("step", "nll_hard", "bpd_hard_pixels", "psnr", "floor_share")
    for rows, names in ((course, columns), (ends, ("values", "share", "ln b", "nats", "bits"))):
        say("\n" + "".join(f"{name:>17}" for name in ("run", *names)))
        for row in rows:
            cells = (row[name] for name in ("run", *names))
            say("".join(f"{c:>17.3f}" if isinstance(c, float) else f"{c:>17}" for c in cells))


def by_region(state: Any, batches: Any) -> list[dict[str, Any]]:
    """On white values and on the others, given the hard codes: share, mean ln b, loss, code."""
    import jax

    from logit_laplace_jax.training.evaluation import both_passes

    @jax.jit
    def values(batch: Any) -> Any:
        p = both_passes(state, batch, jax.random.key(0), None)
        likelihood, stats = p.hard
        log_scale = likelihood.parameters(stats)[1]
        return log_scale, likelihood.loss(p.pixels, stats), -likelihood.log_mass(p.pixels, stats)

    kept = [
        [np.asarray(a)[batch["mask"] > 0].astype(float) for a in (batch["pixels"], *values(batch))]
        for batch in batches
    ]
    pixels, log_scale, nats, mass = map(np.concatenate, zip(*kept, strict=True))
    columns = {"ln b": log_scale, "nats": nats, "bits": mass / np.log(2.0)}
    return [
        {"values": region, "share": float(where.mean())}
        | {name: float(column[where].mean()) for name, column in columns.items()}
        for region, where in (("white", pixels == 255), ("others", pixels != 255))
    ]


if __name__ == "__main__":
    run_script(main)
