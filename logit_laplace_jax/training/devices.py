"""One pure step on many devices: ``pmap``, ``jit`` over a mesh, or one device.

All three compute the same: the step averages over the mapped axis with ``lax.pmean`` under pmap,
and sees the whole batch under the mesh, where the compiler inserts the collectives.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from flax import jax_utils
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Mode = Literal["pmap", "mesh", "single"]

AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where state and batches live, and how a step is compiled for it.

    Attributes:
      mode: pmap, mesh or single.
      devices: this process's devices that take part.
    """

    mode: Mode
    devices: tuple[jax.Device, ...]

    @property
    def _mesh(self) -> Mesh:
        everywhere = jax.devices() if jax.process_count() > 1 else list(self.devices)
        return Mesh(np.asarray(everywhere), (AXIS,))

    def _sharding(self, *axes: str) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    def replicate(self, tree: Any) -> Any:
        """Puts one copy of every leaf on every device."""
        if self.mode == "pmap":
            return jax_utils.replicate(tree, list(self.devices))
        if self.mode == "mesh":
            return jax.device_put(tree, self._sharding())
        return jax.device_put(tree, self.devices[0])

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Spreads this process's part of a batch over its devices, along the first axis."""
        if self.mode == "single":
            return jax.device_put(batch, self.devices[0])
        if self.mode == "mesh":
            sharding = self._sharding(AXIS)
            return {
                k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()
            }
        count = len(self.devices)
        return {k: v.reshape(count, v.shape[0] // count, *v.shape[1:]) for k, v in batch.items()}

    def first(self, tree: Any) -> Any:
        """One copy of a replicated tree, on this process's first device."""
        if self.mode != "pmap":
            return tree
        # Indexing a pmapped array would gather it; its first shard is at hand.
        return jax.tree.map(lambda leaf: leaf.addressable_data(0).reshape(leaf.shape[1:]), tree)

    def compile(
        self, step: Callable[..., Any], donate: bool = False, debug: bool = False
    ) -> Callable[[Any, Any, jax.Array], Any]:
        """Compiles ``step(state, batch, key, axis_name=...)`` for this layout.

        Args:
          step: pure; its results must be equal on all devices (averaged over ``axis_name``).
          donate: reuse the state's buffers for the result.
          debug: run the library's range checks (checkify); a failed one raises
            ``checkify.JaxRuntimeError``.
        """
        axis = AXIS if self.mode == "pmap" else None
        function: Callable[..., Any] = partial(step, axis_name=axis)
        if debug:
            function = checkify.checkify(function, errors=checkify.user_checks)
        donated = (0,) if donate else ()
        if self.mode == "pmap":
            compiled = jax.pmap(
                function,
                axis_name=AXIS,
                in_axes=(0, 0, None),
                devices=self.devices if jax.process_count() == 1 else None,
                donate_argnums=donated,
            )
        elif self.mode == "mesh":
            same = self._sharding()
            compiled = jax.jit(
                function,
                in_shardings=(same, self._sharding(AXIS), same),
                out_shardings=same,
                donate_argnums=donated,
            )
        else:
            compiled = jax.jit(function, donate_argnums=donated)
        if not debug:
            return compiled

        def checked(state: Any, batch: Any, key: jax.Array) -> Any:
            error, result = compiled(state, batch, key)
            checkify.check_error(error)
            return result

        return checked


def choose(mode: str, batch_size: int) -> Layout:
    """The layout for ``--parallel mode`` on the devices at hand.

    Args:
      mode: auto, pmap, mesh or single; auto is pmap where there are several devices.
      batch_size: images an update over all devices.

    Raises:
      ValueError: the devices do not divide the batch, or the mode is unknown.

    >>> choose("single", 7).mode
    'single'
    """
    local = tuple(jax.local_devices())
    if mode == "auto":
        mode = "pmap" if jax.device_count() > 1 else "single"
    if mode not in ("pmap", "mesh", "single"):
        raise ValueError(f"parallel must be auto, pmap, mesh or single, got {mode!r}")
    if mode == "single":
        return Layout("single", local[:1])
    if batch_size % jax.device_count():
        raise ValueError(
            f"batch size {batch_size} cannot be split over {jax.device_count()} devices: "
            f"take a multiple of {jax.device_count()}, or --parallel single"
        )
    return Layout("pmap" if mode == "pmap" else "mesh", local)
