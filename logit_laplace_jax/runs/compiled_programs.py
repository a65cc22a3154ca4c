"""Compiled programs are kept from run to run, in the user's cache folder.

JAX keeps them by what they compute, so a changed option that leaves the arithmetic alone finds them
too. On a CPU they are machine code for one kind of processor: every kind has a folder of its own,
since a home directory may be shared by several.
"""

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from logit_laplace_jax.runs import user_cache

logger = logging.getLogger(__name__)

_UNREAD = r"Error reading persistent compilation cache entry for '([^']+)'"

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
    folder = home / "programs" / user_cache.processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.info("compiled programs are not kept: %s: %s", folder, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)
    warnings.showwarning = _mending(folder, warnings.showwarning)


def _mending(folder: Path, show: Callable[..., Any]) -> Callable[..., Any]:
    """Shows warnings by ``show``, but takes away what JAX could not read, to be written anew.

    JAX itself would leave a program that was cut short (by a signal, or a full disk) where it is,
    and warn at every start.
    """

    def showwarning(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        unread = re.match(_UNREAD, str(message))
        if not unread:
            show(message, *args, **kwargs)
            return
        for entry in folder.glob(f"{unread[1]}-*-cache"):
            entry.unlink(missing_ok=True)
        logger.warning("the program %s, kept in %s, is damaged: compiled anew", unread[1], folder)

    return showwarning
