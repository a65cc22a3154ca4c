"""Reads a file of weights of whatever kind; writes safetensors."""

import errno
import os
import stat
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from logit_laplace_jax.weights import torch_files
from logit_laplace_jax.weights.errors import WeightsError
from logit_laplace_jax.weights.torch_files import Tensors

HEADER_KEY = "logit_laplace_jax"
"""Key of this package's text in the metadata of a safetensors file."""
_MAX_HEADER = 16 * 2**20


def read(path: Path) -> Tensors:
    """Reads the tensors of a file; nothing in it is run.

    The kind is told by the content, not by the name: a zip archive or the older container of
    ``torch.save`` (of modules or of a state_dict), or safetensors.

    Raises:
      WeightsError: the file is damaged, hostile or of another kind; one line that names it.
      OSError: there is no such file, or it cannot be read.
    """
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise WeightsError(f"{path}: not a regular file")
    with path.open("rb") as stream:
        try:
            return _read(path, stream)
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


def _read(path: Path, stream: BinaryIO) -> Tensors:
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(len(torch_files.LEGACY_START))
    if start.startswith(torch_files.ZIP_START):
        return torch_files.read_zip(stream, size)
    if start == torch_files.LEGACY_START:
        return torch_files.read_legacy(stream, size)
    if start[8:9] == b"{":
        return _read_safetensors(path, int.from_bytes(start[:8], "little"))
    what = "empty" if not start else "neither a file of torch.save nor safetensors"
    raise WeightsError(f"the file is {what}")


def _read_safetensors(path: Path, header_length: int) -> Tensors:
    from safetensors import SafetensorError, safe_open

    # The package takes headers of up to 100 MB; the largest dVAE's has kilobytes.
    if header_length > _MAX_HEADER:
        raise WeightsError("its header is damaged or too large")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Tensors(arrays, (file.metadata() or {}).get(HEADER_KEY))
    except SafetensorError as error:
        raise WeightsError(f"the file is damaged or cut short ({error})") from None


def write(path: Path, arrays: Mapping[str, np.ndarray], header: str) -> None:
    """Writes a safetensors file, which appears when it is complete.

    The same arrays and header give the same bytes.

    Raises:
      FileExistsError: the file exists.
      OSError: the folder does not exist or cannot be written to.
    """
    from safetensors.numpy import save

    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "File exists; choose another name", str(path))
    content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, {HEADER_KEY: header})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
