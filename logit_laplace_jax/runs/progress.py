"""The live line of a run on the terminal."""

import sys
import time
from collections.abc import Callable


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss.

    >>> duration(75), duration(3 * 3600 + 5)
    ('1:15', '3:00:05')
    """
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """Rewrites one line on a terminal; elsewhere prints a line now and then.

    Args:
      total: updates of the whole run.
      say: where whole lines go.
      every: seconds between lines where the output is not a terminal.
      live: rewrite one line; None: if the output is a terminal.
    """

    def __init__(
        self,
        total: int,
        say: Callable[[str], None],
        every: float = 15.0,
        live: bool | None = None,
    ):
        self._total = total
        self._say = say
        self._every = every
        self._live = sys.stdout.isatty() if live is None else live
        self._printed = time.monotonic()
        self._width = 0

    def show(self, step: int, rate: float, seconds_left: float, metrics: dict[str, float]) -> None:
        """Shows step, images a second, time left and the main metrics."""
        now = time.monotonic()
        last = step >= self._total
        if not self._live and not last and now - self._printed < self._every:
            return
        self._printed = now
        parts = "  ".join(f"{k} {metrics[k]:.3f}" for k in ("loss", "nll", "kl"))
        line = (
            f"step {step}/{self._total}  {100 * step // self._total:3d} %  {rate:.0f} images/s  "
            f"{duration(seconds_left)} left  {parts}  "
            f"waiting for images {100 * metrics['data_wait_share']:.0f} %"
        )
        if "skipped_steps" in metrics:
            line += f"  loss scale {metrics['loss_scale']:g}"
            line += f"  skipped {metrics['skipped_steps']:.0f}"
        if self._live:
            sys.stdout.write("\r" + line.ljust(self._width))
            sys.stdout.flush()
            self._width = len(line)
        else:
            self._say(line)

    def clear(self) -> None:
        """Ends the live line, so that other output starts on a fresh one."""
        if self._live and self._width:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._width = 0
