"""OpenAI's files: read to torch's own numbers, and every hostile one refused without running it."""

import importlib.util
import io
import os
import pickle
import re
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from logit_laplace_jax.models import DVAE, DVAEConfig
from logit_laplace_jax.models.dvae import param_shapes
from logit_laplace_jax.tokens import Tokenizer
from logit_laplace_jax.weights import files, names, openai, pickles, torch_files
from logit_laplace_jax.weights.openai import WeightsError

pytestmark = pytest.mark.usefixtures("quick_compilation")

DATA = Path(__file__).parent / "data"
_spec = importlib.util.spec_from_file_location("make_openai_files", DATA / "make_openai_files.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)

KINDS = ("{}.pkl", "{}_legacy.pkl", "{}.pt")
NAMES = [kind.format(half) for kind in KINDS for half in ("encoder", "decoder")]

# Both sides sum up to 9·128 float32 products per convolution, in different orders, through at
# most 12 residual blocks: measured 1.6e-6 of the largest value or less, and torch in float32 is as
# far from torch in float64. One wrong transposition, gain or bias changes more than 1e-3.
TOLERANCE = 5e-6


def relative(got, expected):
    return np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()


def assert_same_model(config, params, x, expected):
    """Logits and maps to float32 rounding, tokens to the last one."""
    apply = jax.jit(DVAE(config).apply, static_argnames="method")
    logits = apply({"params": params}, x, method="encode")
    maps = apply({"params": params}, expected["tokens"], method="decode_tokens")
    assert relative(logits, expected["logits"]) < TOLERANCE
    assert relative(maps, expected["maps"]) < TOLERANCE
    assert (np.asarray(logits).argmax(-1) == expected["tokens"]).all()


def refuse(*paths, match=None):
    """The one line of the refusal."""
    with pytest.raises(WeightsError, match=match) as caught:
        openai.load(*paths)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 1000
    assert any(str(path) in message for path in paths)
    return message


# --- Files in the repository: no torch needed ------------------------------------------------


@pytest.mark.parametrize("encoder", KINDS)
@pytest.mark.parametrize("decoder", KINDS)
def test_every_kind_gives_torchs_numbers(encoder, decoder):
    config, params = openai.load(
        DATA / encoder.format("encoder"), str(DATA / decoder.format("decoder"))
    )
    assert config == make.CONFIG
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), param_shapes(config)
    )
    if encoder == decoder:
        expected = dict(np.load(DATA / "expected.npz"))
        assert_same_model(config, params, expected.pop("x"), expected)


def test_the_tokenizer_takes_it_as_it_is():
    config, params = openai.load(DATA / "encoder.pkl", DATA / "decoder.pkl")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    tokens = Tokenizer(config, params).encode(pixels)
    assert Tokenizer(config, params).decode(tokens).shape == pixels.shape


