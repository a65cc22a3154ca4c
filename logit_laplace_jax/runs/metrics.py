"""The metrics of a run: taken from the devices a little late, checked, written and shown."""

import collections
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from logit_laplace_jax.runs.directory import write_whole
from logit_laplace_jax.runs.errors import NonFiniteLoss
from logit_laplace_jax.training.config import RunConfig
from logit_laplace_jax.training.loss_scaling import SMALLEST

_IN_FLIGHT = 2
"""Updates that may wait on the devices. More would not help, and results would come late."""

_FLUSH_SECONDS = 1.0
_SAY_SECONDS = 15.0

Row = dict[str, float]


class Writer:
    """Appends rows to ``metrics.jsonl`` and to TensorBoard's event files.

    On resuming at a step, rows of later steps are dropped first: they will be written again, and
    none stands twice.

    Args:
      folder: the run directory.
      step: updates that the state has done; 0 for a new run.
    """

    def __init__(self, folder: Path, step: int):
        path = folder / "metrics.jsonl"
        if path.exists():
            rows = [row for row in read(path) if row["step"] <= step]
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", encoding="utf-8")
        # A deep queue: its thread dies of a full disk, and a full queue would then block the run.
        self._board = SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1, max_queue=100_000
        )

    def write(self, step: int, split: str, values: Row) -> None:
        """Adds one row: ``step`` (updates done), ``split``, and the values in full precision.

        JSON has no NaN and no infinity: such a value is written as null.
        """
        row: dict[str, Any] = {"step": step, "split": split}
        row |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{split}/{name}", value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3], to the event files."""
        self._board.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Brings all rows to the disk; a checkpoint follows, and must not be ahead of them."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes, the events too."""
        try:
            self.flush()
        finally:
            self._file.close()
            self._board.close()


class Silence:
    """The writer of a process that writes nothing: of a run's processes only the first one does."""

    def write(self, step: int, split: str, values: Row) -> None:
        """Drops a row."""

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Drops a picture."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, without a last one that a kill cut short."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class MetricLog:
    """Takes every update's metrics from the devices, a fixed number of updates late.

    A fixed number, so that all processes of a run learn of everything after the same update.

    Args:
      config: the run's.
      writer: where the metrics go.
      step: updates done before.
      say: prints one line, for progress where there is no terminal to draw a bar on; None: no
        progress at all.
      last_checkpoint: says where the last checkpoint is, for the message of a loss that is not
        finite.
    """

    def __init__(
        self,
        config: RunConfig,
        writer: Writer | Silence,
        step: int,
        say: Callable[[str], None] | None,
        last_checkpoint: Callable[[], str],
    ):
        self._config = config
        self._writer = writer
        self._last_checkpoint = last_checkpoint
        self._pending: collections.deque[tuple[int, dict[str, jax.Array], float]]
        self._pending = collections.deque()
        self._fetched: list[tuple[int, Row, float]] = []
        self._last_good = step
        self._compiled = False
        self._clock = time.perf_counter()
        self.training_seconds = 0.0
        self.waiting_seconds = 0.0
        terminal = say is not None and sys.stderr.isatty()
        self._say = None if terminal else say
        self._said = time.perf_counter()
        self._bar: tqdm[Any] = tqdm(
            total=config.steps,
            initial=step,
            desc="training",
            unit="update",
            dynamic_ncols=True,
            file=sys.stderr if terminal else io.StringIO(),
        )

    def add(self, step: int, metrics: dict[str, jax.Array], waited: float) -> Row | None:
        """Takes an update's metrics, still on their way.

        Args:
          step: updates done.
          metrics: scalars on a device.
          waited: seconds that the update waited for its images.

        Returns:
          The metrics of an earlier update, as they arrive; None at the start.

        Raises:
          NonFiniteLoss: the loss or the gradient of an earlier update is not finite.
        """
        if not self._compiled:
            # The first update was compiled until now, which tells nothing of the time that is left.
            self._compiled = True
            self.restart_clock()
        self._pending.append((step, metrics, waited))
        arrived = self._take() if len(self._pending) > _IN_FLIGHT else None
        if time.perf_counter() - self._clock > _FLUSH_SECONDS:
            self._write()
        return arrived

    def flush(self) -> None:
        """Waits for all metrics and writes them.

        Raises:
          NonFiniteLoss: as :meth:`add`.
        """
        while self._pending:
            self._take()
        self._write()
        self._writer.flush()

    def _take(self) -> Row:
        step, metrics, waited = self._pending.popleft()
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        # Whether to stop is for the loop to know, and nothing to write down.
        shown = {name: value for name, value in values.items() if name != "stop"}
        self._fetched.append((step, shown, waited))
        # A finite loss with an infinite gradient is the last good loss: the update ruins the
        # parameters, and a checkpoint of them would be worthless. With a loss scale such an update
        # is skipped, unless the scale has nowhere left to go.
        skipped = values.get("skipped") == 1.0
        if skipped and values["loss_scale"] > SMALLEST:
            return values
        for name, what in (("loss", "the loss"), ("grad_norm", "the gradient's norm")):
            if not math.isfinite(values[name]):
                self._write()
                at = f" at the smallest loss scale, {SMALLEST:g}," if skipped else ""
                raise NonFiniteLoss(self.diagnosis(step, f"{what} is {values[name]}{at}"))
        self._last_good = step
        return values

    def _write(self) -> None:
        if not self._fetched:
            return
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        waited = sum(seconds for _, _, seconds in self._fetched)
        self.training_seconds += elapsed
        self.waiting_seconds += waited
        rate = len(self._fetched) * self._config.batch_size / elapsed
        for step, values, _ in self._fetched:
            due = step % self._config.log_every == 0 or step in (1, self._config.steps)
            row = values | {
                "images_per_second": rate,
                "data_wait_share": min(waited / elapsed, 1.0),
            }
            if due or not math.isfinite(row["loss"]):
                self._writer.write(step, "train", row)
        names = ("loss", "nll", "kl", "loss_scale", "skipped_steps")
        text = {name: f"{row[name]:.4g}" for name in names if name in row}
        self._bar.set_postfix(images_per_s=f"{rate:.0f}", **text, refresh=False)
        self._bar.update(len(self._fetched))
        if self._say is not None and now - self._said > _SAY_SECONDS:
            self._say(str(self._bar))
            self._said = now
        self._fetched.clear()

    def diagnosis(self, step: int, finding: str) -> str:
        """The message of a run that cannot go on."""
        return (
            f"{finding} at step {step}; the last good step is {self._last_good}, "
            f"{self._last_checkpoint()}. "
            "Try a smaller step size, a slower temperature schedule, or --debug"
        )

    def restart_clock(self) -> None:
        """Leaves the time since the last flush (evaluation, checkpoint) out of the rate."""
        self._clock = time.perf_counter()
        self._bar.unpause()

    def close(self) -> None:
        """Ends the progress bar."""
        self._bar.close()
