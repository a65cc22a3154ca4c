"""Measurements of benchmark.py: one short module a subcommand, with ``run(options)``.

``run`` returns a :class:`_bench.report.Report`. Modules load their libraries when they are used, so
that ``--help`` starts at once and a machine without Grain, TFDS or torch runs what it can.
"""

import importlib
from types import ModuleType

SUITES = {
    "loss": "the loss and its gradients beside autodiff, TFP, distrax, NumPyro and torch",
    "step": "the dVAE's training step beside OpenAI's torch modules: images a second, memory",
    "data": "crops a second of the training pipeline, beside what a training step consumes",
    "import": "start-up: importing the library, compiling and running a preset's first step",
    "scaling": "what pmap and mesh add to a step, and a roofline on paper for many accelerators",
}

_MODULES = {"import": "imports"}  # "import" is a keyword


def load(suite: str) -> ModuleType:
    """The subcommand's module."""
    return importlib.import_module(f"_bench.{_MODULES.get(suite, suite)}")
