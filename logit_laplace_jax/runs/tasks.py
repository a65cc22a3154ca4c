"""What can be trained: the few functions that a dVAE and a prior each give the loop."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax import pixel_map
from logit_laplace_jax.evaluation import figures
from logit_laplace_jax.models.data_init import initial_codebook, normalise_encoder
from logit_laplace_jax.models.sampling import sample
from logit_laplace_jax.runs import directory, pictures
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.runs.streams import token_file, training_crops
from logit_laplace_jax.runs.warm_start import started_from
from logit_laplace_jax.tokens.tokenizer import Tokenizer
from logit_laplace_jax.training import prior_step, step
from logit_laplace_jax.training.config import Config, PriorTrainConfig, TrainConfig
from logit_laplace_jax.training.devices import Layout
from logit_laplace_jax.training.evaluation import Evaluator, reconstruct
from logit_laplace_jax.training.state import TrainState

_SHEET = 12
"""Pictures in a row of a sheet."""

_INIT_CROPS = 256
"""Crops that a data-dependent initialisation looks at."""


class Task(Protocol):
    """What the loop has to be told of what it trains.

    Attributes:
      pictures: name of the pictures made at evaluations, and of their folder.
    """

    pictures: str

    def step(self) -> Callable[..., Any]:
        """The pure update."""

    def evaluator(self, layout: Layout) -> Callable[..., dict[str, Any]]:
        """The function of running state, held-out batches and key that gives the measures."""

    def start(self, state: TrainState) -> tuple[TrainState, list[str]]:
        """A fresh state with all that does not start at random, and what to say of it."""

    def describe(self) -> str:
        """What is trained, after its number of parameters."""

    def summary(self, measures: dict[str, float]) -> str:
        """The main held-out measures on one line."""

    def sheet(self, state: TrainState, crops: np.ndarray) -> np.ndarray:
        """Pictures of a state with ``ema_params`` and ``frozen`` alone, and of held-out crops."""


def of(config: Config, source: Any = None) -> Task:
    """The task of a configuration; the source is a data set of the caller's own, or None."""
    if isinstance(config, PriorTrainConfig):
        return PriorTask(config)
    return Autoencoder(config, source)


class Autoencoder:
    """Training a dVAE."""

    pictures = "reconstructions"

    def __init__(self, config: TrainConfig, source: Any):
        self._config = config
        self._source = source

    def step(self) -> Callable[..., Any]:  # noqa: D102
        return step.train_step

    def evaluator(self, layout: Layout) -> Evaluator:  # noqa: D102
        return Evaluator(layout, self._config)

    def start(self, state: TrainState) -> tuple[TrainState, list[str]]:  # noqa: D102
        config = self._config
        if config.init_from is not None:
            state, fresh = started_from(state, config.init_from)
            anew = f"{'; anew: ' if fresh else ''}{', '.join(fresh)}"
            return state, [f"weights   of {config.init_from}{anew}"]
        if config.init != "openai":
            state = normalised_on_data(state, self._source)
        return state, []

    def describe(self) -> str:  # noqa: D102
        config = self._config
        height, width = config.model.token_grid(config.image_size, config.image_size)
        return (
            f"{config.image_size} x {config.image_size} pixels to {height} x {width} tokens of "
            f"{config.model.vocab_size} codes"
        )

    def summary(self, measures: dict[str, float]) -> str:  # noqa: D102
        return (
            f"{measures['bpd_hard']:.3f} bits/dim, PSNR {measures['psnr']:.2f} dB (relaxed "
            f"{measures['psnr_relaxed']:.2f}), KL {measures['kl']:.2f}, codes used "
            f"{100 * measures['code_usage']:.0f} %, perplexity {measures['code_perplexity']:.0f}"
        )

    def sheet(self, state: TrainState, crops: np.ndarray) -> np.ndarray:
        """Originals above reconstructions."""
        shown = crops[np.unique(np.linspace(0, len(crops) - 1, _SHEET).round().astype(int))]
        return figures.grid([shown, np.asarray(reconstruct(state, shown))], _SHEET)


class PriorTask:
    """Training a prior over the tokens of a dVAE that stays as it is."""

    pictures = "samples"

    def __init__(self, config: PriorTrainConfig):
        self._config = config

    def step(self) -> Callable[..., Any]:  # noqa: D102
        return prior_step.train_step

    def evaluator(self, layout: Layout) -> Evaluator:  # noqa: D102
        return Evaluator(layout, self._config, prior_step.eval_step, prior_step.summary)

    def start(self, state: TrainState) -> tuple[TrainState, list[str]]:  # noqa: D102
        config = self._config
        dvae = directory.load(config.run, config.checkpoint)
        lines = [f"tokens    of {config.run}, step {int(dvae.step)}"]
        if config.tokens is not None:
            tokens = token_file(config)
            own = Tokenizer(config.model, dvae.ema_params, config.dvae.likelihood.eps).fingerprint
            if tokens.metadata.get("model") != own:
                raise RunError(
                    f"{config.tokens} holds tokens of model {tokens.metadata.get('model')}, but "
                    f"{config.run} is model {own}: encode the images with this run"
                )
            lines += [f"tokens    {len(tokens)} images in {config.tokens}"]
        return state.replace(frozen=jax.tree.map(jnp.asarray, dvae.ema_params)), lines

    def describe(self) -> str:  # noqa: D102
        prior = self._config.prior
        classes = f", {prior.classes} classes" if prior.classes else ""
        return f"{prior.height} x {prior.width} tokens of {prior.vocab_size} codes{classes}"

    def summary(self, measures: dict[str, float]) -> str:  # noqa: D102
        uniform = self._config.prior.vocab_size
        return (
            f"{measures['bits_per_token']:.3f} bits/token (uniform {np.log2(uniform):.0f}), "
            f"{measures['bpd_prior_codes']:.4f} bits/dim for the codes (uniform "
            f"{measures['bpd_uniform_codes']:.4f}), perplexity {measures['token_perplexity']:.1f}"
        )

    def sheet(self, state: TrainState, crops: np.ndarray) -> np.ndarray:
        """Two rows of draws at temperature 1, always from the same seed; with classes by label."""
        config, num = self._config, 2 * _SHEET
        key = directory.keys(config)[2]
        labels = jnp.arange(num) % config.prior.classes if config.classes else None
        tokens = sample(config.prior, state.ema_params, key, labels, num)
        images = pictures.decoded(state.frozen, tokens, config.dvae)
        return figures.grid([images[:_SHEET], images[_SHEET:]], _SHEET)


def normalised_on_data(state: TrainState, source: Any = None) -> TrainState:
    """The state with its encoder normalised on training crops (``init`` data or codebook)."""
    config = state.config
    crops = training_crops(config, _INIT_CROPS, source)
    x = pixel_map.map_pixels(crops, config.likelihood.eps)
    if config.init == "codebook":
        key = jax.random.fold_in(directory.keys(config)[0], 1)
        params = initial_codebook(config.model, state.params, x, config.init_logit_std, key)
    else:
        params = normalise_encoder(config.model, state.params, x, config.init_logit_std)
    return state.replace(params=params, ema_params=jax.tree.map(jnp.copy, params))
