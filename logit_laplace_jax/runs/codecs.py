"""Classical codecs beside a model, at the rate of its tokens."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.evaluation import baselines, metrics
from logit_laplace_jax.runs.streams import training_crops
from logit_laplace_jax.training.config import TrainConfig

_PATCHES_PER_CODE, _MOST_TRAINING_CROPS = 64, 8_192
"""What k-means learns from; where that takes more crops, it is left out."""


def quantiser(config: TrainConfig, source: Any = None) -> baselines.Quantiser | None:
    """k-means with the model's patch size and number of codes, on the crops that it learns from.

    Args:
      config: the model's run.
      source: a data set of the caller's own; None: the configuration's.

    Returns:
      None where that many codes would take too many crops.
    """
    factor, codes = config.model.downsampling, config.model.vocab_size
    patches = _PATCHES_PER_CODE * codes  # k-means wants some dozens of patches per code
    wanted = max(64, -(-patches // (config.image_size // factor) ** 2))
    if wanted > _MOST_TRAINING_CROPS:
        return None
    crops = training_crops(config, wanted, source)
    return baselines.fit_quantiser(crops, factor, codes, config.seed, sample=patches)


def beside(config: TrainConfig, images: Iterable[np.ndarray]) -> dict[str, float]:
    """What other codecs make of images.

    Args:
      config: the model's run.
      images: uint8 [H, W, C] each; of each what whole patches cover counts.

    Returns:
      ``rate_tokens``, bits per pixel of the model's tokens at log2 V each; ``psnr_kmeans`` and
      ``bpd_kmeans`` (exact bits per value in all) of :func:`quantiser`, where there is one;
      ``psnr_jpeg`` at that rate or the closest that JPEG can come to, ``rate_jpeg``; ``bpd_png``,
      ``bpd_webp``. Decibels are means over images; lengths are over all images together.
    """
    factor = config.model.downsampling
    rate = float(np.log2(config.model.vocab_size)) / factor**2
    cut = [i[: i.shape[0] // factor * factor, : i.shape[1] // factor * factor] for i in images]
    values = np.array([image.size for image in cut], float)
    result = {"rate_tokens": rate}
    k_means = quantiser(config)
    if k_means is not None:
        rebuilt = [k_means.reconstruct(image[None])[0] for image in cut]
        bits = [k_means.bits_per_dim(image[None])[0] for image in cut]
        result |= {
            "psnr_kmeans": _psnr(rebuilt, cut),
            "bpd_kmeans": float(np.average(bits, weights=values)),
        }
    files, rates = zip(*(baselines.jpeg(image, rate) for image in cut), strict=True)
    result |= {
        "psnr_jpeg": _psnr([file / 255.0 for file in files], cut),
        "rate_jpeg": float(np.average(rates, weights=values)),
    }
    return result | {f"bpd_{kind}": bits for kind, bits in baselines.lossless(cut).items()}


def _psnr(rebuilt: Iterable[np.ndarray], images: Iterable[np.ndarray]) -> float:
    errors = [np.mean((r - i / 255.0) ** 2) for r, i in zip(rebuilt, images, strict=True)]
    return float(metrics.psnr(jnp.asarray(errors)).mean())
