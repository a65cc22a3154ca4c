"""Compresses images without loss by a trained model, and proves its code length with a file.

python experiments/codec.py compress MODEL_DIR IMAGE... --output FILE
python experiments/codec.py decompress MODEL_DIR FILE --output FOLDER

MODEL_DIR is the run directory of a dVAE (codes at log2 V bits each) or of a prior (fewer bits).
"""

import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse_command, quiet, run_script, say


@dataclasses.dataclass(frozen=True)
class Compress:
    """Command line of codec.py compress."""

    model_dir: Path
    """Run directory of train.py or of train_prior.py."""
    images: tuple[Path, ...]
    """Image files, of any size; what is coded are their 8-bit pixels."""
    held_out: int | None = None
    """In place of image files: so many of the run's held-out crops, which evaluate.py measures."""
    output: Path = Path("images.llc")
    """File to write; it must not exist."""
    label: str | None = None
    """Class of all images, with a conditional prior; default: the folder that each lies in."""
    checkpoint: str = "latest"
    """latest, best, or a number of updates."""


@dataclasses.dataclass(frozen=True)
class Decompress:
    """Command line of codec.py decompress."""

    model_dir: Path
    """The run directory whose model wrote the file."""
    file: Path
    """What compress wrote."""
    output: Path = Path("images")
    """Folder for the images, as PNG; it must not exist."""
    checkpoint: str = "latest"
    """The checkpoint that wrote the file."""


COMMANDS = {"compress": Compress, "decompress": Decompress}


def main(args: list[str]) -> None:
    """Compresses or decompresses."""
    options = parse_command(COMMANDS, args, __doc__)
    quiet()
    from logit_laplace_jax.runs import compiled_programs
    from logit_laplace_jax.runs.errors import CheckpointError

    compiled_programs.keep()
    if options.output.exists():
        fail(f"{options.output} exists; choose another --output")
    if not options.output.absolute().parent.is_dir():
        fail(f"{options.output.parent} is not a folder; make it, or choose another --output")
    with one_line_errors(ValueError, CheckpointError):
        if isinstance(options, Compress):
            compress(options)
        else:
            decompress(options)


def compress(options: Compress) -> None:
    """Writes the images into one file, and says whether its size is what the model promised."""
    from logit_laplace_jax.runs import directory
    from logit_laplace_jax.runs.codec import Codec

    if bool(options.images) == (options.held_out is not None):
        fail("give images, or --held-out N: codec.py compress MODEL_DIR IMAGE... --output FILE")
    if options.held_out is not None and options.held_out < 1:
        fail(f"--held-out must be 1 or more, got {options.held_out}")
    codec = Codec(options.model_dir, options.checkpoint)
    if options.label is not None and options.label not in codec.classes:
        known = ", ".join(codec.classes) or "none: the prior is not conditional"
        fail(f"no class is called {options.label!r} (there: {known})")
    if options.held_out is not None:
        config = directory.read_config(options.model_dir).resolved()
        images = list(_held_out(config, options.held_out))
    else:
        images = [_read(path, codec, options.label) for path in options.images]
    started = time.perf_counter()
    encoded = codec.compress(images)
    part = options.output.with_name(options.output.name + ".part")
    part.write_bytes(encoded.content)
    part.replace(options.output)
    size, values = len(encoded.content), sum(image.pixels.size for image in images)
    promised, charged = (encoded.token_bits + encoded.pixel_bits) / 8, encoded.charged_bits / 8
    payload = size - encoded.header_bytes
    say(f"{options.output}: {len(images)} images, {values:,} values in {size:,} bytes")
    say(
        f"  promised  {8 * promised / values:.5f} bits/dim: codes {encoded.token_bits / 8:,.1f}, "
        f"pixels {encoded.pixel_bits / 8:,.1f} bytes"
    )
    say(
        f"  charged   {8 * charged / values:.5f} bits/dim: in the coder no probability is below "
        f"2^-24, so rare values save {promised - charged:,.1f} bytes"
    )
    say(
        f"  written   {8 * payload / values:.5f} bits/dim: {payload:,} bytes "
        f"({100 * (payload / charged - 1):+.3f} %), and {encoded.header_bytes} of header"
    )
    say(f"  in {time.perf_counter() - started:.1f} s, compilation included")


def decompress(options: Decompress) -> None:
    """Writes the images of a file as PNG."""
    from PIL import Image

    from logit_laplace_jax.runs.codec import Codec

    if not options.file.is_file():
        fail(f"{options.file} is no file")
    codec = Codec(options.model_dir, options.checkpoint)
    images = codec.decompress(options.file.read_bytes())
    options.output.mkdir()
    for number, image in enumerate(images):
        path = options.output / f"{number:05d}_{Path(image.name).stem}.png"
        pixels = image.pixels[..., 0] if image.pixels.shape[-1] == 1 else image.pixels
        Image.fromarray(pixels).save(path)
    say(f"{options.output}: {len(images)} images, the very pixels that were compressed")


def _held_out(config, count: int):
    from logit_laplace_jax.runs.codec import Image
    from logit_laplace_jax.runs.streams import held_out

    number = 0
    for batch in held_out(config, limit=count):
        for row in range(len(batch["mask"])):
            if batch["mask"][row] > 0:
                label = int(batch["labels"][row]) if "labels" in batch else 0
                yield Image(str(number), batch["pixels"][row], label)
                number += 1


def _read(path: Path, codec, label: str | None):
    from logit_laplace_jax.data import images
    from logit_laplace_jax.runs.codec import Image

    try:
        pixels = images.decode(path, codec.config.model.channels)
    except ValueError as error:
        fail(f"{path}: {error}")
    number = 0
    if codec.classes:
        name = label or path.absolute().parent.name
        if name not in codec.classes:
            fail(f"{path}: the prior is conditional, and {name!r} is no class: give --label NAME")
        number = codec.classes.index(name)
    return Image(path.name, pixels, number)


if __name__ == "__main__":
    run_script(main)
