"""The prior over tokens: a causal transformer over one image's codes in raster order.

It has a full pass, which scores all positions of known tokens at once, and a pass of one position,
which keeps the keys and values of the earlier ones. Both give the same numbers, to rounding.
"""

import functools
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from logit_laplace_jax.models.prior_config import PriorConfig

_STDDEV = 0.02
"""Standard deviation of initial kernels and embeddings, as in GPT-2."""


class PriorBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): one pre-norm transformer block."""

    config: PriorConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: jax.Array | None, position: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps the residual stream of all positions, or of one.

        Args:
          x: [B, n, features].
          cache: None in the full pass; else keys and values of the earlier positions,
            [2, B, length, heads, head_size]; then n is 1.
          position: the place of x in the cache, int32 scalar.

        Returns:
          The new stream, and x's own key and value [2, B, 1, heads, head_size] (None without
          cache).
        """
        config = self.config
        batch, n = x.shape[:2]
        dtype = jnp.dtype(config.dtype)
        norm = functools.partial(nn.LayerNorm, dtype=dtype)

        def dense(features: int, name: str, gain: float = 1.0) -> nn.Dense:
            kernel_init = nn.initializers.normal(gain * _STDDEV)
            return nn.Dense(features, dtype=dtype, kernel_init=kernel_init, name=name)

        # 2 layers additions into the stream: its variance stays what it was (GPT-2).
        gain = 1 / math.sqrt(2 * config.layers)
        qkv = dense(3 * config.features, "qkv")(norm(name="attention_norm")(x))
        qkv = qkv.reshape(batch, n, 3, config.heads, config.head_size)
        query, key, value = (qkv[:, :, i] for i in range(3))
        if cache is None or position is None:
            own = None
            mixed = jax.nn.dot_product_attention(
                query, key, value, is_causal=True, implementation=config.attention
            )
        else:
            own = jnp.stack([key, value])
            key, value = lax.dynamic_update_slice_in_dim(cache, own, position, axis=2)
            seen = jnp.arange(config.length)[None, None, None] <= position
            mixed = jax.nn.dot_product_attention(query, key, value, mask=seen)
        mixed = mixed.reshape(batch, n, config.features)
        x = x + dense(config.features, "attention_output", gain)(mixed)
        hidden = nn.gelu(dense(4 * config.features, "hidden")(norm(name="mlp_norm")(x)))
        return x + dense(config.features, "mlp_output", gain)(hidden), own


