"""What a run writes as it goes: metrics.jsonl and TensorBoard events."""

import contextlib
import json
import math
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np


class Records:
    """Appends metrics to ``metrics.jsonl`` and, where tensorboardX is installed, to event files.

    On resuming at a step, lines of later steps are dropped first: they will be written again, and
    none stands twice.

    Args:
      folder: the run directory.
      resume_step: updates that the restored state has done; 0 for a new run.
    """

    def __init__(self, folder: Path, resume_step: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._keep_up_to(resume_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board: _Board | None = None
        with contextlib.suppress(ImportError):
            self._board = _Board(folder / "tensorboard", resume_step)

    def _keep_up_to(self, step: int) -> None:
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed run
            if row["step"] <= step:
                kept.append(line + "\n")
        part = self._path.with_name(self._path.name + ".part")
        part.write_text("".join(kept), encoding="utf-8")
        os.replace(part, self._path)

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Adds one line: ``step`` (updates done), ``split``, and the values in full precision.

        JSON has no NaN and no infinity: such a value is written as null.
        """
        row: dict[str, Any] = {"step": step, "split": split}
        for name, value in values.items():
            row[name] = value if math.isfinite(value) else None
        self._file.write(json.dumps(row) + "\n")
        if self._board is not None:
            self._board.scalars(step, {f"{split}/{name}": value for name, value in values.items()})

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3], to the event files."""
        if self._board is not None:
            self._board.image(step, name, picture)

    def flush(self) -> None:
        """Brings everything to the files; a checkpoint follows, and must not be ahead of them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes."""
        with contextlib.ExitStack() as stack:  # all of it, also where the disk is full
            stack.callback(self._file.close)
            if self._board is not None:
                stack.callback(self._board.close)
            self.flush()


class _Board:
    """A TensorBoard event file, in tensorboardX's format but written by the caller's own thread.

    tensorboardX's SummaryWriter writes from another one. A full disk ends that with a traceback,
    and the run would then wait for it for ever; and its flush leaves events behind in a queue.

    Args:
      folder: where event files stand; each start makes one.
      resume_step: updates done before. TensorBoard hides what a killed run wrote of later ones.

    Raises:
      ImportError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2, summary_pb2
        from tensorboardX.record_writer import RecordWriter

        self._events, self._summaries, self._picture = event_pb2, summary_pb2, summary.image
        folder.mkdir(parents=True, exist_ok=True)
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds}.{rest:09d}.{socket.gethostname()}"
        self._file: Any = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")
        log = event_pb2.SessionLog
        self._write(step=resume_step + 1, session_log=log(status=log.START))

    def _write(self, **fields: Any) -> None:
        event = self._events.Event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Adds numbers by name."""
        value = self._summaries.Summary.Value
        rows = [value(tag=name, simple_value=number) for name, number in values.items()]
        self._write(step=step, summary=self._summaries.Summary(value=rows))

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3]."""
        self._write(step=step, summary=self._picture(name, picture, dataformats="HWC"))

    def flush(self) -> None:
        """Brings everything to the file."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Silence:
    """The records of a process that writes none: of a run's processes only the first one does."""

    def write(self, step: int, split: str, values: dict[str, float]) -> None:
        """Drops a line."""

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Drops a picture."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
