"""What was measured on: hardware, versions, load, and the peak memory of a process."""

import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import os
import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

_PACKAGES = (
    *("jax", "jaxlib", "numpy", "flax", "optax", "torch", "DALL-E"),
    *("numpyro", "distrax", "tfp-nightly", "tensorflow-probability"),
)


def cores() -> int:
    """Cores that this process may use (containers and ``taskset`` counted)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def load() -> float:
    """Mean number of runnable processes over the last minute."""
    return round(os.getloadavg()[0], 2)


def describe() -> dict[str, Any]:
    """The machine and the software, as plain JSON types. ``load_start`` is the load now."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return {
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        "cores": cores(),
        "versions": versions,
        "commit": done.stdout.strip() or "unknown",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_start": load(),
    }


def peak_bytes() -> int:
    """The most resident memory since the start of the process, or since :func:`restart_peak`.

    Linux's ``VmHWM``; elsewhere ``ru_maxrss``, which a process inherits from the one it was forked
    from, in kilobytes (macOS: bytes).
    """
    peak = _first_value(Path("/proc/self/status"), "VmHWM")
    if peak:
        return int(peak.split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def restart_peak() -> bool:
    """Starts counting the peak anew; False where the system cannot.

    What was freed (a compiler's working memory) is first given back to the system.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def _first_value(path: Path, name: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