class Prior(nn.Module):
    """A causal transformer over the tokens of one image: p(token i | tokens before it, label).

    Parameters: ``token``, ``row``, ``column`` and ``start`` (embeddings), ``label`` where there are
    classes, ``blocks`` (all blocks' arrays, stacked along a first axis of ``layers``: XLA compiles
    one block, however many there are), ``norm`` and ``output``.

    Attributes:
      config: sizes and options.

    Example:
      >>> config = PriorConfig(vocab_size=5, height=2, width=3, features=8, layers=2, heads=2)
      >>> variables = {"params": init_prior(config, jax.random.key(0))}
      >>> tokens = jnp.array([[4, 0, 1, 1, 2, 3]])
      >>> Prior(config).apply(variables, tokens).shape
      (1, 6, 5)
      >>> Prior(config).apply(variables, tokens, method="log_prob").shape
      (1, 6)

    Source: Ramesh et al. 2021, section 2.2 and appendix B (row and column embeddings); Radford et
    al. 2019 (blocks and their initialisation).
    """

    config: PriorConfig

    def setup(self) -> None:  # noqa: D102 (Flax's hook)
        config = self.config
        normal = nn.initializers.normal(_STDDEV)

        def table(name: str, rows: int) -> jax.Array:
            array: jax.Array = self.param(name, normal, (rows, config.features), jnp.float32)
            return array

        self.token = table("token", config.vocab_size)
        self.row = table("row", config.height)
        self.column = table("column", config.width)
        self.start = self.param("start", normal, (config.features,), jnp.float32)
        if config.classes:
            self.label = table("label", config.classes)
        block = nn.remat(PriorBlock, prevent_cse=False) if config.remat else PriorBlock
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=config.layers,
        )(config)
        self.norm = nn.LayerNorm(dtype=jnp.float32)
        self.output = nn.Dense(
            config.vocab_size,
            dtype=jnp.dtype(config.dtype),
            kernel_init=normal,
            # Products of 16-bit operands, summed and kept in float32.
            dot_general=functools.partial(lax.dot_general, preferred_element_type=jnp.float32),
        )

    def __call__(self, tokens: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Logits of every position, each from the earlier tokens only.

        Args:
          tokens: int [B, height width] in raster order; the last one decides nothing. One outside
            [0, vocab_size) makes the logits of its whole image NaN (0 times NaN is NaN).
          labels: int [B] in [0, classes), or None where there are no classes; one outside gives
            NaN.

        Returns:
          float32 [B, height width, vocab_size].

        Raises:
          ValueError: labels are missing, or given to a prior that has no classes.
          AssertionError: a shape or dtype is wrong (chex).
        """
        chex.assert_shape(tokens, (None, self.config.length))
        chex.assert_type(tokens, int)
        first = self._first(tokens.shape[0], labels)
        inputs = jnp.concatenate([first[:, None], _rows(self.token, tokens[:, :-1])], axis=1)
        x = (inputs + self._places()[None]).astype(self.config.dtype)
        return self._logits(self.blocks(x, None, None)[0])

    def log_prob(self, tokens: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """ln p(token | earlier tokens, label) of every token.

        Args:
          tokens: int [B, height width]; one outside [0, vocab_size) gives NaN, the last one for
            itself and any other for its whole image.
          labels: as for the logits.

        Returns:
          float32 [B, height width], nats per token.

        Raises:
          ValueError: as for the logits.
          AssertionError: a shape or dtype is wrong (chex).
        """
        logits = self(tokens, labels)
        # A masked sum in place of a gather of single values, which TPUs do slowly.
        codes = jnp.arange(self.config.vocab_size)[None, None]
        chosen = jnp.sum(jnp.where(codes == tokens[..., None], logits, 0), axis=-1)
        known = (tokens >= 0) & (tokens < self.config.vocab_size)
        log_prob = chosen - jax.nn.logsumexp(logits, axis=-1)
        return jnp.where(known, log_prob, jnp.nan)

    def step(
        self,
        previous: jax.Array,
        position: jax.Array | int,
        cache: jax.Array,
        labels: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Logits of one position, given the token before it and the cache of those before that.

        Args:
          previous: int [B], the tokens at ``position - 1``; unused at position 0.
          position: int scalar in [0, height width).
          cache: what the step before gave, or `empty_cache` at position 0.
          labels: as for the full pass.

        Returns:
          float32 [B, vocab_size], and the cache with this position.

        Raises:
          ValueError: as for the full pass.
          AssertionError: a shape or dtype is wrong (chex).
        """
        chex.assert_rank(previous, 1)
        chex.assert_type(previous, int)
        chex.assert_shape(cache, cache_shape(self.config, previous.shape[0]))
        position = jnp.asarray(position, jnp.int32)
        first = self._first(previous.shape[0], labels)
        x = jnp.where(position == 0, first, _rows(self.token, previous))
        place = lax.dynamic_index_in_dim(self._places(), position, keepdims=True)
        x = (x + place).astype(self.config.dtype)[:, None]
        # The blocks give their new keys and values only, so that this is the one place which writes
        # to the cache: inside a scan XLA does it in place.
        x, own = self.blocks(x, cache, position)
        assert own is not None
        cache = lax.dynamic_update_slice_in_dim(cache, own, position, axis=3)
        return self._logits(x)[:, 0], cache

    def _first(self, batch: int, labels: jax.Array | None) -> jax.Array:
        """What stands in for the token before the first, [B, features]."""
        start = jnp.broadcast_to(self.start, (batch, self.config.features))
        if not self.config.classes:
            if labels is not None:
                raise ValueError("this prior has no classes: leave the labels out")
            return start
        if labels is None:
            raise ValueError(
                f"this prior is conditional: give every image a label in [0, {self.config.classes})"
            )
        chex.assert_shape(labels, (batch,))
        chex.assert_type(labels, int)
        return start + _rows(self.label, labels)

    def _places(self) -> jax.Array:
        """Embeddings of the positions that are predicted, [height width, features]."""
        return (self.row[:, None] + self.column[None]).reshape(-1, self.config.features)

    def _logits(self, x: jax.Array) -> jax.Array:
        logits: jax.Array = self.output(self.norm(x)).astype(jnp.float32)
        return logits


def _rows(table: jax.Array, indices: jax.Array) -> jax.Array:
    """Rows of an embedding; NaN for an index outside of it, not a neighbour's row."""
    return table.at[indices].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def cache_shape(config: PriorConfig, batch: int) -> tuple[int, ...]:
    """The cache's shape: layers, key and value, batch, positions, heads, head size."""
    return config.layers, 2, batch, config.length, config.heads, config.head_size


def empty_cache(config: PriorConfig, batch: int) -> jax.Array:
    """Keys and values of no position yet, for `Prior.step`.

    Example:
      >>> empty_cache(PriorConfig(), 2).shape
      (4, 2, 2, 64, 4, 32)
    """
    return jnp.zeros(cache_shape(config, batch), config.dtype)


def prior_shapes(config: PriorConfig) -> Any:
    """The parameter tree's shapes and dtypes, as `jax.ShapeDtypeStruct`; computes nothing."""
    return jax.eval_shape(functools.partial(init_prior, config), jax.random.key(0))


@functools.partial(jax.jit, static_argnames="config")
def init_prior(config: PriorConfig, key: jax.Array) -> Any:
    """Fresh parameters: kernels and embeddings normal with deviation 0.02, biases zero.

    The kernels that end a branch are smaller by sqrt(2 layers).

    Args:
      config: sizes of the prior.
      key: a random key.

    Returns:
      The float32 parameter tree that ``Prior(config).apply`` takes as ``{"params": params}``.

    Source: Radford et al. 2019, section 2.3.
    """
    tokens = jnp.zeros((1, config.length), jnp.int32)
    labels = jnp.zeros((1,), jnp.int32) if config.classes else None
    return Prior(config).init(key, tokens, labels)["params"]
