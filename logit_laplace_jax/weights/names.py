"""Parameter names and layouts: OpenAI's in torch (OIHW, ``w``, ``b``), ours in Flax (HWIO)."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from logit_laplace_jax.models.config import DVAEConfig

Half = Literal["encoder", "decoder"]
HALVES: tuple[Half, Half] = ("encoder", "decoder")
LOG_SCALE = "log_scale"
"""The one parameter that OpenAI's modules do not have: the decoder's learned ln b."""
_KERNELS = {"encoder": (3, 3, 3, 1), "decoder": (1, 3, 3, 3)}


def _convolutions(config: DVAEConfig, half: Half) -> Iterator[tuple[str, int, int, int]]:
    """OpenAI's name, n_in, n_out and kernel size of every convolution, in the order of use."""
    encoder = half == "encoder"
    widths = config.group_widths if encoder else config.group_widths[::-1]
    constant = config.constant_scale != "none"
    maps = config.channels * (1 if constant else config.stats_per_channel)
    if encoder:
        n_in = widths[0]
        yield "blocks.input", config.channels, n_in, 7
    else:
        n_in = config.n_init
        yield "blocks.input", config.vocab_size, n_in, 1
    for i, width in enumerate(widths, start=1):
        for j in range(1, config.n_blk_per_group + 1):
            block = f"blocks.group_{i}.block_{j}"
            if n_in != width:
                yield f"{block}.id_path", n_in, width, 1
            inside = width // 4
            ends = [n_in, inside, inside, inside, width]
            for k, kernel_size in enumerate(_KERNELS[half], start=1):
                yield f"{block}.res_path.conv_{k}", ends[k - 1], ends[k], kernel_size
            n_in = width
    yield "blocks.output.conv", n_in, config.vocab_size if encoder else maps, 1


def shapes(config: DVAEConfig, half: Half) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one half's parameters as OpenAI's torch modules have them.

    With a constant scale the decoder also has ``log_scale``, which those modules do not.

    Args:
      config: sizes of the model.
      half: encoder or decoder.

    Returns:
      Shapes by name; kernels are [n_out, n_in, k, k].

    Example:
      >>> config = DVAEConfig(group_count=1, n_hid=8, n_blk_per_group=1, vocab_size=16)
      >>> names = shapes(config, "encoder")
      >>> names["blocks.group_1.block_1.res_path.conv_1.w"], names["blocks.output.conv.b"]
      ((2, 8, 3, 3), (16,))

    Source: openai/DALL-E ``encoder.py`` and ``decoder.py``.
    """
    result: dict[str, tuple[int, ...]] = {}
    for name, n_in, n_out, k in _convolutions(config, half):
        result[f"{name}.w"] = (n_out, n_in, k, k)
        result[f"{name}.b"] = (n_out,)
    if half == "decoder" and config.constant_scale != "none":
        result[LOG_SCALE] = (config.channels if config.constant_scale == "per_channel" else 1,)
    return result


def flax_path(name: str) -> tuple[str, ...]:
    """The path of a parameter in our tree.

    Example:
      >>> flax_path("blocks.group_1.block_2.res_path.conv_3.w")
      ('group_1', 'block_2', 'conv_3', 'kernel')
    """
    if name == LOG_SCALE:
        return (LOG_SCALE,)
    *path, leaf = re.sub(r"^blocks\.|res_path\.|(?<=output\.)conv\.", "", name).split(".")
    return (*path, {"w": "kernel", "b": "bias"}[leaf])


def to_flax(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One half's parameters as our nested dictionaries; kernels from OIHW to HWIO.

    Example:
      >>> tree = to_flax({"blocks.input.w": np.zeros((8, 3, 7, 7)), "blocks.input.b": np.zeros(8)})
      >>> tree["input"]["kernel"].shape
      (7, 7, 3, 8)
    """
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, leaf = flax_path(name)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return tree


def from_flax(config: DVAEConfig, params: Mapping[str, Any], half: Half) -> dict[str, np.ndarray]:
    """The inverse of `to_flax`: one half of a parameter tree under OpenAI's names.

    Args:
      config: sizes of the model.
      params: the whole tree, with ``encoder`` and ``decoder``.
      half: which half.

    Returns:
      float32 arrays in torch's layout, on the host.

    Raises:
      ValueError: the parameters are not those of this configuration, are not float32, or are not
        finite; names the first such parameter.
    """
    result = {}
    tree = params.get(half, {})
    for name, shape in shapes(config, half).items():
        leaf = tree
        where = "/".join((half, *flax_path(name)))
        for part in flax_path(name):
            leaf = leaf.get(part, {})
        if isinstance(leaf, Mapping):
            raise ValueError(f"params have no {where}, which a model with {config} needs")
        array = np.asarray(leaf)
        if array.dtype != np.float32:
            raise ValueError(f"params: {where} is {array.dtype}, not float32")
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        if array.shape != shape:
            raise ValueError(f"params: {where} has shape {leaf.shape}, not that of {config}")
        if not np.isfinite(array).all():
            raise ValueError(f"params: {where} has values that are not finite")
        result[name] = array
    count = _leaves(tree)
    if count != len(result):
        raise ValueError(f"params: {half} has {count} arrays, a model with {config} {len(result)}")
    return result


def _leaves(tree: Any) -> int:
    return sum(map(_leaves, tree.values())) if isinstance(tree, Mapping) else 1
