"""Images to tokens and back, with trained parameters."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import chex
import flax.core
import jax
import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.models.bottleneck import hard_codes
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import DVAE, param_shapes
from logit_laplace_jax.pixels import check_eps, map_pixels, unmap_pixels


class Tokenizer:
    """Turns images into tokens and tokens into images.

    Compiles once for every image shape.

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

    def encode(self, pixels: np.ndarray | jax.Array) -> jax.Array:
        """Tokens of images: uint8 [B, H, W, C] to int32 [B, H/f, W/f] in [0, vocab_size).

        Raises:
          TypeError: the pixels are not uint8.
          ValueError: the shape is not [B, H, W, C] with the model's channels and an allowed size.
        """
        if not hasattr(pixels, "dtype") or pixels.dtype != np.uint8:
            found = getattr(pixels, "dtype", type(pixels).__name__)
            raise TypeError(f"pixels must be an array of uint8, got {found}")
        if pixels.ndim != 4 or pixels.shape[-1] != self.config.channels:
            raise ValueError(
                f"pixels must have shape [B, H, W, {self.config.channels}], got {pixels.shape}"
            )
        self.config.check_size(*pixels.shape[1:3])
        return self._encode(self.params, jnp.asarray(pixels))

    def decode(self, tokens: np.ndarray | jax.Array) -> jax.Array:
        """Images of tokens: integers [B, h, w] to float32 [B, h f, w f, C] in [0, 1].

        Raises:
          TypeError: the tokens are not integers.
          ValueError: the rank is not 3, or a token is outside [0, vocab_size). (Under a caller's
            own jit the range cannot be seen: there such a token gives NaN.)
        """
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
        return self._decode(self.params, jnp.asarray(tokens, jnp.int32))


def _check_params(config: DVAEConfig, params: Mapping[str, Any]) -> None:
    try:
        chex.assert_trees_all_equal_shapes(dict(params), param_shapes(config))
    except (AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else "they differ"
        hint = "; pass the tree inside 'params'" if "params" in params else ""
        raise ValueError(
            f"params are not those of this model: {reason}{hint} ({config})"
        ) from error
