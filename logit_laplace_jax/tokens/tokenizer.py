"""Images to tokens and back, with trained parameters."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import chex
import flax.core
import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax import likelihoods
from logit_laplace_jax.models.bottleneck import hard_codes
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import DVAE, param_shapes
from logit_laplace_jax.pixel_map import check_eps, map_pixels, unmap_pixels
from logit_laplace_jax.tokens.ranges import (
    ValueRange,
    as_array,
    as_pixels,
    check_name,
    from_unit,
)

_TRAINING_ONLY = frozenset({"straight_through", "remat"})
"""Fields of the configuration that change no token and no image."""


class Tokenizer:
    """Turns images into tokens and tokens into images.

    Compiles once for every image shape (and once more for floats beside uint8). The parameters of a
    run, of an exchange file or of OpenAI's published model:
    `logit_laplace_jax.runs.tokenizers.tokenizer_of_run`, `Tokenizer.from_file`,
    `Tokenizer.from_openai`.

    Args:
      config: the model's sizes.
      params: its parameters: from `init_params`, or the trained ones.
      eps: the pixel map's margin, as in training.
      reconstruct: float32 [B, H, W, C stats_per_channel] to [B, H, W, C] in [0, 1], for models
        trained with another likelihood. Default: the logit-Laplace median
        clip((sigmoid(mu) - eps) / (1 - 2 eps), 0, 1).

    Raises:
      ValueError: the parameters are not those of a model with this configuration, or the default
        reconstruction does not fit its statistics.

    Example:
      >>> config = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)
      >>> from logit_laplace_jax.models import init_params
      >>> tokenizer = Tokenizer(config, init_params(config, jax.random.key(0)))
      >>> tokens = tokenizer.encode(np.zeros((1, 8, 4, 3), np.uint8))
      >>> tokens.shape, tokens.dtype
      ((1, 4, 2), dtype('int32'))
      >>> tokenizer.decode(tokens).shape
      (1, 8, 4, 3)
      >>> floats = np.zeros((1, 8, 4, 3), np.float32)  # 0..1, black; or grey, if it is -1..1
      >>> bool((tokenizer.encode(floats, "unit") == tokens).all())
      True
      >>> tokenizer.decode(tokens, "uint8").dtype
      dtype('uint8')

    Source: openai/DALL-E ``notebooks/usage.ipynb``; Ramesh et al. 2021, appendix A.3.
    """

    def __init__(
        self,
        config: DVAEConfig,
        params: Mapping[str, Any],
        eps: float = 0.1,
        reconstruct: Callable[[jax.Array], jax.Array] | None = None,
    ) -> None:
        if reconstruct is None and config.stats_per_channel > 2:
            raise ValueError(
                f"stats_per_channel={config.stats_per_channel} is not a logit-Laplace model: "
                "pass the likelihood's reconstruct"
            )
        params = flax.core.unfreeze(cast(dict[str, Any], params))  # dictionaries all the way down
        self.config = config
        self.params = params
        self.eps = eps = check_eps(eps)
        self.reconstruct = reconstruct
        model = DVAE(config)
        _check_params(config, params)

        def median(stats: jax.Array) -> jax.Array:
            return unmap_pixels(jax.nn.sigmoid(stats[..., : config.channels]), eps)

        to_image = reconstruct or median

        # The parameters are arguments: closed over, they would be compiled in as constants.
        def encode(params: Mapping[str, Any], pixels: jax.Array) -> jax.Array:
            logits = model.apply({"params": params}, map_pixels(pixels, eps), method="encode")
            assert isinstance(logits, jax.Array)
            return hard_codes(logits)

        def decode(params: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
            stats = model.apply({"params": params}, tokens, method="decode_tokens")
            assert isinstance(stats, jax.Array)
            return to_image(stats).astype(jnp.float32)

        self._encode = jax.jit(encode)
        self._decode = jax.jit(decode)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles, for worker processes: without the compiled programs."""
        arguments = self.config, jax.device_get(self.params), self.eps, self.reconstruct
        return type(self), arguments

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """The tokenizer of an exchange file, `.safetensors` or `.pt`, with what it says of itself.

        Of the file's metadata it takes ``eps``, ``likelihood`` (a name) and
        ``likelihood_options``, as export.py writes them. A file that names no likelihood is taken
        for a logit-Laplace model, and one without ``eps`` for one of ε = 0.1.

        Raises:
          ValueError: the file is damaged or not of a model of this package; one line.
          OSError: the file cannot be opened.

        Example:
          >>> import tempfile
          >>> from logit_laplace_jax.models import init_params
          >>> from logit_laplace_jax.weights import exchange
          >>> config = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16)
          >>> params = init_params(config, jax.random.key(0))
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     exchange.save(f"{folder}/model.safetensors", config, params, {"eps": 0.05})
          ...     tokenizer = Tokenizer.from_file(f"{folder}/model.safetensors")
          >>> tokenizer.eps, tokenizer.fingerprint == Tokenizer(config, params, 0.05).fingerprint
          (0.05, True)
        """
        from logit_laplace_jax.weights import exchange

        weights = exchange.load(path)
        try:
            eps, reconstruct = _said_of(weights.config, weights.metadata)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: what it says of the model: {error}") from error
        return cls(weights.config, weights.params, eps, reconstruct)

    @classmethod
    def from_openai(
        cls, encoder_path: str | os.PathLike[str], decoder_path: str | os.PathLike[str]
    ) -> Self:
        """The tokenizer of OpenAI's published `encoder.pkl` and `decoder.pkl`.

        Nothing in the files is run; see `logit_laplace_jax.weights.openai`.

        Raises:
          ValueError: a file is damaged or something else; one line.
          OSError: a file cannot be opened.
        """
        from logit_laplace_jax.weights import openai

        return cls(*openai.load(encoder_path, decoder_path))

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of the configuration, ε and every parameter.

        The same on every machine and device and for every order of the tree; another one as soon as
        any parameter differs in a bit of its float32 value, so tokens of equal fingerprints are
        tokens of one model. Options that only training uses do not count, nor does
        ``reconstruct``. Computed on first use, from a copy on the host.
        """
        # Fields at their defaults are left out: one that a later version adds changes no hash.
        given = {
            field.name: value
            for field in dataclasses.fields(self.config)
            if (value := getattr(self.config, field.name)) != field.default
            and field.name not in _TRAINING_ONLY
        }
        digest = hashlib.sha256(json.dumps([given, self.eps], sort_keys=True).encode())
        leaves, _ = jax.tree_util.tree_flatten_with_path(self.params)
        for name, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in leaves):
            values = np.ascontiguousarray(np.asarray(leaf), dtype="<f4")
            digest.update(f"{name} {values.shape}".encode() + b"\0" + values.tobytes())
        return digest.hexdigest()[:16]

    def encode(
        self, pixels: np.ndarray | jax.Array, value_range: ValueRange | None = None
    ) -> jax.Array:
        """Tokens of images: [B, H, W, C] to int32 [B, H/f, W/f] in [0, vocab_size).

        Args:
          pixels: uint8, or floating point of a stated range.
          value_range: what the numbers mean: ``"uint8"`` (0..255, the default for dtype uint8),
            ``"unit"`` (floats 0..1) or ``"symmetric"`` (floats -1..1). Floats have no default.
            Floats that stand for 8-bit values give the tokens of these values, except where two
            codes are equally likely to rounding.

        Raises:
          TypeError: neither uint8 nor floating point, or floating point and no range stated.
          ValueError: values that cannot be of the stated range, NaN, or a shape that is not
            [B, H, W, C] with the model's channels and an allowed size.

        Warns:
          RangeWarning: values that look like those of another range; see
            `logit_laplace_jax.tokens.ranges.as_pixels`, also for what a caller's own jit hides.
        """
        pixels = as_array(pixels)
        shape = getattr(pixels, "shape", None)
        if shape is not None and (len(shape) != 4 or shape[-1] != self.config.channels):
            raise ValueError(
                f"pixels must have shape [B, H, W, {self.config.channels}], got {shape}"
            )
        if shape is not None:
            self.config.check_size(*shape[1:3])
        pixels = as_pixels(pixels, value_range, self.eps)
        return self._encode(self.params, jnp.asarray(pixels))

    def decode(self, tokens: np.ndarray | jax.Array, value_range: ValueRange = "unit") -> jax.Array:
        """Images of tokens: integers [B, h, w] to [B, h f, w f, C], by default float32 in [0, 1].

        Args:
          tokens: any integer dtype, values in [0, vocab_size).
          value_range: ``"unit"``: float32 v in [0, 1]; ``"symmetric"``: float32 2v - 1 in [-1, 1];
            ``"uint8"``: 255 v rounded to the nearest integer, halves to the even one.

        Raises:
          TypeError: the tokens are not integers.
          ValueError: no such range, the rank is not 3, or a token is outside [0, vocab_size).
            (Under a caller's own jit tokens cannot be seen: there such a token gives NaN, and as
            uint8 any value.)
        """
        check_name(value_range)
        tokens = as_array(tokens)
        if not hasattr(tokens, "dtype") or not jnp.issubdtype(tokens.dtype, jnp.integer):
            found = getattr(tokens, "dtype", type(tokens).__name__)
            raise TypeError(f"tokens must be an array of integers, got {found}")
        if tokens.ndim != 3:
            raise ValueError(f"tokens must have shape [B, h, w], got {tokens.shape}")
        if not isinstance(tokens, jax.core.Tracer) and tokens.size:
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"tokens must lie in [0, {self.config.vocab_size}), got {low} to {high}"
                )
        images = self._decode(self.params, jnp.asarray(tokens, jnp.int32))
        return from_unit(images, value_range)


def _said_of(
    config: DVAEConfig, metadata: Mapping[str, Any]
) -> tuple[float, Callable[[jax.Array], jax.Array] | None]:
    """ε and the reconstruction that a file's metadata ask for."""
    eps = check_eps(metadata.get("eps", 0.1))
    name = metadata.get("likelihood")
    if name is None:
        return eps, None
    options = dict(metadata.get("likelihood_options", {}))
    if "eps" in likelihoods.options(name):
        options["eps"] = eps
    likelihood = likelihoods.get(name, **options)
    if likelihood.num_stats != config.stats_per_channel:
        raise ValueError(
            f"likelihood {name} has {likelihood.num_stats} maps per channel, the model "
            f"{config.stats_per_channel}"
        )
    return eps, likelihood.reconstruct


def _check_params(config: DVAEConfig, params: Mapping[str, Any]) -> None:
    try:
        chex.assert_trees_all_equal_shapes(dict(params), param_shapes(config))
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "they differ"
        hint = "; pass the tree inside 'params'" if "params" in params else ""
        raise ValueError(
            f"params are not those of this model: {reason}{hint} ({config})"
        ) from error
