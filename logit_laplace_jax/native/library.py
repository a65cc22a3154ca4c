"""Builds ``mean_loss.c`` with the system's C compiler, keeps the result, and shows it to XLA.

Nothing depends on it: without a compiler, with another XLA, or on an accelerator, the same numbers
come from XLA's own loops. The library is kept in the user's cache folder, by its source, the
compiler's command, the version of jaxlib and the kind of processor.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jaxlib

from logit_laplace_jax import user_cache

logger = logging.getLogger(__name__)

TARGET = "logit_laplace_jax_mean_loss"
"""The function's name in XLA's programs."""

SWITCH = "LOGIT_LAPLACE_JAX_NATIVE"
"""``0`` in this environment variable leaves the work to XLA."""

_SOURCE = Path(__file__).with_name("mean_loss.c")
_FLAGS = ["-std=c11", "-O3", "-march=native", "-fPIC", "-shared"]
_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]  # nobody reads errno or the traps
if platform.machine().lower() in ("x86_64", "amd64"):
    _FLAGS += ["-mprefer-vector-width=512"]  # compilers would take half, and a fifth more time
_SECONDS = 60
"""A build takes less than one."""


_LOCK = threading.Lock()


def ready() -> bool:
    """Whether XLA's CPU backend knows ``TARGET``; the first call builds the library if need be.

    Example:
        >>> ready() in (True, False)
        True
    """
    with _LOCK:
        return _prepared()


@cache
def _prepared() -> bool:
    if os.environ.get(SWITCH) == "0":
        return False
    try:
        function = _load(_built())
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        logger.info("the mean loss is left to XLA: %s", _one_line(error))
        return False
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(function), platform="cpu")
    return True


def _built() -> Path:
    """The path of the library.

    Raises:
      OSError: there is no compiler or no place to keep it.
      subprocess.SubprocessError: it does not compile.
    """
    folder = user_cache.folder()
    if folder is None:
        raise OSError("there is no cache folder to keep its library in")
    chosen = os.environ.get("CC", "").split() or [shutil.which("cc") or shutil.which("gcc") or ""]
    if not chosen[0]:
        raise OSError("there is no C compiler")
    command = [*chosen, *_FLAGS, f"-I{jax.ffi.include_dir()}", str(_SOURCE)]
    # include_dir stands for a version; the folder that it happens to be in does not matter.
    parts = [*chosen, *_FLAGS, jaxlib.__version__, user_cache.processor(), _SOURCE.read_text()]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    path = folder / "native" / f"mean_loss_{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch, path.name)
            subprocess.run(
                [*command, "-o", str(made)], check=True, capture_output=True, timeout=_SECONDS
            )
            # At once, or another process could load half a library.
            made.replace(path)
    return path


def _load(path: Path) -> Any:
    try:
        return ctypes.CDLL(str(path)).logit_laplace_mean_loss
    except (OSError, AttributeError):
        # Cut short by a full disk, say. The next start builds it anew.
        path.unlink(missing_ok=True)
        raise


def _one_line(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        lines = error.stderr.decode(errors="replace").splitlines()
        return next((line for line in lines if "error" in line), lines[0])
    return str(error)
