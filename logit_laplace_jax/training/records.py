"""What a run writes as it goes: metrics.jsonl and TensorBoard events."""

import json
import math
import os
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
        self._board: Any = None
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        # purge_step hides the events that a killed run wrote after its last checkpoint.
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

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
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3], to the event files."""
        if self._board is not None:
            self._board.add_image(name, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Brings everything to the files; a checkpoint follows, and must not be ahead of them."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()
        if self._board is not None:
            self._board.close()


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
