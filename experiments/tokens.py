"""Turns images into tokens, and tokens into images, with any trained model.

python experiments/tokens.py encode MODEL IMAGES... --output FILE [--options]

python experiments/tokens.py decode MODEL FILE --output FOLDER [--options]

MODEL is a run directory, a file of weights (.safetensors or .pt), or OpenAI's encoder.pkl with
--decoder decoder.pkl. A job that was stopped goes on when the same command is given again.
"""

# Not tokenize.py: the folder of a script comes first on Python's path, so a file of that name here
# would take the place of the standard library's `tokenize` in every script beside it, and break
# their tracebacks and `inspect` ("module 'tokenize' has no attribute 'open'").

import dataclasses
import sys
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse_command, quiet, run_script, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What both commands take."""

    model: Path
    """Run directory, file of weights (.safetensors or .pt), or encoder.pkl with --decoder."""
    decoder: Path | None = None
    """OpenAI's decoder.pkl, where MODEL is its encoder.pkl."""
    checkpoint: str = "latest"
    """Of a run: latest, best (fewest held-out bits/dim), or the number of updates."""
    batch_size: int | None = None
    """Pictures of one size at a time; default: about a megapixel of them, 16 of 256 x 256."""
    save_every: int = 256
    """Images between two savings; a stopped job loses at most so many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeConfig(JobConfig):
    """Command line of tokens.py encode."""

    images: tuple[str, ...]
    """Image files; or one folder (searched recursively), folder:PATH, tfds:NAME or photos."""
    output: Path | None = None
    """File to write, .npz or .array_record; it must not exist."""
    fit: Literal["crop", "pad", "tile"] = "crop"
    """Images of any size: crop takes the centre, cut to multiples of the model's downsampling, or
    with --image-size the centre square resized to it; pad repeats the last row and column; tile
    cuts squares of --image-size, padded alike. Decoding gives padded and tiled images their size
    back."""
    image_size: int | None = None
    """Side of a crop or tile in pixels, a multiple of the model's downsampling."""
    split: Literal["all", "train", "validation"] = "all"
    """Which images of a folder or data source."""
    data_dir: Path | None = None
    """Where TFDS data sets are prepared and looked for; default: TFDS's own (TFDS_DATA_DIR)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig(JobConfig):
    """Command line of tokens.py decode."""

    tokens: Path
    """File of tokens that encode wrote, .npz or .array_record."""
    output: Path | None = None
    """Folder for the PNGs; it must not exist, or be empty."""
    force: bool = False
    """Decode although the tokens were made by a model with another fingerprint."""


def main(args: list[str]) -> None:
    """Reads the command, and runs it."""
    options = parse_command({"encode": EncodeConfig, "decode": DecodeConfig}, args, __doc__)
    if options.output is None:
        fail("name what to write with --output")
    quiet()
    from jax.errors import JaxRuntimeError

    from logit_laplace_jax.runs import compiled_programs
    from logit_laplace_jax.runs.checkpoints import CheckpointError

    compiled_programs.keep()

    try:
        with one_line_errors(ValueError, CheckpointError):
            run = encode if isinstance(options, EncodeConfig) else decode
            run(options, options.output)
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        fail("out of memory: give a smaller --batch-size, or encode with --fit tile", status=1)
    except KeyboardInterrupt:
        say("\nstopped; the same command goes on from what is saved")
        sys.exit(130)


def encode(options: EncodeConfig, output: Path) -> None:
    """Images to a file of tokens."""
    from logit_laplace_jax.data.all_images import open_images
    from logit_laplace_jax.tokens import jobs

    if not options.images:
        fail("name images: tokens.py encode MODEL IMAGES... --output FILE")
    tokenizer = open_model(options)
    source = open_images(
        options.images,
        which=options.split,
        data_dir=None if options.data_dir is None else str(options.data_dir),
        channels=tokenizer.config.channels,
    )
    jobs.encode(
        tokenizer,
        source,
        output,
        how=options.fit,
        image_size=options.image_size,
        batch_size=options.batch_size,
        save_every=options.save_every,
        say=say,
    )


def decode(options: DecodeConfig, output: Path) -> None:
    """A file of tokens to PNGs."""
    from logit_laplace_jax.tokens import files, jobs

    content = files.read(options.tokens)
    jobs.decode(
        open_model(options),
        content,
        output,
        batch_size=options.batch_size,
        save_every=options.save_every,
        say=say,
        force=options.force,
    )


def open_model(options: JobConfig):
    """The tokenizer of the model that was named; prints which it is."""
    from logit_laplace_jax.runs.tokenizers import open_tokenizer

    tokenizer = open_tokenizer(options.model, options.decoder, options.checkpoint)
    config = tokenizer.config
    say(
        f"model     {options.model}: {tokenizer.fingerprint}, {config.vocab_size} codes, one for "
        f"{config.downsampling} x {config.downsampling} pixels"
    )
    return tokenizer


if __name__ == "__main__":
    run_script(main)
