"""One pure step on many devices and hosts: ``pmap``, or ``jit`` over a mesh (of one device too).

Both compute the same: the step averages over the mapped axis with ``lax.pmean`` under pmap, and
sees the whole batch under the mesh, where the compiler inserts the collectives. The mesh can also
spread the state itself over the devices (fully sharded data parallelism: Rajbhandari et al. 2020,
"ZeRO", stage 3), for what one device cannot hold.

A state has two forms. *Stored*: global arrays over the mesh, as checkpoints hold them, whatever the
layout. *Running*: as the compiled step takes it; under pmap every leaf has a leading axis of local
devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from flax import jax_utils
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from logit_laplace_jax.checks import debug_checks
from logit_laplace_jax.training.config import RunConfig

Mode = Literal["pmap", "mesh"]

AXIS = "batch"

_SMALLEST_SHARDED = 2**12
"""Elements below which an array is cheaper to copy everywhere than to gather at every use."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where state and batches live, and how a step is compiled for it.

    Attributes:
      mode: pmap or mesh.
      devices: this process's devices that take part.
      fsdp: whether the state is spread over the devices too (mesh only).
    """

    mode: Mode
    devices: tuple[jax.Device, ...]
    fsdp: bool = False

    @property
    def count(self) -> int:
        """Devices that take part, over all processes."""
        return jax.device_count() if jax.process_count() > 1 else len(self.devices)

    @functools.cached_property
    def _mesh(self) -> Mesh:
        everywhere = jax.devices() if jax.process_count() > 1 else list(self.devices)
        return Mesh(np.asarray(everywhere), (AXIS,))

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self._mesh, PartitionSpec(*axes))

    # --- The state ------------------------------------------------------------------------------

    def state_shardings(self, state: Any) -> Any:
        """Where each leaf of a stored state lies.

        Args:
          state: a tree of arrays, or of their shapes.

        Returns:
          A tree of shardings.
        """
        return jax.tree.map(self._state_sharding, state)

    def _state_sharding(self, leaf: Any) -> NamedSharding:
        if self.fsdp and leaf.size >= _SMALLEST_SHARDED:
            sides = [side if side % self.count == 0 else 0 for side in leaf.shape]
            if max(sides) > 0:
                # The longest axis; of several, the last: a kernel's output channels.
                axis = len(sides) - 1 - int(np.argmax(sides[::-1]))
                return self._sharding(*(AXIS if i == axis else None for i in range(leaf.ndim)))
        return self._sharding()

    def create(self, make: Callable[[jax.Array], Any], key: jax.Array) -> Any:
        """``make(key)`` in stored form; with fsdp no device ever holds all of it."""
        if not self.fsdp:
            return self.place(make(key))
        return jax.jit(make, out_shardings=self.state_shardings(jax.eval_shape(make, key)))(key)

    def place(self, state: Any) -> Any:
        """The stored form of a state that this process holds in full."""
        return jax.device_put(state, self.state_shardings(state))

    def gather(self, state: Any) -> Any:
        """A full copy of a stored state, on this process's first device.

        With fsdp it comes from all devices: then every process has to call this.
        """
        if self.fsdp:
            state = jax.jit(lambda tree: tree, out_shardings=self._sharding())(state)
        return jax.tree.map(_local, state)

    def replicate(self, state: Any) -> Any:
        """The running form of a stored state, or of one that this process holds in full."""
        if self.mode == "pmap":
            return jax_utils.replicate(jax.tree.map(_local, state), list(self.devices))
        return self.place(state)

    def stored(self, state: Any) -> Any:
        """The stored form of a running state: the same buffers, nothing is copied."""
        if self.mode != "pmap":
            return state

        def join(leaf: jax.Array) -> jax.Array:
            shape = leaf.shape[1:]
            parts = [shard.data.reshape(shape) for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(shape, self._sharding(), parts)

        return jax.tree.map(join, state)

    def first(self, results: Any) -> Any:
        """This process's first copy of what is equal on all devices, such as a step's metrics."""
        if self.mode == "pmap":
            # Indexing a pmapped array would gather it; its first shard is at hand.
            return jax.tree.map(
                lambda leaf: leaf.addressable_data(0).reshape(leaf.shape[1:]), results
            )
        return jax.tree.map(_local, results)

    # --- The batch ------------------------------------------------------------------------------

    def shard(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Spreads this process's part of a batch over its devices, along the first axis."""
        if self.mode == "mesh":
            sharding = self._sharding(AXIS)
            return {
                k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()
            }
        count = len(self.devices)
        return {k: v.reshape(count, v.shape[0] // count, *v.shape[1:]) for k, v in batch.items()}

    # --- The step -------------------------------------------------------------------------------

    def compile(
        self, step: Callable[..., Any], donate: bool = False, debug: bool = False
    ) -> "Compiled":
        """Compiles ``step(state, batch, key, axis_name=...)`` for this layout, at its first call.

        Args:
          step: pure; its results must be equal on all devices (averaged over ``axis_name``).
          donate: the step gives (state, results) and may reuse the state's buffers. Under a mesh it
            is also told ``shards``, the devices that the batch lies on, and with fsdp ``gather``,
            which it applies to the parameters that it computes with.
          debug: run the library's range checks (checkify); a failed one raises
            ``checkify.JaxRuntimeError``.
        """
        return Compiled(self, step, donate, debug)

    def _jit(self, step: Callable[..., Any], donate: bool, debug: bool, state: Any) -> Any:
        function: Callable[..., Any] = partial(
            step, axis_name=AXIS if self.mode == "pmap" else None
        )
        if donate and self.mode == "mesh":
            function = partial(function, shards=self.count)
        if self.fsdp:
            # Left to itself the compiler would spread the arithmetic as the parameters lie, and
            # send activations around, which are far larger.
            gather = partial(jax.lax.with_sharding_constraint, shardings=self._sharding())
            function = partial(function, gather=gather) if donate else _after(gather, function)
        if debug:
            function = checkify.checkify(_with_checks(function), errors=checkify.user_checks)
        donated = (0,) if donate else ()
        if self.mode == "pmap":
            return jax.pmap(
                function,
                axis_name=AXIS,
                in_axes=(0, 0, None),
                devices=self.devices if jax.process_count() == 1 else None,
                donate_argnums=donated,
            )
        same, placed = self._sharding(), self.state_shardings(state)
        results = (placed, same) if donate else same
        return jax.jit(
            function,
            in_shardings=(placed, self._sharding(AXIS), same),
            out_shardings=(same, results) if debug else results,
            donate_argnums=donated,
        )


class Compiled:
    """A step compiled for a layout: ``compiled(running state, sharded batch, key)``.

    Made by :meth:`Layout.compile`.
    """

    def __init__(self, layout: Layout, step: Callable[..., Any], donate: bool, debug: bool):
        self._layout = layout
        self.step = step
        self._donate = donate
        self._debug = debug
        self._function: Any = None

    def _jitted(self, state: Any) -> Any:
        if self._function is None:
            self._function = self._layout._jit(self.step, self._donate, self._debug, state)
        return self._function

    def __call__(self, state: Any, batch: Any, key: jax.Array) -> Any:
        """Runs the step; with debug, raises ``checkify.JaxRuntimeError`` if a check failed."""
        result = self._jitted(state)(state, batch, key)
        if self._debug:
            error, result = result
            checkify.check_error(error)
        return result

    def adopt(self, executable: Any) -> None:
        """Runs with what :meth:`lower` and ``compile`` gave, instead of compiling again."""
        self._function = executable

    def lower(self, state: Any, batch: dict[str, Any]) -> jax.stages.Lowered:
        """The step for shapes alone: nothing is computed, no memory is taken.

        Args:
          state: the stored state's shapes.
          batch: shapes of the global batch, by name.
        """
        layout = self._layout
        key = jax.eval_shape(jax.random.key, 0)
        if layout.mode == "pmap":
            count = len(layout.devices)
            state = jax.tree.map(lambda s: jax.ShapeDtypeStruct((count, *s.shape), s.dtype), state)
            batch = {
                name: jax.ShapeDtypeStruct(
                    (count, rows.shape[0] // layout.count, *rows.shape[1:]), rows.dtype
                )
                for name, rows in batch.items()
            }
        lowered: jax.stages.Lowered = self._jitted(state).lower(state, batch, key)
        return lowered


def _after(gather: Callable[[Any], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda state, *args: function(gather(state), *args)


def _with_checks(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(*args: Any, **kwargs: Any) -> Any:
        with debug_checks():
            return function(*args, **kwargs)

    return checked


def _local(leaf: jax.Array) -> jax.Array:
    """This process's first copy of a replicated array; others as they are."""
    return leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf


def of(config: RunConfig, available: Sequence[jax.Device] | None = None) -> Layout:
    """The layout that a configuration asks for, on the devices at hand or on those given.

    Raises:
      ValueError: as :func:`choose`.
    """
    return choose(
        config.parallel,
        config.batch_size,
        accumulate=config.accumulate,
        fsdp=config.fsdp,
        devices=config.devices,
        available=available,
    )


def choose(
    mode: str,
    batch_size: int,
    *,
    accumulate: int = 1,
    fsdp: bool = False,
    devices: int | None = None,
    available: Sequence[jax.Device] | None = None,
) -> Layout:
    """The layout for ``--parallel mode`` on the devices at hand.

    Args:
      mode: auto, pmap, mesh or single; auto is pmap where there are several devices, mesh with
        ``fsdp``; single is a mesh of the first device.
      batch_size: images per update over all devices.
      accumulate: parts that a batch is computed in.
      fsdp: spread the state over the devices too.
      devices: use the first so many, in one process; None: all.
      available: devices in place of this process's, such as those of a described machine.

    Raises:
      ValueError: the devices do not divide the batch, there are too few of them, or the mode is
        unknown.

    Example:
      >>> choose("single", 7).count
      1
    """
    if mode not in ("auto", "pmap", "mesh", "single"):
        raise ValueError(f"parallel must be auto, pmap, mesh or single, got {mode!r}")
    local = tuple(available or jax.local_devices())
    if jax.process_count() > 1:
        if devices is not None:
            raise ValueError("--devices is for one process: several always use all of theirs")
        if mode == "single":
            raise ValueError("several processes need --parallel pmap or mesh, not single")
    elif mode == "single":
        local = local[:1]
    elif devices is not None:
        if devices > len(local):
            raise ValueError(f"{devices} devices were asked for, but there are {len(local)}")
        local = local[:devices]
    count = jax.device_count() if jax.process_count() > 1 else len(local)
    if mode == "auto":
        mode = "pmap" if count > 1 and not fsdp else "mesh"
    if fsdp and mode != "mesh":
        raise ValueError(f"fsdp needs --parallel mesh, not {mode}")
    if batch_size % (count * accumulate):
        parts = f" in {accumulate} parts each" if accumulate > 1 else ""
        raise ValueError(
            f"batch size {batch_size} cannot be split over {count} devices{parts}: "
            f"take a multiple of {count * accumulate}, or --parallel single"
        )
    return Layout("pmap" if mode == "pmap" else "mesh", local, fsdp)
