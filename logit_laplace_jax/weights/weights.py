"""What a file of weights gives: tensors whose names, shapes and dtypes are known before reading."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Dtypes that weights may have in a file; all of them become float32."""


class WeightsError(ValueError):
    """A file of weights that cannot be used; one clear line, naming the file."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file.

    Attributes:
      shape: its shape.
      dtype: numpy's name of its dtype, or "bfloat16".
      read: reads it, in that shape and dtype; may raise `WeightsError`.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """An open file of weights.

    Attributes:
      path: where it stands.
      tensors: what it holds, by name.
      header: this package's JSON text about the model, None in files of others.
      post_gains: the residual blocks' ``post_gain``, as far as a file of modules tells them.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    header: str | None = None
    post_gains: frozenset[float] = frozenset()


def shown(value: Any) -> str:
    """A value from a file for an error message: short, printable and on one line.

    Example:
      >>> shown("os.system"), shown("two\\nlines"), shown({})
      ("'os.system'", "'two\\\\nlines'", 'a dict')
    """
    # Only strings are printed: the text of a nested value can be exponentially long.
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    return ascii(value if len(value) <= 100 else value[:100] + "...")


def listed(names: list[str]) -> str:
    """Names for an error message, the first few of them.

    Example:
      >>> listed(["a", "b", "c", "d", "e"])
      "'a', 'b', 'c' and 2 more"
    """
    text = ", ".join(shown(name) for name in names[:3])
    return text if len(names) <= 3 else f"{text} and {len(names) - 3} more"
