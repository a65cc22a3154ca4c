"""Images from a prior's run: tokens drawn or completed, and decoded by the dVAE."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from logit_laplace_jax.data import augment, images
from logit_laplace_jax.models.sampling import sample
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.training.config import PriorTrainConfig, TrainConfig
from logit_laplace_jax.training.evaluation import stats_of
from logit_laplace_jax.training.prior_step import token_rows
from logit_laplace_jax.training.state import TrainState


@functools.partial(jax.jit, static_argnames="config")
def _decode(params: Any, tokens: Array, config: TrainConfig, key: Array | None) -> Array:
    likelihood, stats = config.likelihood.build(), stats_of(params, tokens, config)
    return likelihood.reconstruct(stats) if key is None else likelihood.sample(key, stats)


def decoded(
    params: Any, tokens: Array, config: TrainConfig, key: Array | None = None
) -> np.ndarray:
    """Images whose tokens are known: the point estimate of every pixel, or a draw.

    Args:
      params: the dVAE's parameters.
      tokens: int [B, height width] in raster order, for the run's image size.
      config: the dVAE's run.
      key: draw the pixels, independently given the tokens; None: their point estimates.

    Returns:
      float32 [B, H, W, C] in [0, 1].
    """
    grid = config.model.token_grid(config.image_size, config.image_size)
    return np.asarray(_decode(params, tokens.reshape(-1, *grid), config, key))


@dataclasses.dataclass(frozen=True)
class Draws:
    """How tokens are drawn; see :func:`logit_laplace_jax.models.sampling.sample`.

    Attributes:
      seed: of all draws.
      temperature, top_k, top_p: of every token's distribution.
      batch_size: images at a time, which changes nothing of them.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    batch_size: int = 64

    def tokens(
        self,
        state: TrainState,
        num: int,
        labels: np.ndarray | None = None,
        known: np.ndarray | None = None,
        cache: bool = True,
    ) -> np.ndarray:
        """Draws the tokens of images.

        Args:
          state: a prior's; its averaged parameters are used.
          num: how many images.
          labels: int [num], with a conditional prior.
          known: int [num, n], the first n tokens of each.
          cache: keep the keys and values of earlier positions, or compute them again each time.

        Returns:
          int32 [num, height width].

        Raises:
          ValueError: an option is out of its range, or no token could be drawn.
        """
        config: PriorTrainConfig = state.config
        key = jax.random.key(self.seed, impl="threefry2x32")
        size = min(self.batch_size, num)
        parts = []
        for start in range(0, num, size):
            # The last batch is drawn in full too: one program for all of them.
            rows = np.minimum(np.arange(start, start + size), num - 1)
            parts.append(
                sample(
                    config.prior,
                    state.ema_params,
                    key,
                    None if labels is None else jnp.asarray(labels[rows]),
                    size,
                    self.temperature,
                    self.top_k,
                    self.top_p,
                    None if known is None else jnp.asarray(known[rows]),
                    start,
                    cache,
                )
            )
        tokens = np.concatenate([np.asarray(part) for part in parts])[:num]
        if (tokens < 0).any():
            raise RunError("the prior's logits are NaN: its parameters are damaged")
        return tokens


def labels(config: PriorTrainConfig, name: str | None, num: int) -> np.ndarray | None:
    """The labels of images to draw: of one class, or of all in turn.

    Raises:
      RunError: no such class, or the prior has no classes.
    """
    if not config.classes:
        if name is not None:
            raise RunError("the prior has no classes (train_prior.py --conditional): no --label")
        return None
    if name is None:
        return np.arange(num, dtype=np.int32) % len(config.classes)
    if name not in config.classes:
        raise RunError(f"no class is called {name!r}; there are {', '.join(config.classes)}")
    return np.full(num, config.classes.index(name), np.int32)


def crops_of(paths: Sequence[Path], config: PriorTrainConfig) -> np.ndarray:
    """The centre squares of image files at the prior's size: uint8 [N, S, S, C].

    Raises:
      RunError: one cannot be read, or is too small.
    """
    crops = []
    for path in paths:
        try:
            image = images.decode(path, config.model.channels)
            crops.append(augment.eval_crop(image, config.image_size))
        except ValueError as error:
            raise RunError(f"{path}: {error}") from None
    size = config.image_size
    return np.stack(crops) if crops else np.zeros((0, size, size, config.model.channels), np.uint8)


def upper_half(state: TrainState, crops: np.ndarray) -> np.ndarray:
    """The tokens of the upper half of images: int32 [N, height // 2 width]."""
    config: PriorTrainConfig = state.config
    tokens = token_rows(state.frozen, jnp.asarray(crops), config)
    return np.asarray(tokens[:, : config.prior.height // 2 * config.prior.width])


def images_per_second(
    state: TrainState, labels: np.ndarray | None, draws: Draws, cache: bool
) -> float:
    """The speed of drawing one batch of tokens, compilation left out."""
    num = draws.batch_size
    labels = None if labels is None else np.resize(labels, num)
    draws.tokens(state, num, labels, cache=cache)
    started = time.perf_counter()
    draws.tokens(state, num, labels, cache=cache)
    return num / (time.perf_counter() - started)
