"""Trained weights as one .safetensors file that carries its configuration.

Tensors stand under OpenAI's names with ``encoder.`` or ``decoder.`` before them, in torch's layout,
so that others read them with the libraries they have; the model's sizes and what else was said of
it stand beside them as JSON.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import param_shapes
from logit_laplace_jax.weights import assemble, files, names
from logit_laplace_jax.weights.errors import WeightsError, listed

_FORMAT = 1
_MAX_TEXT = 2**20


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

    In torch, ``safetensors.torch.load_file(path)`` gives the tensors. The same model gives the same
    bytes.

    Args:
      path: a new file, NAME.safetensors.
      config: sizes and options of the model.
      params: its float32 parameter tree.
      metadata: what else to keep: JSON types, such as eps and the likelihood's name.

    Raises:
      ValueError: another ending; the parameters are not this model's or not finite; the metadata
        are not JSON.
      FileExistsError: the file exists.
      OSError: the folder does not exist or cannot be written to.

    Example:
      >>> import jax, tempfile
      >>> from logit_laplace_jax.models import init_params
      >>> config = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)
      >>> params = init_params(config, jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/model.safetensors", config, params, {"eps": 0.1})
      ...     weights = load(f"{folder}/model.safetensors")
      >>> weights.config == config, weights.metadata
      (True, {'eps': 0.1})
    """
    path = Path(path)
    check_ending(path)
    expected = names.flatten(param_shapes(config))
    given = names.flatten(params)
    for name in expected.keys() | given.keys():
        if name not in given or name not in expected:
            which = "left over" if name in given else "missing"
            raise ValueError(f"the parameters are not those of {config}: {name} is {which}")
    arrays = {name: np.asarray(given[name]) for name in expected}
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != expected[name].shape:
            raise ValueError(
                f"the parameters are not those of {config}: {name} is {array.dtype} of shape "
                f"{array.shape}"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"the parameters {name} have values that are not finite")
    about = {
        "format": _FORMAT,
        "config": dataclasses.asdict(config),
        "metadata": dict(metadata or {}),
    }
    try:
        header = json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be JSON: {error}") from None
    files.write(path, {name: names.to_torch(array) for name, array in arrays.items()}, header)


def check_ending(path: Path) -> None:
    """Refuses a name of another format.

    Raises:
      ValueError: the name does not end in .safetensors.

    Example:
      >>> check_ending(Path("model.pt"))
      Traceback (most recent call last):
        ...
      ValueError: model.pt: the ending must be .safetensors (which torch reads too)
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the ending must be .safetensors (which torch reads too)")


def load(path: str | os.PathLike[str]) -> Weights:
    """Reads a file that `save` wrote, to the same bits, or one of others with the same names.

    Those may also be state_dicts in .pt files. Without this package's text in the file the sizes
    are those that the tensors tell, and the options (`DVAEConfig.dtype` and so on) their defaults.
    Nothing in the file is run.

    Args:
      path: the file; its content tells the format.

    Raises:
      WeightsError: the file is damaged, hostile, not finite or not a dVAE's. One line.
      OSError: the file cannot be opened.

    Example: see `save`.
    """
    file = files.read(Path(path))
    strange = [name for name in file.arrays if not name.startswith(("encoder.", "decoder."))]
    if strange:
        raise WeightsError(
            f"{path}: holds {listed(strange)}; names here begin with encoder. or decoder. (for one "
            "half per file, see weights.openai.load)"
        )
    said, metadata = (None, {}) if file.header is None else _about(path, file.header)
    config, params = assemble.model(file.arrays, str(path), file.post_gains, said)
    return Weights(config, params, metadata)


def _about(path: str | os.PathLike[str], text: str) -> tuple[DVAEConfig, dict[str, Any]]:
    """The configuration and the metadata in this package's text."""
    try:
        if len(text) > _MAX_TEXT:
            raise WeightsError("it is too long")
        about = json.loads(text)
        if not isinstance(about, dict) or about.get("format") != _FORMAT:
            raise WeightsError("it is of another version of this package")
        sizes, metadata = about.get("config"), about.get("metadata")
        if not isinstance(sizes, dict) or not isinstance(metadata, dict):
            raise WeightsError("it has no configuration")
        known = {field.name for field in dataclasses.fields(DVAEConfig)}
        if unknown := [name for name in sizes if name not in known]:
            raise WeightsError(f"its configuration has the unknown {listed(unknown)}")
        if any(isinstance(size, int) and size >= 2**48 for size in sizes.values()):
            raise WeightsError("its configuration is not that of its tensors")
        return DVAEConfig(**sizes), metadata
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{path}: its text about the model: {reason}") from None
