"""The error of every file of weights that cannot be used, and how its message shows names."""

from collections.abc import Sequence
from typing import Any


class WeightsError(ValueError):
    """A file of weights that cannot be used; one clear line, naming the file."""


def shown(value: Any) -> str:
    """A value from a file for an error message: short, printable and on one line.

    Example:
      >>> shown("os.system"), shown("two\\nlines"), shown({})
      ("'os.system'", "'two\\\\nlines'", 'a dict')
    """
    # Only strings are printed: the text of a nested value can be exponentially long.
    if not isinstance(value, str):
        return f"a {type(value).__name__}"
    return ascii(value if len(value) <= 100 else value[:100] + "...")


def listed(names: Sequence[str]) -> str:
    """Names for an error message, the first few of them.

    Example:
      >>> listed(["a", "b", "c", "d", "e"])
      "'a', 'b', 'c' and 2 more"
    """
    text = ", ".join(shown(name) for name in names[:3])
    return text if len(names) <= 3 else f"{text} and {len(names) - 3} more"
