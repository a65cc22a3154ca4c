"""A preset's training step as a worker's task: on this device, or spread over several."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from configs import load

from logit_laplace_jax.runs import preflight
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import train_step


class Task:
    """A state that is trained on one random batch."""

    def __init__(self, config: TrainConfig, mode: str, count: int | None):
        layout = devices.choose(mode, config.batch_size, devices=count)
        self._step = layout.compile(train_step, donate=True)
        needs = preflight.measure(config, layout, self._step)
        compiled = time.perf_counter()
        self._key = jax.random.key(config.seed)
        state = jax.block_until_ready(layout.create(lambda k: create_state(config, k), self._key))
        self._state = layout.replicate(state)
        created = time.perf_counter()
        sides = (config.batch_size, config.image_size, config.image_size, config.model.channels)
        self._pixels = np.random.default_rng(0).integers(0, 256, sides, np.uint8)
        self._layout = layout
        metrics = layout.first(self._advance())
        loss = float(metrics["loss"])
        self.facts: dict[str, Any] = {
            "loss": loss,
            "compile_seconds": needs.compile_seconds,
            "state_seconds": created - compiled,
            "step_seconds": time.perf_counter() - created,
            "batch": config.batch_size,
            "flops": needs.flops,
            "communicated_bytes": needs.communicated_bytes,
            "parameters": needs.parameters,
        }

    def _advance(self) -> Any:
        batch = self._layout.shard({"pixels": self._pixels})
        self._state, metrics = self._step(self._state, batch, self._key)
        return metrics

    def call(self, count: int) -> float:
        """Trains ``count`` steps, each with its images put on the devices."""
        started = time.perf_counter()
        for _ in range(count):
            metrics = self._advance()
            jax.block_until_ready(metrics)
        jax.block_until_ready(self._state.params)
        return time.perf_counter() - started

    def finish(self) -> dict[str, Any]:
        """Nothing more is known."""
        return {}


class _Needs:
    """What a compiled step takes, without running it."""

    def __init__(self, needs: preflight.Needs, batch: int):
        self.facts: dict[str, Any] = dataclasses.asdict(needs) | {"batch": batch}

    def call(self, count: int) -> float:
        """Nothing is timed here."""
        return 0.0

    def finish(self) -> dict[str, Any]:
        """Nothing more is known."""
        return {}


def prepare(
    preset: str,
    mode: str = "single",
    devices_used: int | None = None,
    batch: int | None = None,
    precision: Any = None,
    measure_only: bool = False,
) -> Any:
    """The preset's step, at another batch or precision if given.

    Args:
      preset: its name.
      mode: single, pmap or mesh.
      devices_used: the first so many; None: all.
      batch: images over all devices.
      precision: of the networks.
      measure_only: compile it and tell what it needs, from shapes alone.
    """
    config = load(preset)
    config = dataclasses.replace(
        config,
        batch_size=batch or config.batch_size,
        precision=precision or config.precision,
    ).resolved()
    if not measure_only:
        return Task(config, mode, devices_used)
    layout = devices.choose(mode, config.batch_size, devices=devices_used)
    step = layout.compile(train_step, donate=True)
    return _Needs(preflight.measure(config, layout, step), config.batch_size)
