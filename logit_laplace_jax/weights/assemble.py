"""Tensors from files to a configuration and parameters, with everything accounted for."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.weights import names
from logit_laplace_jax.weights.names import HALVES, Half
from logit_laplace_jax.weights.weights import FLOATS, StoredTensor, TensorFile, WeightsError, listed

_INPUT, _OUTPUT = "blocks.input.w", "blocks.output.conv.w"


@dataclasses.dataclass(frozen=True)
class HalfFile:
    """One half of a model in a file.

    Attributes:
      name: the file's path, for messages.
      tensors: its tensors under OpenAI's names.
      post_gains: see `weights.TensorFile`.
    """

    name: str
    tensors: Mapping[str, StoredTensor]
    post_gains: frozenset[float] = frozenset()


def half_file(file: TensorFile) -> HalfFile:
    """A file that holds one half of a model."""
    return HalfFile(str(file.path), file.tensors, file.post_gains)


def split(file: TensorFile) -> dict[Half, HalfFile]:
    """The halves of a file that holds both, under names that begin with the half's name.

    Raises:
      WeightsError: a name begins otherwise.
    """
    strange = [name for name in file.tensors if not name.startswith(("encoder.", "decoder."))]
    if strange:
        raise WeightsError(
            f"{file.path}: holds {listed(strange)}; names here begin with encoder. or decoder. "
            "(for one half a file, see models.openai.load)"
        )
    return {
        half: HalfFile(
            f"{file.path}, {half}",
            {
                name.removeprefix(f"{half}."): tensor
                for name, tensor in file.tensors.items()
                if name.startswith(f"{half}.")
            },
            file.post_gains,
        )
        for half in HALVES
    }


def looks_like(file: HalfFile) -> Half | None:
    """Which half a file holds, by its first convolution; None if neither."""
    first = file.tensors.get(_INPUT)
    if first is None or len(first.shape) != 4:
        return None
    sides = {(7, 7): HALVES[0], (1, 1): HALVES[1]}
    return sides.get((first.shape[2], first.shape[3]))


def check_halves(files: Mapping[Half, HalfFile]) -> None:
    """Refuses files of something else, and those of the encoder and the decoder swapped.

    Raises:
      WeightsError: with what each file holds.
    """
    encoder, decoder = files["encoder"], files["decoder"]
    found = {half: looks_like(files[half]) for half in HALVES}
    if (found["encoder"], found["decoder"]) == ("decoder", "encoder"):
        raise WeightsError(
            f"the two files are swapped: {encoder.name} holds a decoder and {decoder.name} an "
            "encoder"
        )
    for half in HALVES:
        if any(name.startswith(("encoder.", "decoder.")) for name in files[half].tensors):
            raise WeightsError(
                f"{files[half].name}: holds both halves in one file; read it with "
                "models.exchange.load"
            )
        if found[half] is None:
            holds = listed(list(files[half].tensors)) or "nothing"
            raise WeightsError(
                f"{files[half].name}: not an {half} of a dVAE: {_INPUT!r} is missing or strange "
                f"(it holds {holds})".replace("an decoder", "a decoder")
            )
        if found[half] != half:
            raise WeightsError(f"{files[half].name}: holds the {found[half]}, not the {half}")


def _sizes(file: HalfFile, half: Half) -> dict[str, int]:
    """The sizes that the names and shapes of one half tell."""
    tensors = file.tensors
    if _OUTPUT not in tensors or len(tensors[_OUTPUT].shape) != 4:
        raise WeightsError(f"{file.name}: {_OUTPUT!r} is missing or strange")
    first, last = tensors[_INPUT].shape, tensors[_OUTPUT].shape
    found = [re.match(r"blocks\.group_(\d{1,4})\.block_(\d{1,4})\.", name) for name in tensors]
    groups = {int(match[1]) for match in found if match}
    blocks = {int(match[2]) for match in found if match}
    # Every block has at least eight tensors. Without this, a few names could ask for a table of
    # millions, or for widths of thousands of digits.
    if not groups or len(groups) * len(blocks) > len(tensors) or len(groups) > 32:
        raise WeightsError(f"{file.name}: its groups of blocks are incomplete")
    sizes = {"group_count": len(groups), "n_blk_per_group": len(blocks)}
    if half == "encoder":
        return {**sizes, "n_hid": first[0], "vocab_size": last[0], "channels": first[1]}
    return {**sizes, "n_hid": last[1], "vocab_size": first[1], "n_init": first[0], "maps": last[0]}


def infer(files: Mapping[Half, HalfFile]) -> DVAEConfig:
    """The sizes of the model that two files hold.

    Raises:
      WeightsError: the files do not belong together, or are not a dVAE's.
    """
    check_halves(files)
    encoder, decoder = (_sizes(files[half], half) for half in HALVES)
    together = f"{files['encoder'].name} and {files['decoder'].name}"
    differ = [
        f"{name} {encoder[name]} and {decoder[name]}"
        for name in encoder
        if name in decoder and encoder[name] != decoder[name]
    ]
    channels, maps = encoder["channels"], decoder.pop("maps")
    if not channels or maps % channels:
        differ.append(f"{channels} channels and {maps} maps")
    if differ:
        raise WeightsError(f"{together} do not belong together: {', '.join(differ)}")
    head: dict[str, Any] = {"stats_per_channel": maps // channels}
    log_scale = files["decoder"].tensors.get(names.LOG_SCALE)
    if log_scale is not None:
        shared = log_scale.shape == (1,) and channels > 1
        head = {
            # The maps are the first statistic alone; the second is this parameter.
            "stats_per_channel": 2 * head["stats_per_channel"],
            "constant_scale": "shared" if shared else "per_channel",
        }
    try:
        return DVAEConfig(**encoder | decoder | head)
    except ValueError as error:
        raise WeightsError(f"{together} are not a dVAE of this package: {error}") from None


def check_tensors(config: DVAEConfig, files: Mapping[Half, HalfFile]) -> None:
    """Compares names, shapes and dtypes with those of a model, before any number is read.

    Raises:
      WeightsError: something is missing, left over or strange; lists it.
    """
    for half in HALVES:
        file, expected = files[half], names.shapes(config, half)
        problems = []
        for title, found in (
            ("missing: ", [name for name in expected if name not in file.tensors]),
            ("left over: ", [name for name in file.tensors if name not in expected]),
        ):
            if found:
                problems.append(title + listed(found))
        for name, shape in expected.items():
            tensor = file.tensors.get(name)
            if tensor is not None and tensor.shape != shape:
                found_shape = tensor.shape if len(tensor.shape) < 9 else "of many axes"
                problems.append(f"{name} has shape {found_shape}, not {shape}")
            elif tensor is not None and tensor.dtype not in FLOATS:
                problems.append(f"{name} is {tensor.dtype}, not a float")
        if problems:
            more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
            raise WeightsError(f"{file.name}: {'; '.join(problems[:4])}{more}")
        for gain in file.post_gains:
            if not math.isclose(gain, config.post_gain, rel_tol=1e-6):
                raise WeightsError(
                    f"{file.name}: its blocks weigh their branch by {gain:g}, where "
                    f"{config.blocks} blocks weigh it by {config.post_gain:g}"
                )


def _numbers(file: HalfFile, name: str) -> np.ndarray:
    """One tensor as float32, finite."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused
        array = np.asarray(file.tensors[name].read()).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise WeightsError(f"{file.name}: {name} has values that are not finite numbers")
    return array


def params(config: DVAEConfig, files: Mapping[Half, HalfFile]) -> dict[str, Any]:
    """Reads the parameters of a model.

    Args:
      config: its sizes.
      files: both halves.

    Returns:
      The float32 tree that ``DVAE(config).apply`` takes as ``{"params": params}``.

    Raises:
      WeightsError: the tensors are not those of such a model, or not finite.
    """
    check_tensors(config, files)
    tree: dict[str, Any] = {}
    for half in HALVES:
        file = files[half]
        arrays = {name: _numbers(file, name) for name in names.shapes(config, half)}
        tree[half] = jax.tree.map(jnp.asarray, names.to_flax(arrays))
    return tree
