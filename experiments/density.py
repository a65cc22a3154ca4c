"""Draws the density atlas: pictures of the logit-Laplace density, and the numbers behind them.

python experiments/density.py [--out DIR] [--figures NAME...] [--options]
"""

import dataclasses
import time
from pathlib import Path
from typing import Literal

from _atlas import FIGURES, load
from _atlas.settings import Settings
from _cli import fail, one_line_errors, parse, quiet, run_script

DESCRIPTION = """Draws the density atlas: each figure as pictures, and as JSON with its numbers.

Figures:
{figures}

Notation: x in (0, 1) is a value, μ its location and b its scale, both in logit units;
sigmoid(μ) is the median."""

Figure = Literal[
    "shapes",
    "moments",
    "centres",
    "ends",
    "families",
    "leak",
    "gradients",
    "scale",
    "epsilon",
]


@dataclasses.dataclass(frozen=True)
class Options(Settings):
    """Command line of density.py."""

    out: Path = Path("runs/density")
    """Folder for the files; it is made if it does not exist."""
    figures: tuple[Figure, ...] = tuple(FIGURES)  # type: ignore[assignment]
    """Which figures to draw; the default is all of them."""
    format: tuple[Literal["png", "svg", "pdf"], ...] = ("png", "svg")
    """File formats of the pictures."""
    dpi: int = 200
    """Dots an inch of the PNGs, which are 7 inches wide; 50 to 1200."""
    overwrite: bool = False
    """Replace files that exist; without it nothing is overwritten."""


def main(args: list[str]) -> None:
    """Computes every figure's numbers, writes them, draws from them."""
    figures = "\n".join(f"  {name:<11}{text}" for name, text in FIGURES.items())
    options = parse(
        Options, args, prog="density.py", description=DESCRIPTION.format(figures=figures)
    )
    quiet()
    with one_line_errors(ValueError):
        options.check()
        _check(options)
    names = list(dict.fromkeys(options.figures))
    formats = list(dict.fromkeys(options.format))
    targets = {
        name: [options.out / f"{name}.{end}" for end in (*formats, "json")] for name in names
    }
    existing = [path for paths in targets.values() for path in paths if path.exists()]
    if existing and not options.overwrite:
        more = f" and {len(existing) - 1} more exist" if len(existing) > 1 else " exists"
        fail(f"{existing[0]}{more}; choose another --out folder, or add --overwrite")
    import jax
    from _atlas import style

    from logit_laplace_jax.runs import compiled_programs

    compiled_programs.keep()
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {f.name: getattr(options, f.name) for f in dataclasses.fields(Settings)}
    for name in names:
        started = time.perf_counter()
        module = load(name)
        with jax.enable_x64(True):
            record = module.compute(options)
        *pictures, numbers = targets[name]
        record.write(numbers, name, settings)
        with style.styled():
            figure = module.draw(record)
            for path in pictures:
                style.save(figure, path, options.dpi)
        seconds = time.perf_counter() - started
        for path in targets[name]:
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB")
        for note in record.notes:
            print(f"  {note}")
        print(f"  {FIGURES[name]} ({seconds:.1f} s)", flush=True)


def _check(options: Options) -> None:
    if not options.figures:
        raise ValueError(f"--figures takes one or more of {', '.join(FIGURES)}")
    if not options.format:
        raise ValueError("--format takes one or more of png, svg, pdf")
    if "gradients" in options.figures and options.eps == 0 and {0, 255} & set(options.targets):
        raise ValueError(
            "--eps 0 maps the targets 0 and 255 to 0 and 1, where the loss is infinite; "
            "choose other --targets or a larger --eps"
        )
    if not 50 <= options.dpi <= 1200:
        raise ValueError(f"--dpi must lie in [50, 1200], got {options.dpi}")
    for folder in (options.out, *options.out.parents):
        if folder.exists():
            if not folder.is_dir():
                raise ValueError(f"{folder} is a file; choose another --out folder")
            break


if __name__ == "__main__":
    run_script(main)
