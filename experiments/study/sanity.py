"""Rows that give a reader the scale: codecs that need no training by gradient, on the test images.

Bits per value are exact and of everything that a decoder needs but the codec itself. PNG and WebP
store all images as one sheet, so that no header counts 512 times.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.evaluation import baselines, metrics
from study.data import Images, load
from study.design import TUNING_SEED, Job, Study

_CROPS_PER_CODE = 16
_LOG_SCALES = np.arange(-6.0, 2.01, 0.125)


def keep(
    name: str, study: Study, data: Sequence[str], folder: Path | None, results: Path
) -> dict[str, Any]:
    """The rows by data set and codec; those of ``data`` computed once, all kept as sanity.json.

    Raises:
      DataError: a data set is missing.
    """
    from logit_laplace_jax.runs.directory import write_whole

    path, rows = results / "sanity.json", kept(results)
    for one in data:
        if one not in rows:
            images = load(one, folder, "final", study.held_out)
            job = Job(name, "final", one, study.cells[0], study.grid[0], TUNING_SEED)
            config = job.config(study.base, images.channels, images.size, results)
            rows[one] = codecs(config, images)
            results.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(rows, indent=1) + "\n")
    return rows


def kept(results: Path) -> dict[str, Any]:
    """The rows that stand."""
    path = results / "sanity.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def codecs(config: Any, images: Images) -> dict[str, dict[str, float]]:
    """``bpd`` and ``psnr`` (dB; lossless ones have none) by codec.

    constant: each image's mean colour, 8 bits a channel, and logit-Laplace noise of the one scale
    that is best on training crops. k_means: :func:`baselines.fit_quantiser` on training crops with
    the model's patches and number of codes. png, webp: lossless.
    """
    from logit_laplace_jax.runs.streams import training_crops

    factor, codes = config.model.downsampling, config.model.vocab_size
    crops, test = training_crops(config, _CROPS_PER_CODE * codes, images), images.held_out
    quantiser = baselines.fit_quantiser(crops, factor, codes, seed=0)
    best = min(_LOG_SCALES, key=lambda log_scale: _constant_bits(crops[:512], log_scale))
    return {
        "constant": {
            "bpd": _constant_bits(test, best),
            "psnr": _psnr(baselines.constant_colour(test), test),
            "log_scale": float(best),
        },
        "k_means": {
            "bpd": float(quantiser.bits_per_dim(test).mean()),
            "psnr": _psnr(quantiser.reconstruct(test), test),
        },
        **{kind: {"bpd": bits} for kind, bits in baselines.lossless(_sheets(test)).items()},
    }


def _constant_bits(images: np.ndarray, log_scale: float) -> float:
    from logit_laplace_jax import map_pixels, pixel_log_prob

    colour = np.rint(images.mean(axis=(1, 2), keepdims=True)).astype(np.uint8)
    x = map_pixels(jnp.asarray(colour))
    nats = -pixel_log_prob(jnp.asarray(images), jnp.log(x) - jnp.log1p(-x), jnp.float32(log_scale))
    return float(nats.mean()) / np.log(2.0) + 8.0 / (images.shape[1] * images.shape[2])


def _psnr(pictures: np.ndarray, originals: np.ndarray) -> float:
    error = metrics.mean_squared_error(jnp.asarray(pictures), jnp.asarray(originals / 255.0))
    return float(metrics.psnr(error).mean())


def _sheets(images: np.ndarray) -> Iterator[np.ndarray]:
    """All images, one below the other, in pictures of a size that WebP can hold."""
    longest = 16_383 // images.shape[1]
    for start in range(0, len(images), longest):
        yield np.concatenate(list(images[start : start + longest]))
