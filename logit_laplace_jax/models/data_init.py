"""Data-dependent initialisation of the encoder, for runs too short to recover from collapse.

OpenAI's initialisation keeps the scale of activations, not their mean. After the last ReLU the
features of different positions differ little from their common mean, so the logits have one large
part that is the same everywhere and a small one that tells positions apart. The first grows faster
under Adam, and without a KL to hold it back a few codes soon win at every position; the others get
no gradient any more. The paper's run is long, wide and starts at a step size of 1e-4; a run of
minutes is not.

The remedy is classical (Salimans and Kingma 2016, arXiv:1602.07868, section 3; Krähenbühl et al.
2016, arXiv:1511.06856): one pass over a batch, in which each convolution's kernel and bias are
rescaled so that its outputs have mean 0 and a given standard deviation, channel by channel.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import DVAE
from logit_laplace_jax.models.layers import Conv

Path = tuple[str, ...]

_ROUNDS = 20
"""Rounds of k-means."""


def normalise_encoder(config: DVAEConfig, params: Any, x: Array, logit_std: float) -> Any:
    """Rescales the encoder's convolutions to zero-mean, unit-variance outputs on a batch.

    Args:
      config: sizes of the model.
      params: its parameter tree.
      x: float [B, H, W, channels], mapped pixels of a few hundred training crops.
      logit_std: standard deviation of each code's logit over positions.

    Returns:
      A new parameter tree; the decoder's part is unchanged.

    Raises:
      ValueError: ``logit_std`` is not positive.

    >>> config = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)
    >>> x = jax.random.uniform(jax.random.key(0), (8, 8, 8, 3))
    >>> params = DVAE(config).init(jax.random.key(1), x)["params"]
    >>> params = normalise_encoder(config, params, x, logit_std=3.0)
    >>> logits = DVAE(config).apply({"params": params}, x, method="encode")
    >>> logits.std((0, 1, 2)).round(2).tolist() == [3.0] * 16
    True
    """
    if not logit_std > 0:
        raise ValueError(f"logit_std must be positive, got {logit_std}")
    moments = _pass(config, params, x, logit_std)
    params = jax.tree.map(lambda leaf: leaf, params)  # new dictionaries, same arrays
    for path, (mean, scale) in moments.items():
        conv = params
        for key in path:
            conv = conv[key]
        conv["kernel"] = conv["kernel"] / scale
        conv["bias"] = (conv["bias"] - mean) / scale
    return params


def initial_codebook(
    config: DVAEConfig, params: Any, x: Array, logit_std: float, key: Array
) -> Any:
    """Normalises the encoder, then lets every code start as a k-means centre of the patches.

    A linear map of the encoder's features foretells a position's patch of pixels; the foretold
    patches are clustered, and a code's logit is minus the squared distance to its centre, which is
    linear in the features up to a term that all codes share. The decoder's vector of a code is a
    random projection of its centre. So the first update already has a partition of the patches
    that uses all codes, and which one it is hardly depends on the seed.

    Args:
      config: sizes of the model.
      params: its parameter tree.
      x: float [B, H, W, channels], mapped pixels of a few hundred training crops.
      logit_std: standard deviation of a code's logit over positions, on average.
      key: a random key.

    Returns:
      A new parameter tree.

    Raises:
      ValueError: ``logit_std`` is not positive.
    """
    params = normalise_encoder(config, params, x, logit_std)
    logits, codebook = _codebook(
        DVAEConfig(**{**vars(config), "dtype": "float32"}), params, x, logit_std, key
    )
    return {
        "encoder": {**params["encoder"], "output": logits},
        "decoder": {**params["decoder"], "input": codebook},
    }


@partial(jax.jit, static_argnames="config")
def _codebook(config: DVAEConfig, params: Any, x: Array, logit_std: float, key: Array) -> Any:
    """Kernels and biases of the encoder's last and the decoder's first convolution."""
    features = []

    def catch(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        here = context.module.path == ("encoder", "output")
        if here and context.method_name == "__call__":
            features.append(args[0])
        return call(*args, **kwargs)

    with nn.intercept_methods(catch):
        DVAE(config).apply({"params": params}, x, method="encode")
    h = features[0].reshape(-1, features[0].shape[-1])
    f, (b, height, width, c) = config.downsampling, x.shape
    patches = x.reshape(b, height // f, f, width // f, f, c).swapaxes(2, 3).reshape(len(h), -1)
    # Ridge regression, of centred features on centred patches; lightly, for stability only.
    h_mean, mean = h.mean(0), patches.mean(0)
    centred = h - h_mean
    gram = centred.T @ centred / len(h)
    ridge = 1e-3 * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
    slope = jnp.linalg.solve(gram + ridge, centred.T @ (patches - mean) / len(h))
    foretold = centred @ slope

    start, project = jax.random.split(key)
    first = jax.random.choice(
        start, len(h), (config.vocab_size,), replace=len(h) < config.vocab_size
    )
    centres = lax.fori_loop(0, _ROUNDS, lambda _, c: _lloyd(foretold, c), foretold[first])

    kernel = 2.0 * slope @ centres.T
    bias = -(centres**2).sum(1)
    spread = (centred @ kernel).std(0).mean()
    gain = logit_std / jnp.maximum(spread, 1e-12)
    logits = {"kernel": gain * kernel[None, None], "bias": gain * (bias - h_mean @ kernel)}
    relative = centres / jnp.maximum(foretold.std(0), 1e-6)
    size = (relative.shape[1], config.n_init)
    vectors = relative @ jax.random.normal(project, size) / math.sqrt(relative.shape[1])
    return logits, {"kernel": vectors[None, None], "bias": jnp.zeros(config.n_init)}


def _lloyd(points: Array, centres: Array) -> Array:
    """One round of k-means; a centre without points stays where it is."""
    nearest = jnp.argmax(2.0 * points @ centres.T - (centres**2).sum(1), axis=1)
    counts = jnp.zeros(len(centres)).at[nearest].add(1.0)[:, None]
    sums = jnp.zeros_like(centres).at[nearest].add(points)
    return jnp.where(counts > 0, sums / jnp.maximum(counts, 1.0), centres)


# Moments need float32, and an interceptor cannot look into a rematerialised block.
def _pass(
    config: DVAEConfig, params: Any, x: Array, logit_std: float
) -> dict[Path, tuple[Array, Array]]:
    """Per-channel mean and scale of every encoder convolution, all those before it normalised."""
    plain = DVAEConfig(**{**vars(config), "dtype": "float32", "remat": False})

    @partial(jax.jit, static_argnames=("model",))
    def run(params: Any, x: Array, model: DVAE) -> dict[Path, tuple[Array, Array]]:
        moments: dict[Path, tuple[Array, Array]] = {}

        def normalise(
            call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
        ) -> Any:
            y = call(*args, **kwargs)
            if not isinstance(context.module, Conv) or context.method_name != "__call__":
                return y
            path = context.module.path
            target = logit_std if path[-1] == "output" else 1.0
            mean, deviation = y.mean((0, 1, 2)), y.std((0, 1, 2))
            # A constant channel stays as it is, but for its mean.
            scale = jnp.where(deviation > 1e-6, deviation / target, 1.0)
            moments[path] = (mean, scale)
            return (y - mean) / scale

        with nn.intercept_methods(normalise):
            model.apply({"params": params}, x, method="encode")
        return moments

    return run(params, x, DVAE(plain))
