"""Many images to a file of tokens, and back: in batches, resumable, to the same bytes.

What is unfinished stands in a folder beside the output, named like it with `.part` at the end. It
holds `job.json`, the request, and what is done, in units of `save_every` images. A unit's batches
do not depend on what came before it, so a job that was killed, and started again with the same
request, gives the bytes of one that was not, on the same device.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import logit_laplace_jax
from logit_laplace_jax.data.errors import DataError, TooSmallImage, UnreadableImage
from logit_laplace_jax.data.folder import EXTENSIONS
from logit_laplace_jax.data.sources import Source
from logit_laplace_jax.evaluation import figures
from logit_laplace_jax.tokens import files, tiles
from logit_laplace_jax.tokens.batches import Key, ahead, apply
from logit_laplace_jax.tokens.tokenizer import Tokenizer

Say = Callable[[str], None]

_FORMAT = "logit_laplace_jax tokens 1"
_NAMED_IN_LOG = 20
_NAMED = 8
"""At most so many of the skipped and of the decoded images are named."""


def encode(
    tokenizer: Tokenizer,
    source: Source,
    output: Path,
    *,
    how: tiles.Fit = "crop",
    image_size: int | None = None,
    batch_size: int | None = None,
    save_every: int = 256,
    say: Say = print,
) -> dict[str, Any]:
    """Writes the tokens of every image of a source to a file; goes on where it was.

    Images that cannot be used are named in the log, left out and counted.

    Args:
      tokenizer: the model.
      source: the images; its channels are the model's.
      output: a new `.npz` or `.array_record` (see `tokens.files`).
      how: what is done to images of other sizes (see `tokens.tiles.fit`).
      image_size: side of crops or tiles in pixels.
      batch_size: pictures of one size at a time; None: about a megapixel of them.
      save_every: images between two savings.
      say: prints one line.

    Returns:
      The file's metadata, plain JSON values: `format`, `version` of this package, `model` (the
      tokenizer's fingerprint), `eps`, `vocab_size`, `downsampling`, `channels`, `fit`,
      `image_size`, `data` (the source, a folder by its last name), and `skipped` (name to reason).

    Raises:
      DataError: the output exists, an unfinished job of another request is in the way, an option
        is wrong, or no image at all can be used.
    """
    config = tokenizer.config
    _check_numbers(batch_size, save_every)
    files.check_ending(output)
    tiles.check_options(how, config.downsampling, image_size)
    if output.exists():
        raise DataError(f"{output} exists; choose another output")
    if not output.parent.is_dir():
        raise DataError(f"{output.parent} is not a folder; make it, or choose another output")
    metadata = {
        "format": _FORMAT,
        "version": logit_laplace_jax.__version__,
        "model": tokenizer.fingerprint,
        "eps": tokenizer.eps,
        "vocab_size": config.vocab_size,
        "downsampling": config.downsampling,
        "channels": config.channels,
        "fit": how,
        "image_size": image_size,
        "data": _public(source.spec),
    }
    names = [source.name(i) for i in range(len(source))]
    job = metadata | {
        "images": len(names),
        "names": _digest("\0".join(names).encode(errors="backslashreplace")),
        "batch_size": batch_size,
        "save_every": save_every,
    }
    folder = _start(output, "job.json", job)
    units = {folder / f"{unit.start:010d}.npz": unit for unit in _units(len(names), save_every)}
    say(f"images    {source.spec}: {len(names)}")
    left = {path: unit for path, unit in units.items() if not path.exists()}
    logged = 0
    with _progress("encoded", left.values(), len(names), say) as progress:
        for path, unit in left.items():
            part = _encode_unit(tokenizer, source, unit, how, image_size, batch_size, progress)
            for name, reason in part.metadata["skipped"].items():
                logged += 1
                if logged <= _NAMED_IN_LOG:
                    logging.getLogger(__name__).warning("skipped %s: %s", name, reason)
            _write_whole(path, [part], part.metadata)
    skipped: dict[str, str] = {}
    counts = np.zeros(config.vocab_size, np.int64)
    images = 0
    for part in map(files.read, units):
        images += len(part)
        skipped |= part.metadata["skipped"]
        counts += np.bincount(part.flat, minlength=config.vocab_size)
    example = "; ".join(f"{name}: {reason}" for name, reason in [*skipped.items()][:1])
    if not images:
        shutil.rmtree(folder)
        raise DataError(f"none of the {len(names)} images of {source.spec} can be used; {example}")
    metadata["skipped"] = skipped
    whole = folder / f"whole{output.suffix}"
    _write_whole(whole, map(files.read, units), metadata)
    if output.exists():
        raise DataError(f"{output} exists by now; the tokens are in {whole}")
    whole.replace(output)
    shutil.rmtree(folder)
    say(
        f"tokens    {output}: {images} images, {counts.sum():,} tokens, "
        f"{np.count_nonzero(counts)} of {config.vocab_size} codes in use"
    )
    if skipped:
        say(f"skipped   {len(names) - images} of {len(names)} images, such as {example}")
    return metadata


def decode(
    tokenizer: Tokenizer,
    tokens: files.Tokens,
    output: Path,
    *,
    batch_size: int | None = None,
    save_every: int = 256,
    force: bool = False,
    say: Say = print,
) -> list[Path]:
    """Writes the image of every grid of tokens as PNG; goes on where it was.

    Padding is cut off, tiles are joined. `tokens.json` beside the images holds the tokens'
    metadata. Names become paths below the folder; what is no plain path in them is replaced, and
    equal ones are numbered.

    Args:
      tokenizer: the model.
      tokens: the content of a file of tokens.
      output: a folder that does not exist, or is empty.
      batch_size: pictures of one size at a time; None: about a megapixel of them.
      save_every: images between two savings.
      force: decode tokens of a model with another fingerprint all the same.
      say: prints one line.

    Returns:
      The images' paths, in the order of the tokens.

    Raises:
      DataError: tokens of another model, or such as it does not have; the folder is not empty; an
        unfinished job of another request is in the way.
    """
    _check_numbers(batch_size, save_every)
    _check_tokens(tokenizer, tokens, force)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output} exists and is not an empty folder; choose another output")
    content = _digest(
        tokens.flat, tokens.grids, tokens.sizes, "\0".join(tokens.names).encode("utf-8", "replace")
    )
    job = tokens.metadata | {
        "decoded_by": tokenizer.fingerprint,
        "tokens": content,
        "batch_size": batch_size,
        "save_every": save_every,
    }
    folder = _start(output, "tokens.json", job)
    paths = _file_names(tokens.names)
    units = _units(len(paths), save_every)
    left = [unit for unit in units if not all((folder / paths[i]).exists() for i in unit)]
    with _progress("decoded", left, len(paths), say) as progress:
        for unit in left:
            for index, image in _decode_unit(tokenizer, tokens, unit, batch_size):
                picture = image[..., 0] if image.shape[-1] == 1 else image
                figures.save_png(folder / paths[index], picture)
                progress.update()
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        output.rmdir()  # refuses, should it hold anything by now
    folder.rename(output)
    say(f"images    {output}: {len(paths)}")
    for path in paths[:_NAMED]:
        say(f"          {output / path}")
    return [output / path for path in paths]


# --- Units --------------------------------------------------------------------------------------


def _encode_unit(
    tokenizer: Tokenizer,
    source: Source,
    indices: range,
    how: tiles.Fit,
    image_size: int | None,
    batch_size: int | None,
    progress: "tqdm[Any]",
) -> files.Tokens:
    skipped: dict[str, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    grids: dict[int, np.ndarray] = {}
    factor = tokenizer.config.downsampling

    def read(index: int) -> tiles.Fitted | DataError:
        try:
            return tiles.fit(source[index], how, factor, image_size)
        except (UnreadableImage, TooSmallImage) as error:
            return error

    def pictures() -> Iterator[tuple[Key, np.ndarray]]:
        for index, fitted in ahead(read, indices):
            progress.update()
            if isinstance(fitted, DataError):
                skipped[source.name(index)] = str(fitted)
                continue
            pieces, sizes[index] = fitted
            rows, columns, height, width = pieces.shape[:4]
            grids[index] = np.zeros((rows, columns, height // factor, width // factor), np.int32)
            for row, column in np.ndindex(rows, columns):
                yield (index, row, column), pieces[row, column]

    # On a device, where their range is not suspected: these are the bytes of files.
    results = apply(lambda rows: tokenizer.encode(jnp.asarray(rows)), pictures(), batch_size, 1)
    for (index, row, column), tokens in results:
        grids[index][row, column] = tokens
    return files.from_grids(
        [tiles.join(grids[i]) for i in sorted(grids)],
        [sizes[i] for i in sorted(grids)],
        [source.name(i) for i in sorted(grids)],
        {"vocab_size": tokenizer.config.vocab_size, "skipped": skipped},
    )


def _decode_unit(
    tokenizer: Tokenizer, tokens: files.Tokens, indices: range, batch_size: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Images uint8 [H, W, C] by their index, in whatever order they become complete."""
    tile, pixels = _tile(tokens), tokenizer.config.downsampling**2
    missing: dict[int, int] = {}
    images: dict[int, np.ndarray] = {}

    def grids() -> Iterator[tuple[Key, np.ndarray]]:
        for index in indices:
            grid = tiles.split(tokens[index].astype(np.int32), tile)
            missing[index] = grid.shape[0] * grid.shape[1]
            for row, column in np.ndindex(grid.shape[:2]):
                yield (index, row, column), grid[row, column]

    results = apply(lambda rows: tokenizer.decode(rows, "uint8"), grids(), batch_size, pixels)
    for (index, row, column), image in results:
        if index not in images:
            shape = tiles.split(tokens[index], tile).shape[:2]
            images[index] = np.zeros((*shape, *image.shape), np.uint8)
        images[index][row, column] = image
        missing[index] -= 1
        if not missing[index]:
            height, width = tokens.sizes[index].tolist()
            yield index, tiles.join(images.pop(index), (height, width))


