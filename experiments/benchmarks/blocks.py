"""Building blocks of the library beside their peers, as programs of described arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

import logit_laplace_jax as ll
from benchmarks import peers
from benchmarks.report import OURS
from benchmarks.step_jax import configuration
from logit_laplace_jax.models import layers
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import train_step

Contestants = dict[str, Callable[[], Callable[..., Any]]]


@dataclasses.dataclass(frozen=True)
class Block:
    """One piece of work.

    Attributes:
      name: short, unique.
      title: what it does, with sizes.
      arguments: shapes and dtypes.
      contestants: makers of functions of these arguments; ours first.
      donated: numbers of the arguments whose memory the results take.
    """

    name: str
    title: str
    arguments: tuple[Any, ...]
    contestants: Contestants
    donated: tuple[int, ...] = ()

    def ideal_bytes(self) -> int:
        """Every argument read once, every result written once."""
        results = jax.eval_shape(self.contestants[OURS](), *self.arguments)
        return sum(
            math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves((self.arguments, results))
            if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        )


def _gradients(loss: Callable[..., Any], wrt: Any) -> Callable[..., Any]:
    return jax.value_and_grad(lambda *args: loss(*args).mean(), wrt)


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def pixel_blocks(shape: tuple[int, ...]) -> Iterator[Block]:
    """The losses and masses at images [B, H, W, C]."""
    size = " x ".join(map(str, shape))
    images = _array("uint8", *shape)
    yield Block("map_pixels", f"map_pixels of {size}", (images,), {OURS: lambda: ll.map_pixels})
    for dtype in ("float32", "bfloat16"):
        stats = (_array(dtype, *shape), _array(dtype, *shape))
        x = _array("float32", *shape)
        others: Contestants = {
            name: functools.partial(lambda make: _gradients(make(), (1, 2)), make)
            for name, make in peers.JAX_LOSSES.items()
        }
        yield Block(
            f"loss_{dtype}",
            f"logit_laplace_loss and both gradients, {size}, statistics {dtype}",
            (x, *stats),
            {OURS: lambda: _gradients(ll.logit_laplace_loss, (1, 2)), **others},
        )
        for name in ("logit_laplace_pixel_loss", "pixel_log_prob"):
            yield Block(
                f"{name.removeprefix('logit_laplace_')}_{dtype}",
                f"{name} and both gradients, {size}, statistics {dtype}",
                (images, *stats),
                {OURS: functools.partial(_gradients, getattr(ll, name), (1, 2))},
            )
    stats = (_array("float32", *shape), _array("float32", *shape))
    yield Block("pixel_pit", f"pixel_pit of {size}", (images, *stats), {OURS: lambda: ll.pixel_pit})
    for name in ll.likelihoods.names():
        family = ll.likelihoods.get(name)
        all_stats = _array("float32", *shape[:-1], shape[-1] * family.num_stats)
        yield Block(
            f"{name}_loss",
            f"{name}: loss and gradient, {size}",
            (images, all_stats),
            {OURS: functools.partial(_gradients, family.loss, 1)},
        )
        yield Block(
            f"{name}_mass",
            f"{name}: log mass, {size}",
            (images, all_stats),
            {OURS: functools.partial(getattr, family, "log_mass")},
        )


def network_blocks(shape: tuple[int, ...]) -> Iterator[Block]:
    """Pooling, upsampling and a convolution at bfloat16 features [B, H, W, C]."""
    import flax.linen as nn

    b, h, w, c = shape
    size = " x ".join(map(str, shape))
    x, half = _array("bfloat16", *shape), _array("bfloat16", b, h // 2, w // 2, c)

    def backward(pool: Callable[[Any], Any]) -> Callable[..., Any]:
        return lambda x, dy: jax.vjp(pool, x)[1](dy)[0]

    yield Block(
        "max_pool",
        f"gradient of 2 x 2 max-pooling, {size}, bfloat16",
        (x, half),
        {
            OURS: lambda: backward(layers.max_pool),
            "nn.max_pool": lambda: backward(lambda x: nn.max_pool(x, (2, 2), (2, 2))),
        },
    )
    yield Block(
        "upsample",
        f"2 x nearest upsampling to {size}, bfloat16",
        (half,),
        {
            OURS: lambda: layers.upsample,
            "jnp.repeat": lambda: lambda x: jnp.repeat(jnp.repeat(x, 2, 1), 2, 2),
            "jax.image.resize": lambda: lambda x: jax.image.resize(x, shape, "nearest"),
        },
    )
    kernel, dy = _array("bfloat16", 3, 3, c, c // 4), _array("bfloat16", b, h, w, c // 4)

    def plain(x: Any, kernel: Any) -> Any:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    yield Block(
        "convolution",
        f"gradients of a 3 x 3 convolution, {size} to {c // 4} channels, bfloat16",
        (x, kernel, dy),
        {
            OURS: lambda: lambda x, k, dy: jax.vjp(layers.convolve, x, k)[1](dy),
            "lax (nn.Conv)": lambda: lambda x, k, dy: jax.vjp(plain, x, k)[1](dy),
        },
    )


def step_block(side: int, batch: int, n_hid: int, blocks: int, vocab: int) -> Block:
    """A whole update of the dVAE in bfloat16."""
    config = configuration(
        {
            "side": side,
            "batch": batch,
            "n_hid": n_hid,
            "blocks": blocks,
            "vocab": vocab,
            "precision": "bfloat16",
        }
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: create_state(config, key), key)
    return Block(
        f"step_{side}_{batch}_{n_hid}",
        f"an update: {batch} images of {side} x {side}, n_hid {n_hid}, {vocab} codes, bfloat16",
        (state, {"pixels": _array("uint8", batch, side, side, 3)}, key),
        {OURS: lambda: train_step},
        donated=(0,),
    )
