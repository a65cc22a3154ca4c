"""A contestant in a process of its own, which waits while others run.

So each has its own threads, allocator and peak memory, and samples still interleave. The child is
``python -m benchmarks.worker MODULE JSON``; it prints one JSON object per line: first ``facts``,
then an answer to each line of its standard input, and ends when that is closed.
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

_EXPERIMENTS = Path(__file__).parents[1]


class WorkerError(Exception):
    """A worker ended with an error; the message is one line."""


class Worker:
    """The parent's side.

    Args:
      module: of this package; its ``prepare(**arguments)`` makes an object with ``facts`` (known
        before the rounds), ``call(n)`` (works n times and returns the seconds) and ``finish()``
        (known after the rounds), in plain JSON types.
      arguments: for ``prepare``, plain JSON types.
      changes: of the environment.

    Raises:
      WorkerError: the task could not be prepared.
    """

    def __init__(self, module: str, arguments: Mapping[str, Any], changes: Mapping[str, str]):
        path = [str(_EXPERIMENTS), str(_EXPERIMENTS.parent), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", module, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **changes},
            encoding="utf-8",
        )
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, count: int) -> float:
        """Lets the worker do its work and returns the seconds that it measured."""
        return float(self._ask(f"run {count}")["seconds"])

    def finish(self) -> dict[str, Any]:
        """The task's last facts."""
        return self._ask("finish")

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, line: str) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # the answer will tell
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"the process ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer


def main() -> None:
    """The child's side."""
    from benchmarks import peers

    # Libraries print; the channel to the parent is a descriptor that they do not know of.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=channel, flush=True)

    module, arguments = sys.argv[1:]
    try:
        loaded = importlib.import_module(f"benchmarks.{module}")
        task = loaded.prepare(**json.loads(arguments))
        say(task.facts)
        for line in sys.stdin:
            command, *rest = line.split()
            say({"seconds": task.call(int(rest[0]))} if command == "run" else task.finish())
    except BrokenPipeError:
        return  # the parent is gone
    except Exception as error:
        say({"error": peers.one_line(error)})
        sys.exit(1)


if __name__ == "__main__":
    main()
