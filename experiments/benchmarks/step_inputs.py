"""Writes what all contestants of a section start from: parameters, images, the first noise."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _bench import step_jax

from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.weights import names


class _Done:
    facts: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    def call(self, count: int) -> float:
        """Nothing is timed here."""
        return 0.0

    def finish(self) -> dict[str, Any]:
        """Nothing is left to tell."""
        return {}


def prepare(**arguments: Any) -> _Done:
    """Writes pixels.npy, noise.npy (of step 0) and parameters.npz under OpenAI's names."""
    folder = Path(arguments["folder"])
    config = step_jax.configuration(arguments)
    key = jax.random.key(arguments["seed"])
    state = create_state(config, key)
    tensors: dict[str, Any] = {
        f"{half}.{name}": array
        for half in names.HALVES
        for name, array in names.from_flax(config.model, state.params, half).items()
    }
    np.savez(folder / "parameters.npz", **tensors)
    batch, side = config.batch_size, config.image_size
    pixels = np.random.default_rng(arguments["seed"]).integers(
        0, 256, (batch, side, side, 3), np.uint8
    )
    np.save(folder / "pixels.npy", pixels)
    grid = config.model.token_grid(side, side)
    noise = bottleneck.gumbel_noise(
        jax.random.fold_in(key, state.step), jnp.arange(batch), (*grid, config.model.vocab_size)
    )
    np.save(folder / "noise.npy", np.asarray(noise))
    return _Done()
