"""The whole evaluation of a run: code lengths, distortion, edges, codes, calibration.

What training watches (:mod:`logit_laplace_jax.training.evaluation`) and, given the hard codes:
distortion of three reconstructions (median, mean and a draw), code length and distortion near edges
and away from them, and the calibration of the predicted distributions.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from logit_laplace_jax.data import pipeline
from logit_laplace_jax.data.all_images import Which, open_images
from logit_laplace_jax.evaluation import baselines, calibration, codebook, edges, metrics
from logit_laplace_jax.likelihoods import Likelihood
from logit_laplace_jax.runs import directory
from logit_laplace_jax.runs.codecs import beside
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.runs.streams import held_out, images_of, open_split
from logit_laplace_jax.training import devices, prior_step
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.evaluation import (
    Evaluator,
    Rows,
    Size,
    basic_rows,
    both_passes,
    gathered,
    summary,
)
from logit_laplace_jax.training.state import TrainState

POINTS = ("median", "mean", "sample")
"""Reconstructions: of the 8-bit value's distribution given the hard codes."""

_SHOWN = 8
_DRAW, _SPREAD = 1, 2
"""Branches of the evaluation's key: draws of reconstructions, draws inside a value's bin."""


def measure_step(
    state: TrainState,
    batch: dict[str, Array],
    key: Array,
    axis_name: str | None = None,
    size: Size | None = None,
) -> tuple[Rows, dict[str, Array]]:
    """All measures of a batch.

    Args:
      state: the state.
      batch: as for :func:`logit_laplace_jax.training.evaluation.eval_step`; optionally ``"edges"``
        bool [B, h, w], the pixels near edges, in place of a Sobel filter's.
      key: random key, the same for all batches.
      axis_name: the mapped axis that the batch is spread over, or None.
      size: what of an image counts; None: all.

    Returns:
      The rows of :func:`logit_laplace_jax.training.evaluation.basic_rows`; ``mask``; ``psnr_R``,
      ``ssim_R``, ``ms_ssim_R``, ``mae_R`` for R of POINTS; ``values_P``, ``mass_P``, ``square_P``,
      ``absolute_P`` for P edges and flat, sums over an image; and the sums ``code_counts`` and
      ``pit_counts``.
    """
    p = both_passes(state, batch, key, size)
    likelihood, stats = p.hard
    original = p.pixels.astype(jnp.float32) / 255.0
    rows = basic_rows(p) | {"mask": batch["mask"]}
    images = reconstructions(likelihood, stats, key, batch["id"])
    for name, image in images.items():
        rows[f"psnr_{name}"] = metrics.psnr(metrics.mean_squared_error(image, original))
        rows[f"ssim_{name}"] = metrics.ssim(image, original)
        rows[f"ms_ssim_{name}"] = metrics.ms_ssim(image, original)
        rows[f"mae_{name}"] = metrics.mean_absolute_error(image, original)

    near = batch["edges"] if "edges" in batch else edges.near_edges(original)
    difference = images["median"] - original
    of_values = {
        "mass": -likelihood.log_mass(p.pixels, stats),
        "square": jnp.square(difference),
        "absolute": 255.0 * jnp.abs(difference),
    }
    for part, where in (("edges", near), ("flat", ~near)):
        for name, values in of_values.items():
            total, count = metrics.masked_mean(values, where)
            rows[f"{name}_{part}"] = total
            rows[f"values_{part}"] = count.astype(jnp.float32)

    low, high = likelihood.bin_cdf(p.pixels, stats)
    uniform = _by_image(key, _SPREAD, batch["id"], lambda k: jax.random.uniform(k, low.shape[1:]))
    sums = {
        "code_counts": codebook.code_counts(p.tokens, batch["mask"], state.config.model.vocab_size),
        "pit_counts": calibration.pit_counts(low, high, uniform, batch["mask"]),
    }
    return gathered(rows, sums, axis_name)


def reconstructions(
    likelihood: Likelihood, stats: Array, key: Array, ids: Array
) -> dict[str, Array]:
    """The median, the mean and a draw of the 8-bit values: float32 [B, H, W, C] in [0, 1] each."""
    mean, median = likelihood.mean_and_median(stats)
    keys = _by_image(key, _DRAW, ids, lambda k: k)
    draw = jax.vmap(likelihood.sample)(keys, stats)
    return {"median": median, "mean": mean, "sample": draw}


