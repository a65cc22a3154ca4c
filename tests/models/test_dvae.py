"""The whole model: shapes, options, dtypes, checks, and what must not depend on what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logit_laplace_jax.models import DVAE, DVAEConfig, init_params
from logit_laplace_jax.models.bottleneck import gumbel_noise, hard_codes, one_hot
from logit_laplace_jax.models.dvae import param_shapes


def tiny(**changes):
    sizes = {"group_count": 2, "n_hid": 8, "n_blk_per_group": 1, "vocab_size": 16, "n_init": 8}
    return DVAEConfig(**{**sizes, **changes})


def build(config, size=(8, 12), batch=2, seed=0):
    """The model, its variables with random biases, and a batch of mapped pixels."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.1, 0.9, (batch, *size, config.channels)).astype(np.float32)
    params = init_params(config, jax.random.key(seed))

    def random_bias(leaf):
        return leaf if leaf.ndim == 4 else jnp.float32(0.1 * rng.normal(size=leaf.shape))

    return DVAE(config), {"params": jax.tree.map(random_bias, params)}, jnp.asarray(x)


def run(model, variables, *args, rngs=None, **kwargs):
    """`apply`, compiled as one program: eagerly every operation would be compiled on its own."""
    return jax.jit(lambda v, args, rngs: model.apply(v, *args, rngs=rngs, **kwargs))(
        variables, args, rngs
    )


@pytest.fixture(scope="module")
def built():
    return build(tiny())


@pytest.mark.parametrize(
    "config",
    [tiny(group_count=groups) for groups in (1, 2, 3, 4, 5)]
    + [
        tiny(channels=1),
        tiny(stats_per_channel=1),
        tiny(n_blk_per_group=3, n_hid=4, n_init=3, vocab_size=5, channels=2, stats_per_channel=3),
        tiny(straight_through=True, dtype="float16", remat=True),
    ],
    ids=str,
)
def test_shapes_and_dtypes(config):
    x = jax.ShapeDtypeStruct((2, 16, 48, config.channels), jnp.float32)
    h, w = config.token_grid(16, 48)
    out = jax.eval_shape(DVAE(config).apply, {"params": param_shapes(config)}, x)
    assert out.logits.shape == out.codes.shape == (2, h, w, config.vocab_size)
    assert out.stats.shape == (2, 16, 48, config.channels * config.stats_per_channel)
    assert {value.dtype for value in out} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "config", [tiny(group_count=1, channels=1), tiny(n_hid=16, straight_through=True)], ids=str
)
def test_every_parameter_gets_a_finite_gradient(config):
    model, variables, x = build(config)
    noise = gumbel_noise(jax.random.key(9), jnp.arange(2), (*config.token_grid(8, 12), 16))

    def loss(variables):
        return (model.apply(variables, x, temperature=0.5, noise=noise).stats ** 2).sum()

    gradient = jax.jit(jax.grad(loss))(variables)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradient))


def test_init_is_openais():
    config = tiny(group_count=3)
    params = init_params(config, jax.random.key(0))
    # `param_shapes` is what Linen's own init gives; its values are tested with the layers.
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, param_shapes(config))
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params) if leaf.ndim == 4])
    assert len(np.unique(flat)) > 0.999 * flat.size  # no two kernels share their draws
    for path, leaf in jax.tree.leaves_with_path(params):
        assert leaf.dtype == jnp.float32
        if path[-1].key == "bias":
            assert not leaf.any()
        else:
            # Deviation 1/sqrt(n_in k²) within five of its own deviations, 1/sqrt(2n).
            expected = np.prod(leaf.shape[:3]) ** -0.5
            assert np.std(leaf) == pytest.approx(expected, rel=5 / np.sqrt(2 * leaf.size))


def test_parameter_names(built):
    _, variables, _ = built
    names = {
        "/".join(key.key for key in path[:-1])
        for path, _ in jax.tree.leaves_with_path(variables["params"])
    }
    convs = {f"conv_{i}" for i in range(1, 5)}
    assert names == (
        {f"{half}/{end}" for half in ("encoder", "decoder") for end in ("input", "output")}
        | {f"{half}/group_{g}/block_1/{conv}" for half in ("encoder", "decoder") for g in (1, 2)
           for conv in convs}
        | {"encoder/group_2/block_1/id_path", "decoder/group_2/block_1/id_path"}
        | {"decoder/group_1/block_1/id_path"}
    )  # fmt: skip


