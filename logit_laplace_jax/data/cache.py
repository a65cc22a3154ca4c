"""A cache of decoded images, bounded by bytes and shared by threads."""

import threading
from collections import OrderedDict

import numpy as np


class ImageCache:
    """Keeps the most recently used arrays, up to `max_bytes` in all.

    Args:
        max_bytes: the bound. 0 keeps nothing. An array larger than the bound is never kept.

    Example:
        >>> cache = ImageCache(max_bytes=8)
        >>> for key in range(3):
        ...     cache.put(key, np.zeros(4, np.uint8))
        >>> [cache.get(key) is not None for key in range(3)]
        [False, True, True]
    """

    def __init__(self, max_bytes: int):
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, key: int) -> np.ndarray | None:
        """The array under `key`, which becomes the most recently used one, or None."""
        with self._lock:
            array = self._items.get(key)
            if array is not None:
                self._items.move_to_end(key)
            return array

    def put(self, key: int, array: np.ndarray) -> None:
        """Keeps `array` under `key`, dropping the least recently used ones to make room."""
        if array.nbytes > self._max_bytes:
            return
        with self._lock:
            if key in self._items:  # Two threads decoded the same image at once.
                return
            self._items[key] = array
            self._bytes += array.nbytes
            while self._bytes > self._max_bytes:
                _, dropped = self._items.popitem(last=False)
                self._bytes -= dropped.nbytes
