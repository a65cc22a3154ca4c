"""Libraries that are measured beside ours: loaded if installed, named as skipped if not."""

import importlib
from types import ModuleType


class Missing(Exception):
    """A library cannot be loaded; the message says why, in one line."""


def load(module: str) -> ModuleType:
    """Imports a library.

    Raises:
      Missing: it is not installed, or does not load beside what is.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or package).partition(".")[0]
        because = "" if missing == package else f" (it needs {missing})"
        raise Missing(f"{package} is not installed{because}") from None
    except Exception as error:  # releases that do not fit together fail in many ways
        raise Missing(f"{package} does not load: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """Kind and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
