"""Checkpoints of a run, by Orbax: written in the background and atomically, verified when read.

The one module that knows Orbax's API, whose next major version moves it. A checkpoint holds the
state, the data iterator's place, a checksum of every array and, where the step was evaluated, the
measure that says which one is best. It belongs to no layout: what one device wrote eight can read.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array, lax
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from logit_laplace_jax.training.state import TrainState

_MEASURE = "bpd_hard"
"""What makes a checkpoint the best: held-out bits/dim in all, the fewer the better."""

_DATA = "data"
_OWN = "checksum"
"""Under which a checkpoint's JSON holds its own checksum."""

_JSON_FILE = "metadata"
"""Where Orbax puts a checkpoint's JSON."""

DAMAGED = ".damaged"
"""What the name of a folder is given when its checkpoint proves unreadable."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read or written; one clear line."""


def _arrays(state: TrainState) -> dict[str, Any]:
    arrays = {
        "step": state.step,
        "params": state.params,
        "ema_params": state.ema_params,
        "opt_state": state.opt_state,
    }
    if state.loss_scale is not None:
        arrays["loss_scale"] = state.loss_scale._asdict()
    return arrays


def _state(like: TrainState, arrays: dict[str, Any]) -> TrainState:
    if like.loss_scale is not None:
        arrays = {**arrays, "loss_scale": type(like.loss_scale)(**arrays["loss_scale"])}
    return like.replace(**arrays)


def checksum(array: Array | np.ndarray) -> int:
    """A number that changes when any bit of an array does, whatever devices it lies on.

    The sum of its 32-bit words, each mixed with its place, modulo 2^32. Integer sums have one value
    in any order, so devices and host agree. For each place the mixing is one to one, so any change
    of one word shows; being far from linear it also tells words that changed places.

    Args:
      array: any shape, of a 32-bit dtype.

    >>> checksum(np.array([1, 2], np.int32)) == checksum(jnp.array([1, 2], jnp.int32))
    True
    """
    if isinstance(array, np.ndarray):
        words = array.reshape(-1).view(np.uint32)
        places = np.arange(words.size, dtype=np.uint32)
        return int(_mixed(words, places).sum(dtype=np.uint32))
    return int(_device_checksum(array).addressable_data(0))


