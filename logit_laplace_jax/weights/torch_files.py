"""The two containers of ``torch.save``: the zip archive, and the older sequence of pickles.

In either: a dictionary of tensors, or whole modules of the classes that OpenAI's encoder and
decoder are made of. Source: torch ``torch/serialization.py``.
"""

import io
import zipfile
from typing import BinaryIO, NamedTuple

import numpy as np

from logit_laplace_jax.weights import pickles
from logit_laplace_jax.weights.errors import WeightsError, shown

LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."
"""The pickles of torch's magic number and of its protocol 1001, as every such file begins."""
ZIP_START = b"PK\x03\x04"
_MAX_PICKLE = 16 * 2**20
_MAX_DIRECTORY = 4 * 2**20


class Tensors(NamedTuple):
    """What a file of weights holds."""

    arrays: dict[str, np.ndarray]
    """Its tensors by name."""
    header: str | None = None
    """This package's text about the model; None in files of others."""
    post_gains: frozenset[float] = frozenset()
    """The residual blocks' ``post_gain``, which a file of modules tells."""


class _Capped(io.BufferedIOBase, BinaryIO):
    """Reads at most 4 MiB at once: zipfile reads a directory as large as the file declares it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        if whence == 0 and offset < 0:
            raise WeightsError("its directory of entries is damaged")
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = _MAX_DIRECTORY  # zipfile does so only within the last 64 KiB
        if size > _MAX_DIRECTORY:
            raise WeightsError("its directory of entries is too large")
        return self._stream.read(size)


def read_zip(stream: BinaryIO, size: int) -> Tensors:
    """Reads a zip archive of ``torch.save``.

    Args:
      stream: the file.
      size: its length in bytes.

    Raises:
      WeightsError: it is damaged, hostile, or something else.
    """
    archive = zipfile.ZipFile(_Capped(stream))
    entries = archive.infolist()
    if len({entry.filename for entry in entries}) != len(entries):
        raise WeightsError("two of its entries have one name")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError("its entries are compressed, as torch never writes them")
    # Entries that overlap could be read many times over.
    if sum(entry.file_size for entry in entries) > size:
        raise WeightsError("its entries declare more data than the file has")
    sizes = {entry.filename: entry.file_size for entry in entries}
    pickled = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise WeightsError("it is a zip archive, but not one that torch.save wrote")
    prefix = pickled[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in sizes:
        raise WeightsError("it is a TorchScript program; save the module's state_dict instead")

    def entry(name: str, at_most: int) -> bytes:
        if sizes[prefix + name] > at_most:
            raise WeightsError(f"its entry {shown(prefix + name)} has more than {at_most:,} bytes")
        with archive.open(prefix + name) as part:  # compares the checksum at the end
            return b"".join(iter(lambda: part.read(_MAX_DIRECTORY), b""))

    if prefix + "byteorder" in sizes and entry("byteorder", 16) != b"little":
        raise WeightsError("it was written on a big-endian machine, which is not supported")
    root, storages = pickles.read(io.BytesIO(entry("data.pkl", _MAX_PICKLE)))
    tensors, gains = pickles.named_tensors(root)
    for storage in storages.values():
        name = f"{prefix}data/{storage.key}"
        if sizes.get(name) != storage.nbytes:
            found = f"has {sizes[name]:,} bytes" if name in sizes else "is missing"
            raise WeightsError(f"its entry {shown(name)} {found}, not {storage.nbytes:,} bytes")
    arrays = {
        name: tensor.view(entry(f"data/{tensor.storage.key}", size))
        for name, tensor in tensors.items()
    }
    return Tensors(arrays, None, frozenset(gains))


def read_legacy(stream: BinaryIO, size: int) -> Tensors:
    """Reads the container of torch before 1.6: pickles, then the storages one after another.

    Args:
      stream: the file.
      size: its length in bytes.

    Raises:
      WeightsError: it is damaged, hostile, or something else.
    """
    stream.seek(0)
    window = io.BytesIO(stream.read(_MAX_PICKLE))
    window.seek(len(LEGACY_START))
    system, _ = pickles.read(window)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError("it was written on a big-endian machine, which is not supported")
    root, storages = pickles.read(window)
    tensors, gains = pickles.named_tensors(root)
    keys, _ = pickles.read(window)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise WeightsError("its list of storages is damaged")
    if len(set(keys)) != len(keys) or set(keys) != set(storages):
        raise WeightsError("its list of storages is not that of its tensors")
    place = window.tell()
    places = {}
    for key in keys:  # before each storage stands its number of values
        stream.seek(place)
        if stream.read(8) != storages[key].size.to_bytes(8, "little"):
            raise WeightsError(f"its storage {key} is cut short, or of another size")
        places[key] = place + 8
        place += 8 + storages[key].nbytes
    if place != size:
        raise WeightsError(
            f"it has {size:,} bytes where its tensors need {place:,}: cut short, or something "
            "was appended"
        )
    arrays = {}
    for name, tensor in tensors.items():
        stream.seek(places[tensor.storage.key])
        arrays[name] = tensor.view(stream.read(tensor.storage.nbytes))
    return Tensors(arrays, None, frozenset(gains))
