"""The training step beside OpenAI's modules in torch: the same model, loss, noise and optimiser.

Every contestant has a process of its own, which starts from the same parameters and images. Its
first step, on the same Gumbel noise, has to give our loss, KL and gradient norm; later steps draw
noise of their own, as in training.
"""

import argparse
import contextlib
import os
import tempfile
from typing import Any

from _bench import rounds, stats
from _bench.report import DIFFERS, FAILED, OK, SKIPPED, Report, Row, Section
from _bench.worker import Worker, WorkerError
from _xla_flags import EIGEN_CONVOLUTIONS

OURS, PRODUCT = "ours", "matrix product"
Contestant = tuple[str, dict[str, Any], dict[str, str]]
"""Worker module, further arguments, changes of the environment."""
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of loss, KL and gradient norm at the first step, relative to |ours| + 0.01. Two libraries sum in
different orders: in float32 they agreed to 1e-5 on a CPU; 16-bit convolutions round by 4e-3."""

# Dense 16-bit peaks, by the device's name as JAX or torch tells it, in TFLOP/s (data sheets).
_PEAKS = (
    *(("H200", 989.0), ("H100 PCIe", 756.0), ("H100", 989.0), ("A100", 312.0), ("V100", 125.0)),
    *(("L40S", 362.0), ("L4", 121.0), ("A10G", 70.0), ("T4", 65.0)),
    *(("TPU v4", 275.0), ("TPU v5 lite", 197.0), ("TPU v5p", 459.0), ("TPU v6 lite", 918.0)),
)


def peak_flops(device: str, precision: str) -> float | None:
    """Peak FLOP/s of a known accelerator in that precision; None if not known.

    >>> peak_flops("NVIDIA A100-SXM4-80GB", "bfloat16")
    312000000000000.0
    """
    if precision != "bfloat16":
        return None
    return next((peak * 1e12 for name, peak in _PEAKS if name in device), None)


def run(options: argparse.Namespace) -> Report:
    """A section for every size."""
    if options.n_hid < 64 or options.n_hid % 4 or options.vocab < 512:
        raise ValueError(
            "OpenAI's modules take --n-hid from 64 on, in multiples of 4, and --vocab from 512 on"
        )
    if any(side % 8 for side, _ in options.sizes):
        raise ValueError("the model halves images three times: --sizes take multiples of 8 pixels")
    names = ("quick", "rounds", "seed", "sizes", "n_hid", "blocks", "vocab", "precision")
    settings = {name: getattr(options, name) for name in names}
    machine: dict[str, Any] = {}
    sections = [_section(side, batch, options, machine) for side, batch in options.sizes]
    return Report("step", settings, machine, sections)


def contestants(options: argparse.Namespace) -> dict[str, Contestant]:
    """Those that run, by name."""
    found: dict[str, Contestant] = {OURS: ("step_jax", {}, {})}
    flags = os.environ.get("XLA_FLAGS", "")
    if EIGEN_CONVOLUTIONS in flags:
        plain = flags.replace(EIGEN_CONVOLUTIONS, "").strip()
        found["ours, XLA's own flags"] = ("step_jax", {}, {"XLA_FLAGS": plain})
    for compiled in (False, True):
        if compiled and options.no_compile:
            continue
        for last in (False, True) if options.channels_last else (False,):
            name = f"torch {'compile' if compiled else 'eager'}{', NHWC' if last else ''}"
            found[name] = ("step_torch", {"compiled": compiled, "channels_last": last}, {})
    found[PRODUCT] = ("matrix_product", {"precision": options.precision}, {})
    return found


def _section(
    side: int, batch: int, options: argparse.Namespace, machine: dict[str, Any]
) -> Section:
    rows: dict[str, Row] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        common = {
            "folder": folder,
            "side": side,
            "batch": batch,
            "n_hid": options.n_hid,
            "blocks": options.blocks,
            "vocab": options.vocab,
            "precision": options.precision,
            "seed": options.seed,
        }
        with Worker("step_inputs", common, {"JAX_PLATFORMS": "cpu"}):
            pass
        workers: dict[str, Worker] = {}
        for name, (module, extra, changes) in contestants(options).items():
            row = rows[name] = Row(name)
            arguments = extra if module == "matrix_product" else {**common, **extra}
            try:
                workers[name] = stack.enter_context(Worker(module, arguments, changes))
            except WorkerError as error:
                if name == OURS:
                    raise ValueError(f"our own step failed: {error}") from None
                missing = str(error).startswith("Missing: ")
                row.status = SKIPPED if missing else FAILED
                row.note = str(error).removeprefix("Missing: ")
        ours = workers[OURS].facts
        for name, worker in workers.items():
            fault = disagreement(ours, worker.facts, TOLERANCE[options.precision])
            if fault:
                rows[name].status, rows[name].note = DIFFERS, fault
        samples = rounds.run(
            [rounds.Contestant(name, worker.call) for name, worker in workers.items()],
            options.rounds,
            options.least_sample,
            options.seed,
        )
        last = {name: worker.finish() for name, worker in workers.items()}
    device = ours["device"]
    if ours["platform"] != "cpu":
        machine["accelerator"] = device
    peak = options.peak_tflops * 1e12 if options.peak_tflops else None
    peak = peak or peak_flops(device, options.precision)
    product = None
    if PRODUCT in workers:
        work = workers[PRODUCT].facts["flops"]
        product = [work / seconds for seconds in samples[PRODUCT].seconds]
    for name, worker in workers.items():
        row = rows[name]
        row.seconds = samples[name].seconds
        median = stats.summarise(row.seconds).median
        work = worker.facts["flops"] if name == PRODUCT else ours["flops"]
        if name != PRODUCT:
            row.extra["images/s"] = batch / median
        row.extra["GFLOP/s"] = work / median / 1e9
        if product:
            reached = stats.ratios([work / s for s in row.seconds], product)
            row.extra["of product"] = f"{stats.summarise(reached).median:.0%}"
        if peak:
            row.extra["of peak"] = f"{work / median / peak:.1%}"
        if name != PRODUCT:
            row.extra |= _memory(worker.facts, last[name])
            row.extra["ready after s"] = worker.facts["ready_seconds"]
    if rows.get(PRODUCT, Row("")).status == OK:
        rows[PRODUCT].note = workers[PRODUCT].facts["what"]
    return Section(
        f"step_{side}_{batch}",
        f"Training step, {side}×{side}, batch {batch}, n_hid {options.n_hid}, {options.blocks} "
        f"blocks a group, {options.vocab} codes, {options.precision}",
        OURS,
        list(rows.values()),
        [
            f"{ours['parameters']:,} parameters, {ours['flops'] / batch / 1e9:.2f} GFLOP an image "
            "as XLA counts the program as written, for all contestants.",
            "Memory: MB of the process (on a GPU: of the allocator) at its highest; imports: after "
            "them; ready: until the first step was done, with compiling; steps: while it trained. "
            "ready after: until the first step was done, without imports. Every contestant has a "
            "process of its own.",
        ],
    )


def _memory(facts: dict[str, Any], last: dict[str, Any]) -> dict[str, float | str]:
    columns: dict[str, float | str] = {
        "imports MB": facts["import_bytes"] / 1e6,
        "ready MB": facts["ready_bytes"] / 1e6,
    }
    if last["step_bytes"] is not None:
        columns["steps MB"] = last["step_bytes"] / 1e6
    return columns


def disagreement(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> str:
    """What differs at the first step, or nothing.

    >>> disagreement({"loss": 1.0}, {"loss": 1.5}, 0.1)
    'loss is 1.5, not 1'
    """
    if theirs.get("platform", ours.get("platform")) != ours.get("platform"):
        return f"it ran on {theirs['platform']}, ours on {ours['platform']}"
    for name in ("loss", "kl", "grad_norm"):
        if name not in theirs:
            continue
        a, b = ours[name], theirs[name]
        if not abs(a - b) <= tolerance * (abs(a) + 0.01):
            return f"{name} is {b:.5g}, not {a:.5g}"
    return ""
