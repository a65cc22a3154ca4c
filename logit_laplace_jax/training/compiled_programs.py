"""Compiled programs are kept from run to run, in the user's cache folder.

JAX keeps them by what they compute, so a changed option that leaves the arithmetic alone finds them
too. On a CPU they are machine code for one kind of processor: every kind has a folder of its own,
since a home directory may be shared by several.
"""

import hashlib
import platform
from pathlib import Path

import jax

from logit_laplace_jax.data import user_cache

_LEAST_SECONDS = 0.1
"""What compiles faster is not kept: reading it back would take as long."""


def keep() -> None:
    """Switches the persistent compilation cache on, unless JAX was told of a folder already.

    Before the first program is compiled. ``JAX_COMPILATION_CACHE_DIR`` is the user's own choice of
    a folder, and ``JAX_ENABLE_COMPILATION_CACHE=false`` switches it off.
    """
    home = user_cache.folder()
    if home is None or jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(home / "programs" / _processor()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def _processor() -> str:
    """Names this kind of processor: its architecture, and what it can do where that is told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}
    key = hashlib.sha256("\n".join(sorted(told or lines[:1])).encode()).hexdigest()[:16]
    return f"{platform.machine()}_{key}"
