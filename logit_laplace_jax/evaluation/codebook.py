"""How much of the vocabulary the encoder uses, from counts of the codes."""

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array


def code_counts(tokens: Array, weights: Array, vocab_size: int) -> Array:
    """How often each code occurs: int [B, h, w], weights [B] of 0 and 1, to int32 [vocab_size].

    >>> code_counts(jnp.array([[[0, 2]], [[2, 2]]]), jnp.array([1, 0]), 4).tolist()
    [1, 0, 1, 0]
    """
    chex.assert_rank(tokens, 3)
    chex.assert_shape(weights, (tokens.shape[0],))
    weight = jnp.broadcast_to(weights.astype(jnp.int32)[:, None, None], tokens.shape)
    return jnp.zeros(vocab_size, jnp.int32).at[tokens.ravel()].add(weight.ravel())


def usage(counts: np.ndarray) -> float:
    """Share of the vocabulary that occurs at all, in [0, 1].

    >>> usage(np.array([3, 0, 1, 0]))
    0.5
    """
    return float(np.mean(np.asarray(counts) > 0))


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of the codes' frequencies, in [1, vocab_size]; NaN without any code.

    >>> round(perplexity(np.array([5, 5, 0])), 6)
    2.0
    """
    counts = np.asarray(counts, np.float64)
    total = counts.sum()
    if total == 0:
        return float("nan")
    share = counts[counts > 0] / total
    return float(np.exp(-np.sum(share * np.log(share))))
