"""What a likelihood without a floor under its scale does on flat regions of 8-bit images.

python experiments/flat_regions.py [--options]

Frames the embedded photographs in pure white (half of every picture, exactly predictable), trains
the default model on them with a floor under ln b and without, and prints what the metrics show. A
finished part is not done again. Expected: some six minutes on two CPU cores.

Two tables: the course of both runs, and their ends on the white values and on the others. On white
the exact code cannot go below 0 bits, while the density gains 0.69 nats whenever b is halved.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from _cli import fail, one_line_errors, parse, quiet, run_script, say


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of flat_regions.py."""

    out: Path = Path("runs/flat_regions")
    """Folder for the framed pictures and the two runs."""
    steps: int = 1_500
    """Updates of each run."""
    floor: float = -5.0
    """Soft floor of ln b in the run that has one."""
    seed: int = 0
    """Seed of both runs."""


def framed(photo: np.ndarray) -> np.ndarray:
    """The photograph in a white frame that covers as much as itself."""
    height, width, channels = photo.shape
    top, left = round(0.21 * height), round(0.21 * width)  # (1 + 2 · 0.21)² = 2
    canvas = np.full((height + 2 * top, width + 2 * left, channels), 255, np.uint8)
    canvas[top : top + height, left : left + width] = photo
    return canvas


def main(args: list[str]) -> None:
    """Trains both and prints the table."""
    options = parse(Options, args, prog="flat_regions.py", description=__doc__)
    if options.steps < 1:
        fail(f"--steps must be 1 or more, got {options.steps}")
    quiet()
    from configs import load
    from PIL import Image

    from logit_laplace_jax.data.errors import DataError
    from logit_laplace_jax.data.sources import open_source
    from logit_laplace_jax.runs import compiled_programs, directory, errors, loop
    from logit_laplace_jax.runs.streams import held_out

    compiled_programs.keep()

    pictures = options.out / "pictures"
    if not pictures.exists():
        for split in ("train", "validation"):
            source = open_source("photos", split)
            (pictures / split).mkdir(parents=True)
            for index in range(len(source)):
                name = Path(source.name(index)).stem
                Image.fromarray(framed(source[index])).save(pictures / split / f"{name}.png")
    rows, ends = {}, {}
    for name, floor in (("with floor", options.floor), ("without", None)):
        with one_line_errors(ValueError, DataError, errors.CheckpointError):
            base = load("photos")
            every = max(1, options.steps // 5)
            config = dataclasses.replace(
                base,
                run_dir=str(options.out / name.replace(" ", "_")),
                data=dataclasses.replace(base.data, source=f"folder:{pictures}"),
                steps=options.steps,
                seed=options.seed,
                evaluation=dataclasses.replace(base.evaluation, every=every),
                checkpoint_every=every,  # without a floor the loss may end the run
                likelihood=dataclasses.replace(base.likelihood, min_log_scale=floor),
            )
            say(f"--- {name}")
            try:
                loop.train(config, say=say)
            except errors.NonFiniteLoss as error:
                say(str(error))
            state = directory.load(config.run_dir)
        rows[name] = history(Path(config.run_dir))
        ends[name] = by_region(state, held_out(config))
    say(table(rows))
    say(regions(ends))


def history(folder: Path) -> dict[str, list[dict[str, float]]]:
    """The lines of metrics.jsonl by split."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    by_split: dict[str, list[dict[str, float]]] = {"train": [], "validation": []}
    for line in lines:
        values = json.loads(line)
        by_split[values["split"]].append(values)
    return by_split


def table(rows: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Held-out numbers at every evaluation, and the gradient's norm up to it."""
    titles = [("density", "nats/value"), ("exact", "bits/dim"), ("PSNR", "dB")]
    titles += [("at floor", "%"), ("gradient", "largest")]
    lines = [
        f"{'':<12}{'step':>6}" + "".join(f"{title:>12}" for title, _ in titles),
        f"{'':<18}" + "".join(f"{unit:>12}" for _, unit in titles),
    ]
    for name, splits in rows.items():
        before = 0.0
        for row in splits["validation"]:
            norms = [r["grad_norm"] for r in splits["train"] if before < r["step"] <= row["step"]]
            before = row["step"]
            lines.append(
                f"{name:<12}{row['step']:>6.0f}{row['nll_hard']:>12.3f}"
                f"{row['bpd_hard_pixels']:>12.3f}{row['psnr']:>12.2f}"
                f"{100 * row['floor_share']:>12.1f}{max(norms, default=0.0):>12.1f}"
            )
    return "\n".join(lines)


def by_region(state: Any, batches: Iterable[dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
    """On white values and on the others, given the hard codes: share, mean ln b, loss, code."""
    import jax

    from logit_laplace_jax.training.evaluation import both_passes

    @jax.jit
    def values(batch: Any) -> Any:
        p = both_passes(state, batch, jax.random.key(0), None)
        likelihood, stats = p.hard
        log_scale = likelihood.parameters(stats)[1]
        return log_scale, likelihood.loss(p.pixels, stats), -likelihood.log_mass(p.pixels, stats)

    parts: list[list[np.ndarray]] = []
    for batch in batches:
        kept = batch["mask"] > 0
        parts.append([batch["pixels"][kept], *(np.asarray(v)[kept] for v in values(batch))])
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    pixels, log_scale, nll, mass = (column.astype(np.float64) for column in columns)
    white = pixels == 255
    return {
        region: {
            "share": float(where.mean()),
            "log_scale": float(log_scale[where].mean()),
            "nll": float(nll[where].mean()),
            "bits": float(mass[where].mean() / np.log(2.0)),
        }
        for region, where in (("white", white), ("others", ~white))
    }


def regions(ends: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table of :func:`by_region`."""
    lines = [f"{'':<12}{'values':<8}{'share %':>10}{'ln b':>10}{'nats/value':>12}{'bits/dim':>10}"]
    for name, parts in ends.items():
        lines += [
            f"{name:<12}{region:<8}{100 * v['share']:>10.1f}{v['log_scale']:>10.2f}"
            f"{v['nll']:>12.3f}{v['bits']:>10.3f}"
            for region, v in parts.items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
