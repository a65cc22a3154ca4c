"""A large matrix product in JAX: what this machine's arithmetic gives at its best, a yardstick."""

import time
from typing import Any

import jax
import jax.numpy as jnp


class Task:
    """Multiplies two square matrices."""

    def __init__(self, precision: str):
        side = 1024 if jax.default_backend() == "cpu" else 8192
        self._a = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(precision))
        self._product = jax.jit(jnp.matmul)
        self.facts: dict[str, Any] = {
            "flops": 2.0 * side**3,
            "what": f"{side}×{side} by XLA, a yardstick",
        }

    def call(self, count: int) -> float:
        """Multiplies ``count`` times."""
        started = time.perf_counter()
        for _ in range(count):
            result = self._product(self._a, self._a)
        jax.block_until_ready(result)
        return time.perf_counter() - started

    def finish(self) -> dict[str, Any]:
        """Nothing more is known."""
        return {}


def prepare(precision: str) -> Task:
    """The task for a precision."""
    return Task(precision)