def test_call_is_encode_relax_decode(built):
    model, variables, x = built
    out = run(model, variables, x, temperature=0.3)
    # Compiled alone, a half may be fused, and so rounded, differently.
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(out.logits, run(model, variables, x, method="encode"), **close)
    # No noise and no rng stream: the plain softmax.
    np.testing.assert_allclose(out.codes, jax.nn.softmax(out.logits / 0.3), rtol=1e-5)
    stats = run(model, variables, out.codes, method="decode")
    np.testing.assert_allclose(out.stats, stats, **close)


def test_noise_from_the_gumbel_stream(built):
    model, variables, x = built
    plain = run(model, variables, x)
    rngs = {"gumbel": jax.random.key(5)}
    noisy = run(model, variables, x, rngs=rngs)
    assert jnp.abs(noisy.codes - plain.codes).max() > 0.01
    np.testing.assert_array_equal(noisy.codes, run(model, variables, x, rngs=rngs).codes)
    # Given noise comes first, and indices are the places in the batch.
    zeros = jnp.zeros_like(plain.codes)
    given = run(model, variables, x, noise=zeros, rngs=rngs)
    np.testing.assert_allclose(given.codes, plain.codes, rtol=1e-5)
    first = run(model, variables, x[:1], rngs=rngs)
    # One example alone may be multiplied in another order than in a batch of two.
    np.testing.assert_allclose(first.codes, noisy.codes[:1], rtol=1e-4, atol=1e-6)


def test_hard_codes_are_one_hot(built):
    model, variables, x = built
    out = run(model, variables, x, hard=True, rngs={"gumbel": jax.random.key(0)})
    np.testing.assert_array_equal(out.codes, one_hot(hard_codes(out.logits), 16))
    tokens = hard_codes(out.logits)
    stats = run(model, variables, tokens, method="decode_tokens")
    np.testing.assert_allclose(stats, out.stats, rtol=1e-5, atol=1e-6)


def test_straight_through_sends_one_hot_codes_to_the_decoder():
    model, variables, x = build(tiny(straight_through=True))
    noise = gumbel_noise(jax.random.key(0), jnp.arange(2), (4, 6, 16))
    out = run(model, variables, x, temperature=0.5, noise=noise)
    np.testing.assert_array_equal(out.codes, one_hot(hard_codes(out.logits + noise), 16))


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_decode_tokens_is_decode_of_one_hot(built, dtype):
    model, variables, _ = built
    tokens = jnp.arange(24).reshape(1, 4, 6) % 16
    got = run(model, variables, tokens.astype(dtype), method="decode_tokens")
    # A product with a one-hot vector adds exact zeros: only the order of later sums can differ.
    expected = run(model, variables, one_hot(tokens, 16), method="decode")
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    broken = run(model, variables, tokens.at[0, 0, 0].set(16), method="decode_tokens")
    assert jnp.isnan(broken).any()


def test_is_fully_convolutional():
    config = tiny()
    model, variables, x = build(config, size=(48, 40), batch=1)
    whole = run(model, variables, x, method="encode")
    # 12 rows of pixels are more than the receptive field reaches: 3 + 3 before the pooling,
    # 2·3 after it. Rows farther than that from the cut cannot know of it.
    top = run(model, variables, x[:, :32], method="encode")
    np.testing.assert_allclose(top[:, :10], whole[:, :10], rtol=1e-4, atol=1e-5)
    assert jnp.abs(top[:, -1] - whole[:, 15]).max() > 1e-3
    shifted = run(model, variables, x[:, 2:], method="encode")
    np.testing.assert_allclose(shifted[:, 6:], whole[:, 7:], rtol=1e-4, atol=1e-5)


