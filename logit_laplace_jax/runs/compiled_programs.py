"""Compiled programs are kept from run to run, in the user's cache folder, by JAX itself."""

import hashlib
import os
import platform
from pathlib import Path

import jax

_LEAST_SECONDS = 0.1
"""What compiles faster is not kept: reading it back would take as long."""


def keep() -> None:
    """Switches JAX's persistent compilation cache on; before the first program is compiled.

    The folder: ``$LOGIT_LAPLACE_JAX_CACHE`` (empty: nothing is kept), else ``logit_laplace_jax`` in
    ``$XDG_CACHE_HOME`` or ``~/.cache``. What the user told JAX itself goes before
    (``JAX_COMPILATION_CACHE_DIR``, ``JAX_ENABLE_COMPILATION_CACHE=false``).
    """
    chosen = os.environ.get("LOGIT_LAPLACE_JAX_CACHE")
    if chosen == "" or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(chosen or Path(user) / "logit_laplace_jax") / "programs" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: then nothing is kept
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def _processor() -> str:
    """This kind of processor: programs for a CPU are its machine code, and homes are shared."""
    try:
        told = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        told = [platform.processor()]
    kind = [line for line in told if line.startswith(("model name", "flags", "Features", "CPU"))]
    digest = hashlib.sha256("\n".join(sorted(kind)).encode()).hexdigest()[:16]
    return f"{platform.machine()}_{digest}"
