"""The errors of the data package: each is one clear line for the person at the keyboard."""


class DataError(ValueError):
    """Something is wrong with the data that was asked for.

    The message is one line that says what is wrong and what to do. The scripts print it and exit
    with status 2.
    """


class UnreadableImage(DataError):
    """The bytes of one image cannot be turned into pixels; the message is the reason."""


class TooSmallImage(DataError):
    """One image is smaller than the crop asked for; the message gives both sizes."""


def missing_package(package: str, extra: str = "experiments") -> DataError:
    """The error for an optional package that is not installed.

    Args:
        package: the name of the package as pip knows it.
        extra: the extra of this project that brings it.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(missing_package("grain"))
        the package grain is not installed: run  pip install -e '.[experiments]'
    """
    return DataError(f"the package {package} is not installed: run  pip install -e '.[{extra}]'")


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters: its text, or its type if it has none.

    Example:
        >>> one_line(OSError("disk full\\nsecond line"))
        'disk full second line'
    """
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
