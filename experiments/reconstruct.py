"""Sends images through a trained run: reconstructions, tokens, and how long a code they make.

python experiments/reconstruct.py RUN_DIR IMAGE... [--options]

Writes two PNGs for each image: NAME_stepN.png, the original beside its reconstruction, and
NAME_stepN_tokens.png, a pixel for each token with a colour for each code.
"""

import dataclasses
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, quiet, run_script, say

_LOSSLESS = (("png", "PNG"), ("webp", "WebP"))


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of reconstruct.py."""

    run_dir: Path
    """Run directory that train.py wrote."""
    images: tuple[Path, ...]
    """Image files: JPEG, PNG, WebP, TIFF, BMP, or the first frame of a GIF."""
    longest_side: int = 2048
    """Larger images are area-resized until their longest side has this many pixels."""
    output: Path | None = None
    """Folder for the PNGs; default: RUN_DIR/reconstructions."""
    checkpoint: str = "latest"
    """latest, best (fewest held-out bits/dim while training), or a number of updates."""
    enlarge: int = 1
    """Enlarge the pictures by this whole factor, with sharp pixels."""


def main(args: list[str]) -> None:
    """Reads the run and the images, writes one PNG per image."""
    import tyro

    options = parse(
        Options,
        args,
        prog="reconstruct.py",
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    quiet()
    if not 1 <= options.enlarge <= 16:
        fail(f"--enlarge must lie in 1..16, got {options.enlarge}")
    if options.longest_side < 1:
        fail(f"--longest-side must be 1 or more, got {options.longest_side}")
    if not options.images:
        fail("name at least one image: reconstruct.py RUN_DIR IMAGE...")
    folder = options.output or options.run_dir / "reconstructions"
    if folder.exists() and not folder.is_dir():
        fail(f"{folder} is a file; choose another --output folder")

    from logit_laplace_jax.data import images
    from logit_laplace_jax.evaluation import baselines, figures
    from logit_laplace_jax.runs import coding, compiled_programs, directory, report
    from logit_laplace_jax.runs.errors import CheckpointError

    compiled_programs.keep()
    with one_line_errors(ValueError, CheckpointError):
        state = directory.load(options.run_dir, options.checkpoint)
    targets = _targets(options.images, folder, int(state.step))
    originals = [_decode(images, path, state.config.model.channels) for path in options.images]
    for target, original in zip(targets, originals, strict=True):
        model = state.config.model
        image = report.resized(original, model.downsampling, options.longest_side)
        coded = coding.code(state, image)
        figures.save_png(target, figures.side_by_side(image, coded.rebuilt), options.enlarge)
        tokens = target.with_name(f"{target.stem}_tokens.png")
        figures.save_png(tokens, figures.token_colours(model.vocab_size)[coded.tokens])
        height, width = image.shape[:2]
        resized = "" if image.shape == original.shape else " (resized or cut)"
        rows, columns = coded.tokens.shape
        files = baselines.lossless([image])
        others = ", ".join(f"{files[k]:.3f} as {name}" for k, name in _LOSSLESS if k in files)
        say(f"{target}: {width} x {height} pixels{resized}, PSNR {coded.psnr:.2f} dB")
        say(f"{tokens}: {columns} x {rows} tokens of {model.vocab_size} codes")
        say(
            f"  lossless, bits/dim: {coded.bits_per_dim:.3f} with this model (exact, tokens "
            f"included), {others}"
        )


def _targets(paths: tuple[Path, ...], folder: Path, step: int) -> list[Path]:
    """A file for each image that does not exist yet; images of equal name are numbered."""
    targets: list[Path] = []
    for path in paths:
        name = f"{path.stem}_step{step}"
        numbered = (folder / f"{name}{f'_{i}' if i else ''}.png" for i in itertools.count())
        free = (t for t in numbered if t not in targets and not t.exists())
        targets.append(next(t for t in free if not t.with_name(f"{t.stem}_tokens.png").exists()))
    return targets


def _decode(images, path: Path, channels: int):
    try:
        return images.decode(path, channels)
    except ValueError as error:
        fail(f"{path}: {error}")


if __name__ == "__main__":
    run_script(main)
