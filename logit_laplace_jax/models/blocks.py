"""Residual blocks and groups of them, of which the encoder and the decoder are made."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.layers import Conv, upsample

ENCODER_KERNELS = (3, 3, 3, 1)
DECODER_KERNELS = (1, 3, 3, 3)


class Block(nn.Module):
    """id(up(x)) + post_gain res(up(x)); res is four convolutions, each after a ReLU.

    The branch is n_out/4 wide inside; id is a 1x1 convolution where the width changes; up is the
    nearest-neighbour doubling that OpenAI's decoder has between two groups, or nothing.

    Attributes:
      n_in: channels of the input.
      n_out: channels of the output.
      kernel_sizes: sides of the four kernels; the first is 1 where the input is doubled.
      post_gain: factor on the residual branch.
      dtype: compute dtype.
      upsample: whether the input is doubled first.
    """

    n_in: int
    n_out: int
    kernel_sizes: tuple[int, int, int, int]
    post_gain: float
    dtype: jnp.dtype
    upsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, h, w, n_in] to [B, h, w, n_out], or twice as high and wide."""
        widths = (self.n_in, *3 * (self.n_out // 4,), self.n_out)

        def conv(i: int, res: jax.Array) -> jax.Array:
            sizes = widths[i - 1], widths[i], self.kernel_sizes[i - 1]
            return Conv(*sizes, dtype=self.dtype, name=f"conv_{i}")(nn.relu(res))

        res = conv(1, x)
        if self.n_in != self.n_out:
            x = Conv(self.n_in, self.n_out, 1, dtype=self.dtype, name="id_path")(x)
        if self.upsample:
            # ReLU and 1x1 convolutions treat every pixel alike, so they commute with copying
            # pixels: the same numbers for a quarter of the arithmetic.
            x, res = upsample(x), upsample(res)
        for i in (2, 3, 4):
            res = conv(i, res)
        return x + self.post_gain * res


class Group(nn.Module):
    """Blocks of one width at one resolution, which the first of them may double."""

    n_in: int
    n_out: int
    kernel_sizes: tuple[int, int, int, int]
    config: DVAEConfig
    upsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, h, w, n_in] to [B, h, w, n_out], or twice as high and wide."""
        block = nn.remat(Block) if self.config.remat else Block
        for i in range(1, self.config.n_blk_per_group + 1):
            x = block(
                n_in=self.n_in if i == 1 else self.n_out,
                n_out=self.n_out,
                kernel_sizes=self.kernel_sizes,
                post_gain=self.config.post_gain,
                dtype=jnp.dtype(self.config.dtype),
                upsample=self.upsample and i == 1,
                name=f"block_{i}",
            )(x)
        return x
