"""Draws from the prior over tokens: pure, one compiled program for all positions."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from logit_laplace_jax.models.bottleneck import gumbel_noise
from logit_laplace_jax.models.prior import Prior, empty_cache
from logit_laplace_jax.models.prior_config import PriorConfig


def kept_codes(
    logits: jax.Array,
    temperature: float | jax.Array = 1.0,
    top_k: int | None = None,
    top_p: float | jax.Array | None = None,
) -> jax.Array:
    """Which codes may be drawn: top-k, then the nucleus of what that leaves.

    Args:
      logits: float [..., V].
      temperature: the logits are divided by it; at 0 only the largest remains in the nucleus.
      top_k: keep the k most likely codes, and those that tie with the last of them; None: all.
      top_p: keep the fewest most likely codes that together have at least this probability, and
        those that tie with the last of them; None: all.

    Returns:
      bool [..., V], with at least one True per row.

    Example:
      >>> logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
      >>> kept_codes(logits, top_k=3).tolist()
      [True, True, True, False]
      >>> kept_codes(logits, top_p=0.7).tolist()
      [True, True, False, False]

    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (nucleus).
    """
    chex.assert_type(logits, float)
    keep = jnp.ones(logits.shape, bool)
    if top_k is not None and top_k < logits.shape[-1]:
        keep = logits >= lax.top_k(logits, top_k)[0][..., -1:]
    if top_p is not None:
        centred = logits.astype(jnp.float32) - jnp.max(logits, axis=-1, keepdims=True)
        # The smallest normal number stands for a temperature of 0: all but the largest overflow.
        scaled = centred / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
        probs = jax.nn.softmax(jnp.where(keep, scaled, -jnp.inf), axis=-1)
        falling = jnp.flip(jnp.sort(probs, axis=-1), axis=-1)
        before = jnp.cumsum(falling, axis=-1) - falling
        least = jnp.min(jnp.where(before < top_p, falling, jnp.inf), axis=-1, keepdims=True)
        # Rounded sums may reach 1 before the last code: then 1 would leave some out.
        keep &= (probs >= least) | (jnp.asarray(top_p) >= 1)
    return keep


@functools.partial(jax.jit, static_argnames=("config", "num", "top_k", "cached"))
def _sample(
    config: PriorConfig,
    params: Any,
    key: jax.Array,
    labels: jax.Array | None,
    num: int,
    temperature: jax.Array,
    top_k: int | None,
    top_p: jax.Array | None,
    known: jax.Array,
    start: jax.Array,
    cached: bool,
) -> jax.Array:
    indices = start + jnp.arange(num)
    given = known.shape[1]
    padded = jnp.pad(known, ((0, 0), (0, config.length - given))).T

    def draw(
        carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        previous, cache = carry
        position, fixed = at
        variables = {"params": params}
        result: Any
        if cached:
            result = Prior(config).apply(
                variables, previous, position, cache, labels, method="step"
            )
            logits, cache = result
        else:  # the tokens until now, in place of their keys and values
            result = Prior(config).apply(variables, cache, labels)
            logits = lax.dynamic_index_in_dim(result, position, axis=1, keepdims=False)
        noise = gumbel_noise(jax.random.fold_in(key, position), indices, (config.vocab_size,))
        keep = kept_codes(logits, temperature, top_k, top_p)
        # The argmax of logits / temperature + noise, with no division: at 0 the likeliest code.
        drawn = jnp.argmax(jnp.where(keep, logits, -jnp.inf) + temperature * noise, axis=-1)
        # -1 is no code: NaN parameters or a wrong label or known token must not look like a draw.
        drawn = jnp.where(jnp.isnan(logits).any(axis=-1), -1, drawn)
        tokens = jnp.where(position < given, fixed, drawn.astype(jnp.int32))
        if not cached:
            cache = lax.dynamic_update_slice_in_dim(cache, tokens[:, None], position, axis=1)
        return (tokens, cache), tokens

    cache = empty_cache(config, num) if cached else jnp.zeros((num, config.length), jnp.int32)
    carry = jnp.zeros(num, jnp.int32), cache
    return lax.scan(draw, carry, (jnp.arange(config.length), padded))[1].T


def sample(
    config: PriorConfig,
    params: Any,
    key: jax.Array,
    labels: jax.Array | None,
    num: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    known: jax.Array | None = None,
    start: int = 0,
    cached: bool = True,
) -> jax.Array:
    """Draws tokens from the prior, or completes given first tokens.

    A sample depends on the key and its own index only: samples 0 to 7 drawn at once are those drawn
    as 0 to 3 and 4 to 7, to rounding of the logits.

    Args:
      config: sizes of the prior.
      params: its parameters.
      key: a random key.
      labels: int [num], or None where the prior has no classes.
      num: samples.
      temperature: of the codes' distribution; at 0 the likeliest code at every position.
      top_k: draw among the k most likely codes only.
      top_p: draw among the fewest codes that together have this probability, in (0, 1].
      known: int [num, n], the first n tokens in raster order; None: none.
      start: index of the first sample; a batch that follows n samples has ``start=n``.
      cached: keep the keys and values of earlier positions; else every position takes a full pass.

    Returns:
      int32 [num, height width]; -1 where the logits are NaN, as after a label outside [0, classes)
      or a known token outside [0, vocab_size).

    Raises:
      ValueError: num, temperature, top_k or top_p is out of its range, or too many tokens are
        known, or labels are missing or unexpected.
      AssertionError: a shape or dtype is wrong (chex).

    Example:
      >>> from logit_laplace_jax.models.prior import init_prior
      >>> config = PriorConfig(vocab_size=5, height=2, width=3, features=8, layers=2, heads=2)
      >>> params = init_prior(config, jax.random.key(0))
      >>> known = jnp.full((4, 3), 2)
      >>> tokens = sample(config, params, jax.random.key(1), None, 4, top_k=3, known=known)
      >>> tokens.shape, bool((tokens[:, :3] == 2).all())
      ((4, 6), True)
    """
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be finite and not negative, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    known = jnp.zeros((num, 0), jnp.int32) if known is None else jnp.asarray(known)
    chex.assert_shape(known, (num, None))
    chex.assert_type(known, int)
    if known.shape[1] > config.length:
        raise ValueError(f"{known.shape[1]} tokens are known, but an image has {config.length}")
    return _sample(
        config,
        params,
        key,
        labels,
        num,
        jnp.float32(temperature),
        top_k,
        None if top_p is None else jnp.float32(top_p),
        known.astype(jnp.int32),
        jnp.int32(start),
        cached,
    )
