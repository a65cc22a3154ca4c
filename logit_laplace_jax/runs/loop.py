"""A run from start to end: prepare, train, evaluate, write; stoppable and resumable."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from logit_laplace_jax import pixel_map as pixel_maps
from logit_laplace_jax.data import pipeline
from logit_laplace_jax.evaluation import figures
from logit_laplace_jax.models.data_init import normalise_encoder
from logit_laplace_jax.runs import preflight, processes, saved
from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.runs.metric_log import MetricLog, NonFiniteLoss
from logit_laplace_jax.runs.progress import Progress, duration
from logit_laplace_jax.runs.records import Records, Silence
from logit_laplace_jax.runs.run_directory import (
    Lock,
    RunError,
    check_folder,
    full_disk_in_one_line,
    write_config,
)
from logit_laplace_jax.runs.saved import evaluation_key, load
from logit_laplace_jax.runs.streams import held_out, stack_crops, train_stream, training_crops
from logit_laplace_jax.runs.warm_start import started_from
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import Launch, TrainConfig
from logit_laplace_jax.training.evaluation import Evaluator, reconstruct
from logit_laplace_jax.training.state import TrainState, create_state, parameter_count
from logit_laplace_jax.training.step import train_step

__all__ = [
    "NonFiniteLoss",
    "OutOfMemory",
    "Run",
    "RunError",
    "Stopped",
    "evaluation_key",
    "load",
]

_SHEET = 12
"""Crops on a sheet of reconstructions."""

_INIT_CROPS = 256
"""Crops that a data-dependent initialisation looks at."""

_PROFILED = range(3, 8)
"""Updates of this start that a profile covers: after compilation."""


class Stopped(RuntimeError):
    """A signal ended the run after a checkpoint; ``signal_number`` says which."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class OutOfMemory(RuntimeError):
    """A device's memory did not suffice; the message says what takes less."""