def test_needs_no_torch(monkeypatch):
    for package in ("torch", "dall_e"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    assert openai.load(DATA / "encoder_legacy.pkl", DATA / "decoder.pkl")[0] == make.CONFIG


def test_swapped_and_doubled_files_are_noticed():
    encoder, decoder = DATA / "encoder.pkl", DATA / "decoder.pt"
    message = refuse(decoder, encoder, match="the two files are swapped")
    assert message.index(str(decoder)) < message.index(str(encoder))
    refuse(decoder, decoder, match=r"decoder.pt: holds the decoder, not the encoder")
    refuse(encoder, encoder, match=r"encoder.pkl: holds the encoder, not the decoder")


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        openai.load(tmp_path / "nowhere.pkl", DATA / "decoder.pkl")
    refuse(tmp_path, DATA / "decoder.pkl", match="not a regular file")
    os.mkfifo(tmp_path / "pipe")  # opening one would wait for a writer
    refuse(tmp_path / "pipe", DATA / "decoder.pkl", match="not a regular file")


# --- Parity with OpenAI's modules ------------------------------------------------------------

SIZES = {
    # The smallest that OpenAI's validators take, then other numbers of everything.
    "openais-least": DVAEConfig(n_hid=64, vocab_size=512, n_init=8, n_blk_per_group=1),
    "three-blocks": DVAEConfig(n_hid=8, vocab_size=40, n_init=5, n_blk_per_group=3),
    "wider-grey": DVAEConfig(n_hid=48, vocab_size=100, n_init=24, n_blk_per_group=1, channels=1),
    "one-group": DVAEConfig(group_count=1, n_hid=16, vocab_size=24, n_init=16),
    "three-groups": DVAEConfig(group_count=3, n_hid=12, vocab_size=24, n_init=48),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["zip", "protocol-4", "legacy", "state_dict", "safetensors"])
def test_parity(name, kind, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("dall_e")
    config = SIZES[name]
    halves = make.modules(config, seed=len(name))
    paths = [tmp_path / "one", tmp_path / "two"]
    for path, module in zip(paths, halves, strict=True):
        match kind:
            case "zip":
                torch.save(module, path)
            case "protocol-4":
                torch.save(module, path, pickle_protocol=4)
            case "legacy":
                make.save_legacy(module, path)
            case "state_dict":
                torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)
            case "safetensors":
                pytest.importorskip("safetensors.torch").save_file(module.state_dict(), path)
    found, params = openai.load(*paths)
    assert found == config
    ours = names.flatten(params)
    for half, module in zip(("encoder", "decoder"), halves, strict=True):
        for key, tensor in module.state_dict().items():
            array = names.to_torch(np.asarray(ours[f"{half}.{key}"]))
            np.testing.assert_array_equal(array, tensor.numpy())
    if kind == "zip":
        side = config.downsampling
        x = np.random.default_rng(1).uniform(0.1, 0.9, (2, 2 * side, 3 * side, config.channels))
        x = x.astype(np.float32)
        assert_same_model(found, params, x, make.expected(config, *halves, x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", ["modules", "legacy", "safetensors"])
def test_other_floats_become_float32(dtype, kind, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("dall_e")
    paths = [tmp_path / "one", tmp_path / "two"]
    halves = [module.to(getattr(torch, dtype)) for module in make.modules(make.CONFIG)]
    for path, module in zip(paths, halves, strict=True):
        if kind == "safetensors":
            pytest.importorskip("safetensors.torch").save_file(module.state_dict(), path)
        else:
            torch.save(module, path, _use_new_zipfile_serialization=kind == "modules")
    _, params = openai.load(*paths)
    kernel = params["encoder"]["input"]["kernel"]
    assert kernel.dtype == jnp.float32
    expected = halves[0].state_dict()["blocks.input.w"].float().numpy()
    assert (np.asarray(kernel).transpose(3, 2, 0, 1) == expected).all()


def test_strides_and_offsets_are_followed(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("dall_e")
    encoder, _ = make.modules(make.CONFIG)
    state = encoder.state_dict()
    name = "blocks.input.w"
    state[name] = state[name].to(memory_format=torch.channels_last)
    bias = torch.arange(24.0).reshape(6, 4)
    state["blocks.input.b"] = bias[:, 2][1:5]
    torch.save(state, tmp_path / "encoder.pt")
    _, params = openai.load(tmp_path / "encoder.pt", DATA / "decoder.pt")
    assert params["encoder"]["input"]["bias"].tolist() == [6.0, 10.0, 14.0, 18.0]
    kernel = np.asarray(params["encoder"]["input"]["kernel"])
    assert (kernel == encoder.state_dict()[name].numpy().transpose(2, 3, 1, 0)).all()


# --- Tensors that are not a dVAE's -----------------------------------------------------------


def read_arrays(path):
    """Name to array, to be changed."""
    return {name: np.array(array) for name, array in files.read(path).arrays.items()}


def write_arrays(path, arrays):
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("blocks.group_1.block_1.res_path.conv_2.b"), "missing: .*conv_2.b"),
        (lambda a: a.pop("blocks.input.w"), "encoder.blocks.input.w is missing or strange"),
        (lambda a: a.pop("blocks.output.conv.w"), "blocks.output.conv.w is missing"),
        (lambda a: a.update(extra=np.ones(3, np.float32)), "left over: 'encoder.extra'"),
        (lambda a: a.update({"blocks.input.b": np.ones(5, np.float32)}), r"has shape \(5,\)"),
        (
            lambda a: a.update({"blocks.group_1.block_1.id_path.w": np.ones(1, np.float32)}),
            "left over: 'encoder.blocks.group_1.block_1.id_path.w'",
        ),
        (
            lambda a: a.update({"blocks.group_9.block_1.id_path.w": np.ones(1, np.float32)}),
            "do not belong together: group_count 3 and 2",
        ),
        (lambda a: a["blocks.input.b"].fill(np.nan), "not finite"),
        (lambda a: a["blocks.output.conv.w"].fill(np.inf), "not finite"),
        (lambda a: a.clear(), "it holds nothing"),
        (lambda a: a.update({"encoder.x": a.pop("blocks.input.w")}), "both halves in one file"),
    ],
)
def test_missing_left_over_and_strange_tensors(change, words, tmp_path):
    arrays = read_arrays(DATA / "encoder.pt")
    change(arrays)
    refuse(write_arrays(tmp_path / "encoder.pt", arrays), DATA / "decoder.pt", match=words)


def test_halves_of_two_models(tmp_path):
    arrays = read_arrays(DATA / "decoder.pt")
    arrays["blocks.input.w"] = np.ones((4, 9, 1, 1), np.float32)
    path = write_arrays(tmp_path / "decoder.pt", arrays)
    refuse(DATA / "encoder.pt", path, match="do not belong together: vocab_size 8 and 9")
    arrays = read_arrays(DATA / "decoder.pt")
    arrays["blocks.output.conv.w"] = np.ones((7, 4, 1, 1), np.float32)
    path = write_arrays(tmp_path / "decoder.pt", arrays)
    refuse(DATA / "encoder.pt", path, match="do not belong together: 3 channels and 7 maps")


def test_integers_are_no_weights(tmp_path):
    arrays = read_arrays(DATA / "encoder.pt")
    arrays["blocks.input.b"] = np.ones(4, np.int32)
    write_arrays(tmp_path / "encoder", arrays)
    refuse(tmp_path / "encoder", DATA / "decoder.pt", match="blocks.input.b is int32")
    arrays["blocks.input.b"] = np.array([1e300, 0, 0, 0])  # finite, but not in float32
    write_arrays(tmp_path / "encoder", arrays)
    refuse(tmp_path / "encoder", DATA / "decoder.pt", match="blocks.input.b has values .* finite")


def test_names_that_ask_for_huge_tables(tmp_path):
    arrays = read_arrays(DATA / "encoder.pt")
    for i in range(3, 300):
        arrays[f"blocks.group_{i}.block_1.x"] = np.ones(1, np.float32)
        arrays[f"blocks.group_1.block_{i}.x"] = np.ones(1, np.float32)
    path = write_arrays(tmp_path / "encoder.pt", arrays)
    refuse(path, DATA / "decoder.pt", match="groups of blocks are incomplete")


# --- Hostile pickles -------------------------------------------------------------------------


def archive(path, data, entries=None, compression=zipfile.ZIP_STORED):
    """A zip archive of torch's form around any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", data)
        for name, content in {"byteorder": b"little", "version": b"3\n", **(entries or {})}.items():
            file.writestr(f"archive/{name}", content)
    return path


def legacy(path, data):
    """The older container around any pickle."""
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)
    path.write_bytes(torch_files.LEGACY_START + system + data + pickle.dumps([], 2))
    return path


class Calls:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments, *([state] if state is not None else []))

    def __reduce__(self):
        return self.parts


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def tensor_pickle(
    kind=b"torch\nFloatStorage",
    key="0",
    numel=b"K\x04",
    offset=b"K\x00",
    size=b"(K\x04t",
    stride=b"(K\x01t",
    rest=b"",
):
    """{"blocks.input.b": tensor}, opcode by opcode."""
    storage = b"(" + text("storage") + b"c" + kind + b"\n" + text(key) + text("cpu") + numel
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tQ"
    tensor += offset + size + stride + b"\x89}tR"
    return b"\x80\x02}" + text("blocks.input.b") + tensor + b"s."


OPENS = b"cos\nsystem\n"
INERT = b"ctorch.nn.modules.activation\nReLU\n)\x81"
PROTOCOL = b"\x80\x04"
HOSTILE = {
    "os.system": (b"\x80\x02" + OPENS + b"(X\x04\x00\x00\x00exittR.", "'os.system'"),
    "posix by name": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "'posix.system'"),
    "eval": (b"\x80\x02c__builtin__\neval\n.", "'__builtin__.eval'"),
    "getattr": (b"\x80\x02cbuiltins\ngetattr\n.", "'builtins.getattr'"),
    "dotted name": (
        b"\x80\x04\x8c\x0btorch._utils\x94".replace(b"\x0b", b"\x0c")
        + b"\x8c\x24_rebuild_tensor_v2.__globals__.popitem"[:1]
        + b"\x26_rebuild_tensor_v2.__globals__.popitem\x93.",
        "'torch._utils._rebuild_tensor_v2.__globals__.popitem'",
    ),
    "line breaks in a name": (b"\x80\x04\x8c\x05a\nb\nc\x8c\x01d\x93.", r"a\\nb"),
    "inst": (b"\x80\x02(ios\nsystem\n.", "opcode INST"),
    "obj": (b"\x80\x02(cos\nsystem\no.", "opcode OBJ"),
    "obj of a listed class": (b"\x80\x02(ctorch\nSize\no.", "opcode OBJ"),
    "newobj_ex": (PROTOCOL + b"ctorch\nSize\n)}\x92.", "opcode NEWOBJ_EX"),
    "ext1": (b"\x80\x02\x82\x01.", "opcode EXT1"),
    "ext2": (b"\x80\x02\x83\x01\x00.", "opcode EXT2"),
    "ext4": (b"\x80\x02\x84\x01\x00\x00\x00.", "opcode EXT4"),
    "persid as text": (b"Pfile\n.", "opcode PERSID"),
    "next buffer": (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
    "bytearray": (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "opcode BYTEARRAY8"),
    "calls an object": (b"\x80\x02" + INERT + b")R.", "damaged"),
    "calls a value": (b"\x80\x02ctorch\nfloat32\n)R.", "calls torch.float32"),
    "calls with a list": (b"\x80\x02ccollections\nOrderedDict\n]R.", "damaged"),
    "state of a class": (b"\x80\x02ctorch\nSize\n}b.", "sets the state of torch.Size"),
    "state of a list": (b"\x80\x02]}b.", "damaged"),
    "state with slots": (b"\x80\x02" + INERT + b"N}\x86b.", "strange state"),
    "attributes of a function": (
        b"\x80\x02ctorch\nSize\nN}" + text("_call") + b"Ns\x86b.",
        "sets the state of torch.Size",
    ),
    "a class is built": (b"\x80\x02" + INERT[:-2] + b"}b.", "damaged"),
    "a class takes arguments": (b"\x80\x02" + INERT[:-2] + b"N\x85\x81.", "damaged"),
    "a function is no class": (b"\x80\x02ctorch\nSize\n)\x81.", "damaged"),
    "setstate": (b"\x80\x02" + INERT + b"}" + text("__setstate__") + OPENS + b"sb.", "os.system"),
    "nothing": (b"\x80\x02.", "damaged"),
    "stack underflow": (b"\x80\x02a.", "damaged"),
    "two results": (b"\x80\x02NN.", "damaged"),
    "no stop": (b"\x80\x02N", "damaged"),
    "unknown opcode": (b"\x80\x02\xff.", "damaged"),
    "unknown memo": (b"\x80\x02h\x09.", "damaged"),
    "no mark": (b"\x80\x02t.", "damaged"),
    "append to a tuple": (b"\x80\x02)Na.", "damaged"),
    "odd items": (b"\x80\x02}(Nu.", "damaged"),
    "tuple as a key": (b"\x80\x02})Ns.", "damaged"),
    "huge string": (b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f.", "damaged"),
    "huge bytes": (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "damaged"),
    "huge frame": (b"\x80\x04\x95" + b"\xff" * 8 + b"N.", "damaged"),
    "negative length": (b"\x80\x02\x8b\xff\xff\xff\xff.", "damaged"),
    "huge integer": (
        b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6 + b".",
        "integer",
    ),
    "digits": (b"L" + b"9" * 10**6 + b"L\n.", "damaged"),
    "a string": (b"\x80\x02" + text("hello") + b".", "neither modules nor a dictionary"),
    "a module alone": (b"\x80\x02" + INERT + b".", "blocks.input.w is missing"),
    "a device": (b"\x80\x02ctorch\ndevice\n" + text("cpu") + b"\x85R.", "holds a NoneType"),
    "a dictionary of numbers": (b"\x80\x02}" + text("epoch") + b"K\x01s.", "under 'epoch'"),
    "integer names": (b"\x80\x02}K\x01Ns.", "damaged"),
    "far memo": (b"\x80\x02}r\xff\xff\xff\xff.", "damaged"),  # 64 GiB of Unpickler's memo
    "items of a set": (b"\x80\x04\x8f(Nu.", "damaged"),
    "filled set": (b"\x80\x04\x8f(N\x90.", "opcode ADDITEMS"),
    "mark as an item": (b"\x80\x02(N\x86.", "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("container", [archive, legacy])
def test_hostile_pickles(name, container, tmp_path):
    data, words = HOSTILE[name]
    path = container(tmp_path / "encoder.pkl", data)
    refuse(path, DATA / "decoder.pkl", match=words)
    refuse(DATA / "encoder.pkl", path, match=words)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs(protocol, tmp_path):
    """Calls that would leave a trace, in every place a pickle can put one."""
    import shutil

    trace = tmp_path / "trace"
    call = Calls(os.mkdir, str(trace))
    places = {
        "root": call,
        "value": OrderedDict({"blocks.input.w": call}),
        "argument": OrderedDict({"a": Calls(shutil.move, call, str(tmp_path / "b"))}),
        "state": Calls(OrderedDict, state={"__setstate__": call}),
        "list": [call],
    }
    for name, value in places.items():
        data = pickle.dumps(value, protocol)
        for container in (archive, legacy):
            path = container(tmp_path / f"{name}.pkl", data)
            message = refuse(path, DATA / "decoder.pkl")
            assert re.search("mkdir|shutil.move|copy_reg|opcode", message)
    assert not trace.exists()
    pickle.loads(pickle.dumps(call, protocol))
    assert trace.exists()  # the calls work


def test_files_nest_and_share_without_end(tmp_path):
    """Memo bombs and deep nesting take time in proportion to the file, and no stack of Python's."""
    laughs = b"\x80\x04)" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(200)) + b"."
    as_key = laughs[:-1] + b"}\x8c\x01a" + b"h\x05" + b"ss."
    deep_list = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    deep_marks = b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b"."
    one_hash = b"".join(
        b"\x8a\x0e" + (i * (2**61 - 1)).to_bytes(14, "little") for i in range(10**5)
    )
    colliding = b"\x80\x02}(" + one_hash.replace(b"\x8a\x0e", b"N\x8a\x0e")[1:] + b"Nu."
    puts = b"\x80\x02}" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(10**5)) + b"."
    endless = b"\x80\x02" + b"N0" * (pickles.MAX_OPCODES // 2) + b"N."
    shared = b"\x80\x02(" + b"N" * 100_000 + b"tq\x00" + b"0ctorch\nSize\nh\x00R" * 5 + b"."
    ids = b"\x80\x02(" + b"N" * 100_000 + b"tq\x00" + b"h\x00Q" * 5 + b"."
    hostile = (laughs, as_key, deep_list, deep_marks, colliding, puts, endless, shared, ids)
    for data in hostile:
        refuse(archive(tmp_path / "encoder.pkl", data), DATA / "decoder.pkl")
    too_long = b"\x80\x02N" + b"0N" * (9 * 2**20) + b"."
    message = refuse(archive(tmp_path / "encoder.pkl", too_long), DATA / "decoder.pkl")
    assert "more than 16,777,216 bytes" in message


def module_pickle(children):
    """A Sequential in memo 0 whose modules are `children`, pairs of a name and opcodes."""
    items = b"".join(text(name) + value for name, value in children)
    return (
        b"\x80\x02ctorch.nn.modules.container\nSequential\n)\x81q\x00}"
        + text("_modules")
        + b"}("
        + items
        + b"usb."
    )


def test_modules_that_contain_themselves(tmp_path):
    for children in ([("a", b"h\x00")], [(f"{i}", b"h\x00") for i in range(50)]):
        path = archive(tmp_path / "encoder.pkl", module_pickle(children))
        refuse(path, DATA / "decoder.pkl", match="nested too deeply")
    path = archive(tmp_path / "encoder.pkl", module_pickle([("a" * 1000, b"h\x00")]))
    refuse(path, DATA / "decoder.pkl", match="over 100 characters")
    path = archive(tmp_path / "encoder.pkl", module_pickle([("a", b"K\x01")]))
    refuse(path, DATA / "decoder.pkl", match="'a' is a int")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": "../data.pkl"}, "no proper key"),
        ({"key": "archive/version"}, "no proper key"),
        ({"key": "٣"}, "no proper key"),
        ({"key": "7"}, "'archive/data/7' is missing"),
        ({"kind": b"torch\nfloat32"}, "of no known kind"),
        ({"kind": b"torch\nComplexFloatStorage"}, "names 'torch.ComplexFloatStorage'"),
        ({"numel": b"K\x05"}, "has 16 bytes, not 20"),
        ({"numel": b"J\xff\xff\xff\xff"}, "no proper key or size"),
        ({"numel": b"\x8a\x08" + b"\xff" * 7 + b"\x0f"}, "no proper key or size"),
        ({"numel": b"\x88"}, "no proper key or size"),
        ({"kind": b"torch\nDoubleStorage"}, "has 16 bytes, not 32"),
        ({"rest": b"K\x01"}, "of no known kind"),
        ({"rest": b"K\x01K\x01"}, "not a storage"),
        ({"offset": b"K\x01"}, "does not lie inside its storage"),
        ({"offset": b"J\xff\xff\xff\xff"}, "values that do not make one"),
        ({"size": b"(K\x05t"}, "does not lie inside its storage"),
        ({"size": b"(K\x00t"}, "does not lie inside its storage"),
        ({"size": b"(G?\xf0\x00\x00\x00\x00\x00\x00t"}, "values that do not make one"),
        ({"size": b"(K\x04K\x01t"}, "values that do not make one"),
        ({"size": b"N"}, "damaged"),
        ({"stride": b"(K\x00t"}, "values overlap"),
        ({"stride": b"(K\x02t"}, "does not lie inside its storage"),
        ({"stride": b"(J\xff\xff\xff\xfft"}, "values that do not make one"),
        ({"size": b"(K\x02K\x02t", "stride": b"(K\x01K\x01t"}, "values overlap"),
        (
            {"size": b"(" + b"K\x01" * 9 + b"t", "stride": b"(" + b"K\x01" * 9 + b"t"},
            "not make one",
        ),
        ({}, "blocks.input.w is missing"),
    ],
)
def test_tensors_outside_their_storage(changes, words, tmp_path):
    data = tensor_pickle(**changes)
    path = archive(tmp_path / "encoder.pkl", data, {"data/0": bytes(16)})
    refuse(path, DATA / "decoder.pkl", match=words)


