"""Start-up: imports in fresh interpreters, and a preset's way to its first step."""

import argparse
import statistics
import subprocess
import sys
import tempfile
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
    """Presets in turn, each start a new process: without compiled programs, and with those kept."""
    rows: dict[str, Row] = {}
    facts: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        variants = {
            "": {"JAX_ENABLE_COMPILATION_CACHE": "false"},
            ", programs kept": {"JAX_ENABLE_COMPILATION_CACHE": "true", **kept},
        }
        for turn in range(starts + 1):  # the first fills the folder and the system's file cache
            for preset in presets:
                for suffix, changes in variants.items():
                    name = preset + suffix
                    row = rows.setdefault(name, Row(name))
                    if row.status == FAILED:
                        continue
                    started = time.perf_counter()
                    try:
                        with Worker("preset_step", {"preset": preset}, changes) as worker:
                            seconds = time.perf_counter() - started
                    except WorkerError as error:
                        row.status, row.note, row.seconds = FAILED, str(error), []
                        continue
                    if turn:
                        row.seconds.append(seconds)
                        facts.setdefault(name, []).append(worker.facts)
    for name, row in rows.items():
        if row.status != FAILED:
            for stage in _STAGES:
                times = [told[f"{stage}_seconds"] for told in facts[name]]
                row.extra[f"{stage} s"] = statistics.median(times)
    return Section(
        "first_step",
        "From nothing to the end of a preset's first step, in a fresh process",
        None,
        list(rows.values()),
        [
            "compile: tracing and XLA; state: fresh parameters, compiled too; step: the first one. "
            "Reading images is not in it. Programs kept: the scripts keep compiled programs in the "
            "user's cache folder, and find them at every start but the first.",
        ],
    )
