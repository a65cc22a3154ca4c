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
    batches = in_batches(items, batch_size, pixels_per_value)
    begun = ((keys, function(rows)) for keys, rows in batches)
    for keys, results in _later(begun, _IN_FLIGHT):
        yield from zip(keys, np.asarray(results), strict=False)


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
    waiting: dict[tuple[int, ...], list[tuple[Key, np.ndarray]]] = collections.defaultdict(list)

    def full(shape: tuple[int, ...]) -> int:
        return batch_size or max(1, _BATCH_PIXELS // (shape[0] * shape[1] * pixels_per_value))

    def held(shape: tuple[int, ...]) -> int:
        return len(waiting[shape]) * waiting[shape][0][1].nbytes

    def batch(shape: tuple[int, ...]) -> tuple[list[Key], np.ndarray]:
        keys, arrays = zip(*waiting.pop(shape), strict=True)
        count = min(full(shape), 1 << (len(keys) - 1).bit_length())
        rows = np.zeros((count, *shape), arrays[0].dtype)
        rows[: len(keys)] = arrays
        return list(keys), rows

    for key, array in items:
        waiting[array.shape].append((key, array))
        if len(waiting[array.shape]) == full(array.shape):
            yield batch(array.shape)
        elif sum(map(held, waiting)) > _WAITING_BYTES:
            yield batch(max(waiting, key=held))
    for shape in list(waiting):
        yield batch(shape)


def ahead(read: Callable[[int], T], indices: range) -> Iterator[tuple[int, T]]:
    """`read` of every index, in order, by threads that are a few ahead.

    Example:
      >>> list(ahead(lambda i: i * i, range(3, 6)))
      [(3, 9), (4, 16), (5, 25)]
    """
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    try:
        begun = ((index, pool.submit(read, index)) for index in indices)
        for index, future in _later(begun, 2 * _THREADS):
            yield index, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _later(items: Iterable[T], count: int) -> Iterator[T]:
    """The items, each of them after `count` more have been taken."""
    waiting: collections.deque[T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()
