"""Checkpoints of a run, by Orbax: written in the background, complete or not at all.

The one module that knows Orbax's API. A checkpoint holds the state, the data iterator's place and,
where the step was evaluated, its measures. It belongs to no layout: what one device wrote eight can
read.
"""

import contextlib
import errno
import glob
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from logit_laplace_jax.runs.errors import CheckpointError
from logit_laplace_jax.training.state import TrainState

_DAMAGED = ".damaged"
"""What is added to the name of a checkpoint's folder when it proves unreadable."""


def _arrays(state: TrainState) -> dict[str, Any]:
    arrays = {
        "step": state.step,
        "params": state.params,
        "ema_params": state.ema_params,
        "opt_state": state.opt_state,
    }
    if state.loss_scale is not None:
        arrays["loss_scale"] = state.loss_scale._asdict()
    if state.frozen is not None:
        arrays["frozen"] = state.frozen
    return arrays


def _state(like: TrainState, arrays: dict[str, Any]) -> TrainState:
    if like.loss_scale is not None:
        arrays = {**arrays, "loss_scale": type(like.loss_scale)(**arrays["loss_scale"])}
    return like.replace(**arrays)


class Checkpoints:
    """The ``checkpoints/`` folder of a run. Use as a context manager: leaving waits for writes.

    With several processes all of them make the same calls; each writes what it holds.

    Args:
      folder: where they stand.
      keep: how many of the latest checkpoints stay, beside the best; None: all.
      create: make the folder if it does not exist.
      measure: name of the measure that makes a checkpoint the best, the less the better.

    Raises:
      CheckpointError: the folder does not exist and is not to be made.
    """

    def __init__(
        self, folder: Path, keep: int | None = None, create: bool = True, measure: str = "bpd_hard"
    ):
        if not create and not folder.is_dir():
            raise CheckpointError(f"no complete checkpoint yet: {folder} does not exist")
        self.folder = folder.resolve()
        self._measure_name = measure
        self._damaged = self._without_measures(create)
        best = BestN(
            get_metric_fn=self._measure, reverse=True, n=1, keep_checkpoints_without_metrics=False
        )
        self._names = contextlib.ExitStack()
        self._manager = ocp.CheckpointManager(
            self._names.enter_context(_without_patterns(self.folder, create)),
            options=ocp.CheckpointManagerOptions(
                best_fn=self._measure,
                best_mode="min",
                preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
                create=create,
                cleanup_tmp_directories=create,
                read_only=not create,
            ),
        )

    def _without_measures(self, set_aside: bool) -> list[tuple[int, str]]:
        """Checkpoints whose measures are damaged, for which Orbax would refuse the whole folder."""
        steps = [int(path.name) for path in self.folder.glob("*") if path.name.isdecimal()]
        damaged = []
        for step in sorted(steps):
            path = self.folder / str(step) / "metrics" / "metrics"
            try:
                json.loads(path.read_text() if path.exists() else "{}")
            except ValueError as error:
                damaged.append((step, str(error)))
        if damaged and (not set_aside or len(damaged) == len(steps)):
            step, reason = damaged[-1]
            raise CheckpointError(f"checkpoint {step} in {self.folder} cannot be read ({reason})")
        for step, _ in damaged:
            self._set_aside(step)
        return damaged

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            aside = self.folder / f"{step}{_DAMAGED}"
            shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
            (self.folder / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged {step}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Of two errors the one that is on its way out already says more.
        with self._names, contextlib.suppress(*([Exception] if error else [])):
            self._guarded(self._manager.close)

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        return sorted(int(step) for step in self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """Step of the last complete checkpoint; None without one."""
        return max(self.steps, default=None)

    @property
    def best(self) -> int | None:
        """Step of the evaluated checkpoint with the fewest held-out bits; None without one."""
        best = self._manager.best_step()
        return None if best is None or self._manager.metrics(best) is None else int(best)

    def is_better(self, measures: dict[str, float]) -> bool:
        """Whether an evaluation beats those of all checkpoints that are kept."""
        best = self.best
        found = math.inf if best is None else self._measure(self._manager.metrics(best))
        return self._measure(measures) < found

    def _measure(self, metrics: Any) -> float:
        return float(metrics[self._measure_name])

    def save(
        self,
        state: TrainState,
        iterator_state: dict[str, Any],
        measures: dict[str, float] | None = None,
    ) -> None:
        """Writes a checkpoint in the background, unless that step has one already.

        Args:
          state: the state in its stored form (see ``devices``). It may be donated afterwards.
          iterator_state: the data iterator's state, plain JSON types.
          measures: the evaluation of this very step, if there was one.

        Raises:
          CheckpointError: it, or the one before it, could not be written.
        """
        step = int(state.step.addressable_data(0))
        if step in self.steps:
            return
        arrays = _arrays(state)
        if next(iter(state.step.devices())).platform == "cpu":
            # Elsewhere Orbax copies to the host before it returns; here the host's memory is the
            # device's, and the next step would write into what is being saved.
            arrays = jax.tree.map(jnp.copy, arrays)
        kept = None if measures is None else {self._measure_name: self._measure(measures)}
        self._guarded(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), data=ocp.args.JsonSave(iterator_state)
                ),
                metrics=kept,
            )
        )

    def check(self) -> None:
        """Raises a CheckpointError if a write in the background has failed."""
        self._guarded(self._manager.check_for_errors)

    def wait(self) -> None:
        """Blocks until what was saved is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        self._guarded(self._manager.wait_until_finished)

    def _guarded(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # tensorstore and Orbax raise many types
            reason = _reason(error)
            kept = f"the last complete one is of step {self.latest}" if self.steps else "none is"
            full = _full(reason)
            advice = "; free some space, and the same command goes on from there" if full else ""
            what = "the disk is full: " if full else ""
            raise CheckpointError(
                f"{what}a checkpoint could not be written to {self.folder} ({kept}): "
                f"{reason}{advice}"
            ) from error

    def restore(
        self, like: TrainState, step: int | None = None, shardings: Any = None
    ) -> tuple[TrainState, dict[str, Any]]:
        """Reads a checkpoint.

        Args:
          like: a state of the same configuration, for structure, shapes and dtypes.
          step: which; the latest by default.
          shardings: where each leaf of ``like`` goes; None: the first local device.

        Returns:
          The state in its stored form, and the data iterator's state.

        Raises:
          CheckpointError: there is none, it is damaged, or its shapes are of another model.
        """
        step = self.latest if step is None else step
        if step is None:
            raise CheckpointError(f"no complete checkpoint in {self.folder}")
        if step not in self.steps:
            known = ", ".join(map(str, self.steps)) or "none"
            raise CheckpointError(f"no checkpoint of step {step} in {self.folder} (there: {known})")
        where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: where, like) if shardings is None else shardings
        abstract = jax.tree.map(
            lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place),
            _arrays(like),
            _arrays(places),
        )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # Orbax raises many types for a damaged folder
            others = [other for other in self.steps if other < step]
            advice = (
                "delete its folder to go on from the one before"
                if others
                else "there is none before it: start again in another --run-dir"
            )
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} cannot be read ({_reason(error)}); {advice}"
            ) from error
        return _state(like, restored["state"]), restored["data"]

    def restore_latest(
        self, like: TrainState, shardings: Any, say: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Reads the latest checkpoint that can be read.

        Damaged ones are named, and their folders renamed out of the way.

        Raises:
          CheckpointError: none can be read.
        """
        for damaged, reason in self._damaged:
            say(f"damaged   checkpoint {damaged} ({reason}); going on from the one before")
        while True:
            try:
                return self.restore(like, None, shardings)
            except CheckpointError as error:
                if len(self.steps) < 2:
                    raise
                step = self.steps[-1]
                say(f"damaged   checkpoint {step} ({_reason(error.__cause__)}); going on from the "
                    "one before")  # fmt: skip
            self._set_aside(step)
            self._manager.reload()


@contextlib.contextmanager
def _without_patterns(folder: Path, create: bool) -> Iterator[Path]:
    """Another name for a folder whose own has a character of file patterns, such as ``run [1]``.

    Below such a name Orbax does not find the parts that it has just written, and what it then
    calls a checkpoint holds nothing: etils, its library of paths, escapes no patterns.
    """
    if glob.escape(str(folder)) == str(folder):
        yield folder
        return
    if create and jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "checkpoints"
        link.symlink_to(folder)
        yield link


def _full(text: str) -> bool:
    return any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT))


def _reason(error: BaseException | None) -> str:
    """The first line of an error, or the one that tells of a full disk among its causes."""
    lines: list[str] = []
    while error is not None:
        lines += str(error).strip().splitlines() or [repr(error)]
        error = error.__cause__ or error.__context__
    return next(filter(_full, lines), lines[0])[:200]
