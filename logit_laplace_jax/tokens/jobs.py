"""Many images to a file of tokens, and back: in batches, resumable, to the same bytes.

What is unfinished stands in a folder beside the output, named like it with `.part` at the end. It
holds `job.json`, the request, and what is done, in units of `save_every` images. A unit's batches
do not depend on what came before it, so a job that was killed, and started again with the same
request, gives the bytes of one that was not, on the same device.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
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
from logit_laplace_jax.tokens import files as token_files
from logit_laplace_jax.tokens import tiles as token_fit
from logit_laplace_jax.tokens.batches import Key, ahead, apply
from logit_laplace_jax.tokens.tokenizer import Tokenizer

_FORMAT = "logit_laplace_jax tokens 1"
_JOB = "job.json"
_DECODED = "tokens.json"
_NAMED_IN_LOG = 20

Say = Callable[[str], None]

_NAMED = 8
"""At most so many of the decoded images are named."""


def encode(
    tokenizer: Tokenizer,
    source: Source,
    output: Path,
    *,
    how: token_fit.Fit = "crop",
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
      output: a new `.npz` or `.array_record` (see `data.token_files`).
      how: what is done to images of other sizes (see `data.token_fit.fit`).
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
    token_files.check_ending(output)
    token_fit.check_options(how, config.downsampling, image_size)
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
    folder = _part_folder(output)
    _start(folder, job)
    units = [
        (folder / f"{start:010d}.npz", range(start, min(start + save_every, len(names))))
        for start in range(0, len(names), save_every)
    ]
    say(f"images    {source.spec}: {len(names)}")
    done = sum(len(indices) for path, indices in units if path.exists())
    progress = _progress("encoded", done, len(names), say)
    named = 0
    for path, indices in units:
        if path.exists():
            continue
        part = _encode_unit(tokenizer, source, indices, how, image_size, batch_size, progress)
        for name, reason in part.metadata["skipped"].items():
            named += 1
            if named <= _NAMED_IN_LOG:
                logging.getLogger(__name__).warning("skipped %s: %s", name, reason)
        _write_whole(path, [part], part.metadata)
    progress.close()
    images, skipped, counts = _totals((path for path, _ in units), config.vocab_size)
    if not images:
        shutil.rmtree(folder)
        name, reason = next(iter(skipped.items()))
        raise DataError(
            f"none of the {len(names)} images of {source.spec} can be used; {name}: {reason}"
        )
    metadata["skipped"] = skipped
    whole = folder / f"whole{output.suffix}"
    _write_whole(whole, (token_files.read(path) for path, _ in units), metadata)
    if output.exists():
        raise DataError(f"{output} exists by now; the tokens are in {whole}")
    whole.replace(output)
    shutil.rmtree(folder)
    say(
        f"tokens    {output}: {images} images, {counts.sum():,} tokens, "
        f"{np.count_nonzero(counts)} of {config.vocab_size} codes in use"
    )
    if skipped:
        name, reason = next(iter(skipped.items()))
        say(f"skipped   {len(names) - images} of {len(names)} images, such as {name}: {reason}")
    return metadata


def decode(
    tokenizer: Tokenizer,
    tokens: token_files.Tokens,
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
    folder = _part_folder(output)
    _start(folder, job, _DECODED)
    paths = _file_names(tokens.names)
    units = [
        range(start, min(start + save_every, len(paths)))
        for start in range(0, len(paths), save_every)
    ]
    left = [part for part in units if not all((folder / paths[i]).exists() for i in part)]
    progress = _progress("decoded", len(paths) - sum(map(len, left)), len(paths), say)
    for indices in left:
        for index, image in _decode_unit(tokenizer, tokens, indices, batch_size):
            picture = image[..., 0] if image.shape[-1] == 1 else image
            figures.save_png(folder / paths[index], picture)
            progress.update()
    progress.close()
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
    how: token_fit.Fit,
    image_size: int | None,
    batch_size: int | None,
    progress: "tqdm[Any]",
) -> token_files.Tokens:
    skipped: dict[str, str] = {}
    sizes: dict[int, tuple[int, int]] = {}
    grids: dict[int, np.ndarray] = {}
    factor = tokenizer.config.downsampling

    def read(index: int) -> token_fit.Fitted | DataError:
        try:
            return token_fit.fit(source[index], how, factor, image_size)
        except (UnreadableImage, TooSmallImage) as error:
            return error

    def pictures() -> Iterator[tuple[Key, np.ndarray]]:
        for index, fitted in ahead(read, indices):
            progress.update()
            if isinstance(fitted, DataError):
                skipped[source.name(index)] = str(fitted)
                continue
            rows, columns, height, width = fitted.pieces.shape[:4]
            sizes[index] = fitted.size
            shape = (rows, columns, height // factor, width // factor)
            grids[index] = np.zeros(shape, np.int32)
            for row in range(rows):
                for column in range(columns):
                    yield (index, row, column), fitted.pieces[row, column]

    # On a device, where their range is not suspected: these are the bytes of files.
    results = apply(lambda rows: tokenizer.encode(jnp.asarray(rows)), pictures(), batch_size, 1)
    for (index, row, column), tokens in results:
        grids[index][row, column] = tokens
    used = sorted(grids)
    return token_files.from_grids(
        [token_fit.join(grids[i]) for i in used],
        [sizes[i] for i in used],
        [source.name(i) for i in used],
        {"vocab_size": tokenizer.config.vocab_size, "skipped": skipped},
    )


def _decode_unit(
    tokenizer: Tokenizer, tokens: token_files.Tokens, indices: range, batch_size: int | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Images uint8 [H, W, C] by their index, in whatever order they become complete."""
    tile = _tile(tokens)
    unfinished: dict[int, tuple[int, np.ndarray]] = {}

    def pieces() -> Iterator[tuple[Key, np.ndarray]]:
        for index in indices:
            grid = token_fit.split(tokens[index].astype(np.int32), tile)
            for row, column in np.ndindex(grid.shape[:2]):
                yield (index, row, column), grid[row, column]

    pixels_per_token = tokenizer.config.downsampling**2
    results = apply(
        lambda rows: tokenizer.decode(rows, "uint8"), pieces(), batch_size, pixels_per_token
    )
    for (index, row, column), image in results:
        if index not in unfinished:
            shape = token_fit.split(tokens[index], tile).shape[:2]
            unfinished[index] = (0, np.zeros((*shape, *image.shape), np.uint8))
        done, whole = unfinished[index]
        whole[row, column] = image
        unfinished[index] = (done + 1, whole)
        if done + 1 == whole.shape[0] * whole.shape[1]:
            del unfinished[index]
            height, width = tokens.sizes[index].tolist()
            yield index, token_fit.join(whole, (height, width))


