"""What the scripts share: options by tyro, output that ends nothing, errors as one line."""

import contextlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import _xla_flags

# Before jax is imported: its start-up notes are not for the users of these scripts.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
_xla_flags.choose(os.environ)
_xla_flags.expect_no_tpu(sys.argv[1:], os.environ)
# Notebooks export their own backend; the scripts draw into files alone.
os.environ["MPLBACKEND"] = "agg"

T = TypeVar("T")


def say(line: str = "") -> None:
    """Prints one line, above a progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()


def fail(message: str, status: int = 2) -> NoReturn:
    """Prints one line to standard error and ends the script."""
    say_error(message)
    sys.exit(status)


def say_error(message: str) -> None:
    """Prints one line to standard error."""
    name = os.path.basename(sys.argv[0])
    print(f"{name}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def parse(
    kind: type[T], args: list[str], short: Mapping[str, str] | None = None, **options: Any
) -> T:
    """Reads the options of ``kind`` (a dataclass) from ``args``; a mistake ends the script.

    Args:
      kind: the dataclass; tyro explains its options by the docstrings under its fields.
      args: the command line.
      short: short names of nested options, as in ``{"--data": "--data.source"}``.
      **options: tyro's.
    """
    import tyro

    short = short or {}

    def renamed(text: str) -> str:
        for name, full in short.items():
            # Of the same width with what follows it: tyro sets its help in columns.
            pad = " " * (len(full) - len(name))
            text = re.sub(rf"{re.escape(full)}( \S+)", rf"{name}\1{pad}", text)
            text = text.replace(full, name)
        return text

    def expanded(arg: str) -> str:
        name, equals, value = arg.partition("=")
        return short.get(name.replace("_", "-"), name) + equals + value

    shown, complaint = _Text(), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(complaint):
            result: T = tyro.cli(kind, args=list(map(expanded, args)), **options)
            return result
    except SystemExit as stop:
        if stop.code:
            fail(renamed(_first_paragraph(complaint.getvalue())))
        say(renamed(shown.text()))
        raise
    except ValueError as error:  # of a dataclass inside another one tyro lets it through
        fail(str(error))


def parse_command(commands: Mapping[str, type[T]], args: list[str], doc: str) -> T:
    """Reads a command (the first word) and its options, as :func:`parse`.

    Args:
      commands: dataclasses by the name of their command.
      args: the command line.
      doc: what the script does; its help.
    """
    import tyro

    name = os.path.basename(sys.argv[0])
    if args[:1] in (["--help"], ["-h"]):
        helps = " and ".join(f"{name} {command} --help" for command in commands)
        say(f"{doc}\n{helps} explain the options.")
        sys.exit()
    if not args or args[0] not in commands:
        found = f"unknown command {args[0]!r}" if args else "no command"
        fail(f"{found}: give " + " or ".join(f"{name} {command}" for command in commands))
    return parse(
        commands[args[0]],
        args[1:],
        prog=f"{name} {args[0]}",
        description=doc,
        config=(tyro.conf.PositionalRequiredArgs,),
    )


class _Text(io.TextIOWrapper):
    """Keeps what is printed, in the characters that standard output has."""

    def __init__(self) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        super().__init__(io.BytesIO(), encoding, "backslashreplace", write_through=True)

    def text(self) -> str:
        self.seek(0)
        return self.read().rstrip()


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
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Once())
    logging.basicConfig(level=logging.ERROR, format="%(message)s", handlers=[handler])
    logging.getLogger("logit_laplace_jax").setLevel(logging.WARNING)
    # Orbax and its threads log tracebacks of what reaches the caller as one exception.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


class _Once(logging.Filter):
    """Lets every message through once: several streams come across the same broken image."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        new = message not in self._seen
        self._seen.add(message)
        return new


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number))


class _Descriptor(io.FileIO):
    """Drops what cannot be written because the reader is gone or the disk is full."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            written = super().write(data)
            if written is not None:
                return written
        return len(data)


@contextlib.contextmanager
def _robust_output() -> Iterator[None]:
    """Standard output and error that never raise, whatever the characters and the reader."""
    before = sys.stdout, sys.stderr
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        if stream is None:  # the caller closed it
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
            with contextlib.suppress(OSError):  # of a stream without a descriptor
                raw = io.BufferedWriter(_Descriptor(stream.fileno(), "wb", closefd=False))
                robust = io.TextIOWrapper(
                    raw, stream.encoding, "backslashreplace", line_buffering=True
                )
                setattr(sys, name, robust)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def run_script(main: Callable[[list[str]], None]) -> None:
    """Runs ``main`` with the command line; a package that an extra brings is named if missing.

    SIGINT and SIGTERM end it with one line; ``main`` may do better for some time.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    with _robust_output():
        _run(main)


def _run(main: Callable[[list[str]], None]) -> None:
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
