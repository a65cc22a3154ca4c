"""Opens files of weights, whatever their kind, and writes new ones: all of one, or nothing."""

import errno
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from logit_laplace_jax.weights import torch_files
from logit_laplace_jax.weights.weights import StoredTensor, TensorFile, WeightsError, shown

HEADER_KEY = "logit_laplace_jax"
"""Key of this package's text in the metadata of a safetensors file."""
_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_MAX_HEADER = 16 * 2**20
_EXISTS = "File exists; choose another name"


@contextmanager
def open_tensors(path: str | os.PathLike[str]) -> Iterator[TensorFile]:
    """Opens a file of weights; its tensors can be read inside the ``with`` block.

    The kind is told by the content, not by the name: a zip archive or the older container of
    ``torch.save`` (of modules or of a state_dict), or safetensors. Nothing in the file is run.

    Raises:
      WeightsError: the file is damaged, hostile or of another kind; one line that names it.
      OSError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise WeightsError(f"{path}: not a regular file")
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(len(torch_files.LEGACY_START))
        stream.seek(0)
        with _problems_of(path):
            if start.startswith(b"PK\x03\x04"):
                contents, header = torch_files.read_zip(stream, size)
                file = TensorFile(path, contents.tensors, header, contents.post_gains)
            elif start == torch_files.LEGACY_START:
                contents = torch_files.read_legacy(stream, size)
                file = TensorFile(path, contents.tensors, None, contents.post_gains)
            elif start[8:9] == b"{":
                file = _read_safetensors(path, start)
            else:
                what = "empty" if not start else "neither a file of torch.save nor safetensors"
                raise WeightsError(f"the file is {what}")
        tensors = {
            name: StoredTensor(tensor.shape, tensor.dtype, _reader(path, tensor.read))
            for name, tensor in file.tensors.items()
        }
        yield TensorFile(path, tensors, file.header, file.post_gains)


def _reader(path: Path, read: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    def guarded() -> np.ndarray:
        with _problems_of(path):
            return read()

    return guarded


@contextmanager
def _problems_of(path: Path) -> Iterator[None]:
    """Turns what goes wrong inside a file into one line that names it."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    except (
        zipfile.BadZipFile,
        ArithmeticError,
        EOFError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(f"{path}: the file is damaged or cut short ({reason})") from error


# --- Safetensors --------------------------------------------------------------------------------


def _read_safetensors(path: Path, start: bytes) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    # The package takes headers of up to 100 MB; the largest dVAE's has kilobytes.
    if int.from_bytes(start[:8], "little") > _MAX_HEADER:
        raise WeightsError("its header is damaged or too large")
    try:
        file = safe_open(path, framework="numpy")
        keys = file.keys()
        metadata = file.metadata() or {}
        tensors = {name: _safe_tensor(file, name) for name in keys}
    except SafetensorError as error:
        raise WeightsError(f"the file is damaged or cut short ({error})") from None
    return TensorFile(path, tensors, metadata.get(HEADER_KEY))


def _safe_tensor(file: Any, name: str) -> StoredTensor:
    part = file.get_slice(name)
    dtype = part.get_dtype()
    return StoredTensor(
        tuple(part.get_shape()), _SAFETENSORS.get(dtype, dtype), lambda: file.get_tensor(name)
    )


def safetensors_bytes(tensors: dict[str, np.ndarray], header: str) -> bytes:
    """A safetensors file of float32 arrays; the same input gives the same bytes.

    Raises:
      ModuleNotFoundError: the package safetensors is not installed.
    """
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return save(arrays, {HEADER_KEY: header})


# --- New files ----------------------------------------------------------------------------------


def write_new(writers: Mapping[Path, Callable[[BinaryIO], None]]) -> None:
    """Writes new files beside their places first, then puts all of them there at once.

    Args:
      writers: what writes each file's content.

    Raises:
      FileExistsError: one of them exists; nothing is written.
      OSError: a folder does not exist, or cannot be written to.
    """
    for path in writers:
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, _EXISTS, str(path))
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in writers}
    placed: list[Path] = []
    try:
        for path, write in writers.items():
            with parts[path].open("xb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
        for path, part in parts.items():
            _place(part, path)
            placed.append(path)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _place(part: Path, path: Path) -> None:
    """Names a finished file, unless the name has been taken meanwhile."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, _EXISTS, str(path)) from None
        os.replace(part, path)


def check_json_text(text: str) -> None:
    """Refuses a header too long to be one of ours."""
    if len(text) > 2**20:
        raise WeightsError(f"its text about the model is too long ({shown(text[:20])})")
