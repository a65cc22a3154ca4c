"""A process that watches over one process of a run, and has the last word."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def supervise(name: str) -> None:
    """Goes on in a child process, while this one waits and says what became of it.

    JAX's runtime aborts a process whose peers are gone, from a thread that Python cannot stop: only
    another process can still say in a clear line what to do. Call it first of all, while the
    process has one thread; it returns in the child, and ends the parent with the child's status.

    Args:
      name: the script's, for the message.
    """
    child = os.fork()
    if child == 0:
        parent = os.getppid()
        os.setpgid(0, 0)  # so that Ctrl-C reaches it once, through its parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)
    if -code == signal.SIGABRT:
        what = (
            "another process of this run is gone or cannot be reached, so this one was ended (the "
            "lines above are the runtime's)"
        )
    else:
        what = f"the run was killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            what += ", perhaps for want of memory"
    sys.stderr.write(
        f"{name}: error: {what}; the same commands start it again from its last checkpoint\n"
    )
    sys.stderr.flush()
    os._exit(1)
