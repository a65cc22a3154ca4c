"""Reads what ``torch.save`` wrote, without torch and without running what is in the file.

Two containers: the zip archive (torch 1.6 and newer) and the older sequence of pickles with raw
storages behind. In either: a dictionary of tensors, or whole modules of the classes that OpenAI's
encoder and decoder are made of.
"""

import io
import zipfile
from typing import BinaryIO

from logit_laplace_jax.weights import pickles
from logit_laplace_jax.weights.torch_pickles import Contents, Storage, Storages, contents_of
from logit_laplace_jax.weights.weights import WeightsError, shown

LEGACY_START = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03."
"""The pickles of torch's magic number and of its protocol 1001, as every such file begins."""
HEADER_ENTRY = "logit_laplace_jax.json"
"""Entry of a zip archive that holds this package's text about the model; torch passes it over."""

_MAX_PICKLE = 16 * 2**20
_MAX_DIRECTORY = 4 * 2**20
_CHUNK = 2**20


# --- The zip archive ----------------------------------------------------------------------------


class _Capped(io.BufferedIOBase, BinaryIO):
    """Refuses to take much of a file into memory at once, whatever sizes the file declares."""

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
        if size is not None and size > _MAX_DIRECTORY:
            raise WeightsError("its directory of entries is too large")
        # zipfile reads to the end of the file only within its last 64 KiB.
        return self._stream.read(size if size is not None and size >= 0 else _MAX_DIRECTORY)


def read_zip(stream: BinaryIO, size: int) -> tuple[Contents, str | None]:
    """Reads a zip archive of ``torch.save``; tensors are read later, while the stream is open.

    Args:
      stream: the file.
      size: its length in bytes.

    Returns:
      Its tensors, and this package's text about the model if it has one.

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
    roots = [entry.filename for entry in entries if entry.filename.count("/") == 1]
    pickled = [name for name in roots if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise WeightsError("it is a zip archive, but not one that torch.save wrote")
    prefix = pickled[0].removesuffix("data.pkl")
    if prefix + "constants.pkl" in roots:
        raise WeightsError("it is a TorchScript program; save the module's state_dict instead")
    if prefix + "byteorder" in roots:
        order = _entry(archive, prefix + "byteorder", 16)
        if order != b"little":
            raise WeightsError("it was written on a big-endian machine, which is not supported")

    def fetch(storage: Storage) -> bytearray:
        return _entry(archive, f"{prefix}data/{storage.key}", exactly=storage.nbytes)

    storages = Storages(fetch)
    data = _entry(archive, pickled[0], _MAX_PICKLE)
    contents = contents_of(pickles.read(io.BytesIO(data), storages.rules()))
    for storage in storages.named.values():
        _info(archive, f"{prefix}data/{storage.key}", exactly=storage.nbytes)
    header = None
    if prefix + HEADER_ENTRY in roots:
        header = _entry(archive, prefix + HEADER_ENTRY, _CHUNK).decode()
    return contents, header


def _info(
    archive: zipfile.ZipFile, name: str, at_most: int | None = None, exactly: int | None = None
) -> zipfile.ZipInfo:
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise WeightsError(f"its entry {shown(name)} is missing") from None
    if exactly is not None and entry.file_size != exactly:
        raise WeightsError(
            f"its entry {shown(name)} has {entry.file_size:,} bytes, not {exactly:,}"
        )
    if at_most is not None and entry.file_size > at_most:
        raise WeightsError(f"its entry {shown(name)} has more than {at_most:,} bytes")
    return entry


def _entry(
    archive: zipfile.ZipFile, name: str, at_most: int | None = None, exactly: int | None = None
) -> bytearray:
    """The bytes of an entry, whose checksum zipfile compares at its end."""
    data = bytearray()
    with archive.open(_info(archive, name, at_most, exactly)) as entry:
        while chunk := entry.read(_CHUNK):
            data += chunk
    if exactly is not None and len(data) != exactly:
        raise WeightsError(f"its entry {shown(name)} is cut short")
    return data


# --- The older container ------------------------------------------------------------------------


def read_legacy(stream: io.BufferedReader, size: int) -> Contents:
    """Reads the container of torch before 1.6; tensors are read later, while the stream is open.

    Args:
      stream: the file.
      size: its length in bytes.

    Raises:
      WeightsError: it is damaged, hostile, or something else.
    """
    places: dict[str, int] = {}

    def fetch(storage: Storage) -> bytearray:
        stream.seek(places[storage.key])
        data = bytearray(storage.nbytes)
        if stream.readinto(data) != len(data):
            raise WeightsError(f"its storage {storage.key} is cut short")
        return data

    storages = Storages(fetch)
    rules = storages.rules()
    stream.seek(0)
    window = io.BytesIO(stream.read(_MAX_PICKLE))
    window.seek(len(LEGACY_START))
    system = pickles.read(window, rules)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise WeightsError("it was written on a big-endian machine, which is not supported")
    contents = contents_of(pickles.read(window, rules))
    keys = pickles.read(window, rules)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise WeightsError("its list of storages is damaged")
    if len(set(keys)) != len(keys) or set(keys) != set(storages.named):
        raise WeightsError("its list of storages is not that of its tensors")
    place = window.tell()
    for key in keys:
        storage = storages.named[key]
        stream.seek(place)
        if stream.read(8) != storage.numel.to_bytes(8, "little"):
            raise WeightsError(f"its storage {key} is cut short, or of another size")
        places[key] = place + 8
        place += 8 + storage.nbytes
    if place != size:
        raise WeightsError(
            f"it has {size:,} bytes where its tensors need {place:,}: cut short, or something "
            "was appended"
        )
    return contents
