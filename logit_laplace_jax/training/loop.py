"""A run from start to end: prepare, train, evaluate, write; stoppable and resumable."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from logit_laplace_jax import pixels as pixel_maps
from logit_laplace_jax.data import pipeline
from logit_laplace_jax.evaluation import figures
from logit_laplace_jax.models.data_init import normalise_encoder
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.checkpoints import Checkpoints
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.evaluate import Evaluator, reconstruct
from logit_laplace_jax.training.progress import Progress, duration
from logit_laplace_jax.training.records import Records
from logit_laplace_jax.training.state import TrainState, create_state, parameter_count
from logit_laplace_jax.training.step import train_step

_IN_FLIGHT = 2
"""Updates that may wait on the devices. More would not help, and results would come late."""

_FLUSH_SECONDS = 1.0
_SHEET = 12
"""Crops on a sheet of reconstructions."""

_CONFIG_PART = "config.json.part"
_INIT_CROPS = 256
"""Crops that a data-dependent initialisation looks at."""


class RunError(ValueError):
    """A request that cannot be carried out; one clear line."""


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the last good step and checkpoint."""


class Stopped(RuntimeError):
    """A signal ended the run after a checkpoint; ``signal_number`` says which."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class Run:
    """A run directory and all that a run needs; making one checks the request.

    Args:
      config: what to train.
      say: prints one line.

    Raises:
      ValueError: the request cannot be carried out (data, devices, run directory); one line.
    """

    def __init__(self, config: TrainConfig, say: Callable[[str], None] = print):
        self.config = config.resolved()
        self.folder = Path(config.run_dir)
        self.say = say
        if jax.process_count() > 1:
            raise RunError("training over several processes is not supported yet; run one process")
        self.layout = devices.choose(config.parallel, config.batch_size)
        _check_folder(self.folder, self.config)
        counts = pipeline.check_source(
            config.data,
            image_size=config.image_size,
            channels=config.model.channels,
            data_dir=config.data_dir,
        )
        self.held_out = held_out(self.config)
        say(f"data      {config.data}: {counts['train']} images, {counts['validation']} held out")
        init_key, self.train_key, self.eval_key = _keys(config)
        self.state = create_state(self.config, init_key)
        self._eval = Evaluator(self.layout, self.config)
        self._shown: np.ndarray | None = None
        height, width = self.config.model.token_grid(config.image_size, config.image_size)
        say(
            f"model     {parameter_count(self.state.params):,} parameters; {config.image_size} x "
            f"{config.image_size} pixels to {height} x {width} tokens of {config.model.vocab_size} "
            "codes"
        )
        kinds = sorted({d.device_kind for d in self.layout.devices})
        say(f"devices   {len(self.layout.devices)} x {', '.join(kinds)} ({self.layout.mode})")

    # --- The run --------------------------------------------------------------------------------

    def train(self) -> bool:
        """Trains to the last step, or on from the last checkpoint.

        Returns:
          Whether anything was left to do.

        Raises:
          NonFiniteLoss: the loss is not finite.
          Stopped: SIGINT or SIGTERM came; a checkpoint was written.
          CheckpointError: the checkpoint to go on from cannot be read.
          ValueError: no image could be read.
        """
        config = self.config
        if not (self.folder / "config.json").exists():
            _write_config(self.folder, config)  # first of all: it marks the folder as a run's
        with (
            Checkpoints(self.folder / "checkpoints", config.keep_checkpoints) as checkpoints,
            _signals() as caught,
        ):
            iterator_state = None
            if checkpoints.latest is not None:
                self.state, iterator_state = checkpoints.restore(self.state)
                if int(self.state.step) >= config.steps:
                    self.say(f"complete  all {config.steps} updates are done")
                    return False
                self.say(f"resuming  at step {int(self.state.step)}")
            elif config.init == "data":
                self.state = normalised_on_data(self.state)
            _write_config(self.folder, config)
            batches = train_stream(config, config.batch_size)
            if iterator_state is not None:
                batches.set_state(iterator_state)
            records = Records(self.folder, int(self.state.step))
            try:
                self._updates(batches, checkpoints, records, caught)
            finally:
                records.close()
                batches.close()
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
        records: Records,
        caught: list[int],
    ) -> None:
        config, layout = self.config, self.layout
        step_fn = layout.compile(train_step, donate=True, debug=config.debug)
        first = step = int(self.state.step)
        state = layout.replicate(self.state)
        log = _MetricLog(config, records, Progress(config.steps, self.say), checkpoints, first)
        self.say("compiling the step (once)")
        while step < config.steps:
            started = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - started
            try:
                state, metrics = step_fn(state, layout.shard(batch), self.train_key)
            except checkify.JaxRuntimeError as error:  # only with --debug
                log.flush()
                raise NonFiniteLoss(log.diagnosis(step + 1, str(error).splitlines()[0])) from error
            step += 1
            log.add(step, layout.first(metrics), waited)
            evaluating = _due(step, config.eval_every, config.steps)
            if evaluating:
                log.flush()
                self._evaluate(state, step, records, log)
            # Read once, after all that takes time: what is promised below must have been saved.
            stopping = bool(caught)
            save = _due(step, config.checkpoint_every, config.steps) or stopping
            if save:
                log.flush()
                records.flush()
                checkpoints.save(layout.first(state), batches.get_state())
            if stopping and step < config.steps:
                checkpoints.wait()
                raise Stopped(
                    f"stopped by {signal.Signals(caught[0]).name} after step {step}; "
                    "the same command goes on from there",
                    caught[0],
                )
            if save or evaluating:
                log.restart_clock()
        self.state = layout.first(state)
        self.say(f"trained   {config.steps - first} updates in {duration(log.training_seconds)}")

    # --- Evaluation and pictures ----------------------------------------------------------------

    def _evaluate(self, state: Any, step: int, records: Records, log: "_MetricLog") -> None:
        result = self._eval(state, self.held_out, self.eval_key)
        log.clear_line()
        self.say(
            f"held out  step {step}: {result['bpd_hard']:.3f} bits/dim, PSNR "
            f"{result['psnr']:.2f} dB (relaxed {result['psnr_relaxed']:.2f}), KL "
            f"{result['kl']:.2f}, codes used {100 * result['code_usage']:.0f} %, "
            f"perplexity {result['code_perplexity']:.0f}"
        )
        records.write(step, "validation", result)
        sheet = self._sheet(self.layout.first(state))
        figures.save_png(self.folder / "reconstructions" / f"step_{step:07d}.png", sheet, scale=3)
        records.image(step, "reconstructions", sheet)

    def _sheet(self, state: TrainState) -> np.ndarray:
        if self._shown is None:
            crops = stack_crops(self.held_out)
            spread = np.linspace(0, len(crops) - 1, _SHEET).round().astype(int)
            self._shown = crops[np.unique(spread)]
        chosen = self._shown
        return figures.grid([chosen, np.asarray(reconstruct(state, chosen))], limit=_SHEET)


def normalised_on_data(state: TrainState) -> TrainState:
    """The state with its encoder normalised on training crops (``init`` data)."""
    config = state.config
    crops = training_crops(config, _INIT_CROPS)
    x = pixel_maps.map_pixels(crops, config.eps)
    params = normalise_encoder(config.model, state.params, x, config.init_logit_std)
    return state.replace(params=params, ema_params=jax.tree.map(jnp.copy, params))


def training_crops(config: TrainConfig, count: int) -> np.ndarray:
    """The first crops of the training stream at that batch size: uint8 [count, S, S, C]."""
    batches = train_stream(config, count)
    crops = next(batches)["pixels"]
    batches.close()
    return crops


def train_stream(config: TrainConfig, batch_size: int) -> pipeline.TrainBatches:
    """The configuration's training crops in batches of another size."""
    return pipeline.train_batches(
        config.data,
        image_size=config.image_size,
        batch_size=batch_size,
        seed=config.seed,
        channels=config.model.channels,
        min_crop=config.min_crop,
        data_dir=config.data_dir,
    )


