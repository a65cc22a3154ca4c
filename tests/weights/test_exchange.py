"""Weights to one file and back to the same bits, in both formats, for every kind of decoder."""

import dataclasses
import json
import os
import re
import struct
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

from logit_laplace_jax.models import DVAE, DVAEConfig, init_params
from logit_laplace_jax.models.dvae import param_shapes
from logit_laplace_jax.weights import exchange, names, torch_writer
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


@pytest.fixture(params=exchange.ENDINGS)
def ending(request):
    if request.param == ".safetensors":
        pytest.importorskip("safetensors")
    return request.param


@pytest.mark.parametrize("name", CONFIGS)
def test_round_trip_to_the_same_bits(name, ending, tmp_path):
    config, path = CONFIGS[name], tmp_path / f"model{ending}"
    params = random_params(config)
    exchange.save(path, config, params, METADATA)
    weights = exchange.load(str(path))
    assert weights.config == config
    assert weights.metadata == METADATA
    assert_same_bits(weights.params, params)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    exchange.save(tmp_path / f"again{ending}", *weights)
    assert (tmp_path / f"again{ending}").read_bytes() == path.read_bytes()


def test_the_model_takes_what_is_read(ending, tmp_path):
    params = init_params(TINY, jax.random.key(0))
    exchange.save(tmp_path / f"model{ending}", TINY, params)
    config, found, metadata = exchange.load(tmp_path / f"model{ending}")
    assert metadata == {}
    x = np.full((1, 4, 4, 3), 0.5, np.float32)
    logits = DVAE(config).apply({"params": found}, x, method="encode")
    assert (logits == DVAE(TINY).apply({"params": params}, x, method="encode")).all()


def test_torch_opens_both(ending, tmp_path):
    torch = pytest.importorskip("torch")
    config, path = CONFIGS["shared"], tmp_path / f"model{ending}"
    params = random_params(config)
    exchange.save(path, config, params, METADATA)
    if ending == ".pt":
        tensors = torch.load(path, weights_only=True)
        mapped = torch.load(path, weights_only=True, mmap=True)
        assert all(torch.equal(tensors[name], mapped[name]) for name in tensors)
    else:
        tensors = pytest.importorskip("safetensors.torch").load_file(path)
    expected = {
        f"{half}.{name}": array
        for half in names.HALVES
        for name, array in names.from_flax(config, params, half).items()
    }
    assert set(tensors) == set(expected)
    assert "decoder.log_scale" in tensors
    for name, tensor in tensors.items():
        assert (tensor.numpy().view(np.uint32) == expected[name].view(np.uint32)).all()


@pytest.mark.parametrize("name", ["logit_laplace", "mixture", "per_channel", "shared"])
def test_files_of_others_with_the_same_names(name, tmp_path):
    """Without this package's text the tensors tell the sizes."""
    config, path = CONFIGS[name], tmp_path / "model.pt"
    params = random_params(config)
    tensors = {
        f"{half}.{key}": array
        for half in names.HALVES
        for key, array in names.from_flax(config, params, half).items()
    }
    with path.open("wb") as stream:
        torch_writer.write_zip(stream, tensors)
    weights = exchange.load(path)
    assert weights.config == config
    assert weights.metadata == {}
    assert_same_bits(weights.params, params)


def test_data_in_the_archive_is_aligned(tmp_path):
    """torch maps storages at multiples of 64 bytes."""
    path = tmp_path / "model.pt"
    exchange.save(path, TINY, random_params(TINY))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            lengths = struct.unpack_from("<HH", content, entry.header_offset + 26)
            assert (entry.header_offset + 30 + sum(lengths)) % 64 == 0


# --- Refusals of writing ---------------------------------------------------------------------


