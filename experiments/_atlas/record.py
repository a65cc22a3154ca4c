"""The numbers behind a figure: arrays with named axes, and single numbers, as JSON."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Self

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """Numbers of one figure.

    Attributes:
      axes: one-dimensional arrays, by name.
      arrays: arrays by name, each with the names of its axes. NaN stands for "does not exist".
      numbers: what the text quotes, as nested dictionaries.
      notes: what the figure had to leave out, one sentence each.
    """

    axes: dict[str, np.ndarray]
    arrays: dict[str, tuple[tuple[str, ...], np.ndarray]]
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Every array has the shape that its axes say."""
        for name, (axes, values) in self.arrays.items():
            shape = tuple(len(self.axes[axis]) for axis in axes)
            if np.shape(values) != shape:
                raise ValueError(
                    f"{name} has shape {np.shape(values)}, its axes {axes} say {shape}"
                )

    def __getitem__(self, name: str) -> np.ndarray:
        """The axis or array of that name."""
        values = self.axes[name] if name in self.axes else self.arrays[name][1]
        return np.asarray(values)

    def write(self, path: Path, figure: str, settings: dict[str, Any]) -> None:
        """Writes JSON; the file appears complete or not at all. NaN becomes null."""
        content = {
            "figure": figure,
            "settings": settings,
            "notes": self.notes,
            "numbers": self.numbers,
            "axes": self.axes,
            "arrays": {
                name: {"axes": axes, "values": values}
                for name, (axes, values) in self.arrays.items()
            },
        }
        text = json.dumps(_plain(content), ensure_ascii=False, allow_nan=False)
        part = path.with_name(path.name + ".part")
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what :meth:`write` wrote, to the same bits."""
        content = json.loads(path.read_text(encoding="utf-8"))
        arrays = {
            name: (tuple(array["axes"]), np.array(array["values"], float))
            for name, array in content["arrays"].items()
        }
        axes = {
            name: np.array(values)
            if all(isinstance(v, str) for v in values)
            else np.array(values, float)
            for name, values in content["axes"].items()
        }
        return cls(axes, arrays, content["numbers"], tuple(content["notes"]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
