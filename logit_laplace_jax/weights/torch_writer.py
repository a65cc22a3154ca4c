"""Writes a state_dict as ``torch.save`` would, without torch."""

import math
import zipfile
from typing import BinaryIO

import numpy as np

from logit_laplace_jax.weights.torch_files import HEADER_ENTRY


def write_zip(stream: BinaryIO, tensors: dict[str, np.ndarray], header: str | None = None) -> None:
    """Writes a state_dict that ``torch.load(path, weights_only=True)`` opens.

    The same tensors and text give the same bytes.

    Args:
      stream: an empty file, open for writing.
      tensors: float32 arrays by name.
      header: a text that stands beside the tensors, for `torch_files.read_zip`.

    Example:
      >>> import io
      >>> from logit_laplace_jax.weights.torch_files import read_zip
      >>> stream = io.BytesIO()
      >>> write_zip(stream, {"w": np.ones((2, 3), np.float32)}, "about it")
      >>> contents, header = read_zip(stream, len(stream.getvalue()))
      >>> contents.tensors["w"].shape, header
      ((2, 3), 'about it')

    Source: torch ``torch/serialization.py``, format version 3.
    """
    arrays = [np.ascontiguousarray(array, dtype="<f4") for array in tensors.values()]
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, data: bytes | memoryview) -> None:
            entry = zipfile.ZipInfo(f"archive/{name}")
            # torch maps storages into memory at multiples of 64 bytes; so does its own writer,
            # with an extra field of zeros (a header has 30 bytes, an extra field at least 4).
            start = stream.tell() + 30 + len(entry.filename) + 4
            padding = -start % 64
            entry.extra = b"FB" + padding.to_bytes(2, "little") + bytes(padding)
            archive.writestr(entry, data)

        write("data.pkl", _pickled(tensors))
        write("byteorder", b"little")
        if header is not None:
            write(HEADER_ENTRY, header.encode())
        for i, array in enumerate(arrays):
            write(f"data/{i}", array.tobytes())
        write("version", b"3\n")


def _pickled(tensors: dict[str, np.ndarray]) -> bytes:
    """The pickle of torch's names, by hand: pickle itself would have to import them."""
    ordered_dict = b"ccollections\nOrderedDict\n)R"
    parts = [b"\x80\x02", ordered_dict, b"("]
    for key, (name, array) in enumerate(tensors.items()):
        strides = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        storage = [
            b"(" + _text("storage") + b"ctorch\nFloatStorage\n" + _text(str(key)) + _text("cpu"),
            _integer(array.size) + b"tQ",
        ]
        parts += [_text(name), b"ctorch._utils\n_rebuild_tensor_v2\n(", *storage, _integer(0)]
        for numbers in (array.shape, strides):
            parts += [b"(", *(_integer(n) for n in numbers), b"t"]
        parts += [b"\x89", ordered_dict, b"tR"]
    return b"".join([*parts, b"u."])


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + value.to_bytes(4, "little")
    return b"\x8a\x08" + value.to_bytes(8, "little")
