"""How real the images look that a prior and its dVAE draw, measured on held-out images."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.data.sources import Source
from logit_laplace_jax.evaluation import figures, realism
from logit_laplace_jax.runs import directory, pictures
from logit_laplace_jax.runs.streams import held_out, open_split, stack_crops, training_crops
from logit_laplace_jax.training.prior_step import token_rows

SETS = ("training images", "reconstructions", "prior", "prior, pixels drawn", "uniform tokens")
"""What is compared with held-out images: the first is the floor that no model can be below, the
second what this dVAE's decoder permits, the last what it draws without a prior."""

_SHEET = 12
"""Images in a row of the sheet."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much is drawn and compared.

    Attributes:
      num: images of every set, at most as many as are held out.
      seed: of the draws, and of patches and directions.
      among: training images among which the nearest are looked for.
      checkpoint: latest, best or a number of updates.
    """

    num: int = 2_048
    seed: int = 0
    among: int = 8_192
    checkpoint: str = "latest"


def measure(folder: Path, settings: Settings) -> tuple[dict[str, Any], np.ndarray]:
    """Compares what a prior draws with images that it never saw.

    Args:
      folder: run directory of a prior; images are those of its run.
      settings: how much is drawn and compared.

    Returns:
      The numbers: ``sets``, for each of :data:`SETS` its ``sliced_wasserstein`` by level of the
      pyramid and their mean, and its ``spectrum`` in dB with ``spectrum_error``, the root mean
      squared difference in dB from that of the held-out images (``real_spectrum``); ``nearest``,
      the median distance in grey levels from a draw to its nearest training image, and the same for
      held-out images, which a prior that copies falls below. And a sheet, uint8 [H, W, 3]:
      held-out images, draws, the training images nearest to these, draws of uniform tokens.

    Raises:
      RunError: not the run of a prior.
      DataError: its images cannot be read.
    """
    state = directory.load(folder, settings.checkpoint, kind="prior")
    config = state.config
    whole = open_split(config, None, "validation")
    # Evenly from all of them: a folder's images stand in the order of their classes.
    chosen = np.unique(np.linspace(0, len(whole) - 1, settings.num).round().astype(int))
    spread = Source(
        whole.spec,
        "validation",
        read=lambda i: whole[chosen[i]],
        name=lambda i: whole.name(chosen[i]),
        count=len(chosen),
        channels=whole.channels,
        label=lambda i: whole.label(chosen[i]),
    )
    crops = stack_crops(held_out(config, spread, limit=settings.num), settings.num)
    num = len(crops)
    train = training_crops(config, max(settings.among, num)) / np.float32(255.0)
    draws = pictures.Draws(settings.seed)
    tokens = draws.tokens(state, num, pictures.labels(config, None, num))
    key = jax.random.key(settings.seed, impl="threefry2x32")
    uniform = jax.random.randint(key, tokens.shape, 0, config.prior.vocab_size)

    def decoded(tokens: Any, key: Any = None) -> np.ndarray:
        return pictures.decoded(state.frozen, jnp.asarray(tokens), config.dvae, key)

    real = crops / np.float32(255.0)
    sets = dict(
        zip(
            SETS,
            (
                train[:num],
                decoded(token_rows(state.frozen, jnp.asarray(crops), config)),
                decoded(tokens),
                decoded(tokens, jax.random.fold_in(key, 1)),
                decoded(uniform),
            ),
            strict=True,
        )
    )
    spectrum = realism.power_spectrum(real)
    which, distance = realism.nearest(sets["prior"], train)
    _, usual = realism.nearest(real, train)
    likelihood = config.dvae.likelihood
    compared = {name: _compared(real, images, spectrum, settings) for name, images in sets.items()}
    values = {
        "prior": str(folder),
        "step": int(state.step),
        "likelihood": likelihood.name,
        "scale": likelihood.scale,
        "seed": config.dvae.seed,
        "data": config.data.source,
        "images": num,
        "sets": compared,
        "real_spectrum": spectrum.tolist(),
        "nearest": {
            "draws": 255.0 * float(np.median(distance)),
            "held out": 255.0 * float(np.median(usual)),
        },
    }
    shown = slice(_SHEET)
    rows = [real, sets["prior"], train[which], sets["uniform tokens"]]
    return values, figures.grid([images[shown] for images in rows], _SHEET)


def _compared(
    real: np.ndarray, images: np.ndarray, spectrum: np.ndarray, settings: Settings
) -> dict[str, Any]:
    rng = np.random.default_rng(settings.seed)  # the same patches and directions for every set
    distances = realism.sliced_wasserstein(real, images, rng)
    own = realism.power_spectrum(images)
    return {
        "sliced_wasserstein": distances,
        "sliced_wasserstein_mean": float(np.mean(distances)),
        "spectrum": own.tolist(),
        "spectrum_error": float(np.sqrt(np.mean((own - spectrum) ** 2))),
    }
