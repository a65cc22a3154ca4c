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

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.dvae import DVAE
from logit_laplace_jax.models.layers import Conv

Path = tuple[str, ...]


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
