"""Files of tokens: every image's grid, its name and size, and which model the tokens are of.

Two formats, by the file's ending, with the same content:

`.npz` (NumPy, compressed; read it with `np.load(path, allow_pickle=False)`), for M images:

* `tokens` [N]: int16 where all codes fit (vocabularies up to 32,768), else int32; the grids one
  after the other, each row by row;
* `offsets` int64 [M + 1]: grid i is `tokens[offsets[i]:offsets[i + 1]].reshape(grids[i])`;
* `grids` int32 [M, 2]: rows and columns of each grid;
* `sizes` int32 [M, 2]: height and width in pixels of each image as decoding gives it: what is
  beyond, below and to the right, is padding;
* `names` bytes [M]: UTF-8, at most 65,535 bytes each;
* `metadata`: one string of JSON, the same for all images; see
  `logit_laplace_jax.tokens.jobs.encode`.

`.array_record` (ArrayRecord, `group_size:1`, so that every image can be read alone): record i is
image i: one line of JSON, a newline, the grid as little-endian integers row by row. The line holds
`name`, `grid`, `size` and `dtype` (`<i2` or `<i4`), and beside them the metadata, except `skipped`.
`parse_record` reads one.

In a tiled image (`fit` is `tile`) the grids of the tiles stand in their places in one grid: each
square of `image_size / downsampling` tokens a side is a tile, to be decoded on its own.
"""

import dataclasses
import functools
import json
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logit_laplace_jax.data.errors import DataError, missing_package, one_line

ENDINGS = (".npz", ".array_record")
"""The formats."""

_INT16_CODES = 2**15
_KEYS = ("tokens", "offsets", "grids", "sizes", "names", "metadata")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The content of a file of tokens, in memory: a sequence of grids.

    Args:
        flat: int16 or int32 [N], all grids one after the other.
        grids: int32 [M, 2], rows and columns of each.
        sizes: int32 [M, 2], height and width of each decoded image.
        names: M names.
        metadata: plain JSON values.

    Example:
        >>> tokens = from_grids([np.array([[1, 2, 3]])], [(4, 11)], ["a.png"], {"vocab_size": 8})
        >>> len(tokens), tokens[0].tolist(), tokens[0].dtype.name, tokens.names[0]
        (1, [[1, 2, 3]], 'int16', 'a.png')
    """

    flat: np.ndarray
    grids: np.ndarray
    sizes: np.ndarray
    names: tuple[str, ...]
    metadata: dict[str, Any]

    @functools.cached_property
    def offsets(self) -> np.ndarray:
        """int64 [M + 1]: where each grid begins, and the end."""
        lengths = self.grids.astype(np.int64).prod(axis=1)
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """Grid `index`: [h, w], of the file's dtype.

        Raises:
            IndexError: `index` is outside 0…len−1.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start, stop = self.offsets[index : index + 2]
        return self.flat[start:stop].reshape(self.grids[index])


def from_grids(
    grids: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]],
    names: Sequence[str],
    metadata: dict[str, Any],
) -> Tokens:
    """Puts grids of tokens together.

    Args:
        grids: integers [h, w] each, in 0 … vocab_size - 1.
        sizes: (height, width) of each decoded image.
        names: one each.
        metadata: plain JSON values, `vocab_size` among them.

    Example:
        >>> tokens = from_grids([np.zeros((2, 2), int)], [(8, 8)], ["a"], {"vocab_size": 70_000})
        >>> tokens.flat
        array([0, 0, 0, 0], dtype=int32)
    """
    dtype = np.int16 if metadata["vocab_size"] <= _INT16_CODES else np.int32
    return Tokens(
        flat=np.concatenate([np.zeros(0, dtype), *(g.astype(dtype).ravel() for g in grids)]),
        grids=np.array([g.shape for g in grids], np.int32).reshape(-1, 2),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        names=tuple(names),
        metadata=metadata,
    )


# --- Writing ------------------------------------------------------------------------------------


def check_ending(path: Path) -> None:
    """Refuses a file name whose ending is no format.

    Raises:
        DataError: it is not one of `ENDINGS`.
    """
    if path.suffix not in ENDINGS:
        raise DataError(f"{path}: tokens are written as {' or '.join(ENDINGS)}")


def write(path: Path, parts: Iterable[Tokens], metadata: dict[str, Any]) -> None:
    """Writes a file of tokens, in the format of its ending. Equal content gives equal bytes.

    Args:
        path: a new file; its folder exists.
        parts: the images; for `.array_record` only one part need fit into memory.
        metadata: of the whole; that of the parts is not used.

    Raises:
        DataError: another ending, or the package for it is missing.
        OSError: the file cannot be written.
    """
    check_ending(path)
    if path.suffix == ".npz":
        _write_npz(path, list(parts), metadata)
    else:
        _write_array_record(path, parts, metadata)