def test_remat_changes_nothing(built):
    model, variables, x = built
    again = DVAE(tiny(remat=True))

    def loss(model):
        return jax.jit(
            jax.value_and_grad(lambda v: (model.apply(v, x, temperature=0.5).stats ** 2).sum())
        )(variables)

    (plain, plain_gradient), (value, gradient) = loss(model), loss(again)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    for got, expected in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True
    ):
        # XLA may fuse, and so round, the recomputed values differently.
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert param_shapes(again.config) == param_shapes(model.config)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_keeps_float32_next_to_the_codes(dtype):
    model, variables, x = build(tiny(dtype=dtype))
    jaxpr = jax.make_jaxpr(lambda v, x: model.apply(v, x, temperature=0.5))(variables, x)
    products = [
        (equation.invars[1].aval.shape, [var.aval.dtype.name for var in equation.invars])
        for equation in equations(jaxpr.jaxpr)
        if equation.primitive.name in ("conv_general_dilated", "dot_general")
    ]
    leaves = jax.tree.leaves(variables)
    assert len(products) == sum(leaf.ndim == 4 for leaf in leaves)
    # In order of execution: the last encoder convolution and the first decoder one are float32.
    wide = [shape for shape, dtypes in products if dtypes == ["float32", "float32"]]
    assert wide == [(16, 16), (16, 8)]
    assert all(dtypes == [dtype, dtype] for shape, dtypes in products if shape not in wide)


def test_bfloat16_values_and_gradients_are_close():
    model, variables, x = build(tiny(dtype="bfloat16"))
    out = run(model, variables, x, temperature=0.5)
    assert {value.dtype.name for value in out} == {"float32"}
    full = run(DVAE(tiny()), variables, x, temperature=0.5)
    # A few dozen roundings of 2^-9, partly cancelling.
    scale = jnp.abs(full.stats).max()
    assert 0 < jnp.abs(out.stats - full.stats).max() < 0.05 * scale
    gradient = jax.jit(jax.grad(lambda v: (model.apply(v, x, temperature=0.5).stats ** 2).mean()))(
        variables
    )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(gradient)} == {"float32"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_float32_convolutions_ask_for_float32_products(built):
    model, variables, x = built

    def precisions():
        jaxpr = jax.make_jaxpr(lambda v: model.apply(v, x))(variables)
        return [
            equation.params["precision"]
            for equation in equations(jaxpr.jaxpr)
            if equation.primitive.name == "dot_general"
            and equation.invars[1].aval.shape in ((16, 16), (16, 8))
            and equation.invars[0].aval.shape == (len(x) * 4 * 6, 16)
        ]

    high = (jax.lax.Precision.HIGH,) * 2
    assert precisions().count(high) == 2
    with jax.default_matmul_precision("highest"):
        assert high not in precisions()


def test_runs_under_strict_promotion(built, strict):
    model, variables, x = built
    noise = gumbel_noise(jax.random.key(0), jnp.arange(2), (4, 6, 16))
    for config in (model.config, tiny(dtype="bfloat16", straight_through=True)):
        step = jax.grad(lambda v, c=config: DVAE(c).apply(v, x, 0.5, noise).stats.sum())
        jax.make_jaxpr(step)(variables)
    tokens = jnp.zeros((2, 4, 6), jnp.int32)
    jax.eval_shape(lambda v: model.apply(v, tokens, method="decode_tokens"), variables)


def test_uint8_is_refused_by_name(built):
    model, variables, _ = built
    with pytest.raises(TypeError, match="map_pixels"):
        model.apply(variables, jnp.zeros((1, 8, 8, 3), jnp.uint8))


def test_sizes_and_shapes_are_checked_when_traced(built):
    model, variables, _ = built

    def trace(shape, dtype="float32", **kwargs):
        abstract = jax.ShapeDtypeStruct(shape, dtype)
        return jax.eval_shape(lambda v, x: model.apply(v, x, **kwargs), variables, abstract)

    with pytest.raises(ValueError, match="multiples of 2"):
        trace((1, 8, 9, 3))
    for shape in ((8, 8, 3), (1, 8, 8, 1)):
        with pytest.raises(AssertionError):
            trace(shape)
    with pytest.raises(AssertionError):
        trace((1, 8, 8, 3), noise=jnp.zeros((1, 8, 8, 16)))
    for shape, dtype in (((1, 4, 4, 15), "float32"), ((1, 4, 4, 16), "int32")):
        with pytest.raises(AssertionError):
            trace(shape, dtype, method="decode")
    for shape, dtype in (((4, 4), "int32"), ((1, 4, 4), "float32")):
        with pytest.raises(AssertionError):
            trace(shape, dtype, method="decode_tokens")
