"""The decoder: codes to the statistics of the likelihood."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from logit_laplace_jax.models.blocks import DECODER_KERNELS, Group
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.layers import Conv, float32_precision


class Decoder(nn.Module):
    """A 1x1 convolution (its kernel is the codebook), groups of narrowing blocks, a 1x1 to maps.

    Parameters: ``input``, ``group_1`` ... ``group_<group_count>``, ``output``; with a constant
    scale also ``log_scale``, [channels] or [1], which starts at 0.

    Source: openai/DALL-E ``decoder.py``; Ramesh et al. 2021, appendix A.3.
    """

    config: DVAEConfig

    @nn.compact
    def __call__(self, codes: jax.Array) -> jax.Array:
        """Maps codes to statistics float32 [B, h f, w f, channels stats_per_channel].

        Args:
          codes: float [B, h, w, vocab_size], or integer tokens [B, h, w], which stand for their
            one-hot vectors.
        """
        config = self.config
        dtype = jnp.dtype(config.dtype)
        n_in = config.n_init
        codebook = Conv(config.vocab_size, n_in, 1, precision=float32_precision(), name="input")
        is_tokens = jnp.issubdtype(codes.dtype, jnp.integer)
        x = (codebook.lookup(codes) if is_tokens else codebook(codes)).astype(dtype)
        for i, width in enumerate(reversed(config.group_widths), start=1):
            x = Group(n_in, width, DECODER_KERNELS, config, upsample=i > 1, name=f"group_{i}")(x)
            n_in = width
        # 16-bit operands, as OpenAI's; but the sum stays float32, at no cost: rounded to bfloat16,
        # mu would move by up to a quarter of a grey level, and a small b would notice.
        output = Conv(
            n_in, config.maps, 1, dtype=dtype, out_dtype=jnp.dtype("float32"), name="output"
        )
        maps = output(nn.relu(x))
        if config.constant_scale == "none":
            return maps
        count = config.channels if config.constant_scale == "per_channel" else 1
        log_scale = self.param("log_scale", nn.initializers.zeros_init(), (count,))
        # All channels' first statistic, then all channels' second.
        return jnp.concatenate([maps, jnp.broadcast_to(log_scale, maps.shape)], axis=-1)
