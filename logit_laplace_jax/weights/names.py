"""Parameter names and layouts: OpenAI's in torch (OIHW, ``w``, ``b``), ours in Flax (HWIO)."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_LEAVES = {"kernel": "w", "bias": "b"}


def torch_name(path: tuple[str, ...]) -> str:
    """OpenAI's name of a parameter of ours; ``log_scale``, which is ours alone, keeps its own.

    Example:
      >>> torch_name(("encoder", "group_1", "block_2", "conv_3", "kernel"))
      'encoder.blocks.group_1.block_2.res_path.conv_3.w'
      >>> torch_name(("decoder", "output", "bias")), torch_name(("decoder", "log_scale"))
      ('decoder.blocks.output.conv.b', 'decoder.log_scale')
    """
    half, *middle, leaf = path
    if not middle:
        return f"{half}.{leaf}"
    name = ".".join((half, "blocks", *middle, _LEAVES[leaf]))
    return re.sub(r"\.output\.", ".output.conv.", re.sub(r"\.conv_", ".res_path.conv_", name))


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a parameter tree (arrays or shapes) under OpenAI's names.

    Example:
      >>> list(flatten({"encoder": {"input": {"bias": 1, "kernel": 2}}}))
      ['encoder.blocks.input.b', 'encoder.blocks.input.w']
    """
    pairs = jax.tree_util.tree_leaves_with_path(params)
    return {torch_name(tuple(key.key for key in path)): leaf for path, leaf in pairs}


def to_torch(array: np.ndarray) -> np.ndarray:
    """A parameter in torch's layout: kernels HWIO to OIHW."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array


def to_flax(array: np.ndarray) -> np.ndarray:
    """A parameter in our layout: kernels OIHW to HWIO."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
