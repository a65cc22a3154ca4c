"""The encoder: mapped pixels to logits over the codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from logit_laplace_jax.models.blocks import ENCODER_KERNELS, Group
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.layers import Conv, float32_precision, max_pool


class Encoder(nn.Module):
    """A 7x7 convolution, groups of widening blocks with 2x2 max-pooling between, a 1x1 to logits.

    Parameters: ``input``, ``group_1`` ... ``group_<group_count>``, ``output``.

    Source: openai/DALL-E ``encoder.py``; Ramesh et al. 2021, appendix A.3.
    """

    config: DVAEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x float [B, H, W, channels] to logits float32 [B, H/f, W/f, vocab_size]."""
        config = self.config
        n_in = config.n_hid
        x = Conv(config.channels, n_in, 7, dtype=jnp.dtype(config.dtype), name="input")(x)
        for i, width in enumerate(config.group_widths, start=1):
            x = max_pool(x) if i > 1 else x
            x = Group(n_in, width, ENCODER_KERNELS, config, name=f"group_{i}")(x)
            n_in = width
        output = Conv(n_in, config.vocab_size, 1, precision=float32_precision(), name="output")
        return output(nn.relu(x))
