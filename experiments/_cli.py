"""What the scripts share: options by tyro, and errors as one line with exit status 2."""

import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import _xla_flags

# Before jax is imported: its start-up notes are not for the users of these scripts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
_xla_flags.choose(os.environ)

T = TypeVar("T")


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints one line to standard error and ends the script."""
    say_error(message)
    sys.exit(status)


def say_error(message: str) -> None:
    """Prints one line to standard error."""
    name = os.path.basename(sys.argv[0])
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def parse(kind: type[T], args: list[str], **options: Any) -> T:
    """Reads the options of ``kind`` (a dataclass) from ``args``; a mistake ends the script."""
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            result: T = tyro.cli(kind, args=args, **options)
            return result
    except SystemExit as stop:
        if not stop.code:
            raise
        fail(_first_paragraph(printed.getvalue()))
    except ValueError as error:  # of a dataclass inside another one tyro lets it through
        fail(str(error))


def _first_paragraph(box: str) -> str:
    """The message inside tyro's frame, without title, hints and help."""
    lines = [line.strip(" │|") for line in box.splitlines()]
    lines = [line for line in lines if not re.match(r"^[╭╰]", line)]
    text: list[str] = []
    for line in lines:
        if re.match(r"^─+$", line):
            break
        text.append(line)
    return re.sub(r"Error parsing \w+(\.\w+)*: ", "", " ".join(text))


@contextlib.contextmanager
def one_line_errors(*kinds: type[BaseException]) -> Iterator[None]:
    """Turns the given exceptions into one line and exit status 2."""
    try:
        yield
    except kinds as error:
        fail(str(error))


def quiet() -> None:
    """Silences libraries' narration; warnings of this project still show, as single lines."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stderr)
    logging.getLogger("logit_laplace_jax").setLevel(logging.WARNING)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number))


def run_script(main: Callable[[list[str]], None]) -> None:
    """Runs ``main`` with the command line; a package that an extra brings is named if missing.

    SIGINT and SIGTERM end it with one line; ``main`` may do better for some time.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt as stop:
        number = stop.args[0] if stop.args else signal.SIGINT
        fail(f"stopped by {number.name}; the same command starts it again", 128 + number)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        what = "this project" if package == "logit_laplace_jax" else f"the package {package}"
        fail(
            f"{what} is not installed: run  pip install -e '.[experiments]'  "
            "in the repository's root"
        )
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}")
