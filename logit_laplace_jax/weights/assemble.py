"""Named tensors to a configuration and parameters, with everything accounted for."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import param_shapes
from logit_laplace_jax.weights import names
from logit_laplace_jax.weights.errors import WeightsError, listed

Arrays = Mapping[str, np.ndarray]

_FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Dtypes that weights may have in a file; all of them become float32."""
_INPUT, _OUTPUT = "blocks.input.w", "blocks.output.conv.w"
_FIRST_KERNELS = {(7, 7): "encoder", (1, 1): "decoder"}


def half_in(arrays: Arrays) -> str | None:
    """Which half of a model arrays are, by the first convolution; None if neither."""
    first = arrays.get(_INPUT)
    return _FIRST_KERNELS.get(first.shape[2:]) if first is not None and first.ndim == 4 else None


def model(
    arrays: Arrays, where: str, post_gains: frozenset[float], config: DVAEConfig | None = None
) -> tuple[DVAEConfig, dict[str, Any]]:
    """The configuration and the parameters of a model.

    Args:
      arrays: its tensors under OpenAI's names, with ``encoder.`` or ``decoder.`` before them.
      where: the files they come from, for messages.
      post_gains: the residual blocks' factors, as far as the files tell them.
      config: what the files say of the model; None takes what the tensors tell.

    Returns:
      The configuration and the float32 tree that ``DVAE(config).apply`` takes as
      ``{"params": params}``.

    Raises:
      WeightsError: the tensors are not those of such a model, or not finite.
    """
    found = _infer(arrays, where)
    config = config or found
    for field in dataclasses.fields(DVAEConfig):
        said, told = getattr(config, field.name), getattr(found, field.name)
        if type(told) is int and said != told:
            raise WeightsError(
                f"{where}: {field.name} is {told} by its tensors, {said} by its text"
            )
    for gain in post_gains:
        if not math.isclose(gain, config.post_gain, rel_tol=1e-6):
            raise WeightsError(
                f"{where}: its blocks weigh their branch by {gain:g}, where {config.blocks} blocks "
                f"weigh it by {config.post_gain:g}"
            )
    shapes = _shapes(config)
    arrays = {name: names.to_flax(array) for name, array in arrays.items()}
    expected = names.flatten(shapes)
    problems = []
    for title, others in (
        ("missing: ", [name for name in expected if name not in arrays]),
        ("left over: ", [name for name in arrays if name not in expected]),
    ):
        if others:
            problems.append(title + listed(others))
    for name in expected.keys() & arrays.keys():
        array, shape = arrays[name], expected[name].shape
        if array.shape != shape:
            found_shape = array.shape if array.ndim < 9 else "of many axes"
            problems.append(f"{name} has shape {found_shape}, not {shape}")
        elif array.dtype.name not in _FLOATS:
            problems.append(f"{name} is {array.dtype}, not a float")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise WeightsError(f"{where}: {'; '.join(problems[:4])}{more}")

    def leaf(path: Any, _: Any) -> jax.Array:
        name = names.torch_name(tuple(key.key for key in path))
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite
            array = arrays[name].astype(np.float32)
        if not np.isfinite(array).all():
            raise WeightsError(f"{where}: {name} has values that are not finite numbers")
        return jnp.asarray(array)

    return config, jax.tree_util.tree_map_with_path(leaf, shapes)


_shapes = functools.lru_cache(maxsize=8)(param_shapes)


def _infer(arrays: Arrays, where: str) -> DVAEConfig:
    """The configuration that names and shapes tell."""
    encoder, decoder = (_sizes(arrays, half, where) for half in ("encoder", "decoder"))
    differ = [
        f"{name} {encoder[name]} and {decoder[name]}"
        for name in encoder
        if name in decoder and encoder[name] != decoder[name]
    ]
    channels, maps, widest = encoder["channels"], decoder.pop("maps"), encoder.pop("widest")
    if not channels or maps % channels:
        differ.append(f"{channels} channels and {maps} maps")
    if differ:
        raise WeightsError(f"{where}: the halves do not belong together: {', '.join(differ)}")
    head: dict[str, Any] = {"stats_per_channel": maps // channels}
    log_scale = arrays.get("decoder.log_scale")
    if log_scale is not None:
        # The maps are the first statistic alone; the second is this parameter.
        kind = "shared" if log_scale.shape == (1,) and channels > 1 else "per_channel"
        head = {"stats_per_channel": 2 * maps // channels, "constant_scale": kind}
    try:
        config = DVAEConfig(**encoder | decoder | head)
    except ValueError as error:
        raise WeightsError(f"{where}: not a dVAE of this package: {error}") from None
    # So the sizes are as modest as the file.
    if config.group_widths[-1] != widest:
        raise WeightsError(f"{where}: its groups of blocks are incomplete")
    return config


def _sizes(arrays: Arrays, half: str, where: str) -> dict[str, int]:
    """The sizes that the names and shapes of one half tell."""
    own = {
        name.removeprefix(f"{half}."): array
        for name, array in arrays.items()
        if name.startswith(f"{half}.")
    }
    for name, right in ((_INPUT, half_in(own) == half), (_OUTPUT, True)):
        if not right or name not in own or own[name].ndim != 4:
            holds = listed(list(own)) or "nothing"
            raise WeightsError(
                f"{where}: holds no {half} of a dVAE: {half}.{name} is missing or strange (it "
                f"holds {holds})"
            )
    first, last = own[_INPUT].shape, own[_OUTPUT].shape
    found = [re.match(r"blocks\.group_(\d{1,4})\.block_(\d{1,4})\.", name) for name in own]
    groups = {int(match[1]) for match in found if match}
    blocks = {int(match[2]) for match in found if match}
    # Every block has at least eight tensors. Without this, a few names could ask for a table of
    # millions.
    if not groups or len(groups) * len(blocks) > len(own) or len(groups) > 32:
        raise WeightsError(f"{where}: its groups of blocks are incomplete")
    sizes = {"group_count": len(groups), "n_blk_per_group": len(blocks)}
    if half == "encoder":
        own_sizes = {"n_hid": first[0], "vocab_size": last[0], "channels": first[1]}
        return sizes | own_sizes | {"widest": last[1]}
    return sizes | {"n_hid": last[1], "vocab_size": first[1], "n_init": first[0], "maps": last[0]}
