"""OpenAI's published dVAE weights, opened without running what is in the files; and back.

``encoder.pkl`` and ``decoder.pkl`` are pickled torch modules. Python's pickle would import and call
whatever they name, and since torch 1.11 they no longer work that way; here their tensors are read
as data. Needs neither torch nor OpenAI's package.
"""

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.weights import assemble, names, tensor_files, torch_writer
from logit_laplace_jax.weights.weights import WeightsError

__all__ = ["WeightsError", "load", "save"]

FilePath = str | os.PathLike[str]


def load(encoder_path: FilePath, decoder_path: FilePath) -> tuple[DVAEConfig, dict[str, Any]]:
    """Reads an encoder and a decoder under OpenAI's names.

    Each file may be a pickled module like the published ones, a ``state_dict`` (both in torch's zip
    archive or its older container), or safetensors; the content tells which. Values of 16 and 64
    bits become float32.

    Args:
      encoder_path: the encoder's file.
      decoder_path: the decoder's file.

    Returns:
      The model's sizes, as the tensors tell them, and the float32 parameter tree that
      ``DVAE(config).apply`` takes as ``{"params": params}`` and `Tokenizer` takes as it is.

    Raises:
      WeightsError: a file is damaged, holds more than weights, is not finite, the wrong half or
        another model's; the two do not belong together. One line. Nothing in a file is ever run.
      OSError: a file cannot be opened.

    Example:
      >>> import tempfile, jax
      >>> from logit_laplace_jax.models import init_params
      >>> config = DVAEConfig(n_hid=64, n_blk_per_group=1, vocab_size=512, n_init=8)
      >>> params = init_params(config, jax.random.key(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     files = Path(folder, "encoder.pt"), Path(folder, "decoder.pt")
      ...     save(*files, config, params)
      ...     found, again = load(*files)
      >>> found == config
      True
      >>> bool((again["decoder"]["input"]["kernel"] == params["decoder"]["input"]["kernel"]).all())
      True

    Source: openai/DALL-E ``encoder.py``, ``decoder.py``, ``utils.py``; torch
    ``torch/serialization.py`` (the containers).
    """
    with (
        tensor_files.open_tensors(encoder_path) as encoder,
        tensor_files.open_tensors(decoder_path) as decoder,
    ):
        files = {
            names.HALVES[0]: assemble.half_file(encoder),
            names.HALVES[1]: assemble.half_file(decoder),
        }
        config = assemble.infer(files)
        return config, assemble.params(config, files)


def save(
    encoder_path: FilePath, decoder_path: FilePath, config: DVAEConfig, params: Mapping[str, Any]
) -> None:
    """Writes two files for the ``load_state_dict`` of OpenAI's torch modules.

    They are zip archives that ``torch.load(path, weights_only=True)`` opens. OpenAI's classes say
    in their constructors which models they can be; others are for `exchange.save`. A likelihood of
    another number of maps, m, fits ``Decoder(output_channels=m // 2)``.

    Args:
      encoder_path: a new file.
      decoder_path: a new file.
      config: sizes of the model.
      params: its float32 parameter tree.

    Raises:
      ValueError: OpenAI's modules cannot take the model, the parameters are not its, or both
        files are one.
      FileExistsError: one of the files exists; nothing is written.
      OSError: a folder does not exist or cannot be written to.

    Example:
      >>> save("encoder.pt", "decoder.pt", DVAEConfig(group_count=3), {})
      Traceback (most recent call last):
        ...
      ValueError: OpenAI's torch modules cannot take this model: group_count is 3, not 4; ...

    Source: openai/DALL-E ``encoder.py``, ``decoder.py``.
    """
    problems = _not_openais(config)
    if problems:
        raise ValueError(
            f"OpenAI's torch modules cannot take this model: {', '.join(problems)}; "
            "models.exchange.save writes it as one .pt or .safetensors file"
        )
    paths = [Path(encoder_path), Path(decoder_path)]
    if paths[0].absolute() == paths[1].absolute():
        raise ValueError(f"{paths[0]} is named twice: the encoder and the decoder are two files")
    halves = [names.from_flax(config, params, half) for half in names.HALVES]
    tensor_files.write_new(
        {
            path: partial(torch_writer.write_zip, tensors=tensors)
            for path, tensors in zip(paths, halves, strict=True)
        }
    )


def _not_openais(config: DVAEConfig) -> list[str]:
    """What OpenAI's constructors and validators do not allow."""
    problems = []
    if config.group_count != 4:
        problems.append(f"group_count is {config.group_count}, not 4")
    for name, least in (("n_hid", 64), ("vocab_size", 512), ("n_init", 8)):
        if getattr(config, name) < least:
            problems.append(f"{name} is {getattr(config, name)}, below {least}")
    if config.constant_scale != "none":
        problems.append(f"its scale is a parameter ({config.constant_scale}), not a map")
    elif config.channels * config.stats_per_channel % 2:
        problems.append(f"{config.channels * config.stats_per_channel} maps are an odd number")
    return problems
