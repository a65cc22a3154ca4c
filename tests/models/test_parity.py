"""The networks against OpenAI's own modules (PyPI package DALL-E), weights copied over.

OpenAI's classes fix four groups; for other counts their blocks are put together here.
"""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logit_laplace_jax.models import DVAE, DVAEConfig, init_params
from logit_laplace_jax.models.dvae import param_shapes

torch = pytest.importorskip("torch")
dall_e_encoder = pytest.importorskip("dall_e.encoder")
dall_e_decoder = pytest.importorskip("dall_e.decoder")
dall_e_utils = pytest.importorskip("dall_e.utils")

# n_hid 64 and vocab_size 512 are the smallest that OpenAI's validators take.
FULL = {
    "two-blocks": DVAEConfig(n_hid=64, vocab_size=512, n_init=16),
    "one-block-grey": DVAEConfig(n_hid=64, vocab_size=512, n_init=8, n_blk_per_group=1, channels=1),
}
SMALL = {
    f"{groups}-groups": DVAEConfig(
        group_count=groups, n_hid=16, vocab_size=24, n_init=6, n_blk_per_group=2
    )
    for groups in (1, 2, 3)
}


def sequential(**modules):
    return torch.nn.Sequential(OrderedDict(modules))


def assembled(config, block, conv_in, widths, resize, conv_out):
    """OpenAI's module layout, with `config.group_count` groups."""
    n_layers = config.group_count * config.n_blk_per_group
    n_in = conv_in.n_out
    groups = {}
    for i, width in enumerate(widths, start=1):
        blocks = {}
        for j in range(1, config.n_blk_per_group + 1):
            blocks[f"block_{j}"] = block(n_in, width, n_layers)
            n_in = width
        if i < len(widths):
            blocks["resize"] = resize
        groups[f"group_{i}"] = sequential(**blocks)
    output = sequential(relu=torch.nn.ReLU(), conv=conv_out)
    return sequential(blocks=sequential(input=conv_in, **groups, output=output))


def openai_modules(config):
    if config.group_count == 4:
        shared = {
            "n_hid": config.n_hid,
            "n_blk_per_group": config.n_blk_per_group,
            "vocab_size": config.vocab_size,
        }
        return (
            dall_e_encoder.Encoder(input_channels=config.channels, **shared),
            dall_e_decoder.Decoder(output_channels=config.channels, n_init=config.n_init, **shared),
        )
    conv = dall_e_utils.Conv2d
    n_hid, vocab, n_init = config.n_hid, config.vocab_size, config.n_init
    widths = [n_hid * 2**i for i in range(config.group_count)]
    encoder = assembled(
        config,
        dall_e_encoder.EncoderBlock,
        conv(config.channels, n_hid, 7),
        widths,
        torch.nn.MaxPool2d(kernel_size=2),
        conv(widths[-1], vocab, 1),
    )
    decoder = assembled(
        config,
        dall_e_decoder.DecoderBlock,
        conv(vocab, n_init, 1),
        widths[::-1],
        torch.nn.Upsample(scale_factor=2, mode="nearest"),
        conv(n_hid, 2 * config.channels, 1),
    )
    return encoder, decoder


