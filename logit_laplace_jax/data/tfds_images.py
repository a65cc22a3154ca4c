"""TFDS image data sets by name, read without TensorFlow.

TFDS reads array_record without TensorFlow, but preparing most of its data sets needs it, because
their image arrays are encoded by TensorFlow. What is missing is said before anything is downloaded.
"""

import contextlib
import difflib
import importlib.util
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from logit_laplace_jax.data.errors import DataError, missing_package, one_line

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise missing_package("tensorflow-datasets") from error

HELD_OUT = 0.05
"""Share at the end of `train` that is held out where a data set has no other split for it."""

_NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\w.*]+)?")

_REFUSALS = frozenset({"DownloadError", "NonMatchingChecksumError"})
"""TFDS's errors, by name, for what a server answers instead of the file. (Google Drive, which
answers many requests for large files with a page, has none of its own.)"""

_NETWORK = frozenset({"http", "requests", "socket", "ssl", "urllib", "urllib3"})
"""The packages whose errors mean that no server was reached."""

_PATIENCE_SECONDS = 15
"""How long a server may take to answer at all before anything is downloaded from it."""


def prepare(name: str, data_dir: str | None = None) -> Any:
    """The builder of a TFDS data set, prepared as array_record unless it is already.

    Args:
        name: `NAME[/CONFIG][:VERSION]`.
        data_dir: where TFDS keeps its data sets; None is TFDS's own default.

    Raises:
        DataError: no such name, no images in it, prepared in another file format, or it cannot be
            prepared here. The message says what to do.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"tfds:{name} is no data set's name: give tfds:NAME[/CONFIG][:VERSION]")
    builder = _find(name, data_dir)
    if not builder.data_path.exists():
        _check_image_feature(builder)  # Before a download that may take hours.
        _download_and_prepare(builder, name)
    return builder


def read_split(builder: Any, split: str, name_feature: str | None = None) -> dict[str, Any]:
    """Random access to the images of one split of a prepared data set.

    Args:
        builder: a prepared TFDS builder with a feature `image`.
        split: `train` or `validation`; see `HELD_OUT`.
        name_feature: the text feature that names an image; None: its number does.

    Returns:
        `read`, `name` and `count` of `sources.Source`; with a feature `label` also `label` and
        `classes`.

    Raises:
        DataError: no such split, no images, or a file format that needs TensorFlow.
    """
    _check_image_feature(builder)
    records, chosen, start, stop = _records(builder, split)
    features = builder.info.features

    def decoder(feature: str, **decoders: Any) -> Callable[[int], Any]:
        one = tfds.features.FeaturesDict({feature: features[feature]})
        return lambda i: one.deserialize_example_np(records[start + i], decoders=decoders)[feature]

    named = decoder(name_feature) if name_feature else None

    def name(i: int) -> str:
        if named is not None:
            with contextlib.suppress(Exception):  # A broken record.
                return str(named(i).decode())
        return f"{builder.info.full_name}/{chosen}[{start + i}]"

    # A plain tensor has no encoding to skip, only its shape to restore.
    is_image = isinstance(features["image"], tfds.features.Image)
    skip = {"image": tfds.decode.SkipDecoding()} if is_image else {}
    parts = {"read": decoder("image", **skip), "name": name, "count": stop - start}
    classes = dict(features.items()).get("label")
    if isinstance(classes, tfds.features.ClassLabel):
        number = decoder("label")
        parts["label"] = lambda i: classes.int2str(int(number(i)))
        parts["classes"] = list(classes.names)
    return parts


def _records(builder: Any, split: str) -> tuple[Any, str, int, int]:
    """The raw records, the name of TFDS's split, and the part of it that belongs to `split`."""
    label = builder.info.full_name
    available = builder.info.splits
    if "train" not in available:
        known = ", ".join(sorted(available)) or "none"
        raise DataError(f"tfds:{label} has no split train (its splits: {known})")
    held_out = next((s for s in ("validation", "test") if s in available), None)
    chosen = held_out if split == "validation" and held_out else "train"
    try:
        # The raw records, because TFDS would decode every feature of an example, and the image
        # itself by its own rules: `read_split` takes the image's bytes alone.
        records = builder.as_data_source(
            chosen, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
    except NotImplementedError as error:
        raise DataError(
            f"tfds:{label} is prepared as {builder.info.file_format.value} in "
            f"{builder.data_path}, which cannot be read without TensorFlow: "
            "choose another data_dir, or delete that folder to have it prepared as array_record"
        ) from error
    except Exception as error:
        raise DataError(f"tfds:{label} cannot be opened: {one_line(error)}") from error
    start, stop = 0, len(records)
    if held_out is None:
        boundary = stop - max(1, int(stop * HELD_OUT))
        start, stop = (boundary, stop) if split == "validation" else (0, boundary)
    if stop <= start:
        raise DataError(f"tfds:{label} has no image left for the split {split}")
    return records, chosen, start, stop


def _find(name: str, data_dir: str | None) -> Any:
    try:
        # TFDS prints banners about TensorFlow while it looks; the error below says it better.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            # No file_format here: TFDS would refuse data prepared in another one with a message
            # that does not say what to do.
            builder = tfds.builder(name, data_dir=data_dir)
            _ = builder.info.features  # Built on first use, which may need another package.
            return builder
    except tfds.core.registered.DatasetNotFoundError as error:
        # Community data sets are left out: listing them needs TensorFlow and the network.
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(re.split("[/:]", name)[0], known)
        hint = f"did you mean {' or '.join(close)}?" if close else "see tfds.list_builders()"
        raise DataError(f"no TFDS data set is called {name!r}: {hint}") from error
    except ImportError as error:
        raise _needs_package(name, error) from error
    except Exception as error:
        raise DataError(f"tfds:{name} cannot be opened: {one_line(_chain(error)[-1])}") from error


def _check_image_feature(builder: Any) -> None:
    """Raises a DataError unless a feature `image` holds images, or arrays of their shape."""
    features, label = builder.info.features, builder.info.full_name
    if features is None or "image" not in features:
        names = ", ".join(features or ()) or "none"
        raise DataError(f"tfds:{label} has no feature image (its features: {names})")
    image = features["image"]
    if isinstance(image, tfds.features.Image):
        supported = image.np_dtype in (np.uint8, np.uint16)
    else:
        is_tensor = type(image) is tfds.features.Tensor and len(image.shape) == 3
        supported = is_tensor and image.np_dtype == np.uint8
    if not supported:
        raise DataError(
            f"the feature image of tfds:{label} is {one_line(ValueError(repr(image)))}: "
            "only 8-bit and 16-bit images are supported"
        )


def _download_and_prepare(builder: Any, name: str) -> None:
    _check_tensorflow(builder, name)
    try:
        _check_network(builder)
        # Downloads may take hours, so TFDS keeps its progress bars; what it prints beside them
        # goes to stderr too, because scripts write their results to stdout.
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:
        if builder.data_path.exists():  # Another process prepared it meanwhile.
            return
        raise _not_prepared(builder, name, error) from error


def _check_network(builder: Any) -> None:
    """Asks each server of files that are not here yet for one of them; any answer will do.

    Without this, TFDS would go on for minutes where there is no network: it tries ten times, and
    waits without bound for a server that is silent.
    """
    import requests
    from tensorflow_datasets.core.download import resource

    manual = _manual_folder(builder)
    servers: dict[str, str] = {}
    for url, info in _url_infos(builder).items():
        cached = resource.get_dl_fname(url, info.checksum)
        here = [manual.parent / cached, manual.parent / builder.name / cached]
        here += [manual / info.filename] if info.filename else []
        if url.startswith("http") and not any(path.exists() for path in here):
            servers.setdefault(url.split("/")[2], url)
    for server, url in servers.items():
        try:
            requests.head(url, timeout=_PATIENCE_SECONDS)
        except requests.RequestException as error:
            reason = one_line(_chain(error)[-1])
            raise requests.ConnectionError(f"{server}: {reason}") from None


def _not_prepared(builder: Any, name: str, error: Exception) -> DataError:
    """What went wrong, and exactly what to do."""
    chain = _chain(error)
    if isinstance(chain[-1], ImportError):
        return _needs_package(name, chain[-1], builder)
    folder = _manual_folder(builder)
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        missing = not folder.is_dir() or not any(folder.iterdir())
        if missing or any(str(folder) in str(e) for e in chain):
            return DataError(f"tfds:{name} {_by_hand(builder)}, then run the same command again")
    refused = next((e for e in chain if type(e).__name__ in _REFUSALS or "GDrive" in str(e)), None)
    if refused or any(type(e).__module__.partition(".")[0] in _NETWORK for e in chain):
        return DataError(
            f"tfds:{name} cannot be downloaded ({one_line(refused or chain[-1])}): run the same "
            "command again once the network (behind a proxy: HTTPS_PROXY) allows it, or download "
            f"{_file_of(builder, chain)} yourself into {folder}, where TFDS looks first"
        )
    return DataError(f"tfds:{name} cannot be prepared: {one_line(error)}")


def _manual_folder(builder: Any) -> Path:
    """Where TFDS looks for files that were downloaded by hand."""
    root = Path(builder.data_path).parents[builder.info.full_name.count("/")]
    return root / "downloads" / "manual"


def _by_hand(builder: Any) -> str:
    told = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split()).rstrip(".")
    return f"needs files that you download by hand into {_manual_folder(builder)}: {told}"


