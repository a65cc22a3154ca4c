"""The end of a run: a sheet of photographs to look at, and a table to read the numbers by."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.data.augment import area_resize
from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.evaluation import baselines, metrics
from logit_laplace_jax.runs import codecs, coding, directory, final_sheet
from logit_laplace_jax.runs.loop import Run
from logit_laplace_jax.runs.metrics import read
from logit_laplace_jax.runs.streams import held_out, open_split, stack_crops
from logit_laplace_jax.training.evaluation import reconstruct

_WHOLE_IMAGES, _LONGEST_SIDE = 4, 512
"""The sheet shows so many images, at most so many pixels long."""

_BASELINE_CROPS, _BASELINE_VALUES = 2_048, 10_000_000
"""The table is of at most so many crops and values: its arrays are many, and k-means is slow."""

_PART_VALUES = 2_000_000


def finish(run: Run, say: Callable[[str], None] = print) -> None:
    """Writes the pictures and ``summary.json``, then says what became of the run.

    Args:
      run: a run whose training is complete. If it was complete before, a report that stands is
        left alone.
      say: prints one line.
    """
    folder = run.folder
    sheet = folder / "reconstructions" / "final.png"
    if run.trained or not (folder / "summary.json").exists():
        save_sheet(run, sheet)
        save_animation(folder / "reconstructions")
        lines, values = compare(run)
        directory.write_whole(folder / "summary.json", json.dumps(values, indent=2) + "\n")
        for line in ("", *lines):
            say(line)
    for line in ("", *summary(run)):
        say(line)
    say(f"metrics   {folder / 'metrics.jsonl'}; TensorBoard: tensorboard --logdir {folder}")
    say(f"evaluate  {command('evaluate.py', str(folder))}")
    say(f"try it    {command('reconstruct.py', str(folder), 'YOUR_IMAGE.jpg')}")
    say(f"pictures  {sheet}")


def command(script: str, *args: str) -> str:
    """The line that runs another of the scripts, as the running one was run."""
    return shlex.join([sys.executable, str(Path(sys.argv[0]).parent / script), *args])


def summary(run: Run) -> list[str]:
    """What became of a run, in a few lines: speed, losses, held-out measures, checkpoints."""
    rows = read(run.folder / "metrics.jsonl")
    trained = [row for row in rows if row["split"] == "train"]
    evaluated = [row for row in rows if row["split"] == "validation"]
    lines = []
    if run.training_seconds > 0:
        minutes, seconds = divmod(round(run.training_seconds), 60)
        share = 100 * run.waiting_seconds / run.training_seconds
        lines.append(
            f"speed     {trained[-1]['images_per_second']:.0f} images/s at the end; {share:.1f} % "
            f"of {minutes} min {seconds} s the devices waited for images"
        )
    if trained:
        last = trained[-1]
        names = ("loss", "nll", "kl", "grad_norm", "skipped_steps", "loss_scale")
        text = ", ".join(f"{name} {last[name]:.4f}" for name in names if name in last)
        lines.append(f"training  step {last['step']}: {text}")
    if evaluated:
        last, best = evaluated[-1], min(evaluated, key=lambda row: row["bpd_hard"])
        lines.append(
            f"held out  {last['bpd_hard']:.3f} bits/dim, {last['psnr']:.2f} dB, "
            f"{100 * last['code_usage']:.0f} % of the codes; best {best['bpd_hard']:.3f} bits/dim "
            f"at step {best['step']}"
        )
    kept = ", ".join(map(str, run.checkpoints))
    best_kept = "" if run.best is None else f" (best: {run.best})"
    lines.append(
        f"saved     checkpoints of steps {kept}{best_kept} in {run.folder / 'checkpoints'}"
    )
    return lines


def save_sheet(run: Run, path: Path) -> None:
    """Draws the first held-out images entire, at most 512 pixels long."""
    config = run.config
    source = open_split(config, run.source, "validation")
    rows: list[tuple[str, coding.Coded]] = []
    for index in range(len(source)):
        try:
            image = resized(source[index], config.model.downsampling, _LONGEST_SIDE)
        except DataError:
            continue  # already named by the evaluation
        name = Path(source.name(index)).name[-24:]
        rows.append((name, coding.code(run.state, image, expected=True)))
        if len(rows) == _WHOLE_IMAGES:
            break
    step = int(run.state.step)
    final_sheet.write(path, rows, f"{run.folder.name}: held-out photographs after {step:,} updates")


def save_animation(folder: Path) -> None:
    """Puts the sheets of the run's evaluations together as ``learning.gif``, if there are two."""
    from PIL import Image

    sheets = [Image.open(path).convert("RGB") for path in sorted(folder.glob("step_*.png"))]
    if len(sheets) > 1 and len({sheet.size for sheet in sheets}) == 1:
        times = [400] * (len(sheets) - 1) + [2_000]
        sheets[0].save(
            folder / "learning.gif", save_all=True, append_images=sheets[1:], duration=times, loop=0
        )


