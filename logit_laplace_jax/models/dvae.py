"""The discrete VAE: encoder, bottleneck and decoder as one Flax module."""

import functools
import math
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from logit_laplace_jax.models import bottleneck
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.decoder import Decoder
from logit_laplace_jax.models.encoder import Encoder


class DVAEOutput(NamedTuple):
    """What a pass through the model gives; all float32, f = ``config.downsampling``."""

    logits: jax.Array
    """[B, H/f, W/f, vocab_size], the encoder's unnormalised log probabilities."""
    codes: jax.Array
    """[B, H/f, W/f, vocab_size], what the decoder saw: relaxed or one-hot."""
    stats: jax.Array
    """[B, H, W, channels stats_per_channel], all channels' first statistic, then the second."""


class DVAE(nn.Module):
    """The DALL-E dVAE. Fully convolutional: any height and width that ``downsampling`` divides.

    Parameters: ``encoder`` and ``decoder``, each with ``input``, ``group_<i>/block_<j>/conv_<k>``
    and ``id_path`` where the width changes, ``output``; every one has ``kernel`` and ``bias``.

    Attributes:
      config: sizes and options.

    Example:
      >>> config = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)
      >>> model = DVAE(config)
      >>> x = jnp.full((1, 8, 4, 3), 0.5)
      >>> variables = {"params": init_params(config, jax.random.key(0))}
      >>> noise = bottleneck.gumbel_noise(jax.random.key(1), jnp.arange(1), (4, 2, 16))
      >>> out = model.apply(variables, x, temperature=0.5, noise=noise)
      >>> out.logits.shape, out.codes.shape, out.stats.shape
      ((1, 4, 2, 16), (1, 4, 2, 16), (1, 8, 4, 6))
      >>> tokens = bottleneck.hard_codes(model.apply(variables, x, method="encode"))
      >>> model.apply(variables, tokens, method="decode_tokens").shape
      (1, 8, 4, 6)

    Source: openai/DALL-E; Ramesh et al. 2021, appendix A.
    """

    config: DVAEConfig

    def setup(self) -> None:  # noqa: D102 (Flax's hook)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def __call__(
        self,
        x: jax.Array,
        temperature: float | jax.Array = 1.0,
        noise: jax.Array | None = None,
        hard: bool = False,
    ) -> DVAEOutput:
        """Encodes, relaxes and decodes a batch.

        Args:
          x: float [B, H, W, channels], mapped pixels in [eps, 1 - eps].
          temperature: positive scalar of the relaxation; unused when ``hard``.
          noise: float32 [B, H/f, W/f, vocab_size] from `bottleneck.gumbel_noise`. None draws it
            from the rng stream "gumbel" with the batch's own indices if ``apply`` was given that
            stream, and adds none otherwise.
          hard: decode the one-hot vectors of the logits' argmax: no noise, no gradient to the
            encoder.

        Raises:
          TypeError: x is not floating point.
          ValueError: the height or width cannot be halved often enough.
          AssertionError: another shape or dtype is wrong (chex).
        """
        logits = self.encode(x)
        if hard:
            codes = bottleneck.one_hot(bottleneck.hard_codes(logits), self.config.vocab_size)
        else:
            if noise is None and self.has_rng("gumbel"):
                noise = bottleneck.gumbel_noise(
                    self.make_rng("gumbel"), jnp.arange(logits.shape[0]), logits.shape[1:]
                )
            codes = bottleneck.relax(
                logits, temperature, noise, straight_through=self.config.straight_through
            )
        return DVAEOutput(logits=logits, codes=codes, stats=self.decode(codes))

    def encode(self, x: jax.Array) -> jax.Array:
        """Logits of mapped pixels: x float [B, H, W, channels] to float32 [B, H/f, W/f, V].

        Raises:
          TypeError: x is not floating point.
          ValueError: the height or width cannot be halved often enough.
          AssertionError: the rank or the number of channels is wrong (chex).
        """
        if not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise TypeError(
                f"the encoder takes mapped float pixels, got {jnp.result_type(x)}: "
                "apply logit_laplace_jax.map_pixels first"
            )
        chex.assert_shape(x, (None, None, None, self.config.channels))
        self.config.check_size(x.shape[1], x.shape[2])
        return self.encoder(x)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Statistics of codes: float [B, h, w, V] to float32 [B, h f, w f, C stats_per_channel].

        Raises:
          AssertionError: the shape or dtype is wrong (chex).
        """
        chex.assert_shape(codes, (None, None, None, self.config.vocab_size))
        chex.assert_type(codes, float)
        return self.decoder(codes)

    def decode_tokens(self, tokens: jax.Array) -> jax.Array:
        """Statistics of tokens: int [B, h, w] to float32 [B, h f, w f, C stats_per_channel].

        Equals ``decode`` of their one-hot vectors; a token outside [0, vocab_size) gives NaN.

        Raises:
          AssertionError: the rank or dtype is wrong (chex).
        """
        chex.assert_rank(tokens, 3)
        chex.assert_type(tokens, int)
        return self.decoder(tokens)


def param_shapes(config: DVAEConfig) -> Any:
    """The parameter tree's shapes and dtypes, as `jax.ShapeDtypeStruct`; computes nothing."""
    side = config.downsampling  # the smallest image: parameters do not depend on its size
    image = jax.ShapeDtypeStruct((1, side, side, config.channels), jnp.float32)
    return jax.eval_shape(DVAE(config).init, jax.random.key(0), image)["params"]


@functools.partial(jax.jit, static_argnames="config")
def init_params(config: DVAEConfig, key: jax.Array) -> Any:
    """Fresh parameters: kernels normal with deviation 1/sqrt(n_in k^2), biases zero.

    The distribution of ``DVAE(config).init(key, x)["params"]``, from one draw for all kernels:
    ``init`` draws each on its own, which takes XLA many times as long to compile.

    Args:
      config: sizes of the model.
      key: a random key.

    Returns:
      The float32 parameter tree that ``DVAE(config).apply`` takes as ``{"params": params}``.

    Example:
      >>> config = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)
      >>> params = init_params(config, jax.random.key(0))
      >>> params["decoder"]["input"]["kernel"].shape
      (1, 1, 16, 8)

    Source: openai/DALL-E ``utils.py``, class ``Conv2d``.
    """
    shapes, structure = jax.tree.flatten(param_shapes(config))
    sizes = [math.prod(leaf.shape) if leaf.ndim == 4 else 0 for leaf in shapes]
    # Behind the barrier the generator is compiled once, not into every slice.
    draws = jax.lax.optimization_barrier(jax.random.normal(key, (sum(sizes),), jnp.float32))
    leaves, start = [], 0
    for leaf, size in zip(shapes, sizes, strict=True):
        if leaf.ndim == 4:
            kernel = jax.lax.slice(draws, (start,), (start + size,)).reshape(leaf.shape)
            leaves.append(kernel / math.sqrt(math.prod(leaf.shape[:3])))
        else:
            leaves.append(jnp.zeros(leaf.shape, jnp.float32))
        start += size
    return jax.tree.unflatten(structure, leaves)
