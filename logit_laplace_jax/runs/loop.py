"""A run from start to end: prepare, train, evaluate, save; stoppable and resumable."""

import dataclasses
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import checkify

from logit_laplace_jax.data import pipeline
from logit_laplace_jax.evaluation import figures
from logit_laplace_jax.runs import directory, preflight, processes, tasks
from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.runs.errors import NonFiniteLoss, Stopped, clear_errors
from logit_laplace_jax.runs.launch import Launch
from logit_laplace_jax.runs.metrics import MetricLog, Silence, Writer
from logit_laplace_jax.runs.streams import held_out, images_of, stack_crops, train_stream
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import Config
from logit_laplace_jax.training.state import TrainState, create_state, parameter_count

_PROFILED = range(3, 8)
"""Updates of this start that a profile covers: after compilation."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What :func:`train` gives back.

    Attributes:
      config: the run's resolved configuration.
      state: its last state, one copy.
      trained: whether anything was left to do.
      checkpoints: steps of the checkpoints that stand.
      best: the step of the best of them by held-out bits, None without an evaluated one.
      source: the caller's own data set, if one was given.
      training_seconds, waiting_seconds: time of the updates, and of waiting for images in it.
    """

    config: Any
    state: TrainState
    trained: bool
    checkpoints: list[int]
    best: int | None
    source: Any = None
    training_seconds: float = 0.0
    waiting_seconds: float = 0.0

    @property
    def folder(self) -> Path:
        """The run directory."""
        return Path(self.config.run_dir)