# --- Requests -----------------------------------------------------------------------------------


def _check_numbers(batch_size: int | None, save_every: int) -> None:
    for name, value in (("batch_size", batch_size), ("save_every", save_every)):
        if value is not None and value < 1:
            raise DataError(f"{name} must be 1 or more, got {value}")


def _check_tokens(tokenizer: Tokenizer, tokens: token_files.Tokens, force: bool) -> None:
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


def _tile(tokens: token_files.Tokens) -> tuple[int, int] | None:
    if tokens.metadata["fit"] != "tile":
        return None
    side = tokens.metadata["image_size"] // tokens.metadata["downsampling"]
    return (side, side)


def _public(spec: str) -> str:
    # Files of tokens are passed on, and where a folder stands is nobody else's business.
    kind, _, place = spec.partition(":")
    return f"folder:{Path(place).name}" if kind == "folder" else spec


def _part_folder(output: Path) -> Path:
    return output.with_name(output.name + ".part")


def _start(folder: Path, job: dict[str, Any], name: str = _JOB) -> None:
    """Makes the folder of an unfinished job, or sees that the one there is of the same request."""
    path = folder / name
    temporary = path.with_name(f"{name}.new")
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
        return
    folder.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _digest(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _write_whole(path: Path, parts: Iterable[token_files.Tokens], metadata: dict[str, Any]) -> None:
    """Writes a file that is there complete or not at all."""
    temporary = path.with_name(f"new{path.suffix}")
    temporary.unlink(missing_ok=True)
    token_files.write(temporary, parts, metadata)
    os.replace(temporary, path)


def _totals(paths: Iterable[Path], vocab_size: int) -> tuple[int, dict[str, str], np.ndarray]:
    """The number of images, what was skipped, and how often each code occurs."""
    images = 0
    skipped: dict[str, str] = {}
    counts = np.zeros(vocab_size, np.int64)
    for path in paths:
        part = token_files.read(path)
        images += len(part)
        skipped |= part.metadata["skipped"]
        counts += np.bincount(part.flat, minlength=vocab_size)
    return images, skipped, counts


def _file_names(names: Iterable[str]) -> list[Path]:
    """A path below a folder for each name: plain characters only, no two alike in any case."""
    paths: list[Path] = []
    taken: set[str] = set()
    for name in names:
        words = [word for word in re.split(r"[/\\]", name) if word.strip(". ")]
        if re.match(r"[/\\]|[A-Za-z]:", name):  # absolute: its folders are another machine's
            words = words[-1:]
        words = [re.sub(r"[^\w. -]|^\.", "_", word)[-120:] for word in words] or ["image"]
        stem, dot, ending = words[-1].rpartition(".")
        if not stem or f"{dot}{ending}".lower() not in EXTENSIONS:
            stem = words[-1]
        number = 0
        while True:
            path = Path(*words[:-1], f"{stem}{f'_{number}' if number else ''}.png")
            if path.as_posix().lower() not in taken:
                break
            number += 1
        taken.add(path.as_posix().lower())
        paths.append(path)
    return paths


def _progress(verb: str, done: int, total: int, say: Say) -> "tqdm[Any]":
    """A bar on a terminal, none elsewhere."""
    if done:
        say(f"resuming  at image {done} of {total}")
    return tqdm(total=total, initial=done, desc=verb, unit="image", disable=None)