def held_out(
    config: TrainConfig,
    data: str | None = None,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
) -> pipeline.EvalBatches:
    """The held-out crops of a configuration, or those of other ``data`` cut in the same way."""
    return pipeline.eval_batches(
        data or config.data,
        image_size=config.image_size,
        batch_size=batch_size or config.batch_size,
        channels=config.model.channels,
        data_dir=config.data_dir,
        limit=limit or config.eval_images,
        grid_scale=config.eval_scale,
    )


def stack_crops(batches: pipeline.EvalBatches, limit: int | None = None) -> np.ndarray:
    """The crops of masked batches without padding: uint8 [N, H, W, C]."""
    rows = [batch["pixels"][batch["mask"] > 0] for batch in batches]
    return np.concatenate(rows)[:limit]


class _MetricLog:
    """Takes every update's metrics from the devices, a little late, and checks the loss."""

    def __init__(
        self,
        config: TrainConfig,
        records: Records,
        progress: Progress,
        checkpoints: Checkpoints,
        first: int,
    ):
        self._config = config
        self._records = records
        self._progress = progress
        self._checkpoints = checkpoints
        self._pending: list[tuple[int, dict[str, jax.Array], float]] = []
        self._last_good = first
        self._clock = time.perf_counter()
        self._rate = 0.0
        self.training_seconds = 0.0

    def add(self, step: int, metrics: dict[str, jax.Array], waited: float) -> None:
        self._pending.append((step, metrics, waited))
        if len(self._pending) > _IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - _IN_FLIGHT][1]["loss"])
        if time.perf_counter() - self._clock > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Brings all metrics to the host and writes them."""
        if not self._pending:
            return
        fetched = jax.device_get([metrics for _, metrics, _ in self._pending])
        now = time.perf_counter()
        elapsed = now - self._clock
        self._clock = now
        self.training_seconds += elapsed
        rate = len(fetched) * self._config.batch_size / elapsed
        # The first updates carry the compilation; later rates are smoothed for the time left.
        self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate
        waiting = sum(waited for _, _, waited in self._pending) / elapsed
        for (step, _, _), metrics in zip(self._pending, fetched, strict=True):
            values = {name: float(value) for name, value in metrics.items()}
            values |= {"images_per_second": rate, "data_wait_share": min(waiting, 1.0)}
            # A finite loss with an infinite gradient is the last good loss: the update ruins the
            # parameters, and a checkpoint of them would be worthless.
            for name in ("loss", "grad_norm"):
                if not np.isfinite(values[name]):
                    self._records.write(step, "train", values)
                    what = {"loss": "the loss", "grad_norm": "the gradient's norm"}[name]
                    raise NonFiniteLoss(self.diagnosis(step, f"{what} is {values[name]}"))
            self._last_good = step
            if step % self._config.log_every == 0 or step in (1, self._config.steps):
                self._records.write(step, "train", values)
        self._pending.clear()
        left = (self._config.steps - step) * self._config.batch_size / self._rate
        self._progress.show(step, rate, left, values)

    def diagnosis(self, step: int, finding: str) -> str:
        """The message of a run that cannot go on."""
        saved = self._checkpoints.latest
        where = (
            f"the last checkpoint is of step {saved} in {self._checkpoints.folder}"
            if saved is not None
            else "there is no checkpoint yet"
        )
        return (
            f"{finding} at step {step}; the last good step is {self._last_good}, {where}. "
            "Try a smaller step size, a slower temperature schedule, or --debug"
        )

    def restart_clock(self) -> None:
        """Leaves the time since the last flush (evaluation, checkpoint) out of the rate."""
        self._clock = time.perf_counter()

    def clear_line(self) -> None:
        self._progress.clear()


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


# --- The run directory --------------------------------------------------------------------------


def _check_folder(folder: Path, config: TrainConfig) -> None:
    """Refuses a folder that holds another run, or something else."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"run directory {folder} is a file; choose another --run-dir")
    saved = folder / "config.json"
    if saved.exists():
        saved_config = read_config(folder)
        lines = configs.differences(saved_config, config)
        if lines and saved_config.steps != config.steps:
            lines.append("--steps changes schedules that last the whole run")
        if lines:
            raise RunError(
                f"{folder} holds a run of another configuration ({'; '.join(lines)}); "
                "choose another --run-dir, or give the same options to resume"
            )
    elif folder.is_dir() and any(p.name != _CONFIG_PART for p in folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run; choose another --run-dir")


def _write_config(folder: Path, config: TrainConfig) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / _CONFIG_PART
    part.write_text(json.dumps(configs.to_dict(config), indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / "config.json")


def read_config(folder: Path) -> TrainConfig:
    """The configuration of a run directory.

    Raises:
      RunError: there is none, or it cannot be read.
    """
    path = folder / "config.json"
    try:
        return configs.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{folder} is not a run directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def _keys(config: TrainConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys of the initial parameters, of training and of evaluation."""
    init, train, evaluation = jax.random.split(jax.random.key(config.seed), 3)
    return init, train, evaluation


def evaluation_key(config: TrainConfig) -> jax.Array:
    """The key of all chance in an evaluation of a run, the same at every step."""
    return _keys(config)[2]


def load(folder: Path, say: Callable[[str], None] = lambda line: None) -> TrainState:
    """The state of a run's latest checkpoint, on one device.

    Raises:
      RunError: not a run directory.
      CheckpointError: no complete checkpoint, or a damaged one.
    """
    config = read_config(folder).resolved()
    shapes = jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))
    with Checkpoints(folder / "checkpoints", create=False) as checkpoints:
        state, _ = checkpoints.restore(shapes)
    say(f"{folder}: step {int(state.step)}")
    return state
