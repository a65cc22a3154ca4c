"""OpenAI's published dVAE weights, opened without running what is in the files.

``encoder.pkl`` and ``decoder.pkl`` are pickled torch modules. Python's pickle would import and call
whatever they name, and since torch 1.11 they no longer work that way; here their tensors are read
as data. Needs neither torch nor OpenAI's package.
"""

import os
from pathlib import Path
from typing import Any

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.weights import assemble, files
from logit_laplace_jax.weights.errors import WeightsError

__all__ = ["WeightsError", "load"]


def load(
    encoder_path: str | os.PathLike[str], decoder_path: str | os.PathLike[str]
) -> tuple[DVAEConfig, dict[str, Any]]:
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
      >>> load("encoder.pkl", "decoder.pkl")
      Traceback (most recent call last):
        ...
      FileNotFoundError: [Errno 2] No such file or directory: 'encoder.pkl'

    Source: openai/DALL-E ``encoder.py``, ``decoder.py``, ``utils.py``.
    """
    paths = {"encoder": Path(encoder_path), "decoder": Path(decoder_path)}
    read = {half: files.read(path) for half, path in paths.items()}
    found = {half: assemble.half_in(file.arrays) for half, file in read.items()}
    if found == {"encoder": "decoder", "decoder": "encoder"}:
        raise WeightsError(
            f"the two files are swapped: {encoder_path} holds a decoder and {decoder_path} an "
            "encoder"
        )
    for half, path in paths.items():
        if any(name.startswith(("encoder.", "decoder.")) for name in read[half].arrays):
            raise WeightsError(
                f"{path}: holds both halves in one file; read it with weights.exchange.load"
            )
        if found[half] not in (half, None):
            raise WeightsError(f"{path}: holds the {found[half]}, not the {half}")
    return assemble.model(
        {f"{half}.{name}": a for half, file in read.items() for name, a in file.arrays.items()},
        f"{encoder_path} and {decoder_path}",
        read["encoder"].post_gains | read["decoder"].post_gains,
    )
