"""Every image of what a user names: files, a folder, or both splits of a data source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.data.sources import Source, open_source

Which = Literal["all", "train", "validation"]

_FORMS = "image files, a folder, photos, folder:PATH or tfds:NAME"


def open_images(
    names: Sequence[str],
    *,
    which: Which = "all",
    data_dir: str | None = None,
    channels: int = 3,
) -> Source:
    """Opens images for one pass over all of them, in a fixed order; nothing is cached.

    Args:
        names: image files; or one folder (the same as `folder:PATH`); or one specification of
            `sources.open_source`.
        which: a split of a folder or data source, or `all`: of a folder the images of both in the
            order of their names, of other sources `train` and then `validation`. Files have none.
        data_dir: where TFDS keeps its data sets.
        channels: 3 for RGB, 1 for grey.

    Returns:
        A source. Its images may prove unreadable; files that do not exist are refused here.

    Raises:
        DataError: nothing named, nothing there, or files mixed with folders and data sources.

    Example:
        >>> open_images(["no.png"])
        Traceback (most recent call last):
        ...
        logit_laplace_jax.data.errors.DataError: no.png does not exist: give image files, a folder,
        photos, folder:PATH or tfds:NAME
    """
    if which not in ("all", "train", "validation"):
        raise DataError(f"unknown split {which!r}: give all, train or validation")
    if not names:
        raise DataError(f"no images named: give {_FORMS}")
    options: dict[str, Any] = {"channels": channels, "cache_mib": 0}
    specs = [_specification(name) for name in names]
    if len(specs) == 1 and specs[0] is not None:
        options["data_dir"] = data_dir
        if which != "all":
            return open_source(specs[0], which, **options)
        return _both_splits(specs[0], options)
    for name, spec in zip(names, specs, strict=True):
        if spec is not None:
            raise DataError(f"{name} is a folder or data source: name it alone, or only files")
        if not Path(name).exists():
            raise DataError(f"{name} does not exist: give {_FORMS}")
    if which != "all":
        raise DataError(f"files have no split {which}: give a folder or data source for that")
    paths = [Path(name) for name in names]
    return Source(
        f"{len(names)} file{'s' * (len(names) > 1)}",
        "train",
        read=paths.__getitem__,
        name=lambda i: paths[i].as_posix(),
        count=len(names),
        **options,
    )


def _specification(name: str) -> str | None:
    """The data source that a word stands for, or None where it is a file's name."""
    if name == "photos" and Path(name).exists():
        raise DataError(
            "photos means the embedded photographs, but there is a folder of that name here: "
            "give ./photos for the folder"
        )
    if name == "photos" or name.startswith(("folder:", "tfds:")):
        return name
    return f"folder:{name}" if Path(name).expanduser().is_dir() else None


def _both_splits(spec: str, options: dict[str, Any]) -> Source:
    is_folder = spec.startswith("folder:")
    parts = [open_source(spec, "train", **options)]
    try:
        parts.append(open_source(spec, "validation", **options))
    except DataError:
        if not (is_folder and len(parts[0]) == 1):
            raise
        # A folder of one image has none to hold out.
    images = [(part, index) for part in parts for index in range(len(part))]
    if is_folder:
        images.sort(key=lambda image: image[0].name(image[1]))
    return Source(
        spec,
        "train",
        read=lambda i: images[i][0][images[i][1]],
        name=lambda i: images[i][0].name(images[i][1]),
        count=len(images),
        channels=parts[0].channels,
        cache_mib=0,
    )
