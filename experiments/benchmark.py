"""Measures speed beside other libraries, all in one interleaved run: a table, JSON, a picture.

python experiments/benchmark.py {loss,step} [--quick] [--options]
"""

import dataclasses
import os
from pathlib import Path

from _bench import load, machine, options, report
from _cli import fail, one_line_errors, quiet, run_script


def main(args: list[str]) -> None:
    """Runs one suite and prints its tables."""
    chosen = options.parse(args)
    quiet()
    for name, path in (("--json", chosen.json), ("--plot", chosen.plot)):
        if path is not None:
            _check_target(name, path)
    # JAX and torch share an accelerator in turns: none may take all of its memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    described = machine.describe()
    with one_line_errors(ValueError):
        result = load(chosen.suite).run(chosen)
    described |= result.machine
    described["load_end"] = machine.load()
    result = dataclasses.replace(result, machine=described)
    print(report.text(result, chosen.markdown))
    if chosen.json is not None:
        result.write(chosen.json)
        print(f"numbers   {chosen.json}")
    if chosen.plot is not None:
        from _bench import plot

        plot.save(result, chosen.plot)
        print(f"picture   {chosen.plot}")


def _check_target(name: str, path: Path) -> None:
    if path.exists():
        fail(f"{path} exists; choose another {name} file")
    if not path.parent.is_dir():
        fail(f"{path.parent} is not a folder; make it, or choose another {name} file")
    if name == "--plot" and path.suffix not in (".png", ".svg", ".pdf"):
        fail(f"{path}: a --plot file ends in .png, .svg or .pdf")


if __name__ == "__main__":
    run_script(main)