def test_sizes_that_change_after_they_were_checked():
    data = tensor_pickle(size=b"]q\x05K\x04a", stride=b"]q\x06K\x01a")
    # The same lists again as the value of "b", with another item each.
    data = data[:-1] + text("b") + b"h\x05J\x00\x00\x00\x40ah\x06K\x00a\x86s."
    root, _ = pickles.read(io.BytesIO(data))
    assert root["b"] == ([4, 2**30], [1, 0])
    assert root["blocks.input.b"].shape == (4,)


def test_one_storage_for_many_tensors(tmp_path):
    """Reading it again and again would take far longer than the file is long."""
    one = tensor_pickle()
    data = one[:-1] + text("again") + one[one.index(b"ctorch") :]
    path = archive(tmp_path / "encoder.pkl", data, {"data/0": bytes(16)})
    refuse(path, DATA / "decoder.pkl", match="'blocks.input.b' and 'again' share one storage")
    two = data[::-1].replace(b"FloatStorage"[::-1], b"HalfStorage"[::-1], 1)[::-1]
    path = archive(tmp_path / "encoder.pkl", two, {"data/0": bytes(16)})
    refuse(path, DATA / "decoder.pkl", match="describes its storage 0 in two ways")


def test_gains_of_another_number_of_blocks(tmp_path):
    """The tensors would fit, the results would not be that module's."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("dall_e")
    encoder, _ = make.modules(make.CONFIG)
    encoder.blocks.group_1.block_1.post_gain = 0.5
    torch.save(encoder, tmp_path / "encoder.pkl")
    refuse(tmp_path / "encoder.pkl", DATA / "decoder.pkl", match=r"by 0.5, where 2 .* by 0.25")


def test_modules_of_other_classes(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "linear.pkl")
    refuse(tmp_path / "linear.pkl", DATA / "decoder.pkl", match="'torch.nn.modules.linear.Linear'")


# --- Damaged containers ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_truncated_files(name, tmp_path):
    content = (DATA / name).read_bytes()
    path = tmp_path / name
    other = DATA / ("decoder.pkl" if "encoder" in name else "encoder.pkl")
    for length in [0, 1, 10, 40, *np.linspace(50, len(content) - 1, 20).astype(int)]:
        path.write_bytes(content[:length])
        refuse(*((path, other) if "encoder" in name else (other, path)))


# pickletools warns of strange backslashes in an opcode that is then refused.
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("name", NAMES)
def test_random_damage(name, tmp_path):
    """Whatever byte is wrong: a refusal, or finite weights of the same sizes."""
    rng = np.random.default_rng(0)
    content = np.frombuffer((DATA / name).read_bytes(), np.uint8)
    path = tmp_path / name
    other = DATA / ("decoder.pkl" if "encoder" in name else "encoder.pkl")
    for _ in range(60):
        damaged = content.copy()
        places = rng.integers(0, len(content), rng.integers(1, 4))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try_load(*((path, other) if "encoder" in name else (other, path)))


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("name", ["encoder.pkl", "encoder.pt"])
def test_random_damage_inside_the_pickle(name, tmp_path):
    """As above with right checksums, so that the damage reaches the machine that reads pickles."""
    rng = np.random.default_rng(1)
    with zipfile.ZipFile(DATA / name) as file:
        entries = {key.split("/", 1)[1]: file.read(key) for key in file.namelist()}
    content = entries.pop("data.pkl")
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        path = archive(tmp_path / name, bytes(damaged), entries)
        try_load(path, DATA / "decoder.pkl")


def try_load(*paths):
    message = ""
    try:
        config, params = openai.load(*paths)
    except WeightsError as error:
        message = str(error)
    if message:
        assert len(message.splitlines()) == 1
        assert any(str(path) in message for path in paths)
    else:
        assert config == make.CONFIG
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params))


def test_zip_bombs_and_strange_archives(tmp_path):
    decoder = DATA / "decoder.pkl"
    good = tensor_pickle(numel=b"J\x00\x00\x00\x40", size=b"(J\x00\x00\x00\x40t")
    path = tmp_path / "encoder.pkl"
    archive(path, good, {"data/0": bytes(2**20)}, zipfile.ZIP_DEFLATED)
    refuse(path, decoder, match="compressed, as torch never writes them")
    archive(path, good, {"data/0": bytes(16)})
    refuse(path, decoder, match="has 16 bytes, not 4,294,967,296")
    declared = bytearray(path.read_bytes())  # the directory claims that the entry is as large
    place = declared.index(b"PK\x01\x02", declared.index(b"PK\x01\x02") + 1)
    while not declared[place + 46 :].startswith(b"archive/data/0"):
        place = declared.index(b"PK\x01\x02", place + 1)
    declared[place + 20 : place + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(declared)
    refuse(path, decoder, match="more data than the file has")
    archive(path, good, {"constants.pkl": b""})
    refuse(path, decoder, match="TorchScript")
    archive(path, good, {"byteorder": b"big"})
    refuse(path, decoder, match="big-endian")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")
    refuse(path, decoder, match="not one that torch.save wrote")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", good)
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("a/data.pkl", good)
    refuse(path, decoder, match="one name")
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, 2**23, 4, 0)
    path.write_bytes(b"PK\x03\x04" + bytes(2**23) + end)
    refuse(path, decoder, match="directory of entries is too large")
    encrypted = bytearray((DATA / "encoder.pkl").read_bytes())
    place = encrypted.index(b"PK\x01\x02")
    encrypted[place + 8] |= 1
    path.write_bytes(encrypted)
    refuse(path, decoder)


def test_legacy_containers_that_lie(tmp_path):
    content = (DATA / "encoder_legacy.pkl").read_bytes()
    path = tmp_path / "encoder.pkl"
    path.write_bytes(content + b"more")
    refuse(path, DATA / "decoder.pkl", match="or something was appended")
    path.write_bytes(content.replace(b"little_endian", b"little_xndian"))
    refuse(path, DATA / "decoder.pkl", match="big-endian")
    system = pickle.dumps({"little_endian": True}, 2)
    start = torch_files.LEGACY_START + system + tensor_pickle()
    for keys, words in (
        (["0", "0"], "list of storages is not"),
        (["1"], "list of storages is not"),
        ([], "list of storages is not"),
        ("0", "list of storages is damaged"),
        ([1], "list of storages is damaged"),
        (["0"], "cut short, or of another size"),
    ):
        path.write_bytes(start + pickle.dumps(keys, 2) + struct.pack("<q", 2**40) + bytes(16))
        refuse(path, DATA / "decoder.pkl", match=words)


def test_hostile_safetensors(tmp_path):
    pytest.importorskip("safetensors")
    path = tmp_path / "encoder.safetensors"

    def write(header, data=b""):
        header = header if isinstance(header, bytes) else header.encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + data)
        return path

    tensor = '"dtype":"F32","shape":[%s],"data_offsets":[%d,%d]'
    for header, data in (
        ("{", b""),
        ('{"a":' * 10_000, b""),
        ("{}", b""),
        ("{}", b"left"),
        ('{"a":{' + tensor % ("1", 0, 4) + "}}", b""),
        ('{"a":{' + tensor % ("9", 0, 4) + "}}", bytes(4)),
        ('{"a":{' + tensor % ("4294967296,4294967296", 0, 4) + "}}", bytes(4)),
        ('{"a":{' + tensor % ("1", 0, 4) + '},"b":{' + tensor % ("1", 0, 4) + "}}", bytes(4)),
        ('{"blocks.input.w":{' + tensor % ("1," * 5000 + "1", 0, 4) + "}}", bytes(4)),
        ('{"a\\nb":{' + tensor % ("1", 0, 4) + "}}", bytes(4)),
    ):
        refuse(write(header, data), DATA / "decoder.pkl")
    path.write_bytes(struct.pack("<Q", 2**62) + b"{" + bytes(100))
    refuse(path, DATA / "decoder.pkl", match="header is damaged or too large")


def test_files_of_other_kinds(tmp_path):
    path = tmp_path / "encoder.pkl"
    for content in (
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        pickle.dumps({"a": 1}),
        b"PK",
    ):
        path.write_bytes(content)
        refuse(path, DATA / "decoder.pkl", match="empty|neither a file of torch.save")


# --- Plain data ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_pickle_reads_it(protocol):
    shared = [1, -2, 2**70, 1.5, True, None, "é\n", ()]
    value = {"a": shared, "b": (shared, {"c": [shared]}, (1,), (1, 2), (1, 2, 3)), "c": "x" * 300}
    stream = io.BytesIO(pickle.dumps(value, protocol) + b"more")
    found, storages = pickles.read(stream)
    assert found == value
    assert found["a"] is found["b"][0]
    assert not storages
    assert stream.read() == b"more"
