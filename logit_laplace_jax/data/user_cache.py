"""The user's folder for what can always be made again.

Where: `$LOGIT_LAPLACE_JAX_CACHE` (empty: nowhere), else `$XDG_CACHE_HOME/logit_laplace_jax`, else
`~/.cache/logit_laplace_jax`.
"""

import os
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
