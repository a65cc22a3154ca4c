"""Our training step as a worker's task."""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _bench import memory

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs import preflight
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.schedules import Schedule
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import train_step


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

    def __init__(self, config: TrainConfig, pixels: np.ndarray, seed: int):
        started = time.perf_counter()
        imported = self._peak()
        layout = devices.choose("single", config.batch_size)
        self._step = layout.compile(train_step, donate=True)
        needs = preflight.measure(config, layout, self._step)
        self._key = jax.random.key(seed)
        self._state = layout.replicate(create_state(config, self._key))
        self._batch = layout.shard({"pixels": pixels})
        metrics = self._advance()
        first = {name: float(metrics[name]) for name in ("loss", "kl", "grad_norm")}
        device = jax.devices()[0]
        self.facts: dict[str, Any] = {
            **first,
            "ready_seconds": time.perf_counter() - started,
            "compile_seconds": needs.compile_seconds,
            "flops": needs.flops,
            "parameters": needs.parameters,
            "platform": device.platform,
            "device": device.device_kind,
            "import_bytes": imported,
            "ready_bytes": self._peak(),
        }
        # JAX cannot count an accelerator's peak anew; that until now includes a first step.
        self._counts = device.platform == "cpu" and memory.restart()

    def _advance(self) -> Any:
        self._state, metrics = self._step(self._state, self._batch, self._key)
        return metrics

    def _peak(self) -> int:
        counted = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return memory.peak_bytes() if counted is None else int(counted)

    def call(self, count: int) -> float:
        """Trains ``count`` steps; the next starts when the device is ready."""
        started = time.perf_counter()
        for _ in range(count):
            metrics = self._advance()
        jax.block_until_ready((self._state.params, metrics))
        return time.perf_counter() - started

    def finish(self) -> dict[str, Any]:
        """Peak memory of the steps: None where the system cannot count anew."""
        return {"step_bytes": self._peak() if self._counts else None}


def prepare(**arguments: Any) -> Task:
    """The task of a section."""
    pixels = np.load(Path(arguments["folder"], "pixels.npy"))
    return Task(configuration(arguments), pixels, arguments["seed"])