def _units(count: int, save_every: int) -> list[range]:
    every = range(count)
    return [every[start : start + save_every] for start in every[::save_every]]


def _progress(verb: str, left: Collection[range], total: int, say: Say) -> "tqdm[Any]":
    """A bar on a terminal, none elsewhere."""
    done = total - sum(map(len, left))
    if done:
        say(f"resuming  at image {done} of {total}")
    return tqdm(total=total, initial=done, desc=verb, unit="image", disable=None)


# --- Requests -----------------------------------------------------------------------------------


def _check_numbers(batch_size: int | None, save_every: int) -> None:
    for name, value in (("batch_size", batch_size), ("save_every", save_every)):
        if value is not None and value < 1:
            raise DataError(f"{name} must be 1 or more, got {value}")


def _check_tokens(tokenizer: Tokenizer, tokens: files.Tokens, force: bool) -> None:
    metadata, config = tokens.metadata, tokenizer.config
    if not len(tokens):
        raise DataError("the file holds no image")
    if metadata.get("format") != _FORMAT:
        raise DataError(f"the tokens' format is {metadata.get('format')!r}, not {_FORMAT!r}")
    for name in ("model", "vocab_size", "downsampling", "channels", "fit", "image_size"):
        if name not in metadata:
            raise DataError(f"the tokens' metadata lack {name}")
    if metadata["model"] != tokenizer.fingerprint and not force:
        raise DataError(
            f"the tokens are of model {metadata['model']}, not {tokenizer.fingerprint}: name the "
            "model that made them, or --force"
        )
    for name in ("downsampling", "channels"):
        if metadata[name] != getattr(config, name):
            raise DataError(
                f"the tokens are of a model with {name} {metadata[name]}, this one has "
                f"{getattr(config, name)}"
            )
    low, high = int(tokens.flat.min()), int(tokens.flat.max())
    if low < 0 or high >= config.vocab_size:
        raise DataError(f"tokens must lie in [0, {config.vocab_size}), got {low} to {high}")
    if (tokens.sizes > tokens.grids * config.downsampling).any():
        raise DataError("an image is said to be larger than its tokens")
    tile = _tile(tokens)
    if tile is not None and (tokens.grids % tile).any():
        raise DataError(f"tiles of {tile[0]} x {tile[1]} tokens do not divide every grid")