def _file_of(builder: Any, chain: Sequence[BaseException]) -> str:
    """The file that could not be downloaded, under the name by which TFDS will know it."""
    told = " ".join(str(e) for e in chain)
    for url, info in _url_infos(builder).items():
        # An error may leave out the host, so what comes after it is looked for.
        if info.filename and url.partition("://")[2].partition("/")[2] in told:
            return f"{url} as {info.filename}"
    return "its files"


def _url_infos(builder: Any) -> dict[str, Any]:
    """The files of all the configurations of a data set, by URL; none where TFDS keeps no list."""
    with contextlib.suppress(Exception):  # TFDS needs an optional package to read its own list.
        return dict(builder.url_infos or {})
    return {}


def _check_tensorflow(builder: Any, name: str) -> None:
    """Refuses, before a download, to prepare what will need TensorFlow where there is none."""
    if importlib.util.find_spec("tensorflow") is not None:
        return
    # The module of a builder that calls TensorFlow holds it, lazily imported, as `tf`.
    for base in type(builder).__mro__:
        module = sys.modules.get(base.__module__)
        if not base.__module__.startswith("tensorflow_datasets.core") and hasattr(module, "tf"):
            raise _needs_package(name, ImportError(name="tensorflow"), builder)


def _needs_package(name: str, error: ImportError, builder: Any = None) -> DataError:
    package = (error.name or "").partition(".")[0]
    if importlib.util.find_spec("tensorflow") is None and package in ("", "tensorflow"):
        manual = builder is not None and builder.MANUAL_DOWNLOAD_INSTRUCTIONS
        return DataError(
            f"preparing tfds:{name} needs TensorFlow (reading it afterwards does not): run  "
            "pip install -e '.[tensorflow]'  and then the same command again"
            + (f"; it also {_by_hand(builder)}" if manual else "")
        )
    # TFDS imports some packages that it does not require, importlib_resources among them.
    return DataError(
        f"tfds:{name} needs the package {package or one_line(error)}, which is not installed: "
        f"run  pip install {package}  and then the same command again"
    )


def _chain(error: BaseException) -> list[BaseException]:
    """`error`, what led to it, and so on to the first."""
    chain: list[BaseException] = []
    before: BaseException | None = error
    while before is not None:
        chain.append(before)
        hidden = before.__suppress_context__
        before = before.__cause__ or (None if hidden else before.__context__)
    return chain
