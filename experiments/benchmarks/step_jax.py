"""Our training step as a worker's task."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import TrainState, create_state
from logit_laplace_jax.training.step import train_step
from logit_laplace_jax.weights import names


def configuration(arguments: dict[str, Any]) -> TrainConfig:
    """The paper's recipe at the section's sizes, with constant schedules."""
    return TrainConfig(
        run_dir="",
        steps=1,
        batch_size=arguments["batch"],
        image_size=arguments["side"],
        precision=arguments["precision"],
        beta=Schedule(1.0, 1.0),
        temperature=Schedule(1.0, 1.0),
        learning_rate=Schedule(1e-4, 1e-4),
        model=DVAEConfig(
            n_hid=arguments["n_hid"],
            n_blk_per_group=arguments["blocks"],
            vocab_size=arguments["vocab"],
        ),
    )


class Task:
    """A state that is trained on the same batch again and again."""

    def __init__(self, config: TrainConfig, seed: int, folder: Path):
        layout = devices.choose("single", config.batch_size)
        self._step = layout.compile(train_step, donate=True)
        self._key = jax.random.key(seed)
        state = create_state(config, self._key)
        shape = (config.batch_size, config.image_size, config.image_size, 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        _write(folder, config, state, self._key, pixels)
        self._state = layout.replicate(state)
        self._batch = layout.shard({"pixels": pixels})
        metrics = self._advance()
        device = jax.devices()[0]
        self.facts: dict[str, Any] = {
            **{name: float(metrics[name]) for name in ("loss", "kl", "grad_norm")},
            "platform": device.platform,
            "device": device.device_kind,
        }
        # JAX cannot count an accelerator's peak anew; that until now includes a first step.
        self._counts = device.platform == "cpu" and machine.restart_peak()

    def _advance(self) -> Any:
        self._state, metrics = self._step(self._state, self._batch, self._key)
        return metrics

    def call(self, count: int) -> float:
        """Trains ``count`` steps; the next starts when the device is ready."""
        started = time.perf_counter()
        for _ in range(count):
            metrics = self._advance()
        jax.block_until_ready((self._state.params, metrics))
        return time.perf_counter() - started

    def finish(self) -> dict[str, Any]:
        """Peak memory of the steps: None where the system cannot count anew."""
        return {"step_bytes": machine.peak_bytes() if self._counts else None}


def _write(
    folder: Path, config: TrainConfig, state: TrainState, key: jax.Array, pixels: np.ndarray
) -> None:
    """What the others start from: parameters under OpenAI's names, images, the first noise."""
    tensors = names.flatten(jax.device_get(state.params))
    np.savez(folder / "parameters.npz", **{n: names.to_torch(a) for n, a in tensors.items()})
    np.save(folder / "pixels.npy", pixels)
    grid = config.model.token_grid(config.image_size, config.image_size)
    noise = bottleneck.gumbel_noise(
        jax.random.fold_in(key, state.step),
        jnp.arange(config.batch_size),
        (*grid, config.model.vocab_size),
    )
    np.save(folder / "noise.npy", np.asarray(noise))


def prepare(**arguments: Any) -> Task:
    """The task of a section."""
    return Task(configuration(arguments), arguments["seed"], Path(arguments["folder"]))