def _by_image(key: Array, branch: int, ids: Array, draw: Any) -> Any:
    """``draw`` of a key of its own for every image, by the image's checksum."""
    own = jax.random.fold_in(key, np.uint32(2**32 - branch))  # no image has that checksum
    return jax.vmap(lambda i: draw(jax.random.fold_in(own, i)))(ids)


def measures(
    rows: dict[str, np.ndarray], sums: dict[str, np.ndarray], config: TrainConfig
) -> dict[str, Any]:
    """What the rows and sums of all images amount to.

    Returns:
      :func:`logit_laplace_jax.training.evaluation.summary`, and: means over images of the
      reconstructions' measures; ``edge_share``; ``bpd_edges`` and ``bpd_flat`` (bits per value of
      the pixels given the hard codes), ``psnr_P`` (of all such pixels together), ``mae_P`` (grey
      levels) of the median reconstruction; ``code_counts``, ``pit_counts`` (lists), ``pit_tv`` and
      ``pit_ks`` (distances from uniform); ``vocab_size``, ``values_per_image``.
    """
    result = summary(rows, sums, config)
    images = len(rows["values"])
    for point in POINTS:
        for name in ("psnr", "ssim", "ms_ssim", "mae"):
            result[f"{name}_{point}"] = math.fsum(rows[f"{name}_{point}"]) / images
    values = {part: math.fsum(rows[f"values_{part}"]) for part in ("edges", "flat")}
    result["edge_share"] = values["edges"] / sum(values.values())
    for part, count in values.items():
        if count == 0:
            continue
        result[f"bpd_{part}"] = math.fsum(rows[f"mass_{part}"]) / count / math.log(2.0)
        result[f"psnr_{part}"] = float(
            metrics.psnr(jnp.asarray(math.fsum(rows[f"square_{part}"]) / count))
        )
        result[f"mae_{part}"] = math.fsum(rows[f"absolute_{part}"]) / count
    distance = calibration.distance_from_uniform(sums["pit_counts"])
    return result | {
        **{f"pit_{name}": float(value) for name, value in distance.items()},
        "pit_counts": [int(n) for n in sums["pit_counts"]],
        "code_counts": [int(n) for n in sums["code_counts"]],
        "vocab_size": config.model.vocab_size,
        "values_per_image": math.fsum(rows["values"]) / images,
    }


class _WithEdges:
    """Whole images with their boundary maps."""

    def __init__(self, batches: pipeline.EvalBatches, maps: edges.BoundaryMaps):
        self._batches = batches
        self._maps = maps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._batches:
            height, width = batch["size"]
            near = np.zeros((len(batch["mask"]), height, width), bool)
            for row, name in enumerate(batch["names"]):
                near[row] = self._maps.mask(name, (height, width))
            yield {**batch, "edges": near}


