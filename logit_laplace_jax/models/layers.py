"""The layers that encoder and decoder share: convolution, 2x2 max-pooling, 2x upsampling.

All images are NHWC.
"""

import math
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero


def float32_precision() -> lax.Precision | None:
    """Multiplication precision for convolutions that must not be rounded to 16 bits.

    Without it a TPU multiplies float32 operands as bfloat16. HIGH is three bfloat16 passes there
    and TF32 on a GPU; a precision that the user set for the whole program comes first.
    """
    if jax.config.jax_default_matmul_precision is None:  # type: ignore[attr-defined]
        return lax.Precision.HIGH
    return None


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, precision: lax.Precision | None = None) -> jax.Array:
    """Stride-1 convolution, SAME padding: [B, H, W, n_in] with [k, k, n_in, n_out].

    Example:
      >>> convolve(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 2)))[0, :, :, 0].max()
      Array(27., dtype=float32)
    """
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


def _convolve_jvp(
    precision: lax.Precision | None, primals: tuple[jax.Array, jax.Array], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    (x, kernel), (dx, dkernel) = primals, tangents
    y = convolve(x, kernel, precision)
    dy = jnp.zeros_like(y)
    if not isinstance(dx, SymbolicZero):
        dy = dy + convolve(dx, kernel, precision)
    if not isinstance(dkernel, SymbolicZero):
        dy = dy + _along_kernel(x, dkernel, precision)
    return y, dy


def _along_kernel(x: jax.Array, dkernel: jax.Array, precision: lax.Precision | None) -> jax.Array:
    """convolve(x, dkernel), in the form whose transpose, the kernel's gradient, is fast."""
    k, _, n_in, n_out = dkernel.shape
    plain = partial(convolve, precision=precision)
    if n_in <= n_out or min(x.shape[1:3]) <= k // 2:
        return plain(x, dkernel)

    def swapped(x: jax.Array, dkernel: jax.Array) -> jax.Array:
        # The kernel as the image and the image as the kernel. The transpose convolves the gradient
        # of y by x: XLA's CPU backend copies every k x k patch of the first operand, and
        # transposes it besides, so let that be the narrower one.
        return lax.conv_general_dilated(
            lax.rev(dkernel, (0, 1)),
            lax.rev(x, (1, 2)),
            window_strides=(1, 1),
            padding=[(size - k // 2 - 1,) * 2 for size in x.shape[1:3]],
            dimension_numbers=lax.ConvDimensionNumbers((3, 2, 0, 1), (0, 3, 1, 2), (3, 0, 1, 2)),
            precision=precision,
        )

    result: jax.Array = lax.platform_dependent(x, dkernel, cpu=swapped, default=plain)
    return result


convolve.defjvp(_convolve_jvp, symbolic_zeros=True)


class Conv(nn.Module):
    """A stride-1 convolution with SAME padding, initialised as OpenAI's.

    Parameters: ``kernel`` float32 [k, k, n_in, n_out], normal with standard deviation
    1/sqrt(n_in k^2); ``bias`` float32 [n_out], zeros.

    Attributes:
      n_in: channels of the input.
      n_out: channels of the output.
      kernel_size: odd side k of the kernel.
      dtype: dtype in which the operands are multiplied.
      out_dtype: dtype of the result, ``dtype`` if None; a 1x1 accumulates straight into it.
      precision: passed on to XLA.

    Example:
      >>> conv = Conv(n_in=3, n_out=8, kernel_size=7)
      >>> y, variables = conv.init_with_output(jax.random.key(0), jnp.ones((1, 4, 6, 3)))
      >>> y.shape, variables["params"]["kernel"].shape
      ((1, 4, 6, 8), (7, 7, 3, 8))

    Source: openai/DALL-E ``utils.py``, class ``Conv2d`` (there OIHW, named ``w`` and ``b``).
    """

    n_in: int
    n_out: int
    kernel_size: int
    dtype: jnp.dtype = jnp.dtype("float32")
    out_dtype: jnp.dtype | None = None
    precision: lax.Precision | None = None

    def setup(self) -> None:  # noqa: D102 (Flax's hook)
        k = self.kernel_size
        stddev = 1 / math.sqrt(self.n_in * k**2)
        self.kernel = self.param(
            "kernel", nn.initializers.normal(stddev), (k, k, self.n_in, self.n_out), jnp.float32
        )
        self.bias = self.param("bias", nn.initializers.zeros, (self.n_out,), jnp.float32)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x [B, H, W, n_in] to [B, H, W, n_out] in ``out_dtype``."""
        chex.assert_shape(x, (None, None, None, self.n_in))
        out_dtype = self.out_dtype or self.dtype
        x = x.astype(self.dtype)
        kernel = self.kernel.astype(self.dtype)
        if self.kernel_size == 1:
            # The same numbers as a convolution, which XLA's CPU backend runs more slowly. Of
            # matrices: the gradient of a product over three axes would copy its operands.
            y = lax.dot(
                x.reshape(-1, self.n_in),
                kernel[0, 0],
                precision=self.precision,
                preferred_element_type=out_dtype,
            ).reshape(*x.shape[:3], self.n_out)
        else:
            y = convolve(x, kernel, self.precision).astype(out_dtype)
        return y + self.bias.astype(out_dtype)[None, None, None]

    def lookup(self, indices: jax.Array) -> jax.Array:
        """The 1x1 convolution of one-hot inputs, as a gather: [B, h, w] int to [B, h, w, n_out].

        An index outside [0, n_in) gives NaN, not a neighbour's row.
        """
        if self.kernel_size != 1:
            raise ValueError(f"lookup needs a 1x1 kernel, this one is {self.kernel_size} wide")
        rows = self.kernel[0, 0].astype(self.dtype)
        rows = rows.at[indices].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return rows + self.bias.astype(self.dtype)[None, None, None]


def _windows(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H/2, 2, W/2, 2, C]: the 2x2 windows on axes 2 and 4."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c)


@jax.custom_jvp
def max_pool(x: jax.Array) -> jax.Array:
    """The largest value of every 2x2 window: [B, H, W, C] to [B, H/2, W/2, C], any float dtype.

    Where values tie, the gradient goes to the first of them in row order, as in torch. (Ties are
    common: flat regions of an image give equal neighbours.)

    Example:
      >>> x = jnp.arange(8.0).reshape(1, 2, 4, 1)
      >>> max_pool(x)[0, 0, :, 0].tolist()
      [5.0, 7.0]
    """
    return nn.max_pool(x, (2, 2), (2, 2))


@max_pool.defjvp
def _max_pool_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # reduce_window's own gradient is select_and_scatter, which gives a tie to the first too. A TPU
    # has an instruction for it; XLA's backends for CPUs and GPUs run it slowly. reduce_max would
    # share a tie out.
    (x,), (dx,) = primals, tangents
    y: jax.Array
    dy: jax.Array
    y, dy = lax.platform_dependent(x, dx, tpu=_own_jvp, default=_masked_jvp)
    return y, dy


def _own_jvp(x: jax.Array, dx: jax.Array) -> tuple[jax.Array, jax.Array]:
    y, dy = jax.jvp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), (x,), (dx,))
    return y, dy


def _masked_jvp(x: jax.Array, dx: jax.Array) -> tuple[jax.Array, jax.Array]:
    # A masked sum is linear, and its transpose is one masked copy. The barrier keeps XLA from
    # computing x again inside each of its consumers here.
    x = lax.optimization_barrier(x)
    y = max_pool(x)
    first = x[:, 0::2, 0::2] == y
    second = (x[:, 0::2, 1::2] == y) & ~first
    third = (x[:, 1::2, 0::2] == y) & ~(first | second)
    fourth = ~(first | second | third)  # also where y is NaN, so that the gradient goes somewhere
    winner = jnp.stack([jnp.stack([first, second], 3), jnp.stack([third, fourth], 3)], 2)
    windows = _windows(dx)
    return y, jnp.sum(jnp.where(winner, windows, jnp.zeros_like(windows)), axis=(2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """Nearest-neighbour doubling: [B, h, w, C] to [B, 2h, 2w, C].

    Example:
      >>> upsample(jnp.array([[1.0, 2.0]])[None, :, :, None])[0, :, :, 0].tolist()
      [[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]
    """
    result: jax.Array = lax.platform_dependent(x, tpu=_spread, default=_copied)
    return result


def _spread(x: jax.Array) -> jax.Array:
    # Zeros between the pixels, and sums of 2x2, of which one term each is a pixel: on a TPU copies
    # along an axis of two would be padded to whole tiles.
    window, ones, dilation = (1, 2, 2, 1), (1, 1, 1, 1), (1, 2, 2, 1)
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    zero = np.zeros((), x.dtype)
    result: jax.Array = lax.reduce_window(x, zero, lax.add, window, ones, padding, dilation)
    return result


def _copied(x: jax.Array) -> jax.Array:
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)
