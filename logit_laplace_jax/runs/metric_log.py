"""The metrics of every update: taken from the devices a little late, checked, written, shown."""

import time

import jax
import numpy as np

from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.runs.progress import Progress
from logit_laplace_jax.runs.records import Records, Silence
from logit_laplace_jax.training.config import TrainConfig
from logit_laplace_jax.training.loss_scaling import SMALLEST

_IN_FLIGHT = 2
"""Updates that may wait on the devices. More would not help, and results would come late."""

_FLUSH_SECONDS = 1.0

Metrics = dict[str, float]


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the message names the last good step and checkpoint."""


class MetricLog:
    """Takes every update's metrics from the devices, a fixed number of updates late.

    A fixed number, so that all processes of a run learn of everything after the same update.

    Args:
      config: the run's.
      records: where the metrics go.
      progress: where they are shown.
      checkpoints: to name the last one where the loss is not finite.
      first: updates done before.
    """

    def __init__(
        self,
        config: TrainConfig,
        records: Records | Silence,
        progress: Progress,
        checkpoints: Checkpoints,
        first: int,
    ):
        self._config = config
        self._records = records
        self._progress = progress
        self._checkpoints = checkpoints
        self._pending: list[tuple[int, dict[str, jax.Array], float]] = []
        self._fetched: list[tuple[int, Metrics, float]] = []
        self._last_good = first
        self._clock = time.perf_counter()
        self._rate = 0.0
        self.training_seconds = 0.0
        self.waiting_seconds = 0.0
        self.latest: Metrics = {}

    def add(self, step: int, metrics: dict[str, jax.Array], waited: float) -> Metrics | None:
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

    def _take(self) -> Metrics:
        step, metrics, waited = self._pending.pop(0)
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
            if not np.isfinite(values[name]):
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
        self.training_seconds += elapsed
        rate = len(self._fetched) * self._config.batch_size / elapsed
        # The first updates carry the compilation; later rates are smoothed for the time left.
        self._rate = 0.7 * self._rate + 0.3 * rate if self._rate else rate
        waited = sum(seconds for _, _, seconds in self._fetched)
        self.waiting_seconds += waited
        for step, values, _ in self._fetched:
            row = values | {
                "images_per_second": rate,
                "data_wait_share": min(waited / elapsed, 1.0),
            }
            if (
                step % self._config.log_every == 0
                or step in (1, self._config.steps)
                or not np.isfinite(row["loss"])
            ):
                self._records.write(step, "train", row)
            self.latest = row
        self._fetched.clear()
        left = (self._config.steps - step) * self._config.batch_size / self._rate
        self._progress.show(step, rate, left, self.latest)

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
        """Ends the live line of the terminal."""
        self._progress.clear()