def test_nothing_is_overwritten_or_left_behind(ending, tmp_path):
    path = tmp_path / f"model{ending}"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="choose another name"):
        exchange.save(path, TINY, random_params(TINY))
    assert path.read_text() == "mine"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="choose another name"):
        exchange.save(path, TINY, random_params(TINY))
    with pytest.raises(FileNotFoundError):
        exchange.save(tmp_path / "no" / f"model{ending}", TINY, random_params(TINY))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_file_that_appears_meanwhile_is_kept(monkeypatch, tmp_path):
    path = tmp_path / "model.pt"
    link = os.link

    def late(source, target):
        path.write_text("theirs")
        return link(source, target)

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(FileExistsError):
        exchange.save(path, TINY, random_params(TINY))
    assert path.read_text() == "theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_file_systems_without_links(monkeypatch, tmp_path):
    def refused(source, target):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "model.pt"
    exchange.save(path, TINY, random_params(TINY))
    assert exchange.load(path).config == TINY
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
        ({}, "params have no encoder/input/kernel"),
        (changed("decoder", "input", "bias", value=None), "params have no decoder/input/bias"),
        (changed("decoder", "input", "bias", value=np.zeros(8)), "is float64, not float32"),
        (
            changed("decoder", "input", "bias", value=np.zeros(9, np.float32)),
            "decoder/input/bias has shape (9,)",
        ),
        (
            changed("encoder", "input", "bias", value=np.full(8, np.nan, np.float32)),
            "encoder/input/bias has values that are not finite",
        ),
        (
            changed("decoder", "log_scale", value=np.zeros(1, np.float32)),
            "decoder has 25 arrays, a model with",
        ),
    ],
)
def test_parameters_of_another_model(params, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        exchange.save(tmp_path / "model.pt", TINY, params)
    assert not list(tmp_path.iterdir())


def test_other_endings_and_metadata_that_are_not_json(tmp_path):
    params = random_params(TINY)
    with pytest.raises(ValueError, match=r"ending must be .safetensors or .pt"):
        exchange.save(tmp_path / "model.npz", TINY, params)
    for value in (float("nan"), {1, 2}, np.float32(1.0)):
        with pytest.raises(ValueError, match="metadata must be JSON"):
            exchange.save(tmp_path / "model.pt", TINY, params, {"eps": value})
    assert not list(tmp_path.iterdir())


# --- Refusals of reading ---------------------------------------------------------------------


def write_about(path, text):
    """A good file with another text about the model."""
    params = random_params(TINY)
    tensors = {
        f"{half}.{key}": array
        for half in names.HALVES
        for key, array in names.from_flax(TINY, params, half).items()
    }
    if path.suffix == ".pt":
        with path.open("wb") as stream:
            torch_writer.write_zip(stream, tensors, text)
    else:
        arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        pytest.importorskip("safetensors.numpy").save_file(
            arrays, path, {"logit_laplace_jax": text}
        )


def about(**changes):
    return {"format": 1, "config": dataclasses.asdict(TINY) | changes, "metadata": {}}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "text about the model"),
        ("[", "text about the model"),
        ("[" * 100_000, "text about the model"),
        ("1" * 10_000, "text about the model"),
        ("[]", "another version"),
        ('{"format": 2}', "another version"),
        ('{"format": 1}', "has no configuration"),
        (json.dumps(about(colour=1)), "unknown 'colour'"),
        (json.dumps(about(n_hid="8")), "n_hid must be an integer"),
        (json.dumps(about(n_hid=10**4000)), "not that of its tensors"),
        (json.dumps(about(n_blk_per_group=10**9)), "not that of its tensors"),
        (json.dumps(about(group_count=10**9)), "not that of its tensors"),
        (json.dumps(about(dtype=["float32"])), "dtype must be one of"),
        (json.dumps(about(n_hid=12)), "has shape"),
        (json.dumps(about(n_blk_per_group=2)), "missing: 'blocks.group_1.block_2"),
        (json.dumps(about(group_count=1)), "left over: 'blocks.group_2.block_1"),
        (json.dumps(about(constant_scale="shared")), "missing: 'log_scale'"),
        (" " * 2**21 + json.dumps(about()), "too long|more than 1,048,576 bytes"),
    ],
)
def test_texts_that_do_not_describe_the_tensors(text, words, ending, tmp_path):
    path = tmp_path / f"model{ending}"
    write_about(path, text)
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


def test_damage_is_noticed(ending, tmp_path):
    """Truncation always; a changed byte of a .pt by its checksum, unless nothing reads it."""
    path = tmp_path / f"model{ending}"
    params = random_params(TINY)
    exchange.save(path, TINY, params)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in np.linspace(0, len(content) - 1, 20).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError):
            exchange.load(path)
    if ending == ".pt":
        for place in rng.integers(0, len(content), 100):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(damaged)
            unchanged = True
            try:
                weights = exchange.load(path)
            except WeightsError:
                unchanged = False
            if unchanged:
                assert_same_bits(weights.params, params)