def _tile(tokens: files.Tokens) -> tuple[int, int] | None:
    if tokens.metadata["fit"] != "tile":
        return None
    side = tokens.metadata["image_size"] // tokens.metadata["downsampling"]
    return (side, side)


def _public(spec: str) -> str:
    # Files of tokens are passed on, and where a folder stands is nobody else's business.
    kind, _, place = spec.partition(":")
    return f"folder:{Path(place).name}" if kind == "folder" else spec


def _start(output: Path, name: str, job: dict[str, Any]) -> Path:
    """The folder of an unfinished job: a new one, or one that is there for the same request.

    Its file `name` holds the request.
    """
    folder = output.with_name(output.name + ".part")
    path, temporary = folder / name, folder / f"{name}.new"
    if folder.exists() and not (
        folder.is_dir() and (path.exists() or {*folder.iterdir()} <= {temporary})
    ):
        raise DataError(f"{folder} is in the way and holds no unfinished job: move it away")
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            keys = [key for key in job | before if key != "skipped"]
            lines = [
                f"{key}: {before.get(key)} there, {job.get(key)} here"
                for key in keys
                if before.get(key) != job.get(key)
            ]
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        if lines:
            raise DataError(
                f"{folder} holds an unfinished job of another request ({'; '.join(lines)}): give "
                "the same options to go on, choose another output, or delete it"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    return folder


def _digest(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _write_whole(path: Path, parts: Iterable[files.Tokens], metadata: dict[str, Any]) -> None:
    """Writes a file that is there complete or not at all."""
    temporary = path.with_name(f"new{path.suffix}")
    temporary.unlink(missing_ok=True)
    files.write(temporary, parts, metadata)
    os.replace(temporary, path)


def _file_names(names: Iterable[str]) -> list[Path]:
    """A path below a folder for each name: plain characters only, no two alike in any case."""
    paths: list[Path] = []
    taken: set[str] = set()
    for name in names:
        words = [word for word in re.split(r"[/\\]", name) if word.strip(". ")]
        if re.match(r"[/\\]|[A-Za-z]:", name):  # absolute: its folders are another machine's
            words = words[-1:]
        words = [re.sub(r"[^\w. -]|^\.", "_", word)[-120:] for word in words] or ["image"]
        last = Path(words[-1])
        stem = last.stem if last.suffix.lower() in EXTENSIONS else last.name
        numbered = (f"{stem}_{number}" if number else stem for number in itertools.count())
        path = next(
            path
            for path in (Path(*words[:-1], f"{name}.png") for name in numbered)
            if path.as_posix().lower() not in taken
        )
        taken.add(path.as_posix().lower())
        paths.append(path)
    return paths