def _write_npz(path: Path, parts: list[Tokens], metadata: dict[str, Any]) -> None:
    whole = Tokens(
        flat=np.concatenate([part.flat for part in parts]),
        grids=np.concatenate([part.grids for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        names=tuple(name for part in parts for name in part.names),
        metadata=metadata,
    )
    names = [name.encode("utf-8", "backslashreplace")[:65_535] for name in whole.names]
    with path.open("wb") as file:
        np.savez_compressed(
            file,
            tokens=whole.flat,
            offsets=whole.offsets,
            grids=whole.grids,
            sizes=whole.sizes,
            names=np.array(names, np.bytes_),
            metadata=np.array(json.dumps(metadata)),
        )
        file.flush()
        os.fsync(file.fileno())


def _write_array_record(path: Path, parts: Iterable[Tokens], metadata: dict[str, Any]) -> None:
    shared = {key: value for key, value in metadata.items() if key != "skipped"}
    writer = _array_record().ArrayRecordWriter(str(path), "group_size:1")
    for part in parts:
        for i, (name, size) in enumerate(zip(part.names, part.sizes.tolist(), strict=True)):
            grid = part[i].astype(part.flat.dtype.newbyteorder("<"))
            header = {"name": name, "grid": grid.shape, "size": size, "dtype": grid.dtype.str}
            writer.write(json.dumps(header | shared).encode() + b"\n" + grid.tobytes())
    writer.close()


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise missing_package("array-record") from error
    return array_record_module


# --- Reading ------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Tokens:
    """Reads a file of tokens of either format into memory, and checks that it is whole.

    Args:
        path: `.npz` or `.array_record`.

    Raises:
        DataError: missing, damaged, or no file of tokens; one line.

    Example:
        >>> import tempfile
        >>> metadata = {"vocab_size": 8, "eps": 0.1}
        >>> tokens = from_grids([np.array([[1, 7]])], [(4, 8)], ["a.png"], metadata)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(Path(folder, "tokens.npz"), [tokens], metadata)
        ...     again = read(Path(folder, "tokens.npz"))
        >>> again[0].tolist(), again.sizes.tolist(), again.names, again.metadata["eps"]
        ([[1, 7]], [[4, 8]], ('a.png',), 0.1)
    """
    path = Path(path)
    check_ending(path)
    if not path.is_file():
        raise DataError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        tokens = _read_npz(path) if path.suffix == ".npz" else _read_array_record(path)
        _check(tokens)
    except DataError as error:
        raise DataError(f"{path} is no file of tokens: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path} is damaged, or no file of tokens: {one_line(error)}") from error
    return tokens


def parse_record(record: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    """One record of an `.array_record` file: the grid, integers [h, w], and its line of JSON.

    Raises:
        ValueError: it is not such a record.

    Example:
        >>> line = b'{"name": "a", "grid": [1, 2], "size": [4, 8], "dtype": "<i2"}'
        >>> grid, header = parse_record(line + b"\\n" + np.array([1, 7], "<i2").tobytes())
        >>> grid.tolist(), header["size"]
        ([[1, 7]], [4, 8])
    """
    line, newline, data = record.partition(b"\n")
    header = json.loads(line)
    if not newline or not isinstance(header, dict) or header.get("dtype") not in ("<i2", "<i4"):
        raise DataError("a record without its line of JSON")
    return np.frombuffer(data, header["dtype"]).reshape(header["grid"]), header


def _read_npz(path: Path) -> Tokens:
    # A file of our own: NumPy leaves a damaged one open.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
        for key in _KEYS:
            if key not in held:
                raise DataError(f"it holds no {key!r}")
        arrays = dict(held)
    tokens = Tokens(
        flat=arrays["tokens"],
        grids=arrays["grids"],
        sizes=arrays["sizes"],
        names=tuple(name.decode("utf-8") for name in arrays["names"].tolist()),
        metadata=json.loads(str(arrays["metadata"])),
    )
    if not np.array_equal(tokens.offsets, arrays["offsets"]):
        raise DataError("the offsets do not follow from the grids")
    return tokens


def _read_array_record(path: Path) -> Tokens:
    try:
        reader = _array_record().ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
    except (RuntimeError, IndexError) as error:  # what its C++ raises for a damaged file
        raise DataError(one_line(error)) from error
    if not records:
        raise DataError("it holds no record")
    grids, headers = zip(*map(parse_record, records), strict=True)
    own = ("name", "grid", "size", "dtype")
    return from_grids(
        grids,
        [header["size"] for header in headers],
        [header["name"] for header in headers],
        {key: value for key, value in headers[0].items() if key not in own},
    )


def _check(tokens: Tokens) -> None:
    count = len(tokens)
    if not isinstance(tokens.metadata, dict):
        raise DataError("the metadata are not a JSON object")
    if tokens.flat.dtype not in (np.int16, np.int32) or tokens.flat.ndim != 1:
        raise DataError(f"tokens are {tokens.flat.dtype}, not a row of int16 or int32")
    for name, array in (("grids", tokens.grids), ("sizes", tokens.sizes)):
        if array.shape != (count, 2) or (array < 1).any():
            raise DataError(f"the {name} are not {count} pairs of positive numbers")
    if tokens.offsets[-1] != tokens.flat.size:
        raise DataError(f"{tokens.flat.size} tokens, but grids of {tokens.offsets[-1]}")
