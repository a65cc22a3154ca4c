"""Trained weights as one file that carries its configuration: .safetensors, or .pt for torch.

Tensors stand under OpenAI's names with ``encoder.`` or ``decoder.`` before them, in torch's layout,
so that others read them with the libraries they have; the model's sizes and what else was said of
it stand beside them as JSON.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.weights import assemble, names, tensor_files, torch_writer
from logit_laplace_jax.weights.weights import TensorFile, WeightsError, listed

_FORMAT = 1
ENDINGS = (".safetensors", ".pt")


class Weights(NamedTuple):
    """What a file of weights holds."""

    config: DVAEConfig
    """Sizes and options of the model."""
    params: dict[str, Any]
    """The float32 parameter tree that ``DVAE(config).apply`` takes as ``{"params": params}``."""
    metadata: dict[str, Any]
    """What the writer said of it; empty in files of others."""


def save(
    path: str | os.PathLike[str],
    config: DVAEConfig,
    params: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Writes a model to one new file, which appears when it is complete.

    ``torch.load(path, weights_only=True)`` of a .pt file gives the dictionary of tensors. The same
    model gives the same bytes. Writing .safetensors needs the package safetensors, .pt needs none.

    Args:
      path: a new file; its ending, .safetensors or .pt, says the format.
      config: sizes and options of the model.
      params: its float32 parameter tree.
      metadata: what else to keep: JSON types, such as eps and the likelihood's name.

    Raises:
      ValueError: another ending; the parameters are not this model's or not finite; the metadata
        are not JSON.
      FileExistsError: the file exists.
      OSError: the folder does not exist or cannot be written to.

    Example:
      >>> import tempfile, jax
      >>> from logit_laplace_jax.models import init_params
      >>> config = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)
      >>> params = init_params(config, jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(Path(folder, "model.pt"), config, params, {"eps": 0.1})
      ...     weights = load(Path(folder, "model.pt"))
      >>> weights.config == config, weights.metadata
      (True, {'eps': 0.1})
    """
    path = Path(path)
    check_ending(path)
    tensors = {
        f"{half}.{name}": array
        for half in names.HALVES
        for name, array in names.from_flax(config, params, half).items()
    }
    about = {
        "format": _FORMAT,
        "config": dataclasses.asdict(config),
        "metadata": dict(metadata or {}),
    }
    try:
        header = json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON: {error}") from None
    write: Callable[[BinaryIO], Any]
    if path.suffix == ".pt":

        def write(stream: BinaryIO) -> None:
            torch_writer.write_zip(stream, tensors, header)
    else:

        def write(stream: BinaryIO) -> None:
            stream.write(tensor_files.safetensors_bytes(tensors, header))

    tensor_files.write_new({path: write})


def check_ending(path: Path) -> None:
    """Refuses a name whose ending says no format.

    Raises:
      ValueError: it does not.

    Example:
      >>> check_ending(Path("model.ckpt"))
      Traceback (most recent call last):
        ...
      ValueError: model.ckpt: the ending must be .safetensors or .pt
    """
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path}: the ending must be {' or '.join(ENDINGS)}")


def load(path: str | os.PathLike[str]) -> Weights:
    """Reads a file that `save` wrote, to the same bits, or one of others with the same names.

    Without this package's text in the file the sizes are those that the tensors tell, and the
    options (`DVAEConfig.dtype` and so on) their defaults. Nothing in the file is run.

    Args:
      path: the file; its content tells the format.

    Raises:
      WeightsError: the file is damaged, hostile, not finite or not a dVAE's. One line.
      OSError: the file cannot be opened.

    Example: see `save`.
    """
    with tensor_files.open_tensors(path) as file:
        halves = assemble.split(file)
        if file.header is None:
            config = assemble.infer(halves)
            return Weights(config, assemble.params(config, halves), {})
        config, metadata = _about(file, file.header)
        assemble.check_halves(halves)
        return Weights(config, assemble.params(config, halves), metadata)


def _about(file: TensorFile, text: str) -> tuple[DVAEConfig, dict[str, Any]]:
    try:
        tensor_files.check_json_text(text)
        about = json.loads(text)
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise WeightsError("it is of another version of this package")
        sizes, metadata = about.get("config"), about.get("metadata")
        if not isinstance(sizes, dict) or not isinstance(metadata, dict):
            raise WeightsError("it has no configuration")
        known = {field.name for field in dataclasses.fields(DVAEConfig)}
        if any(isinstance(size, int) and size >= 2**48 for size in sizes.values()):
            raise WeightsError("its configuration is not that of its tensors")
        if unknown := [name for name in sizes if name not in known]:
            raise WeightsError(f"its configuration has the unknown {listed(unknown)}")
        config = DVAEConfig(**sizes)
        # Tables as long as the sizes say are made next, so they must be as modest as the file.
        if config.blocks > len(file.tensors) or config.group_count > 32:
            raise WeightsError("its configuration is not that of its tensors")
        return config, metadata
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{file.path}: its text about the model: {reason}") from None
