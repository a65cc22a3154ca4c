"""The discrete bottleneck: Gumbel-softmax relaxation, KL to the uniform prior, hard codes.

Pure functions; the codes are on the last axis. All results are float32 (or int32) unless said.
"""

import math

import chex
import jax
import jax.numpy as jnp


def gumbel_noise(key: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gumbel noise, one independent draw for every example.

    An example's noise depends on the key and its own index only, so it stays the same however a
    batch is spread over devices or processes.

    Args:
      key: a random key, typed or raw.
      indices: int32 [B], the examples' places in the global batch.
      shape: shape of one example's noise, (h, w, vocab_size).

    Returns:
      float32 [B, *shape].

    Example:
      >>> key = jax.random.key(0)
      >>> whole = gumbel_noise(key, jnp.arange(4), (2, 2, 8))
      >>> half = gumbel_noise(key, jnp.arange(2, 4), (2, 2, 8))
      >>> bool((whole[2:] == half).all())
      True
    """
    indices = jnp.asarray(indices)
    chex.assert_rank(indices, 1)
    chex.assert_type(indices, int)

    def draw(index: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(key, index), shape, jnp.float32)

    # Under vmap the hardware generators (rbg) draw one stream for the whole batch, so an example's
    # noise would depend on its neighbours; threefry draws what it would draw alone.
    if "threefry" in str(jax.random.key_impl(key)):
        return jax.vmap(draw)(indices)
    return jax.lax.map(draw, indices)


def relax(
    logits: jax.Array,
    temperature: float | jax.Array,
    noise: jax.Array | None = None,
    straight_through: bool = False,
) -> jax.Array:
    """The Gumbel-softmax relaxation softmax((logits + noise) / temperature).

    Args:
      logits: float [..., V], unnormalised log probabilities.
      temperature: positive scalar; towards 0 the codes become one-hot.
      noise: standard Gumbel noise of the logits' shape, or None for none.
      straight_through: return the one-hot vector of the relaxation's largest entry, with the
        relaxation's gradient.

    Returns:
      float32 [..., V], non-negative, with sum 1 to rounding.

    Raises:
      ValueError: temperature is a Python number that is not positive.

    Example:
      >>> print(relax(jnp.array([0.0, math.log(3.0)]), 1.0).round(2))
      [0.25 0.75]
      >>> print(relax(jnp.array([0.0, math.log(3.0)]), 1.0, straight_through=True))
      [0. 1.]

    Source: Jang et al. 2017 and Maddison et al. 2017; Ramesh et al. 2021, equation 1 and A.2.
    """
    if isinstance(temperature, (int, float)) and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scale = jnp.asarray(temperature, jnp.float32)
    chex.assert_rank(scale, 0)
    chex.assert_type(logits, float)
    logits = logits.astype(jnp.float32)
    if noise is not None:
        chex.assert_equal_shape([logits, noise])
        chex.assert_type(noise, float)
        logits = logits + noise.astype(jnp.float32)
    soft = jax.nn.softmax(logits / scale, axis=-1)
    if not straight_through:
        return soft
    hard = one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    # The bracket is exactly zero, so the forward value is exactly one-hot.
    return hard + (soft - jax.lax.stop_gradient(soft))


def hard_codes(logits: jax.Array) -> jax.Array:
    """The most likely code at every position: float [..., V] to int32 [...].

    Example:
      >>> hard_codes(jnp.array([[0.0, 2.0, 1.0]])).tolist()
      [1]
    """
    chex.assert_type(logits, float)
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def one_hot(tokens: jax.Array, vocab_size: int) -> jax.Array:
    """The codes of hard tokens: int [...] to float32 [..., vocab_size]."""
    return jax.nn.one_hot(tokens, vocab_size, dtype=jnp.float32)


def _log_ratio(logits: jax.Array) -> jax.Array:
    """ln(p_i V), where p = softmax(logits): the log ratio to the uniform distribution.

    Taken from the differences to the largest logit by log1p and expm1, it keeps its relative
    precision where p is nearly uniform and the ratio nearly 1. Where p is concentrated the mean of
    expm1 is near -1 and its rounding would count V times over: there the mean of exp is taken.
    """
    centred = logits - jnp.max(logits, axis=-1, keepdims=True)
    # exp(-1000) is 0 in either precision; without a floor a logit of -inf would give 0 * inf.
    centred = jnp.maximum(centred, -1000)
    excess = jnp.mean(jnp.expm1(centred), axis=-1, keepdims=True)
    mean = jnp.mean(jnp.exp(centred), axis=-1, keepdims=True)
    log_mean = jnp.where(excess > -0.5, jnp.log1p(jnp.maximum(excess, -0.5)), jnp.log(mean))
    return centred - log_mean


@jax.custom_jvp
def _kl_to_uniform(logits: jax.Array) -> jax.Array:
    # KL = mean_i(r_i ln r_i) over r_i = p_i V. Since mean(r) = 1 that equals the mean of
    # r ln r - r + 1, whose every term is >= 0 (0 at r = 1): no negative KL, whatever the rounding.
    log_ratio = _log_ratio(logits)
    terms = jnp.exp(log_ratio) * log_ratio - jnp.expm1(log_ratio)
    kl = jnp.mean(jnp.maximum(terms, 0), axis=-1)
    return jnp.minimum(kl, math.log(logits.shape[-1]))


@_kl_to_uniform.defjvp
def _kl_to_uniform_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # dKL/dlogit_i = p_i (ln(p_i V) - KL): exact also where the bounds above bind.
    (logits,), (dlogits,) = primals, tangents
    kl = _kl_to_uniform(logits)
    log_ratio = _log_ratio(logits)
    slope = jnp.exp(log_ratio) * (log_ratio - kl[..., None])
    return kl, jnp.mean(slope * dlogits, axis=-1)


def kl_to_uniform(logits: jax.Array) -> jax.Array:
    """KL divergence from softmax(logits) to the uniform distribution: ln V minus the entropy.

    Computed from the raw logits, whatever the temperature of the relaxation. Never negative and
    never above ln V, in floating point too; nearly uniform logits keep their relative precision.

    Args:
      logits: float [..., V]; -inf is allowed and stands for probability 0.

    Returns:
      [...], nats per position in [0, ln V]: float32 (float64 for float64 logits).

    Example:
      >>> print(kl_to_uniform(jnp.array([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])).round(4))
      [0. 1.3863]

    Source: Ramesh et al. 2021, appendix A.2; openai/DALL-E issue 26 (raw logits).
    """
    chex.assert_type(logits, float)
    return _kl_to_uniform(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
