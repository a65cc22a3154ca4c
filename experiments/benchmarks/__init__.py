"""Measurements of benchmark.py: one short module a subcommand, with ``run(options)``.

``run`` returns a :class:`_bench.report.Report`. Modules load their libraries when they are used, so
that ``--help`` starts at once and a machine without torch runs what it can.
"""

import importlib
from types import ModuleType

SUITES = {
    "loss": "the loss and its gradients beside autodiff, TFP, distrax, NumPyro and torch",
    "step": "the dVAE's training step beside OpenAI's torch modules: images a second, memory",
}


def load(suite: str) -> ModuleType:
    """The subcommand's module."""
    return importlib.import_module(f"_bench.{suite}")
