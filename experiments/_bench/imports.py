"""Start-up: imports in fresh interpreters, and a preset's way to its first step."""

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any

from _bench import peers, rounds
from _bench.report import FAILED, SKIPPED, Report, Row, Section
from _bench.worker import Worker, WorkerError, environment

REFERENCE = "jax"
_MODULES = {
    "ours": "logit_laplace_jax",
    REFERENCE: "jax",
    "ours, models": "logit_laplace_jax.models",
    "ours, training step": "logit_laplace_jax.training.step",
    "NumPyro": "numpyro.distributions",
    "TFP": "tensorflow_probability.substrates.jax",
    "distrax": "distrax",
    "torch": "torch",
}

_TIMED = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
_STAGES = ("import", "compile", "state", "step")


def run(options: argparse.Namespace) -> Report:
    """Imports, then first steps."""
    presets = options.presets
    if presets is None:
        presets = ["smoke"] if options.quick else ["smoke", "photos"]
    starts = options.starts or (1 if options.quick else 5)
    settings = {name: getattr(options, name) for name in ("quick", "rounds", "seed")}
    settings |= {"presets": presets, "starts": starts}
    sections = [_imports(options)]
    if presets:
        sections.append(_first_steps(presets, starts))
    return Report("import", settings, {}, sections)


def import_seconds(module: str) -> float:
    """Seconds that the import takes inside a fresh interpreter.

    Raises:
      Missing: the module cannot be imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", _TIMED.format(module)],
        env=environment({"XLA_FLAGS": None}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:]
        raise peers.Missing(last[0] if last else f"status {done.returncode}")
    return float(done.stdout.split()[-1])


def _imports(options: argparse.Namespace) -> Section:
    rows: dict[str, Row] = {}
    contestants = []
    for name, module in _MODULES.items():
        row = rows[name] = Row(name, note=f"import {module}")
        try:
            import_seconds(module)  # also writes its byte code, and warms the system's file cache
        except peers.Missing as error:
            if name in ("ours", REFERENCE):
                raise ValueError(f"import {module}: {error}") from None
            row.status, row.note = SKIPPED, str(error)
            continue

        def call(count: int, module: str = module) -> float:
            return sum(import_seconds(module) for _ in range(count))

        contestants.append(rounds.Contestant(name, call, repeat=False, lead=False))
    samples = rounds.run(contestants, options.rounds, options.least_sample, options.seed)
    for name, sample in samples.items():
        rows[name].seconds = sample.seconds
    return Section(
        "imports",
        "Import in a fresh interpreter",
        REFERENCE,
        list(rows.values()),
        ["The start of Python itself is left out; byte code and files are in the system's cache."],
    )


def _first_steps(presets: list[str], starts: int) -> Section:
    """Presets in turn, each start a new process without a compilation cache."""
    found: dict[str, list[dict[str, Any]]] = {preset: [] for preset in presets}
    whole: dict[str, list[float]] = {preset: [] for preset in presets}
    failed: dict[str, str] = {}
    for _ in range(starts):
        for preset in presets:
            if preset in failed:
                continue
            started = time.perf_counter()
            try:
                with Worker(
                    "preset_step", {"preset": preset}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}
                ) as worker:
                    whole[preset].append(time.perf_counter() - started)
                    found[preset].append(worker.facts)
            except WorkerError as error:
                failed[preset] = str(error)
    rows = []
    for preset in presets:
        row = Row(preset, seconds=whole[preset])
        if preset in failed:
            row.status, row.note, row.seconds = FAILED, failed[preset], []
        else:
            for stage in _STAGES:
                seconds = [facts[f"{stage}_seconds"] for facts in found[preset]]
                row.extra[f"{stage} s"] = statistics.median(seconds)
        rows.append(row)
    return Section(
        "first_step",
        "From nothing to the end of a preset's first step, in a fresh process",
        None,
        rows,
        [
            "compile: tracing and XLA; state: fresh parameters, compiled too; step: the first one. "
            "Reading images is not in it.",
        ],
    )
