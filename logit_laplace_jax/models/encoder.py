"""The encoder: mapped pixels to logits over the codes."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.layers import Conv, float32_precision, max_pool


class EncoderBlock(nn.Module):
    """id(x) + post_gain res(x), where res is four convolutions (3, 3, 3, 1), each after a ReLU.

    The branch is n_out/4 wide inside; id is a 1x1 convolution where the width changes.

    Attributes:
      n_in: channels of the input.
      n_out: channels of the output.
      post_gain: factor on the residual branch.
      dtype: compute dtype.
    """

    n_in: int
    n_out: int
    post_gain: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, H, W, n_in] to [B, H, W, n_out]."""
        n_hid = self.n_out // 4
        shapes = [
            (self.n_in, n_hid, 3),
            (n_hid, n_hid, 3),
            (n_hid, n_hid, 3),
            (n_hid, self.n_out, 1),
        ]
        res = x
        for i, shape in enumerate(shapes, start=1):
            res = Conv(*shape, dtype=self.dtype, name=f"conv_{i}")(nn.relu(res))
        if self.n_in != self.n_out:
            x = Conv(self.n_in, self.n_out, 1, dtype=self.dtype, name="id_path")(x)
        return x + self.post_gain * res


class EncoderGroup(nn.Module):
    """Blocks of one width at one resolution."""

    n_in: int
    n_out: int
    config: DVAEConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, H, W, n_in] to [B, H, W, n_out]."""
        block = nn.remat(EncoderBlock) if self.config.remat else EncoderBlock
        for i in range(1, self.config.n_blk_per_group + 1):
            x = block(
                n_in=self.n_in if i == 1 else self.n_out,
                n_out=self.n_out,
                post_gain=self.config.post_gain,
                dtype=jnp.dtype(self.config.dtype),
                name=f"block_{i}",
            )(x)
        return x


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
        widths = config.group_widths
        x = Conv(config.channels, widths[0], 7, dtype=jnp.dtype(config.dtype), name="input")(x)
        n_in = widths[0]
        for i, width in enumerate(widths, start=1):
            x = EncoderGroup(n_in, width, config, name=f"group_{i}")(x)
            if i < config.group_count:
                x = max_pool(x)
            n_in = width
        return Conv(n_in, config.vocab_size, 1, precision=float32_precision(), name="output")(
            nn.relu(x)
        )