class Run:
    """A run directory and all that a run needs; making one checks the request.

    Args:
      config: what to train.
      say: prints one line.
      launch: how to start; only ``memory_report`` and ``profile`` matter here.

    Raises:
      ValueError: the request cannot be carried out (data, devices, memory, run directory); one
        line.
    """

    def __init__(
        self,
        config: TrainConfig,
        say: Callable[[str], None] = print,
        launch: Launch | None = None,
    ):
        self.config = config.resolved()
        self.launch = launch or Launch()
        self.folder = Path(config.run_dir)
        self.is_main = processes.is_main()
        self.say = say if self.is_main else lambda line: None
        # Before anything else that the processes do together, which would end in a long dump.
        processes.require_agreement("the configuration", json.dumps(configs.to_dict(self.config)))
        self.layout = devices.choose(
            config.parallel,
            config.batch_size,
            accumulate=config.accumulate,
            fsdp=config.fsdp,
            devices=config.devices,
        )
        check_folder(self.folder, self.config)
        counts = pipeline.check_source(
            config.data,
            image_size=config.image_size,
            channels=config.model.channels,
            data_dir=config.data_dir,
        )
        self.held_out = held_out(self.config, sharded=True)
        self.say(
            f"data      {config.data}: {counts['train']} images, {counts['validation']} held out"
        )
        init_key, self.train_key, self.eval_key = saved.keys(config)
        self.state: Any = self.layout.create(lambda key: create_state(self.config, key), init_key)
        if config.init_from is not None and not saved.has_checkpoint(self.folder):
            started, fresh = started_from(self.layout.gather(self.state), config.init_from)
            self.state = self.layout.place(started)
            anew = f"; anew: {', '.join(fresh)}" if fresh else ""
            self.say(f"weights   of {config.init_from}{anew}")
        self.log: MetricLog | None = None
        # What stands at the end. To be read here: opening checkpoints again takes every process.
        self.saved: list[int] = []
        self.best_saved: int | None = None
        self._eval = Evaluator(self.layout, self.config)
        self._step = self.layout.compile(train_step, donate=True, debug=config.debug)
        self._shown: np.ndarray | None = None
        height, width = self.config.model.token_grid(config.image_size, config.image_size)
        self.say(
            f"model     {parameter_count(self.state.params):,} parameters; {config.image_size} x "
            f"{config.image_size} pixels to {height} x {width} tokens of {config.model.vocab_size} "
            "codes"
        )
        kinds = sorted({d.device_kind for d in self.layout.devices})
        hosts = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        how = f"{self.layout.mode}{', fsdp' if self.layout.fsdp else ''}"
        self.say(f"devices   {self.layout.count} x {', '.join(kinds)}{hosts} ({how})")
        if self.launch.memory_report:
            self._report_memory()

    def _report_memory(self) -> None:
        if self.config.debug:
            raise RunError("--memory-report is not for --debug, which compiles another program")
        needs = preflight.measure(self.config, self.layout, self._step)
        available = preflight.available_bytes(self.layout)
        for line in preflight.lines(needs, self.config, available):
            self.say(line)
        if available is not None and needs.total_bytes > available:
            raise RunError(
                f"an update needs {preflight.size(needs.total_bytes)} on each device, which has "
                f"{preflight.size(available)}: {_LESS_MEMORY}"
            )

    # --- The run --------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains to the last step, or on from the last checkpoint.

        Returns:
          Whether anything was left to do.

        Raises:
          NonFiniteLoss: the loss is not finite.
          Stopped: SIGINT or SIGTERM came; a checkpoint was written.
          CheckpointError: no checkpoint to go on from can be read, or one cannot be written.
          ValueError: no image could be read, another process trains in the directory, or the disk
            is full.
          OutOfMemory: a device's memory does not suffice.
          LostProcess: another process of the run is gone.
        """
        try:
            with full_disk_in_one_line(self.folder):
                return self._train()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error):
                raise OutOfMemory(
                    f"the memory of {self.layout.devices[0].device_kind} does not suffice: "
                    f"{_LESS_MEMORY}; --memory-report tells the needs before"
                ) from error
            if jax.process_count() > 1:
                first = str(error).strip().splitlines()[0]
                raise processes.LostProcess(
                    "another process of this run is gone or cannot be reached "
                    f"({first[:150]}); the same commands start it again from its last checkpoint"
                ) from error
            raise

    def _train(self) -> bool:
        config = self.config
        with ExitStack() as stack:
            batches = train_stream(config, config.batch_size, sharded=True)
            stack.callback(batches.close)
            processes.require_agreement("the data", batches.get_state()["data"])
            if self.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(Lock(self.folder))
                check_folder(self.folder, config)  # another run may have begun here meanwhile
                if not (self.folder / "config.json").exists():
                    write_config(self.folder, config)  # it marks the folder as a run's
            checkpoints = stack.enter_context(
                Checkpoints(self.folder / "checkpoints", config.keep_checkpoints)
            )
            caught = stack.enter_context(_signals())
            iterator_state = None
            if checkpoints.latest is not None:
                self.state, iterator_state = checkpoints.restore_latest(
                    self.state, self.layout.state_shardings(self.state), self.say
                )
                if _step_of(self.state) >= config.steps:
                    self.say(f"complete  all {config.steps} updates are done")
                    self.saved, self.best_saved = checkpoints.steps, checkpoints.best
                    self.state = self.layout.gather(self.state)
                    return False
                self.say(f"resuming  at step {_step_of(self.state)}")
            elif config.init == "data" and config.init_from is None:
                self.state = self.layout.place(normalised_on_data(self.layout.gather(self.state)))
            if self.is_main:
                write_config(self.folder, config)
            if iterator_state is not None:
                batches.set_state(iterator_state)
            first = _step_of(self.state)
            records = Records(self.folder, first) if self.is_main else Silence()
            stack.callback(records.close)
            self._updates(batches, checkpoints, records, caught, stack)
        for split, stream in (("training", batches), ("held-out", self.held_out)):
            if stream.skipped:
                name, reason = next(iter(stream.skipped.items()))
                total = len(stream.source)
                self.say(
                    f"skipped   {len(stream.skipped)} of {total} {split} images, such as "
                    f"{name}: {reason}"
                )
        return True

    def _updates(
        self,
        batches: pipeline.TrainBatches,
        checkpoints: Checkpoints,
        records: Records | Silence,
        caught: list[int],
        stack: ExitStack,
    ) -> None:
        config, layout = self.config, self.layout
        first = step = _step_of(self.state)
        state = layout.replicate(self.state)
        self.state = None  # one copy less in the devices' memory
        live = None if self.is_main else False
        progress = Progress(config.steps, self.say, live=live)
        self.log = log = MetricLog(config, records, progress, checkpoints, first)
        profiled = self.launch.profile and self.is_main
        trace = _Trace(self.folder / "profile" if profiled else None, config.steps - first)
        stack.callback(trace.close)  # also where a run is shorter
        self.say("compiling the step (once)")
        while step < config.steps:
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            if jax.process_count() > 1:
                # Signals reach processes at different moments; through the step they all learn of
                # one after the same update.
                rows = len(batch["pixels"])
                batch = {**batch, "stop": np.full(rows, bool(caught), np.float32)}
            trace.before(step - first)
            try:
                state, metrics = self._step(state, layout.shard(batch), self.train_key)
            except checkify.JaxRuntimeError as error:  # only with --debug
                log.flush()
                raise NonFiniteLoss(log.diagnosis(step + 1, str(error).splitlines()[0])) from error
            trace.after(step - first, metrics)
            step += 1
            arrived = log.add(step, layout.first(metrics), waited)
            measures = None
            if _due(step, config.eval_every, config.steps):
                log.flush()
                measures = self._evaluate(state, step, records, log)
            # Read once, after all that takes time: what is promised below must have been saved.
            if jax.process_count() > 1:
                stopping = arrived is not None and arrived.get("stop", 0.0) > 0.0
            else:
                stopping = bool(caught)
            save = _due(step, config.checkpoint_every, config.steps) or stopping
            if save or (measures is not None and checkpoints.is_better(measures)):
                log.flush()
                records.flush()
                checkpoints.save(layout.stored(state), batches.get_state(), measures)
                log.restart_clock()
            elif measures is not None:
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
        checkpoints.wait()
        self.saved, self.best_saved = checkpoints.steps, checkpoints.best
        self.state = layout.gather(layout.stored(state))
        self.say(f"trained   {config.steps - first} updates in {duration(log.training_seconds)}")

    # --- Evaluation and pictures ----------------------------------------------------------------

    def _evaluate(
        self, state: Any, step: int, records: Records | Silence, log: MetricLog
    ) -> dict[str, Any]:
        result = self._eval(state, self.held_out, self.eval_key)
        log.clear_line()
        self.say(
            f"held out  step {step}: {result['bpd_hard']:.3f} bits/dim, PSNR "
            f"{result['psnr']:.2f} dB (relaxed {result['psnr_relaxed']:.2f}), KL "
            f"{result['kl']:.2f}, codes used {100 * result['code_usage']:.0f} %, "
            f"perplexity {result['code_perplexity']:.0f}"
        )
        records.write(step, "validation", result)
        # Only what pictures are made with: the rest need not be gathered.
        averaged = state.replace(params=None, opt_state=None, loss_scale=None)
        averaged = self.layout.gather(self.layout.stored(averaged))
        if self.is_main:
            sheet = self._sheet(averaged)
            name = f"step_{step:07d}.png"
            figures.save_png(self.folder / "reconstructions" / name, sheet, scale=3)
            records.image(step, "reconstructions", sheet)
        return result

    def _sheet(self, state: TrainState) -> np.ndarray:
        if self._shown is None:
            crops = stack_crops(held_out(self.config))
            spread = np.linspace(0, len(crops) - 1, _SHEET).round().astype(int)
            self._shown = crops[np.unique(spread)]
        chosen = self._shown
        return figures.grid([chosen, np.asarray(reconstruct(state, chosen))], limit=_SHEET)


_LESS_MEMORY = (
    "take a smaller --batch-size, compute it in parts (--accumulate), recompute activations "
    "(--model.remat), or spread the state over several devices (--fsdp)"
)


class _Trace:
    """A JAX profiler trace of a few of ``updates``; nothing without a folder."""

    def __init__(self, folder: Path | None, updates: int):
        self._folder = folder
        self._first = min(_PROFILED.start, updates - 1)  # the last one, where there are few
        self._running = False

    def before(self, number: int) -> None:
        """To be called before the ``number``-th update of this start."""
        if self._folder is not None and number == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, number: int, metrics: Any) -> None:
        """To be called after it, with something that it computes."""
        if self._running and number >= _PROFILED.stop - 1:
            jax.block_until_ready(metrics)
            self.close()

    def close(self) -> None:
        """Writes the trace, if one runs."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def normalised_on_data(state: TrainState) -> TrainState:
    """The state with its encoder normalised on training crops (``init`` data)."""
    config = state.config
    crops = training_crops(config, _INIT_CROPS)
    x = pixel_maps.map_pixels(crops, config.eps)
    params = normalise_encoder(config.model, state.params, x, config.init_logit_std)
    return state.replace(params=params, ema_params=jax.tree.map(jnp.copy, params))


def _step_of(state: Any) -> int:
    return int(state.step.addressable_data(0))


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM while inside; a second one acts as it did before."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
