"""What a run will need, known before it starts: from the compiled step's own analysis."""

import dataclasses
import os
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logit_laplace_jax.runs import programs, targets, tasks
from logit_laplace_jax.runs.errors import LESS_MEMORY, RunError
from logit_laplace_jax.runs.launch import Launch
from logit_laplace_jax.runs.targets import Target
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import Config, PriorTrainConfig
from logit_laplace_jax.training.devices import Compiled, Layout
from logit_laplace_jax.training.state import TrainState, create_state, parameter_count


@dataclasses.dataclass(frozen=True)
class Needs:
    """What one update takes. Bytes are those of one device.

    Attributes:
      parameters: of the model, over all devices.
      flops: floating-point operations of an update over all devices, as XLA counts them.
      state_bytes: parameters, average and optimiser.
      batch_bytes: the images.
      working_bytes: activations, gradients and other temporaries.
      devices: how many there are.
      compile_seconds: what compiling took here.
      program: where a described machine's compiler made it, what the program says of itself on one
        device (:func:`programs.facts`).
    """

    parameters: int
    flops: float
    state_bytes: int
    batch_bytes: int
    working_bytes: int
    devices: int
    compile_seconds: float
    program: dict[str, Any] | None = None

    @property
    def total_bytes(self) -> int:
        """All that has to fit on one device at once."""
        return self.state_bytes + self.batch_bytes + self.working_bytes


def shapes(config: Config, layout: Layout) -> tuple[TrainState, dict[str, Any]]:
    """A run's state and global batch, as shapes: no memory is taken."""
    state = jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))
    size = config.image_size
    sides: tuple[int, ...] = (config.batch_size, size, size, config.model.channels)
    batch: dict[str, Any] = {"pixels": jax.ShapeDtypeStruct(sides, jnp.uint8)}
    if isinstance(config, PriorTrainConfig) and config.tokens is not None:
        batch = {
            "tokens": jax.ShapeDtypeStruct((config.batch_size, config.prior.length), jnp.int32)
        }
    if config.classes:
        batch["labels"] = jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)
    if jax.process_count() > 1:
        batch["stop"] = jax.ShapeDtypeStruct((config.batch_size,), jnp.float32)
    return state, batch


def measure(config: Config, layout: Layout, step: Compiled, target: Target | None = None) -> Needs:
    """Compiles the step for the run's shapes, and reads off what it needs.

    Args:
      config: the run's resolved configuration.
      layout: the run's devices.
      step: the run's step; compiled here, it need not be again.
      target: what the layout's devices are, where they are a described machine's.
    """
    state, batch = shapes(config, layout)
    started = time.perf_counter()
    lowered = step.lower(state, batch)
    # Of the program as written, where XLA counts every convolution; the optimised one hides some
    # inside calls to libraries. Under pmap it is one device's, under a mesh all devices'.
    counted, counting = lowered, layout
    if config.accumulate > 1 or target is not None:
        # XLA counts a loop's body once, so the same batch in one piece; and a described machine's
        # compiler counts nothing before it compiles, so this one's.
        counting = layout if target is None else devices.choose("single", config.batch_size)
        whole = dataclasses.replace(state, config=dataclasses.replace(config, accumulate=1))
        counted = counting.compile(step.step, donate=True).lower(whole, batch)
    flops = float((counted.cost_analysis() or {}).get("flops", float("nan")))
    executable = lowered.compile()
    step.adopt(executable)
    seconds = time.perf_counter() - started
    memory: Any = executable.memory_analysis()
    batch_bytes = sum(s.size * s.dtype.itemsize for s in batch.values()) // layout.count
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Needs(
        parameters=parameter_count(state.params),
        flops=flops * (counting.count if counting.mode == "pmap" else 1),
        state_bytes=memory.argument_size_in_bytes - batch_bytes,
        batch_bytes=batch_bytes,
        working_bytes=memory.temp_size_in_bytes + outputs,
        devices=layout.count,
        compile_seconds=seconds,
        program=None if target is None else programs.facts(executable, target),
    )


def available_bytes(layout: Layout) -> int | None:
    """Memory of one device: the accelerator's, or this machine's share of one CPU device."""
    device = layout.devices[0]
    if device.platform == "cpu":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return whole // len(layout.devices)
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return None if limit is None else int(limit)


