"""Jobs: training a run from start to end, its directory and checkpoints, whole evaluations.

Names are loaded on first use: they bring Orbax, Grain and more.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logit_laplace_jax.runs.directory import load
    from logit_laplace_jax.runs.evaluation import evaluate_run
    from logit_laplace_jax.runs.launch import Launch
    from logit_laplace_jax.runs.loop import Run, train

__all__ = ["Launch", "Run", "evaluate_run", "load", "train"]

_HOME = {
    "Launch": "launch",
    "Run": "loop",
    "evaluate_run": "evaluation",
    "load": "directory",
    "train": "loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
