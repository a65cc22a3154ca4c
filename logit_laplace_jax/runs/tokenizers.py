"""Tokenizers from what a user has: a run directory, an exchange file, OpenAI's published files."""

from pathlib import Path

from logit_laplace_jax.runs import directory
from logit_laplace_jax.tokens.tokenizer import Tokenizer

_FILES = (".safetensors", ".pt")


def tokenizer_of_run(folder: str | Path, checkpoint: str = "latest") -> Tokenizer:
    """The tokenizer of a run: its averaged parameters, its ε and its likelihood.

    Args:
      folder: the run directory that train.py wrote.
      checkpoint: latest, best (fewest held-out bits/dim), or the number of updates.

    Raises:
      ValueError: not a run directory.
      CheckpointError: no complete checkpoint, or a damaged one.

    Example:
      >>> tokenizer_of_run("nowhere")
      Traceback (most recent call last):
        ...
      logit_laplace_jax.runs.errors.RunError: nowhere is not a run directory: ...
    """
    state = directory.load(folder, checkpoint)
    config = state.config
    reconstruct = config.likelihood.build().reconstruct
    return Tokenizer(config.model, state.ema_params, config.likelihood.eps, reconstruct)


def open_tokenizer(
    model: str | Path, decoder: str | Path | None = None, checkpoint: str = "latest"
) -> Tokenizer:
    """The tokenizer of whatever holds a model.

    Args:
      model: a run directory, an exchange file (`.safetensors` or `.pt`), or, with `decoder`,
        OpenAI's encoder.pkl.
      decoder: OpenAI's decoder.pkl.
      checkpoint: which of a run's, as for `tokenizer_of_run`.

    Raises:
      ValueError: no such model, or not one; one line.
      CheckpointError: a run without a complete checkpoint.

    Example:
      >>> open_tokenizer("encoder.pkl")
      Traceback (most recent call last):
        ...
      ValueError: encoder.pkl is one half of a published model: name decoder.pkl too
    """
    path = Path(model)
    if decoder is not None:
        return Tokenizer.from_openai(path, decoder)
    if path.suffix == ".pkl" and not path.is_dir():
        raise ValueError(f"{path} is one half of a published model: name decoder.pkl too")
    if path.is_dir():
        return tokenizer_of_run(path, checkpoint)
    if path.suffix in _FILES:
        return Tokenizer.from_file(path)
    reason = "is no file of weights" if path.exists() else "does not exist"
    raise ValueError(
        f"{path} {reason}: give a run directory, a file {' or '.join(_FILES)}, or encoder.pkl with "
        "decoder.pkl"
    )
