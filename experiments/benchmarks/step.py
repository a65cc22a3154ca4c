"""The training step beside OpenAI's modules in torch: the same model, loss, noise and optimiser.

Every contestant has a process of its own, which starts from the same parameters and images. Its
first step, on the same Gumbel noise, has to give our loss, KL and gradient norm; later steps draw
noise of their own, as in training.
"""

import contextlib
import dataclasses
import os
import tempfile
from typing import Any

from _xla_flags import EIGEN_CONVOLUTIONS

from benchmarks import StepOptions, rounds
from benchmarks.report import DIFFERS, FAILED, OURS, SKIPPED, Report, Row, Section
from benchmarks.worker import Worker, WorkerError

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of loss, KL and gradient norm at the first step, relative to |ours| + 0.01. Two libraries sum in
different orders: in float32 they agreed to 1e-5 on a CPU; 16-bit convolutions round by 4e-3."""


def run(options: StepOptions) -> Report:
    """A section for every size."""
    machine: dict[str, Any] = {}
    sections = [_section(side, batch, options, machine) for side, batch in options.pairs()]
    return Report("step", dataclasses.asdict(options), machine, sections)


def contestants(options: StepOptions) -> dict[str, tuple[str, dict[str, Any], dict[str, str]]]:
    """By name: the worker's module, further arguments, changes of the environment."""
    found: dict[str, Any] = {OURS: ("step_jax", {}, {})}
    flags = os.environ.get("XLA_FLAGS", "")
    if EIGEN_CONVOLUTIONS in flags:
        plain = flags.replace(EIGEN_CONVOLUTIONS, "").strip()
        found["ours with XLA's own flags"] = ("step_jax", {}, {"XLA_FLAGS": plain})
    found["torch"] = ("step_torch", {"compiled": False}, {})
    if not options.no_compile:
        found["torch.compile"] = ("step_torch", {"compiled": True}, {})
    return found


def _section(side: int, batch: int, options: StepOptions, machine: dict[str, Any]) -> Section:
    rows: dict[str, Row] = {}
    workers: dict[str, Worker] = {}
    with contextlib.ExitStack() as stack:
        common = {name: getattr(options, name) for name in ("n_hid", "blocks", "vocab", "seed")}
        common |= {"side": side, "batch": batch, "precision": options.precision}
        common["folder"] = stack.enter_context(tempfile.TemporaryDirectory())
        for name, (module, extra, changes) in contestants(options).items():
            row = rows[name] = Row(name)
            try:
                workers[name] = stack.enter_context(Worker(module, {**common, **extra}, changes))
            except WorkerError as error:
                if name == OURS:
                    raise ValueError(f"our own step failed: {error}") from None
                missing = str(error).startswith("Missing: ")
                row.status = SKIPPED if missing else FAILED
                row.note = str(error).removeprefix("Missing: ")
        ours = workers[OURS].facts
        for name, worker in workers.items():
            if fault := disagreement(ours, worker.facts, TOLERANCE[options.precision]):
                rows[name].status, rows[name].note = DIFFERS, fault
        samples = rounds.run(
            {name: worker.call for name, worker in workers.items()},
            options.rounds or (3 if options.quick else 15),
            options.least_sample,
            options.seed,
        )
        for name, worker in workers.items():
            row = rows[name]
            row.seconds = samples[name]
            row.extra["images/s"] = batch / rounds.summarise(row.seconds).median
            memory = worker.finish()["step_bytes"]
            if memory is not None:
                row.extra["memory, MB"] = memory / 1e6
    machine["device"] = ours["device"]
    return Section(
        f"step_{side}_{batch}",
        f"Training step, {side}×{side}, batch {batch}, n_hid {options.n_hid}, {options.blocks} "
        f"blocks per group, {options.vocab} codes, {options.precision}",
        list(rows.values()),
    )


def disagreement(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> str:
    """What differs at the first step, or nothing.

    >>> first = {"platform": "cpu", "loss": 1.0, "kl": 2.0, "grad_norm": 3.0}
    >>> disagreement(first, first | {"loss": 1.5}, 0.1)
    'loss is 1.5, not 1'
    """
    if theirs["platform"] != ours["platform"]:
        return f"it ran on {theirs['platform']}, ours on {ours['platform']}"
    for name in ("loss", "kl", "grad_norm"):
        a, b = ours[name], theirs[name]
        if not abs(a - b) <= tolerance * (abs(a) + 0.01):  # so that NaN is caught
            return f"{name} is {b:.5g}, not {a:.5g}"
    return ""