def randomise(module, seed):
    """Fresh weights, and biases that are not zero, so that a lost bias shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(True)
            scale = 0.3 if name.endswith(".b") else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def flax_path(name):
    """'blocks.group_1.block_1.res_path.conv_1.w' -> ('group_1', 'block_1', 'conv_1', 'kernel')."""
    parts = [part for part in name.split(".") if part not in ("blocks", "res_path", "conv")]
    return (*parts[:-1], {"w": "kernel", "b": "bias"}[parts[-1]])


def to_flax(named_tensors):
    tree = {}
    for name, tensor in named_tensors:
        *path, leaf = flax_path(name)
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        array = tensor.detach().numpy()
        node[leaf] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return jax.tree.map(jnp.asarray, tree)


def nchw(x):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


@pytest.fixture(scope="module", params=[*FULL, *SMALL])
def pair(request):
    config = {**FULL, **SMALL}[request.param]
    encoder, decoder = openai_modules(config)
    randomise(encoder, 1)
    randomise(decoder, 2)
    params = {
        "encoder": to_flax(encoder.named_parameters()),
        "decoder": to_flax(decoder.named_parameters()),
    }
    return config, encoder, decoder, params


def relative(got, expected):
    """Largest error over the largest value: what float32 rounding of long sums is measured by."""
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


# Both sides sum up to 9·128 float32 products per convolution, in different orders, through at
# most 8 residual blocks: measured below 1e-6 of the largest value. One wrong kernel size, gain,
# ReLU or bias changes the result by more than 1e-3.
TOLERANCE = 5e-6


def test_parameter_tree_and_counts_are_openais(pair):
    config, encoder, decoder, params = pair
    ours = param_shapes(config)
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, params)
    for module, tree in ((encoder, ours["encoder"]), (decoder, ours["decoder"])):
        count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        assert count == sum(parameter.numel() for parameter in module.parameters())


def test_same_logits_and_maps(pair):
    config, encoder, decoder, params = pair
    model = DVAE(config)
    encode = jax.jit(lambda params, x: model.apply({"params": params}, x, method="encode"))
    decode = jax.jit(lambda params, codes: model.apply({"params": params}, codes, method="decode"))
    rng = np.random.default_rng(0)
    for size in [(8, 24)] if config.group_count == 4 else [(8, 24), (16, 16)]:
        x = rng.uniform(0.1, 0.9, (2, *size, config.channels)).astype(np.float32)
        codes = rng.dirichlet(np.ones(config.vocab_size), (2, *config.token_grid(*size)))
        codes = codes.astype(np.float32)
        with torch.no_grad():
            logits, maps = nhwc(encoder(nchw(x))), nhwc(decoder(nchw(codes)))
        assert relative(encode(params, x), logits) < TOLERANCE
        assert relative(decode(params, codes), maps) < TOLERANCE


@pytest.mark.parametrize("pair", ["2-groups"], indirect=True)
def test_same_gradients(pair):
    config, encoder, decoder, params = pair
    model = DVAE(config)
    rng = np.random.default_rng(3)
    x = rng.uniform(0.1, 0.9, (2, 8, 16, config.channels)).astype(np.float32)
    x[0] = 0.5  # a flat image: its pooling windows tie
    noise = rng.gumbel(size=(2, *config.token_grid(8, 16), config.vocab_size)).astype(np.float32)
    weight = rng.normal(size=(2, 8, 16, 2 * config.channels)).astype(np.float32)

    def loss(params):
        out = model.apply({"params": params}, x, temperature=0.5, noise=noise)
        return (out.stats * weight).sum()

    got = jax.jit(jax.grad(loss))(params)
    for module in (encoder, decoder):
        module.zero_grad()
    codes = torch.softmax((encoder(nchw(x)) + nchw(noise)) / 0.5, dim=1)
    (decoder(codes) * nchw(weight)).sum().backward()
    for module, tree in ((encoder, got["encoder"]), (decoder, got["decoder"])):
        expected = to_flax((name, p.grad) for name, p in module.named_parameters())
        for path, value in jax.tree.leaves_with_path(expected):
            ours = tree
            for key in path:
                ours = ours[key.key]
            # Sums over every pixel on top of the forward rounding: ten times its tolerance.
            assert relative(ours, np.asarray(value)) < 10 * TOLERANCE, path


def test_initial_scale_is_openais():
    config = FULL["two-blocks"]
    torch.manual_seed(0)
    encoder, _ = openai_modules(config)
    ours = init_params(config, jax.random.key(0))["encoder"]
    for path, theirs in jax.tree.leaves_with_path(to_flax(encoder.named_parameters())):
        leaf = ours
        for key in path:
            leaf = leaf[key.key]
        if path[-1].key == "bias":
            assert not np.asarray(leaf).any()
            assert not np.asarray(theirs).any()
        else:
            # Each sample deviation scatters by 1/sqrt(2n) of itself; five of their difference's.
            spread = 5 / np.sqrt(leaf.size)
            assert np.std(leaf) == pytest.approx(np.std(theirs), rel=spread)
