"""The images that could not be used: each is named once, counted, and never tried again."""

import logging
import sys
import threading

from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.data.sources import Source

_NAMED_IN_LOG = 20
"""So many skipped images are named in the log; the others are only counted."""


class Skipped:
    """The images of one source that could not be used, with the reason of each; thread safe.

    Args:
        source: the source.
        wanted: the first so many images are wanted; when none of them is left, that is an error.
            None where this process does not see all of them.
    """

    def __init__(self, source: Source, wanted: int | None):
        self._source = source
        self._wanted = wanted
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def add(self, index: int, error: DataError) -> None:
        """Counts image `index`, and names it in the log when it is new.

        Raises:
            DataError: no image is left.
        """
        with self._lock:
            if index not in self._reasons:
                # Millions of them have few reasons: one copy of each.
                self._reasons[index] = sys.intern(str(error))
                logger, count = logging.getLogger(__name__), len(self._reasons)
                if count <= _NAMED_IN_LOG:
                    logger.warning("skipped %s: %s", self._source.name(index), error)
                if count == _NAMED_IN_LOG:
                    logger.warning(
                        "further skipped images of %s are only counted", self._source.spec
                    )
        self.check()

    def check(self) -> None:
        """Raises a DataError when no image is left."""
        if self._wanted is not None and len(self._reasons) >= self._wanted:
            first = "" if self._wanted == len(self._source) else "first "
            raise self.none_of(f"none of the {first}{self._wanted} images of")

    def none_of(self, which: str) -> DataError:
        """The error that none can be used, with an example; `which` is how it begins."""
        example = next((f"; {name}: {reason}" for name, reason in self.as_dict().items()), "")
        return DataError(f"{which} {self._source.spec} ({self._source.split}) can be used{example}")

    def as_dict(self) -> dict[str, str]:
        """Name to reason, in the order of the source."""
        with self._lock:
            reasons = sorted(self._reasons.items())
        return {self._source.name(index): reason for index, reason in reasons}
