"""The decoder: codes to the statistics of the likelihood."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.layers import Conv, float32_precision, upsample


class DecoderBlock(nn.Module):
    """id(up(x)) + post_gain res(up(x)); res is four convolutions (1, 3, 3, 3), each after a ReLU.

    The branch is n_out/4 wide inside; id is a 1x1 convolution where the width changes; up is the
    nearest-neighbour doubling that OpenAI's decoder has between two groups, or nothing.

    Attributes:
      n_in: channels of the input.
      n_out: channels of the output.
      post_gain: factor on the residual branch.
      dtype: compute dtype.
      upsample: whether the input is doubled first.
    """

    n_in: int
    n_out: int
    post_gain: float
    dtype: jnp.dtype
    upsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, h, w, n_in] to [B, h, w, n_out], or twice as high and wide."""
        n_hid = self.n_out // 4

        def conv(n_in: int, n_out: int, kernel_size: int, name: str) -> Conv:
            return Conv(n_in, n_out, kernel_size, dtype=self.dtype, name=name)

        res = conv(self.n_in, n_hid, 1, "conv_1")(nn.relu(x))
        if self.n_in != self.n_out:
            x = conv(self.n_in, self.n_out, 1, "id_path")(x)
        if self.upsample:
            # ReLU and 1x1 convolutions treat every pixel alike, so they commute with copying
            # pixels: the same numbers for a quarter of the arithmetic.
            x, res = upsample(x), upsample(res)
        res = conv(n_hid, n_hid, 3, "conv_2")(nn.relu(res))
        res = conv(n_hid, n_hid, 3, "conv_3")(nn.relu(res))
        res = conv(n_hid, self.n_out, 3, "conv_4")(nn.relu(res))
        return x + self.post_gain * res


class DecoderGroup(nn.Module):
    """Blocks of one width at one resolution, the first of which may double it."""

    n_in: int
    n_out: int
    config: DVAEConfig
    upsample: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, h, w, n_in] to [B, h, w, n_out], or twice as high and wide."""
        block = nn.remat(DecoderBlock) if self.config.remat else DecoderBlock
        for i in range(1, self.config.n_blk_per_group + 1):
            x = block(
                n_in=self.n_in if i == 1 else self.n_out,
                n_out=self.n_out,
                post_gain=self.config.post_gain,
                dtype=jnp.dtype(self.config.dtype),
                upsample=self.upsample and i == 1,
                name=f"block_{i}",
            )(x)
        return x


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
        codebook = Conv(
            config.vocab_size, config.n_init, 1, precision=float32_precision(), name="input"
        )
        is_tokens = jnp.issubdtype(codes.dtype, jnp.integer)
        dtype = jnp.dtype(config.dtype)
        x = (codebook.lookup(codes) if is_tokens else codebook(codes)).astype(dtype)
        n_in = config.n_init
        for i, width in enumerate(reversed(config.group_widths), start=1):
            x = DecoderGroup(n_in, width, config, upsample=i > 1, name=f"group_{i}")(x)
            n_in = width
        constant = config.constant_scale != "none"
        n_out = config.channels * (1 if constant else config.stats_per_channel)
        # 16-bit operands, as OpenAI's; but the sum stays float32, at no cost: rounded to bfloat16,
        # mu would move by up to a quarter of a grey level, and a small b would notice.
        output = Conv(n_in, n_out, 1, dtype=dtype, out_dtype=jnp.dtype("float32"), name="output")
        maps = output(nn.relu(x))
        if not constant:
            return maps
        count = config.channels if config.constant_scale == "per_channel" else 1
        log_scale = self.param("log_scale", nn.initializers.zeros_init(), (count,))
        # All channels' first statistic, then all channels' second.
        return jnp.concatenate([maps, jnp.broadcast_to(log_scale, maps.shape)], axis=-1)