def train(
    config: Config,
    source: Any = None,
    *,
    launch: Launch | None = None,
    say: Callable[[str], None] = print,
) -> Run:
    """Trains to the last step, from the start or from the run directory's last checkpoint.

    Args:
      config: what to train: a dVAE or a prior (see `tasks`).
      source: a data set of the caller's own (:class:`logit_laplace_jax.data.sources.DataSet`), in
        place of the configuration's ``data.source``, which then is its name in ``config.json``.
      launch: how to start; only ``memory_report`` and ``profile`` matter here.
      say: prints one line.

    Returns:
      The run: its state and its checkpoints.

    Raises:
      ValueError: the request cannot be carried out (data, devices, memory, run directory), no
        image could be read, or the disk is full; one line.
      NonFiniteLoss: the loss is not finite.
      Stopped: a signal came; a checkpoint was written.
      CheckpointError: no checkpoint to go on from can be read, or one cannot be written.
      OutOfMemory: a device's memory does not suffice.
      LostProcess: another process of the run is gone.
    """
    config, launch, folder = config.resolved(), launch or Launch(), Path(config.run_dir)
    main = processes.is_main()
    if not main:
        say = _silent
    init_key, train_key, eval_key = directory.keys(config)
    task = tasks.of(config, source)

    # --- The request: refused before anything long starts -----------------------------------------
    # Before anything else that the processes do together, which would end in a long dump.
    processes.require_agreement("the configuration", json.dumps(configs.to_dict(config)))
    layout = devices.of(config)
    directory.check(folder, config)
    counts = pipeline.check_source(
        images_of(config, source),
        image_size=config.image_size,
        channels=config.model.channels,
        data_dir=config.data.data_dir,
    )
    say(
        f"data      {config.data.source}: {counts['train']} images, {counts['validation']} held out"
    )
    kinds = ", ".join(sorted({d.device_kind for d in layout.devices}))
    with ExitStack() as stack:
        stack.enter_context(clear_errors(folder, kinds))

        # --- Data, state, step ----------------------------------------------------------------
        batches = train_stream(config, source, sharded=True)
        stack.callback(batches.close)
        processes.require_agreement("the data", batches.get_state()["data"])
        evaluated = held_out(config, source, sharded=True)
        state: Any = layout.create(lambda key: create_state(config, key), init_key)
        if not directory.has_checkpoint(folder):
            started, lines = task.start(layout.gather(state))
            state = layout.place(started)
            for line in lines:
                say(line)
        step_function = layout.compile(task.step(), donate=True, debug=config.debug)
        evaluator = task.evaluator(layout)
        say(f"model     {parameter_count(state.params):,} parameters; {task.describe()}")
        hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        how = f"{layout.mode}{', fsdp' if layout.fsdp else ''}"
        say(f"devices   {layout.count} x {kinds}{hosts} ({how})")
        if launch.memory_report:
            preflight.require_memory(config, layout, step_function, say)

        # --- The run directory; the state to start from ---------------------------------------
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(directory.lock(folder))
            directory.check(folder, config)  # another run may have begun here meanwhile
            if not (folder / "config.json").exists():
                directory.write_config(folder, config)  # it marks the folder as a run's
        checkpoints = stack.enter_context(
            Checkpoints(folder / "checkpoints", config.keep_checkpoints, measure=config.measure)
        )
        caught = stack.enter_context(_signals())
        if checkpoints.latest is not None:
            state, place = checkpoints.restore_latest(state, layout.state_shardings(state), say)
            if _step_of(state) >= config.steps:
                say(f"complete  all {config.steps} updates are done")
                whole = layout.gather(state)
                return Run(config, whole, False, checkpoints.steps, checkpoints.best, source)
            say(f"resuming  at step {_step_of(state)}")
            batches.set_state(place)
        if main:
            directory.write_config(folder, config)
        first = step = _step_of(state)

        # --- Records --------------------------------------------------------------------------
        writer = Writer(folder, step) if main else Silence()
        stack.callback(writer.close)

        def last_checkpoint() -> str:
            if checkpoints.latest is None:
                return "there is no checkpoint yet"
            return f"the last checkpoint is of step {checkpoints.latest} in {checkpoints.folder}"

        log = MetricLog(config, writer, step, say if main else None, last_checkpoint)
        stack.callback(log.close)
        shown = stack_crops(held_out(config, source)) if main else np.zeros(0)

        def evaluate(state: Any, step: int) -> dict[str, float]:
            measures: dict[str, float] = evaluator(state, evaluated, eval_key)
            writer.write(step, "validation", measures)
            say(f"held out  step {step}: {task.summary(measures)}")
            # Only what pictures are made with: the rest need not be gathered.
            averaged = state.replace(params=None, opt_state=None, loss_scale=None)
            averaged = layout.gather(layout.stored(averaged))
            if main:
                sheet = task.sheet(averaged, shown)
                path = folder / task.pictures / f"step_{step:07d}.png"
                figures.save_png(path, sheet, scale=3)
                writer.image(step, task.pictures, sheet)
            return measures

        # --- The updates ----------------------------------------------------------------------
        profile = folder / "profile" if launch.profile and main else None
        trace = stack.enter_context(_trace(profile, first, config.steps))
        state = layout.replicate(state)
        say("compiling the step (once)")
        while step < config.steps:
            asked = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - asked
            if jax.process_count() > 1:
                # Signals reach processes at different moments; through the step they all learn of
                # one after the same update.
                rows = len(next(iter(batch.values())))
                batch = {**batch, "stop": np.full(rows, bool(caught), np.float32)}
            try:
                state, metrics = step_function(state, layout.shard(batch), train_key)
            except checkify.JaxRuntimeError as error:  # only with --debug
                log.flush()
                raise NonFiniteLoss(log.diagnosis(step + 1, str(error).splitlines()[0])) from error
            step += 1
            trace(step, metrics)
            arrived = log.add(step, layout.first(metrics), waited)

            measures = None
            if _due(step, config.evaluation.every, config.steps):
                log.flush()
                measures = evaluate(state, step)
            # Read once, after all that takes time: what is promised below must have been saved.
            stopping = bool(caught)
            if jax.process_count() > 1:
                stopping = arrived is not None and arrived.get("stop", 0.0) > 0.0
            if (
                stopping
                or _due(step, config.checkpoint_every, config.steps)
                or (measures is not None and checkpoints.is_better(measures))
            ):
                log.flush()
                checkpoints.save(layout.stored(state), batches.get_state(), measures)
            if stopping or measures is not None or _due(step, config.checkpoint_every, 0):
                log.restart_clock()
            checkpoints.check()
            if stopping and step < config.steps:
                checkpoints.wait()
                number = caught[0] if caught else signal.SIGTERM
                raise Stopped(
                    f"stopped by {signal.Signals(number).name} after step {step}; "
                    "the same command goes on from there",
                    number,
                )

        # --- The end --------------------------------------------------------------------------
        checkpoints.wait()
        for split, stream in (("training", batches), ("held-out", evaluated)):
            for name, reason in list(stream.skipped.items())[:1]:
                say(
                    f"skipped   {len(stream.skipped)} of {len(stream.source)} {split} images, "
                    f"such as {name}: {reason}"
                )
        return Run(
            config,
            layout.gather(layout.stored(state)),
            True,
            checkpoints.steps,
            checkpoints.best,
            source,
            log.training_seconds,
            log.waiting_seconds,
        )


def _silent(line: str) -> None:
    """What a process says that is not the first of its run."""


def _step_of(state: Any) -> int:
    return int(state.step.addressable_data(0))


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


@contextmanager
def _trace(folder: Path | None, first: int, last: int) -> Iterator[Callable[[int, Any], None]]:
    """A profiler trace of a few updates, by a function to be called after each of them.

    Without a folder there is none; a run of few updates is traced from its first one on.
    """
    begin = min(first + _PROFILED.start, last - 1)
    running = False

    def after(step: int, metrics: Any) -> None:
        nonlocal running
        if folder is None:
            return
        if running and step >= begin + len(_PROFILED):
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            running = False
        elif step == begin:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(folder)
            running = True

    try:
        if folder is not None and begin <= first:
            jax.profiler.start_trace(folder)
            running = True
        yield after
    finally:
        if running:
            jax.profiler.stop_trace()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects the signals that ask to stop; a second one acts as it did before."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {s: signal.getsignal(s) for s in asked}

    def handle(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
