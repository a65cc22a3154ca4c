"""Batches of pictures of many sizes, and reading ahead of them."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np

T = TypeVar("T")

Key = tuple[int, int, int]
"""A picture's place: image, row and column of the tile."""

_BATCH_PIXELS = 2**20
"""Pixels a batch where no batch size is given: 16 images of 256 x 256."""

_WAITING_BYTES = 2**28
"""Images that wait for others of their size take at most so much memory."""

_IN_FLIGHT = 2
_THREADS = 4


def apply(
    function: Callable[[np.ndarray], jax.Array],
    items: Iterable[tuple[Key, np.ndarray]],
    batch_size: int | None,
    pixels_per_value: int,
) -> Iterator[tuple[Key, np.ndarray]]:
    """`function` of every item, computed in batches while the next ones are read.

    Args:
      function: from arrays stacked [B, ...] to results [B, ...].
      items: keys and arrays [h, w, ...].
      batch_size: as of `in_batches`.
      pixels_per_value: as of `in_batches`.

    Returns:
      Keys and results, in the order in which batches become full.
    """
    waiting: collections.deque[tuple[list[Key], jax.Array]] = collections.deque()

    def first() -> Iterator[tuple[Key, np.ndarray]]:
        keys, results = waiting.popleft()
        yield from zip(keys, np.asarray(results), strict=False)

    for keys, rows in in_batches(items, batch_size, pixels_per_value):
        waiting.append((keys, function(rows)))
        if len(waiting) > _IN_FLIGHT:
            yield from first()
    while waiting:
        yield from first()


def in_batches(
    items: Iterable[tuple[Key, np.ndarray]], batch_size: int | None, pixels_per_value: int = 1
) -> Iterator[tuple[list[Key], np.ndarray]]:
    """Items of one shape together.

    Args:
      items: keys and arrays [h, w, ...].
      batch_size: rows of a full batch; None: about a megapixel of them.
      pixels_per_value: pixels that an entry of the h x w stands for.

    Returns:
      Keys and their arrays stacked. A batch that is not full is filled up with zeros to a power of
      two of rows, so that few shapes are compiled.

    Example:
      >>> items = [((i, 0, 0), np.zeros((2, width))) for i, width in enumerate((3, 4, 3, 3))]
      >>> for keys, rows in in_batches(items, 8):
      ...     print([key[0] for key in keys], rows.shape)
      [0, 2, 3] (4, 2, 3)
      [1] (1, 2, 4)
    """
    waiting: dict[tuple[int, ...], list[tuple[Key, np.ndarray]]] = {}
    held = 0

    def batch(shape: tuple[int, ...], full: int) -> tuple[list[Key], np.ndarray]:
        rows = waiting.pop(shape)
        count = min(full, 1 << (len(rows) - 1).bit_length())
        stacked = np.zeros((count, *shape), rows[0][1].dtype)
        stacked[: len(rows)] = [array for _, array in rows]
        return [key for key, _ in rows], stacked

    def full(shape: tuple[int, ...]) -> int:
        pixels = shape[0] * shape[1] * pixels_per_value
        return batch_size or max(1, _BATCH_PIXELS // pixels)

    for key, array in items:
        shape = array.shape
        waiting.setdefault(shape, []).append((key, array))
        held += array.nbytes
        if len(waiting[shape]) < full(shape):
            if held <= _WAITING_BYTES:
                continue
            shape = max(waiting, key=lambda s: sum(row.nbytes for _, row in waiting[s]))
        held -= sum(row.nbytes for _, row in waiting[shape])
        yield batch(shape, full(shape))
    for shape in list(waiting):
        yield batch(shape, full(shape))


def ahead(read: Callable[[int], T], indices: range) -> Iterator[tuple[int, T]]:
    """`read` of every index, in order, by threads that are a few ahead.

    Example:
      >>> list(ahead(lambda i: i * i, range(3, 6)))
      [(3, 9), (4, 16), (5, 25)]
    """
    coming: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        try:
            for position, index in enumerate(indices):
                while len(coming) < 2 * _THREADS and position + len(coming) < len(indices):
                    coming.append(pool.submit(read, indices[position + len(coming)]))
                yield index, coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()
