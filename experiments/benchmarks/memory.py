"""Peak memory of this process: over its life, and from a moment on."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_bytes() -> int:
    """The most resident memory since the start of the process, or since :func:`restart`.

    Linux's ``VmHWM``; elsewhere ``ru_maxrss``, which a process that was forked from a large one
    inherits from it.
    """
    try:
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def restart() -> bool:
    """Starts counting the peak anew; False where the system cannot.

    What was freed (a compiler's working memory) is first given back to the system.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True