def lines(
    needs: Needs, config: Config, available: int | None, machine: str | None = None
) -> list[str]:
    """The report, line by line; ``machine``: whose compiler was asked, if not this one's."""
    images = config.batch_size
    count = f"{needs.devices} device{'s' if needs.devices > 1 else ''}"
    fits = "" if available is None else f" of {size(available)}"
    told = [
        f"needs     on each of {count}: {size(needs.total_bytes)}{fits}",
        f"            state {size(needs.state_bytes)} (parameters, their average, two moments), "
        f"images {size(needs.batch_bytes)}, working memory {size(needs.working_bytes)}",
        f"          an update of {images} images: {count_flops(needs.flops)} in all, "
        f"{count_flops(needs.flops / images)} per image",
        f"          {needs.parameters:,} parameters; compiled in {needs.compile_seconds:.0f} s for "
        f"{machine or jax.default_backend()}",
    ]
    if needs.program is not None:
        part = f" (of one of its {config.accumulate} parts)" if config.accumulate > 1 else ""
        moved, seconds = needs.program["bytes"], needs.program["roofline_seconds"]
        told.append(
            f"          on each device {size(moved)} of memory traffic{part}; at the published "
            f"bandwidth and peak {1e3 * seconds:,.2f} ms at least"
        )
    return told


def count_flops(number: float) -> str:
    """Floating-point operations for people.

    >>> count_flops(2.5e12)
    '2.50 TFLOP'
    """
    for unit in ("M", "G", "T", "P"):
        if number < 1e9 or unit == "P":
            break
        number /= 1e3
    return f"{number / 1e6:,.2f} {unit}FLOP"


def size(number: float) -> str:
    """Bytes for people.

    >>> size(0), size(1536), size(5 * 2**30)
    ('0 B', '1.5 KiB', '5.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            break
        number /= 1024
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:,.1f} {unit}"


def require_memory(
    config: Config, layout: Layout, step: Compiled, say: Callable[[str], None]
) -> None:
    """Tells what an update needs on each device.

    Raises:
      RunError: it is more than the device has.
    """
    if config.debug:
        raise RunError("--memory-report is not for --debug, which compiles another program")
    needs, available = measure(config, layout, step), available_bytes(layout)
    for line in lines(needs, config, available):
        say(line)
    require_fit(needs, available)


def dry_run(config: Config, launch: Launch, say: Callable[[str], None]) -> None:
    """Tells what an update needs, from shapes alone.

    Args:
      config: the run's.
      launch: its ``simulate`` says that the devices are simulated on this machine's CPU: they share
        one memory, so what each has says nothing. Its ``topology`` names a machine whose own
        compiler is asked.
      say: prints one line.

    Raises:
      ValueError: the devices cannot do what is asked for; the compiler is not installed; or what is
        needed does not fit that machine.
    """
    config = config.resolved()
    if launch.topology is None:
        layout = devices.of(config)
        needs = measure(config, layout, layout.compile(tasks.of(config).step(), donate=True))
        simulated = launch.simulate is not None
        for line in lines(needs, config, None if simulated else available_bytes(layout)):
            say(line)
        return
    name, shape = targets.parse(launch.topology)
    targets.prepare(name)
    target = targets.TARGETS[name]
    layout = devices.of(config, targets.devices(name, shape))
    try:
        step = layout.compile(tasks.of(config).step(), donate=True)
        needs = measure(config, layout, step, target)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # The TPU's compiler refuses what does not fit.
        used = re.search(r"Used \S+ of \S+ hbm", str(error))
        raise RunError(
            f"an update does not fit {launch.topology}"
            f"{f' ({used.group()})' if used else ''}: {LESS_MEMORY}"
        ) from error
    for line in lines(needs, config, target.memory, launch.topology):
        say(line)
    require_fit(needs, target.memory)


def require_fit(needs: Needs, available: int | None) -> None:
    """Refuses what needs more than the device has.

    Raises:
      RunError: it does.
    """
    if available is not None and needs.total_bytes > available:
        raise RunError(
            f"an update needs {size(needs.total_bytes)} on each device, which has "
            f"{size(available)}: {LESS_MEMORY}"
        )
