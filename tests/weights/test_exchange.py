"""Weights to one file and back to the same bits, for every kind of decoder."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from logit_laplace_jax.models import DVAEConfig
from logit_laplace_jax.models.dvae import param_shapes
from logit_laplace_jax.weights import exchange, names
from logit_laplace_jax.weights.openai import WeightsError

pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = Path(__file__).parent / "data"
TINY = DVAEConfig(group_count=2, n_hid=8, n_blk_per_group=1, vocab_size=16, n_init=8)
CONFIGS = {
    "logit_laplace": TINY,
    "one_map": dataclasses.replace(TINY, stats_per_channel=1),
    "mixture": dataclasses.replace(TINY, stats_per_channel=30),
    "per_channel": dataclasses.replace(TINY, constant_scale="per_channel"),
    "shared": dataclasses.replace(TINY, constant_scale="shared"),
    "grey_shared": dataclasses.replace(TINY, constant_scale="shared", channels=1),
    "one_group": dataclasses.replace(TINY, group_count=1),
    "options": dataclasses.replace(TINY, dtype="bfloat16", straight_through=True, remat=True),
}
METADATA = {
    "eps": 0.1,
    "step": 2_000,
    "likelihood": "logit_laplace",
    "likelihood_options": {"scale": "per_pixel", "min_log_scale": None},
    "data": "photos é",
}


def random_params(config, seed=0):
    """Every bit pattern of finite float32, subnormals and -0 among them."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        values = rng.integers(0, 2**32, leaf.shape, np.uint32).view(np.float32)
        return np.where(np.isfinite(values), values, np.float32(-0.0))

    return jax.tree.map(draw, param_shapes(config))


def assert_same_bits(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == np.float32
        assert (np.asarray(a).view(np.uint32) == np.asarray(b).view(np.uint32)).all()


def arrays_of(config, seed=0):
    params = random_params(config, seed)
    flat = names.flatten(params)
    return params, {name: np.ascontiguousarray(names.to_torch(a)) for name, a in flat.items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_to_the_same_bits(name, tmp_path):
    config, path = CONFIGS[name], tmp_path / "model.safetensors"
    params = random_params(config)
    exchange.save(path, config, params, METADATA)
    weights = exchange.load(str(path))
    assert weights.config == config
    assert weights.metadata == METADATA
    assert_same_bits(weights.params, params)
    exchange.save(tmp_path / "again.safetensors", *weights)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_torch_opens_it(tmp_path):
    safetensors_torch = pytest.importorskip("safetensors.torch", exc_type=ImportError)
    config, path = CONFIGS["shared"], tmp_path / "model.safetensors"
    params, expected = arrays_of(config)
    exchange.save(path, config, params, METADATA)
    tensors = safetensors_torch.load_file(path)
    assert set(tensors) == set(expected)
    assert "decoder.log_scale" in tensors
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


@pytest.mark.parametrize("name", ["logit_laplace", "mixture", "per_channel", "shared"])
def test_files_of_others_with_the_same_names(name, tmp_path):
    """Without this package's text the tensors tell the sizes."""
    config, path = CONFIGS[name], tmp_path / "model.safetensors"
    params, arrays = arrays_of(config)
    save_file(arrays, path)
    weights = exchange.load(path)
    assert weights.config == config
    assert weights.metadata == {}
    assert_same_bits(weights.params, params)


# --- Refusals of writing ---------------------------------------------------------------------


def test_nothing_is_overwritten_or_left_behind(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="choose another name"):
        exchange.save(path, TINY, random_params(TINY))
    assert path.read_text() == "mine"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="choose another name"):
        exchange.save(path, TINY, random_params(TINY))
    with pytest.raises(FileNotFoundError):
        exchange.save(tmp_path / "no" / "model.safetensors", TINY, random_params(TINY))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def changed(half, *path, value):
    params = random_params(TINY)
    node = params[half]
    for part in path[:-1]:
        node = node[part]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return params


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "is missing"),
        (changed("decoder", "input", "bias", value=None), "decoder.blocks.input.b is missing"),
        (changed("decoder", "input", "bias", value=np.zeros(8)), "is float64"),
        (changed("decoder", "input", "bias", value=np.zeros(9, np.float32)), r"of shape \(9,\)"),
        (
            changed("encoder", "input", "bias", value=np.full(8, np.nan, np.float32)),
            "encoder.blocks.input.b .* not finite",
        ),
        (
            changed("decoder", "log_scale", value=np.zeros(1, np.float32)),
            "decoder.log_scale is left over",
        ),
    ],
)
def test_parameters_of_another_model(params, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        exchange.save(tmp_path / "model.safetensors", TINY, params)
    assert not list(tmp_path.iterdir())


def test_other_endings_and_metadata_that_are_not_json(tmp_path):
    params = random_params(TINY)
    with pytest.raises(ValueError, match=r"ending must be .safetensors"):
        exchange.save(tmp_path / "model.pt", TINY, params)
    for value in (float("nan"), {1, 2}, np.float32(1.0)):
        with pytest.raises(ValueError, match="metadata must be JSON"):
            exchange.save(tmp_path / "model.safetensors", TINY, params, {"eps": value})
    assert not list(tmp_path.iterdir())


# --- Refusals of reading ---------------------------------------------------------------------


def about(**changes):
    return {"format": 1, "config": dataclasses.asdict(TINY) | changes, "metadata": {}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "text about the model"),
        ("[" * 100_000, "text about the model"),
        ("1" * 10_000, "text about the model"),
        ("[]", "another version"),
        ('{"format": 2}', "another version"),
        ('{"format": 1}', "has no configuration"),
        (json.dumps(about(colour=1)), "unknown 'colour'"),
        (json.dumps(about(n_hid="8")), "n_hid must be an integer"),
        (json.dumps(about(n_hid=10**4000)), "not that of its tensors"),
        (json.dumps(about(n_blk_per_group=10**9)), "n_blk_per_group is 1 by its tensors"),
        (json.dumps(about(group_count=10**9)), "group_count is 2 by its tensors"),
        (json.dumps(about(dtype=["float32"])), "dtype must be one of"),
        (json.dumps(about(n_hid=12)), "n_hid is 8 by its tensors, 12 by its text"),
        (json.dumps(about(constant_scale="shared")), "missing: 'decoder.log_scale'"),
        (" " * 2**21 + json.dumps(about()), "too long"),
    ],
    ids=lambda value: value[:30],
)
def test_texts_that_do_not_describe_the_tensors(text, words, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(arrays_of(TINY)[1], path, {"logit_laplace_jax": text})
    with pytest.raises(WeightsError, match=words) as caught:
        exchange.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


def test_halves_and_other_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"begin with encoder. or decoder. .*openai.load"):
        exchange.load(DATA / "encoder.pkl")
    with pytest.raises(FileNotFoundError):
        exchange.load(tmp_path / "nowhere.pt")
    (tmp_path / "model.pt").write_bytes(b"hello")
    with pytest.raises(WeightsError, match=r"model.pt: the file is neither"):
        exchange.load(tmp_path / "model.pt")


def test_truncation_is_noticed(tmp_path):
    path = tmp_path / "model.safetensors"
    exchange.save(path, TINY, random_params(TINY))
    content = path.read_bytes()
    for length in np.linspace(0, len(content) - 1, 20).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError):
            exchange.load(path)
