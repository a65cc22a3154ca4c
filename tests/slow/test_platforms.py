"""Programs for a machine that is not this one: lowered for it alone, and of any batch size."""

import jax
import jax.numpy as jnp
import pytest
import tiny
from cases import CASES
from jax import export

import logit_laplace_jax as ll
from logit_laplace_jax.tokens.tokenizer import Tokenizer
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.training.step import train_step

PLATFORMS = ("cpu", "tpu", "cuda")
FAMILIES = (
    *("logit_laplace", "laplace", "normal", "logistic", "logit_normal", "truncated_normal"),
    *("truncated_laplace", "continuous_bernoulli", "logistic_mixture", "categorical"),
)
(BATCH,) = export.symbolic_shape("batch")


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def pixels(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.uint8)


KEY = jax.eval_shape(lambda: jax.random.key(0))


def value_and_gradients(loss, wrt):
    return jax.value_and_grad(lambda *args: loss(*args).mean(), wrt)


def of_a_family(name):
    family = ll.likelihoods.get(name)
    stats, image = floats(BATCH, 4, 4, 3 * family.num_stats), pixels(BATCH, 4, 4, 3)
    for function in (family.log_mass, family.bin_cdf):
        yield f"{name}.{function.__name__}", function, (image, stats)
    yield f"{name}.loss", value_and_gradients(family.loss, 1), (image, stats)
    for function in (family.reconstruct, family.mean_and_median):
        yield f"{name}.{function.__name__}", function, (stats,)
    yield f"{name}.sample", family.sample, (KEY, stats)


def initial_state(config):
    return jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))


def programs():
    """Every public function with what it takes; batch sizes are left open."""
    x = floats(BATCH, 3)
    for case in CASES:
        args = [pixels(BATCH, 3) if kind == "pixel" else x for kind in case.kinds]
        yield case.name, value_and_gradients(case.f, case.wrt), args
    yield "sample", ll.sample, (KEY, x, x)
    yield "sample of a shape", lambda key, loc: ll.sample(key, loc, 0.0, loc.shape), (KEY, x)
    yield "fit", lambda x: ll.fit(x, axis=0), (x,)
    yield "map_pixels", ll.map_pixels, (pixels(BATCH, 3),)
    yield "unmap_pixels", ll.unmap_pixels, (x,)
    yield "loss", value_and_gradients(ll.logit_laplace_loss, (0, 1, 2)), (x, x, x)
    loss = value_and_gradients(ll.logit_laplace_pixel_loss, (1, 2))
    yield "pixel loss", loss, (pixels(BATCH, 3), x, x)
    for name in FAMILIES:
        yield from of_a_family(name)


ALL = list(programs())
each = pytest.mark.parametrize(("function", "args"), [p[1:] for p in ALL], ids=[p[0] for p in ALL])


@each
def test_any_batch_size_on_any_platform(function, args):
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*args)
    assert exported.platforms == PLATFORMS


def test_the_tokenizer_of_any_batch_size():
    config = tiny.MODEL
    shapes = initial_state(tiny.config(model=config)).params
    tokenizer = Tokenizer(config, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes))
    side = 2 * config.downsampling
    tokens = jax.ShapeDtypeStruct((BATCH, 2, 2), jnp.int32)
    for function, arg in (
        (tokenizer.encode, pixels(BATCH, side, side, 3)),
        (tokenizer.decode, tokens),
    ):
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(arg)
        assert exported.out_avals[0].shape[0] == exported.in_avals[0].shape[0]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_step_holds_nothing_of_the_machine_that_lowers_it(monkeypatch, platform):
    """The program is what the platform's own machine would make of it."""
    config = tiny.config()
    state = initial_state(config)
    batch = {"pixels": pixels(4, config.image_size, config.image_size, 3)}

    def lowered():
        traced = jax.jit(lambda *args: train_step(*args)).trace(state, batch, KEY)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    here = lowered()
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert lowered() == here