def evaluate_run(
    folder: str | Path,
    source: Any = None,
    *,
    whole: bool = False,
    resize: float | None = None,
    edge_maps: Path | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    checkpoint: str = "latest",
    prior: str | Path | None = None,
    split: Which = "validation",
    codecs: bool = False,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Evaluates a checkpoint of a run in full.

    Args:
      folder: the run directory.
      source: other held-out images (``folder:PATH``, ``tfds:NAME``, or a data set of the caller's
        own); None: the run's.
      whole: entire images at any size, padded where the model needs it (the padding never counts),
        in place of the run's crops.
      resize: factor on the size of whole images, in (0, 1]; None: 1.
      edge_maps: a folder of boundary maps named like the images; needs ``whole`` at full size.
      limit: at most so many crops (images, if whole); None: the run's own limit.
      batch_size: images at a time, over all devices; None: the run's; 1 for whole images.
      checkpoint: latest, best or a number of updates (see :func:`directory.load`).
      prior: run directory of a prior over the run's tokens; crops only.
      split: which of the images of a source that is named: train, validation or all.
      codecs: also what k-means, JPEG, PNG and WebP make of the images (:func:`codecs.beside`).

    Returns:
      The numbers (:func:`measures`, with ``step``, ``likelihood`` and ``data``), and pictures of
      the first images: ``original`` and POINTS, float32 or uint8 [N, H, W, C].

    Raises:
      ValueError: not a run directory, or a request that cannot be carried out.
      CheckpointError: no complete checkpoint, or a damaged one.
    """
    if edge_maps is not None and not whole:
        raise ValueError("boundary maps belong to whole images: give --whole with --edges")
    if prior is not None and whole:
        raise ValueError("a prior scores crops of the run's own size: leave out --whole")
    if resize is not None and not whole:
        raise ValueError("crops are cut at the run's own size: give --whole with --resize")
    if edge_maps is not None and resize not in (None, 1.0):
        raise ValueError("boundary maps have the size of their images: leave out --resize")
    state = directory.load(folder, checkpoint)
    config = state.config
    source = images_of(config, source)
    data = source if isinstance(source, str) else type(source).__name__
    if split != "validation":
        if not isinstance(source, str):
            raise ValueError(f"split {split} is for images that are named, not for {data}")
        source = open_images(
            [source], which=split, data_dir=config.data.data_dir, channels=config.model.channels
        )
    size = batch_size or (jax.device_count() if whole else config.batch_size)
    divides = size % jax.device_count() == 0
    layout = devices.choose("auto" if divides else "single", size)
    batches: Any
    if whole:
        batches = pipeline.whole_batches(
            open_split(config, source, "validation"),
            multiple=config.model.downsampling,
            batch_size=size,
            limit=limit or config.evaluation.images,
            resize=resize,
        )
        if edge_maps is not None:
            batches = _WithEdges(batches, edges.BoundaryMaps(edge_maps))
    else:
        batches = held_out(config, source, batch_size=size, limit=limit)
    key = directory.keys(config)[2]
    evaluator = Evaluator(layout, config, measure_step, measures)
    result = evaluator(layout.replicate(state), batches, key)
    head = {
        "step": int(state.step),
        "likelihood": config.likelihood.name,
        "data": data,
    }
    if codecs:
        result |= beside(config, _images(batches))
    if prior is not None:
        result |= _under_prior(Path(prior), state, source, layout, size, limit)
        result["bpd_prior"] = result["bpd_hard_pixels"] + result["bpd_prior_codes"]
        result["bpd_uniform"] = result["bpd_hard"]
        files = baselines.lossless(_images(batches))
        result |= {f"bpd_{kind}": bits for kind, bits in files.items()}
    return head | result, _pictures(state, batches, key, result)


def _images(batches: Any) -> Iterator[np.ndarray]:
    """The images of masked batches, without padding: uint8 [h, w, C] each."""
    for batch in batches:
        height, width = batch.get("size", batch["pixels"].shape[1:3])
        yield from batch["pixels"][batch["mask"] > 0, :height, :width]


def _under_prior(
    folder: Path,
    dvae: TrainState,
    source: Any,
    layout: devices.Layout,
    batch_size: int,
    limit: int | None,
) -> dict[str, Any]:
    """The code lengths of the same crops' tokens under a prior.

    Raises:
      RunError: it is the prior of another model.
    """
    state = directory.load(folder, kind="prior")
    one, other = jax.tree.leaves(state.frozen), jax.tree.leaves(dvae.ema_params)
    if len(one) != len(other) or not all(map(np.array_equal, one, other)):
        raise RunError(
            f"{folder} is a prior over the tokens of another model, or of another checkpoint: "
            f"of {state.config.run}, --checkpoint {state.config.checkpoint}"
        )
    own = dvae.config
    config = dataclasses.replace(state.config, data=own.data, evaluation=own.evaluation)
    state = state.replace(config=config)
    batches = held_out(config, source, batch_size=batch_size, limit=limit)
    evaluator = Evaluator(layout, config, prior_step.eval_step, prior_step.summary)
    result = evaluator(layout.replicate(state), batches, directory.keys(config)[2])
    return {"prior_step": int(state.step)} | {k: v for k, v in result.items() if k != "images"}


def _pictures(
    state: TrainState, batches: Any, key: Array, result: dict[str, Any]
) -> dict[str, np.ndarray]:
    """The first batch's images and their reconstructions."""
    batch = next(iter(batches))
    arrays = {k: v[:_SHOWN] for k, v in batch.items() if isinstance(v, np.ndarray)}
    kept = arrays["mask"] > 0
    if "optimal_scale" in result:
        arrays["log_scales"] = np.full((len(kept), 2), np.log(result["optimal_scale"]), np.float32)

    def show(state: TrainState, arrays: dict[str, Array]) -> dict[str, Array]:
        p = both_passes(state, arrays, key, cast(Size | None, batch.get("size")))
        return {"original": p.pixels, **reconstructions(*p.hard, key, arrays["id"])}

    shown = jax.device_get(jax.jit(show)(state, arrays))
    return {name: shown[name][kept] for name in ("original", *POINTS)}