def _mixed(words: Any, places: Any) -> Any:
    # The finaliser of MurmurHash3, from its second line on the same.
    words = words ^ (places * np.uint32(0x9E3779B9))
    words = (words ^ (words >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return words ^ (words >> np.uint32(16))


@jax.jit
def _device_checksum(array: Array) -> Array:
    words = lax.bitcast_convert_type(array, jnp.uint32)
    place = jnp.zeros(array.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(array.ndim)):
        along = lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        place = place + along * jnp.uint32(stride % 2**32)
        stride *= array.shape[axis]
    return jnp.sum(_mixed(words, place), dtype=jnp.uint32)


def _on_host(leaf: Array) -> Array | np.ndarray:
    """A copy of an array that is in the host's memory anyway; others as they are."""
    if jax.default_backend() == "cpu" and leaf.sharding.is_fully_replicated:
        return np.array(leaf.addressable_data(0))
    return leaf


def _checksums(arrays: dict[str, Any]) -> dict[str, int]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): checksum(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


def _own_checksum(data: dict[str, Any]) -> int:
    """The checksum of a checkpoint's JSON but for the checksum itself."""
    rest = {name: value for name, value in data.items() if name != _OWN}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


class _Raised(logging.Filter):
    """Drops what asyncio logs of those of Orbax's writes that failed after the first."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "never retrieved" not in text or not ("orbax" in text or "tensorstore" in text)


_RAISED = _Raised()


def _silence_threads() -> None:
    """Keeps Orbax and its threads from printing what reaches the caller as one exception.

    It narrates every save and logs tracebacks of what it raises. When one array cannot be read or
    written, it closes the event loop that the others still report to: they fail too, unheard.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").addFilter(_RAISED)  # does nothing the second time
    if not isinstance(sys.unraisablehook, _IgnoresClosedLoops):
        sys.unraisablehook = _IgnoresClosedLoops(sys.unraisablehook)


@dataclasses.dataclass(frozen=True)
class _IgnoresClosedLoops:
    """A hook for exceptions that nobody can catch: passes on all but those of a closed loop."""

    before: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self.before(unraisable)


class Checkpoints:
    """The ``checkpoints/`` folder of a run. Use as a context manager: leaving waits for writes.

    With several processes all of them make the same calls; each writes what it holds.

    Args:
      folder: where they stand.
      keep: how many of the latest checkpoints stay, beside the best; None: all.
      create: make the folder if it does not exist.

    Raises:
      CheckpointError: the folder does not exist and is not to be made.
    """

    def __init__(self, folder: Path, keep: int | None = None, create: bool = True):
        if not create and not folder.is_dir():
            raise CheckpointError(f"no complete checkpoint yet: {folder} does not exist")
        _silence_threads()
        self.folder = folder.resolve()
        self._measured: dict[int, float] = {}
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(keep, self._measured) if keep else None,
                create=create,
                cleanup_tmp_directories=create,
                read_only=not create,
            ),
        )

        self._read_measures()

    def _read_measures(self) -> None:
        self._measured.clear()
        for step in self.steps:
            # Not by Orbax: of a damaged checkpoint there may be no telling, and that is no error.
            with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
                text = (self.folder / str(step) / _DATA / _JSON_FILE).read_text(encoding="utf-8")
                data = json.loads(text)
                measure = data.get(_MEASURE)
                if measure is not None and data.get(_OWN) == _own_checksum(data):
                    self._measured[step] = float(measure)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._guarded(self._manager.close)
            return
        with contextlib.suppress(Exception):  # what is on its way out already says more
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the last complete checkpoint; None without one."""
        step = self._manager.latest_step()
        return None if step is None else int(step)

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, in order."""
        return sorted(int(step) for step in self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """Step of the evaluated checkpoint with the fewest held-out bits/dim; None without one."""
        return _best(self._measured)

    def is_better(self, measures: dict[str, float]) -> bool:
        """Whether an evaluation beats those of all checkpoints that are kept."""
        return measures[_MEASURE] < min(self._measured.values(), default=math.inf)

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
        arrays = _arrays(state)
        step = int(state.step.addressable_data(0))
        if step in self.steps:
            return
        if jax.default_backend() == "cpu":
            # Elsewhere Orbax copies to the host before it returns; here the host's memory is the
            # device's, and the next step would write into what is being saved.
            arrays = jax.tree.map(lambda a: jnp.copy(a) if a is (b := _on_host(a)) else b, arrays)
        data = {
            "iterator": iterator_state,
            "checksums": _checksums(arrays),
            _MEASURE: None if measures is None else float(measures[_MEASURE]),
        }
        data[_OWN] = _own_checksum(data)
        if measures is not None:
            self._measured[step] = measures[_MEASURE]
        self._guarded(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), **{_DATA: ocp.args.JsonSave(data)}
                ),
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
            raise CheckpointError(self._failure(error)) from error

    def _failure(self, error: BaseException) -> str:
        complete = [int(p.name) for p in self.folder.iterdir() if p.name.isdecimal()]
        kept = f"the last complete one is of step {max(complete)}" if complete else "there is none"
        texts = []
        link: BaseException | None = error
        full = False
        while link is not None:
            texts.append(str(link))
            full |= isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)
            link = link.__cause__ or link.__context__
        full |= any(os.strerror(errno.ENOSPC) in text for text in texts)
        if full:
            return (
                f"the disk is full: a checkpoint could not be written to {self.folder} ({kept}); "
                "free some space, and the same command goes on from there"
            )
        reason = next((t.strip().splitlines()[0] for t in texts if t.strip()), repr(error))
        return f"a checkpoint could not be written to {self.folder} ({kept}): {reason[:300]}"

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
                    state=ocp.args.StandardRestore(abstract), **{_DATA: ocp.args.JsonRestore()}
                ),
            )
            arrays, data = restored["state"], restored[_DATA]
            if data.get(_OWN) != _own_checksum(data):
                raise ValueError("the checksum of its JSON is wrong")
            found = _checksums(jax.tree.map(_on_host, arrays))
            wrong = [name for name, value in data["checksums"].items() if found[name] != value]
            if wrong:
                raise ValueError(f"the checksum of {wrong[0]} is wrong")
        except Exception as error:  # Orbax raises many types for a damaged folder
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            before = [other for other in self.steps if other < step]
            advice = (
                "delete its folder to go on from the one before"
                if before
                else "there is none before it: start again in another --run-dir"
            )
            raise CheckpointError(
                f"checkpoint {step} in {self.folder} cannot be read ({reason[:200]}); {advice}"
            ) from error
        return _state(like, arrays), data["iterator"]

    def restore_latest(
        self, like: TrainState, shardings: Any, say: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]]:
        """Reads the latest checkpoint that can be read.

        Damaged ones are named, and their folders renamed out of the way.

        Raises:
          CheckpointError: none can be read.
        """
        while True:
            step = self.latest
            try:
                return self.restore(like, step, shardings)
            except CheckpointError as error:
                if len(self.steps) < 2:
                    raise
                reason = str(error).partition("(")[2].rpartition(");")[0]
                say(f"damaged   checkpoint {step} ({reason}); going on from the one before")
            self._set_aside(step)

    def _set_aside(self, step: int | None) -> None:
        if jax.process_index() == 0:
            target = self.folder / f"{step}{DAMAGED}"
            number = 1
            while target.exists():
                number += 1
                target = self.folder / f"{step}{DAMAGED}{number}"
            (self.folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"damaged {step}")
        self._manager.reload()
        self._read_measures()


def _best(measured: dict[int, float]) -> int | None:
    # Of equals the earliest: it is there already.
    return min(measured, key=lambda step: (measured[step], step), default=None)


@dataclasses.dataclass
class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Which checkpoints stay: the last few, and the best.

    Attributes:
      count: how many of the last.
      measured: the measure of evaluated ones by step, shared with :class:`Checkpoints`.
    """

    count: int
    measured: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One flag for each checkpoint, in order."""
        steps = [int(info.step) for info in checkpoints]
        kept = {*sorted(steps)[-self.count :], _best(self.measured)}
        for step in set(self.measured) - kept:
            del self.measured[step]
        return [step in kept for step in steps]