def resized(image: np.ndarray, factor: int, longest: int) -> np.ndarray:
    """Area-resizes an image and cuts it to a size that the model can halve.

    Args:
      image: uint8 [H, W, C].
      factor: the model's downsampling.
      longest: a larger image's longest side gets this many pixels.

    Returns:
      uint8 [H', W', C], sides multiples of ``factor``.

    Example:
      >>> resized(np.zeros((99, 50, 3), np.uint8), factor=4, longest=40).shape
      (40, 20, 3)
    """
    height, width = image.shape[:2]
    resize = min(1.0, longest / max(height, width))
    size = (max(factor, round(width * resize)), max(factor, round(height * resize)))
    smaller = image if size == (width, height) else area_resize(image, size)
    return smaller[: size[1] // factor * factor, : size[0] // factor * factor]


def compare(run: Run) -> tuple[list[str], dict[str, Any]]:
    """The model beside codecs that need no training by gradient, on held-out crops.

    Returns:
      The lines of a table, and the numbers by name: decibels (means over crops) and bits/dim.
    """
    config = run.config
    factor, codes = config.model.downsampling, config.model.vocab_size
    values_per_crop = config.image_size**2 * config.model.channels
    count = max(1, min(_BASELINE_CROPS, _BASELINE_VALUES // values_per_crop))
    crops = stack_crops(held_out(config, run.source), count)
    part = max(1, _PART_VALUES // values_per_crop)
    rebuilt = [
        np.asarray(reconstruct(run.state, crops[i : i + part])) for i in range(0, len(crops), part)
    ]
    evaluated = [r for r in read(run.folder / "metrics.jsonl") if r["split"] == "validation"]
    bits = evaluated[-1]["bpd_hard"] if evaluated else None
    budget, free = f"{np.log2(codes):.0f} bits per token", "no token budget"
    rows = [
        ("dvae", "this model, hard codes", np.concatenate(rebuilt), bits, budget),
        ("constant", "constant colour of each crop", baselines.constant_colour(crops), None, ""),
        ("pooled", f"pooled {factor} x {factor}", baselines.pooled(crops, factor), None, free),
    ]
    quantiser = codecs.quantiser(config, run.source)
    if quantiser is not None:
        label, length = f"k-means patches, {codes} codes", quantiser.bits_per_dim(crops).mean()
        rows.append(("kmeans", label, quantiser.reconstruct(crops), float(length), budget))
    originals = jnp.asarray(crops / 255.0)
    values: dict[str, Any] = {}
    title = f"{len(crops)} held-out crops of {config.image_size} x {config.image_size}"
    lines = [f"{title:<34} {'PSNR':>6}     bits/dim"]
    for name, label, images, bits, note in rows:
        error = metrics.mean_squared_error(jnp.asarray(images), originals)
        values[f"psnr_{name}"] = decibels = float(metrics.psnr(error).mean())
        shown = ""
        if bits is not None:
            values[f"bpd_{name}"] = bits
            shown = f"{bits:.3f}"
        lines.append(f"  {label:<32} {decibels:6.2f} dB  {shown:>8}  {note}".rstrip())
    if quantiser is None:
        lines.append(f"  k-means left out: {codes} codes are too many for so few patches per crop")
    return lines, values
