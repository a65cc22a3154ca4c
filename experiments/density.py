"""Draws the density atlas: pictures of the logit-Laplace density, and the numbers quoted of them.

python experiments/density.py [--out DIR] [--figures NAME...] [--options]
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, quiet, run_script, say
from atlas import FIGURES, Settings, load

DESCRIPTION = """Draws the density atlas: each figure as pictures, and as JSON with its numbers.

Figures:
{figures}

Notation: x in (0, 1) is a value, μ its location and b its scale, both in logit units;
sigmoid(μ) is the median."""

Figure = Literal[
    "shapes", "moments", "centres", "ends", "families", "leak", "gradients", "scale", "epsilon"
]


@dataclasses.dataclass(frozen=True)
class Options(Settings):
    """Command line of density.py."""

    out: Path = Path("runs/density")
    """Folder for the files; it is made if it does not exist."""
    figures: tuple[Figure, ...] = get_args(Figure)
    """Which figures to draw; the default is all of them."""
    format: tuple[Literal["png", "svg", "pdf"], ...] = ("png", "svg")
    """File formats of the pictures."""
    dpi: int = 200
    """Dots per inch of the PNGs, which are 7 inches wide; 50 to 1200."""
    overwrite: bool = False
    """Replace files that exist; without it nothing is overwritten."""


def main(args: list[str]) -> None:
    """Draws every figure, and writes its numbers beside it."""
    figures = "\n".join(f"  {name:<11}{text}" for name, text in FIGURES.items())
    options = parse(
        Options, args, prog="density.py", description=DESCRIPTION.format(figures=figures)
    )
    quiet()
    with one_line_errors(ValueError):
        options.check()
        _check(options)
    formats = list(dict.fromkeys(options.format))
    targets = {
        name: [options.out / f"{name}.{end}" for end in (*formats, "json")]
        for name in dict.fromkeys(options.figures)
    }
    existing = [path for paths in targets.values() for path in paths if path.exists()]
    if existing and not options.overwrite:
        more = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        fail(f"{existing[0]}{more}; choose another --out folder, or add --overwrite")
    import jax
    from atlas import style

    from logit_laplace_jax.runs import compiled_programs, directory

    compiled_programs.keep()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, (*pictures, table) in targets.items():
        started = time.perf_counter()
        with jax.enable_x64(True), style.styled():
            figure, numbers = load(name)(options)
            for path in pictures:
                style.save(figure, path, options.dpi)
        text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
        directory.write_whole(table, text + "\n")
        for path in (*pictures, table):
            say(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        say(f"  {FIGURES[name]} ({time.perf_counter() - started:.1f} s)")


def _check(options: Options) -> None:
    if not options.figures:
        raise ValueError(f"--figures takes one or more of {', '.join(FIGURES)}")
    if not options.format:
        raise ValueError("--format takes one or more of png, svg, pdf")
    if not 50 <= options.dpi <= 1200:
        raise ValueError(f"--dpi must lie in [50, 1200], got {options.dpi}")
    folder = next(f for f in (options.out, *options.out.parents) if f.exists())
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; choose another --out folder")


if __name__ == "__main__":
    run_script(main)
