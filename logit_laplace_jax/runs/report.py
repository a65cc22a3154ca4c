"""The end of a run: whole photographs to look at, and a table to read the PSNR by."""

import json
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.data.augment import area_resize
from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.data.sources import open_source
from logit_laplace_jax.evaluation import baselines, figures, metrics
from logit_laplace_jax.runs import records
from logit_laplace_jax.runs.loop import Run
from logit_laplace_jax.runs.progress import duration
from logit_laplace_jax.runs.streams import held_out, stack_crops, training_crops
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.evaluation import reconstruct
from logit_laplace_jax.training.state import TrainState

_WHOLE_IMAGES = 4
_LONGEST_SIDE = 512
_BASELINE_CROPS = 2_048
_BASELINE_VALUES = 10_000_000
"""The table is of at most so many crops and values: its arrays are many, and k-means is slow."""

_PART_VALUES = 2_000_000
_PATCHES_PER_CODE = 64
_MOST_TRAINING_CROPS = 8_192


def finish(run: Run, trained: bool = True) -> None:
    """Writes whole held-out images, prints the table, says where everything is.

    Args:
      run: a run whose training is complete.
      trained: whether it was only now; else the report that stands is left alone.
    """
    config, folder = run.config, run.folder
    if trained or not (folder / "summary.json").exists():
        whole_images(run)
        values_per_crop = config.image_size**2 * config.model.channels
        count = max(1, min(_BASELINE_CROPS, _BASELINE_VALUES // values_per_crop))
        table, values = compare(config, run.state, stack_crops(held_out(config), count))
        run.say("")
        for line in table:
            run.say(line)
        text = json.dumps(values, indent=2) + "\n"
        part = folder / "summary.json.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, folder / "summary.json")  # all of it or nothing, also in a kill
    run.say("")
    for line in summary(run):
        run.say(line)
    run.say(f"pictures  {folder / 'reconstructions'} (left or above: the original)")
    run.say(f"metrics   {folder / 'metrics.jsonl'}, TensorBoard events in {folder / 'tensorboard'}")
    run.say(f"evaluate  python experiments/evaluate.py {folder}")
    run.say(f"try it    python experiments/reconstruct.py {folder} YOUR_IMAGE.jpg")


def summary(run: Run) -> list[str]:
    """What became of a run, in a few lines: speed, losses, held-out measures, checkpoints."""
    rows = records.read(run.folder / "metrics.jsonl")
    lines = []
    trained = [row for row in rows if row["split"] == "train"]
    if run.log is not None and run.log.training_seconds > 0:
        seconds = run.log.training_seconds
        share = 100 * run.log.waiting_seconds / seconds
        rate = trained[-1]["images_per_second"]
        lines.append(
            f"speed     {rate:.0f} images/s at the end; {share:.1f} % of {duration(seconds)} the "
            "devices waited for images"
        )
    if trained:
        last = trained[-1]
        text = ", ".join(f"{name} {last[name]:.4f}" for name in ("loss", "nll", "kl", "grad_norm"))
        if "skipped_steps" in last:
            text += (
                f", {last['skipped_steps']:.0f} updates skipped, loss scale {last['loss_scale']:g}"
            )
        lines.append(f"training  step {last['step']}: {text}")
    evaluated = [row for row in rows if row["split"] == "validation"]
    if evaluated:
        last, best = evaluated[-1], min(evaluated, key=lambda row: row["bpd_hard"])
        lines.append(
            f"held out  {last['bpd_hard']:.3f} bits/dim, {last['psnr']:.2f} dB, "
            f"{100 * last['code_usage']:.0f} % of the codes; best {best['bpd_hard']:.3f} bits/dim "
            f"at step {best['step']}"
        )
    kept = ", ".join(map(str, run.saved))
    best_kept = "" if run.best_saved is None else f" (best: {run.best_saved})"
    lines.append(
        f"saved     checkpoints of steps {kept}{best_kept} in {run.folder / 'checkpoints'}"
    )
    return lines


def whole_images(run: Run) -> None:
    """Saves the first held-out images entire, originals on the left, as final_NAME.png."""
    config = run.config
    source = open_source(
        config.data, "validation", data_dir=config.data_dir, channels=config.model.channels
    )
    saved = 0
    for index in range(len(source)):
        try:
            image = fit(
                source[index], config.model.downsampling, config.eval_scale or 1.0, _LONGEST_SIDE
            )
        except DataError:
            continue  # already named by the evaluation
        picture = figures.side_by_side(image, np.asarray(reconstruct(run.state, image[None]))[0])
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in source.name(index))[-60:]
        scale = 2 if max(image.shape) <= _LONGEST_SIDE // 2 else 1
        figures.save_png(run.folder / "reconstructions" / f"final_{name}.png", picture, scale)
        saved += 1
        if saved == _WHOLE_IMAGES:
            break


def fit(image: np.ndarray, factor: int, scale: float, longest: int) -> np.ndarray:
    """Area-resizes an image and crops it to a size that the model can halve.

    Args:
      image: uint8 [H, W, C].
      factor: the model's downsampling.
      scale: in (0, 1].
      longest: the longest side's limit in pixels, which lowers the scale if need be.

    Returns:
      uint8 [H', W', C], sides multiples of ``factor``.

    >>> fit(np.zeros((99, 50, 3), np.uint8), factor=4, scale=0.5, longest=40).shape
    (40, 20, 3)
    """
    height, width = image.shape[:2]
    scale = min(scale, longest / max(height, width))
    size = (max(factor, round(width * scale)), max(factor, round(height * scale)))
    resized = area_resize(image, size)
    return resized[: size[1] // factor * factor, : size[0] // factor * factor]


def compare(
    config: TrainConfig, state: TrainState, crops: np.ndarray
) -> tuple[list[str], dict[str, Any]]:
    """PSNR of the model beside codecs that need no training by gradient, on the same crops.

    Args:
      config: the run's.
      state: one copy of its state.
      crops: held-out crops, uint8 [N, S, S, C].

    Returns:
      The lines of a table, and the numbers by name (decibels, means over crops).
    """
    factor, codes = config.model.downsampling, config.model.vocab_size
    rebuilt = np.concatenate([np.asarray(reconstruct(state, part)) for part in _parts(crops)])
    bits = f"{np.log2(codes):.0f} bits a token"
    pooled = baselines.pooled(crops, factor)
    rows = {
        "dvae": ("this model, hard codes", rebuilt, bits),
        "constant": ("constant colour of each crop", baselines.constant_colour(crops), ""),
        "pooled": (f"pooled {factor} x {factor}", pooled, "no token budget"),
    }
    # k-means wants some dozens of patches a code.
    patches_per_crop = (config.image_size // factor) ** 2
    wanted = max(64, -(-_PATCHES_PER_CODE * codes // patches_per_crop))
    if wanted <= _MOST_TRAINING_CROPS:
        quantised = baselines.vector_quantised(
            crops,
            training_crops(config, wanted),
            factor,
            codes,
            config.seed,
            sample=_PATCHES_PER_CODE * codes,
        )
        rows["kmeans"] = (f"k-means patches, {codes} codes", quantised, bits)
    values = {name: psnr(crops, images) for name, (_, images, _) in rows.items()}
    lines = [f"{len(crops)} held-out crops of {config.image_size} x {config.image_size}     PSNR"]
    for name, (label, _, note) in rows.items():
        lines.append(f"  {label:<32} {values[name]:6.2f} dB  {note}".rstrip())
    if "kmeans" not in rows:
        lines.append(f"  k-means left out: {codes} codes are too many for patches so few a crop")
    return lines, {f"psnr_{name}": value for name, value in values.items()}


def psnr(originals: np.ndarray, images: np.ndarray) -> float:
    """Mean over images of the PSNR in decibels; uint8 originals, images in [0, 1].

    >>> psnr(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 0.1))
    20.0...
    """
    mse = metrics.mean_squared_error(jnp.asarray(originals / 255.0), jnp.asarray(images))
    return float(metrics.psnr(mse).mean())


def _parts(crops: np.ndarray) -> list[np.ndarray]:
    size = max(1, _PART_VALUES // crops[0].size)
    return [crops[i : i + size] for i in range(0, len(crops), size)]
