"""The user's folder for what can always be made again.

Where: `$LOGIT_LAPLACE_JAX_CACHE` (empty: nowhere), else `$XDG_CACHE_HOME/logit_laplace_jax`, else
`~/.cache/logit_laplace_jax`.
"""

import hashlib
import os
import platform
from pathlib import Path


def folder() -> Path | None:
    """The folder, which need not exist yet, or None where nothing may be kept.

    Example:
        >>> place = folder()
        >>> place is None or place.is_absolute()
        True
    """
    chosen = os.environ.get("LOGIT_LAPLACE_JAX_CACHE")
    if chosen == "":
        return None
    user = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(user) if os.path.isabs(user) else Path.home() / ".cache"
        return Path(chosen or base / "logit_laplace_jax").expanduser().resolve()
    except (OSError, RuntimeError):  # No home, or a loop of links.
        return None


def processor() -> str:
    """Names this kind of processor: its architecture, and what it can do where that is told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    told = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))}
    key = hashlib.sha256("\n".join(sorted(told or lines[:1])).encode()).hexdigest()[:16]
    return f"{platform.machine()}_{key}"
