"""tokens.py as a user runs it: images to tokens and back, killed, resumed, refused."""

import dataclasses
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from logit_laplace_jax import likelihoods
from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.data.sources import Source
from logit_laplace_jax.models import DVAEConfig
from logit_laplace_jax.runs import tokenizers as tokens
from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.tokens import Tokenizer
from logit_laplace_jax.tokens import batches as token_batches
from logit_laplace_jax.tokens import files as token_files
from logit_laplace_jax.tokens import jobs as token_jobs
from logit_laplace_jax.tokens import tiles as token_fit
from logit_laplace_jax.training import config as configs
from logit_laplace_jax.training.state import create_state
from logit_laplace_jax.weights import exchange

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
CONFIG = DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=32, n_init=4)
SIZES = {"a": (9, 12), "b": (8, 8), "deep/c": (9, 12), "d": (8, 8), "e": (5, 4)}
BAD = 2


def write_run(folder, seed):
    """A run directory as training leaves it, without the training."""
    config = tiny.config(
        run_dir=str(folder), steps=1, batch_size=4, model=CONFIG,
        likelihood__name="laplace", likelihood__eps=0.05,
    ).resolved()  # fmt: skip
    state = create_state(config, jax.random.key(0))
    # Evaluation, and so tokens, take the averaged parameters.
    state = state.replace(ema_params=tiny.params(CONFIG, seed))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(configs.to_dict(config)))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(state, {})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two runs and a folder of images of many sizes, two of them unreadable."""
    root = tmp_path_factory.mktemp("place")
    write_run(root / "run", 0)
    write_run(root / "other", 1)
    (root / "images" / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        # Coarse noise, which the model does not average away.
        pixels = rng.integers(0, 256, (3, 3, 3)).astype(np.uint8)
        pixels = pixels.repeat(4, 0).repeat(4, 1)[:height, :width]
        Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    (root / "images" / "broken.png").write_bytes(b"no image")
    (root / "images" / "empty.jpg").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def tokenizer(place):
    return tokens.tokenizer_of_run(place / "run")


def snapshot(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b""
        for p in folder.rglob("*")
    }


@pytest.fixture
def here(run_script):
    """Run tokens.py: exit status, stdout, stderr and the files that changed."""
    return functools.partial(run_script, "tokens.py")


def assert_refused(result, *words):
    status, _, err, changed = result
    assert status == 2, err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("tokens.py: error: ")
    for word in words:
        assert word in err, err
    assert changed == set()


# --- The script --------------------------------------------------------------------------------


def test_no_script_takes_the_place_of_a_standard_module():
    # Its folder comes first on the path of every script in it.
    names = {path.stem for path in EXPERIMENTS.iterdir()}
    assert "tokens" in names
    assert not names & sys.stdlib_module_names


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], "tokens.py encode MODEL,tokens.py decode MODEL,encode --help"),
        (
            ["encode"],
            "output,decoder,checkpoint,fit,image-size,split,data-dir,batch-size,save-every,"
            "{crop,pad,tile}",
        ),
        (["decode"], "output,decoder,checkpoint,force,batch-size,save-every"),
    ],
)
def test_help_names_every_option(here, command, words):
    status, out, err, changed = here(*command, "--help")
    assert (status, err, changed) == (0, "", set())
    for word in words.split(","):
        assert word in out, word


ENCODE, OUTPUT = ["encode", "RUN", "IMAGES"], ["--output", "t.npz"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["no command", "encode", "decode"]),
        (["enc"], ["'enc'", "encode"]),
        (["encode"], ["Run directory"]),
        (ENCODE, ["--output"]),
        (["encode", "RUN", *OUTPUT], ["name images"]),
        (["encode", "nowhere", "IMAGES", *OUTPUT], ["nowhere does not exist"]),
        (["encode", "empty", "IMAGES", *OUTPUT], ["not a run directory"]),
        (["encode", "e.pkl", "IMAGES", *OUTPUT], ["decoder.pkl too"]),
        (["encode", "text.txt", "IMAGES", *OUTPUT], ["no file of weights"]),
        (["encode", "bad.pt", "IMAGES", *OUTPUT], ["bad.pt"]),
        (["encode", "e.pkl", "IMAGES", *OUTPUT, "--decoder", "d.pkl"], ["e.pkl"]),
        (["encode", "RUN", "no.png", *OUTPUT], ["no.png does not exist"]),
        (["encode", "RUN", "empty", *OUTPUT], ["no image"]),
        ([*ENCODE, "--output", "t.txt"], [".npz or .array_record"]),
        ([*ENCODE, "--output", "text.npz"], ["exists"]),
        ([*ENCODE, "--output", "no/t.npz"], ["not a folder"]),
        ([*ENCODE, "--output", "way.npz"], ["way.npz.part", "in the way"]),
        ([*ENCODE, *OUTPUT, "--fit", "tile"], ["side of a tile"]),
        ([*ENCODE, *OUTPUT, "--fit", "cut"], ["cut"]),
        ([*ENCODE, *OUTPUT, "--image-size", "7"], ["multiple of 2"]),
        ([*ENCODE, *OUTPUT, "--batch-size", "0"], ["batch_size"]),
        ([*ENCODE, *OUTPUT, "--save-every", "0"], ["save_every"]),
        (["decode", "RUN", "t.npz", "--output", "out"], ["t.npz does not exist"]),
        (["decode", "RUN", "text.npz", "--output", "out"], ["text.npz is damaged"]),
        (["decode", "RUN", "text.txt", "--output", "out"], [".npz or .array_record"]),
        (["decode", "RUN"], ["tokens"]),
    ],
    ids=" ".join,
)
def test_mistakes_are_one_line(here, place, tmp_path, args, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "way.npz.part").mkdir()
    for name in ("text.txt", "text.npz", "bad.pt", "e.pkl", "d.pkl", "way.npz.part/thesis"):
        (tmp_path / name).write_text("years of work")
    known = {"RUN": place / "run", "IMAGES": place / "images"}
    assert_refused(here(*(known.get(arg, arg) for arg in args)), *words)


# --- Encoding and decoding ---------------------------------------------------------------------

FITS = {"crop": [], "square": ["--image-size=8"], "pad": ["--fit=pad"]}
TILES = FITS["tile"] = ["--fit=tile", "--image-size=8"]


@pytest.mark.parametrize("fit", FITS)
def test_there_and_back(here, place, tokenizer, tmp_path, caplog, fit):
    # One picture at a time, as below: another number of rows may round otherwise.
    status, out, err, changed = here(
        "encode", place / "run", place / "images", "--output=t.npz", "--batch-size=1", *FITS[fit]
    )
    assert status == 0, err
    assert changed == {"t.npz"}
    how = "crop" if fit == "square" else fit
    size = 8 if "--image-size=8" in FITS[fit] else None
    # A square of 8 cannot be cut of 5 x 4 pixels.
    skipped = {"broken.png", "empty.jpg", *(["e.png"] if fit == "square" else [])}
    assert f"skipped   {len(skipped)} of {len(SIZES) + BAD} images" in out
    assert {text.split()[1].rstrip(":") for text in caplog.messages} == skipped
    content = token_files.read(tmp_path / "t.npz")
    assert f"{len(np.unique(content.flat))} of 32 codes in use" in out
    assert len(np.unique(content.flat)) > 2
    used = {f"{name}.png" for name in SIZES} - skipped
    assert content.names == tuple(sorted(used))
    assert set(content.metadata.pop("skipped")) == skipped
    assert content.metadata == {
        "format": "logit_laplace_jax tokens 1", "version": content.metadata["version"],
        "model": tokenizer.fingerprint, "eps": 0.05, "vocab_size": 32, "downsampling": 2,
        "channels": 3, "fit": how, "image_size": size, "data": "folder:images",
    }  # fmt: skip

    decode = ("decode", place / "run", "t.npz", "--output=out", "--batch-size=1")
    status, out, err, changed = here(*decode)
    assert status == 0, err
    for i, name in enumerate(content.names):
        with Image.open(place / "images" / name) as file:
            original = np.array(file)
        fitted = token_fit.fit(original, how, CONFIG.downsampling, size)
        if how in ("pad", "tile"):
            assert content.sizes[i].tolist() == list(original.shape[:2])
        rows, columns, height, width, _ = fitted.pieces.shape
        grids = np.zeros((rows, columns, height // 2, width // 2), int)
        whole = np.zeros_like(fitted.pieces)
        for at in np.ndindex(rows, columns):
            grids[at] = tokenizer.encode(fitted.pieces[at][None])[0]
            whole[at] = tokenizer.decode(grids[at][None], "uint8")[0]
        np.testing.assert_array_equal(content[i], token_fit.join(grids))
        with Image.open(tmp_path / "out" / name) as decoded:
            np.testing.assert_array_equal(decoded, token_fit.join(whole, fitted.size))
    assert json.loads((tmp_path / "out" / "tokens.json").read_text())["eps"] == 0.05
    expected = {"out", "out/tokens.json", *(f"out/{name}" for name in content.names)}
    assert changed == expected | ({"out/deep"} if "deep/c.png" in content.names else set())


def test_both_formats_hold_the_same_and_decode_alike(here, place, tmp_path):
    contents, pictures = [], []
    for ending in ("npz", "array_record"):
        path = f"t.{ending}"
        assert here("encode", place / "run", place / "images", f"--output={path}", *TILES)[0] == 0
        assert here("decode", place / "run", path, f"--output=from_{ending}")[0] == 0
        contents.append(token_files.read(tmp_path / path).flat)
        pictures.append(snapshot(tmp_path / f"from_{ending}"))
        pictures[-1].pop("tokens.json")  # one of them lacks what was skipped
    np.testing.assert_array_equal(*contents)
    assert pictures[0] == pictures[1]


def test_the_likelihood_of_the_run_decodes(tokenizer, place):
    # Laplace's location is that of 2v - 1; the logit-Laplace median would be another image.
    tokens_ = np.arange(4).reshape(1, 2, 2)
    median = Tokenizer(CONFIG, tokenizer.params, eps=0.05).decode(tokens_)
    assert np.abs(np.asarray(tokenizer.decode(tokens_)) - median).max() > 1e-3
    assert tokenizer.eps == 0.05


def test_which_checkpoint(place, tokenizer):
    assert tokens.tokenizer_of_run(place / "run", "0").fingerprint == tokenizer.fingerprint
    with pytest.raises(ValueError, match="checkpoint must be"):
        tokens.tokenizer_of_run(place / "run", "newest")


def test_an_exported_run_is_the_same_tokenizer(place, tokenizer, tmp_path):
    metadata = {
        "eps": 0.05,
        "likelihood": "laplace",
        "likelihood_options": dataclasses.asdict(likelihoods.get("laplace")),
    }
    exchange.save(tmp_path / "run.safetensors", CONFIG, tokenizer.params, metadata)
    again = Tokenizer.from_file(tmp_path / "run.safetensors")
    assert again.fingerprint == tokenizer.fingerprint
    grid = np.arange(4).reshape(1, 2, 2)
    np.testing.assert_array_equal(again.decode(grid), tokenizer.decode(grid))


def test_files_of_weights_are_models_too(here, place, tmp_path):
    exchange.save(tmp_path / "model.safetensors", CONFIG, tiny.params(CONFIG), {"eps": 0.1})
    published = DVAEConfig(n_hid=64, n_blk_per_group=1, vocab_size=512, n_init=8)
    pair = tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"
    tiny.save_pair(*pair, tiny.params(published))
    picture = place / "images" / "b.png"
    for model, vocab_size in (
        (["model.safetensors"], 32),
        (["encoder.safetensors", "--decoder=decoder.safetensors"], 512),
    ):
        name = f"{vocab_size}.npz"
        status, _, err, _ = here("encode", *model[:1], picture, f"--output={name}", *model[1:])
        assert (status, err) == (0, "")
        content = token_files.read(tmp_path / name)
        assert content.metadata["vocab_size"] == vocab_size
        assert content.names == (picture.as_posix(),)
    status, _, err, _ = here("decode", "model.safetensors", "32.npz", "--output=out")
    assert (status, err) == (0, "")
    (target,) = (tmp_path / "out").rglob("*.png")
    assert target.name == "b.png"


def test_decoding_takes_the_same_model_and_overwrites_nothing(here, place, tmp_path):
    picture = place / "images" / "b.png"
    assert here("encode", place / "run", picture, "--output=t.npz")[0] == 0
    assert_refused(here("encode", place / "run", picture, "--output=t.npz"), "exists")
    result = here("decode", place / "other", "t.npz", "--output=out")
    model = token_files.read(tmp_path / "t.npz").metadata["model"]
    assert_refused(result, f"model {model}", "--force")
    (tmp_path / "out").mkdir()  # empty
    status, _, err, _ = here("decode", place / "other", "t.npz", "--output=out", "--force")
    assert (status, err) == (0, "")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "b.png").write_text("mine")
    assert_refused(here("decode", place / "run", "t.npz", "--output=full"), "not an empty folder")
    assert_refused(here("decode", place / "run", "t.npz", "--output=t.npz"), "not an empty folder")


def test_no_usable_image_is_an_error_that_leaves_nothing(here, place):
    for names in (["broken.png"], ["broken.png", "empty.jpg"]):
        paths = [place / "images" / name for name in names]
        status, _, err, changed = here("encode", place / "run", *paths, "--output=t.npz")
        assert status == 2
        assert f"none of the {len(names)} images" in err.splitlines()[-1]
        assert changed == set()


# --- Jobs --------------------------------------------------------------------------------------


@pytest.fixture
def pictures():
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (4 * (1 + i % 3), 8, 3)).astype(np.uint8) for i in range(23)]


def source_of(pictures, stop_at=None):
    def read(i):
        if i == stop_at:
            raise KeyboardInterrupt
        return pictures[i]

    return Source("demo", "train", read=read, name=lambda i: f"p{i}", count=len(pictures))


def silent(line):
    pass


@pytest.mark.parametrize("ending", token_files.ENDINGS)
def test_stopped_anywhere_and_resumed_gives_the_same_bytes(tokenizer, pictures, tmp_path, ending):
    options = {"batch_size": 2, "save_every": 5}
    whole, broken = tmp_path / f"whole{ending}", tmp_path / f"broken{ending}"
    token_jobs.encode(tokenizer, source_of(pictures), whole, say=silent, **options)
    for stop_at in (3, 12, 22):
        with pytest.raises(KeyboardInterrupt):
            token_jobs.encode(
                tokenizer, source_of(pictures, stop_at), broken, say=silent, **options
            )
        done = sorted(p.name for p in (tmp_path / f"broken{ending}.part").glob("0*.npz"))
        assert len(done) == stop_at // 5
    lines = []
    token_jobs.encode(tokenizer, source_of(pictures), broken, say=lines.append, **options)
    assert "resuming  at image 20 of 23" in lines
    assert broken.read_bytes() == whole.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {whole.name, broken.name}


def test_an_unfinished_job_of_another_request_is_refused(tokenizer, pictures, tmp_path):
    output = tmp_path / "t.npz"
    with pytest.raises(KeyboardInterrupt):
        token_jobs.encode(tokenizer, source_of(pictures, 9), output, save_every=4, say=silent)
    before = snapshot(tmp_path)
    other = Tokenizer(CONFIG, tokenizer.params, eps=0.1)
    requests = [
        (other, pictures, {"save_every": 4}, ["model: ", "eps: 0.05 there, 0.1 here"]),
        (tokenizer, pictures, {"save_every": 5}, ["save_every: 4 there, 5 here"]),
        (tokenizer, pictures, {"save_every": 4, "how": "pad"}, ["fit: crop there, pad here"]),
        (tokenizer, pictures[1:], {"save_every": 4}, ["images: 23 there, 22 here", "names: "]),
    ]
    for model, images, options, words in requests:
        with pytest.raises(DataError) as info:
            token_jobs.encode(model, source_of(images), output, say=silent, **options)
        for word in words:
            assert word in str(info.value)
        assert "\n" not in str(info.value)
    assert snapshot(tmp_path) == before


def test_decoding_goes_on_where_it_was(tokenizer, pictures, tmp_path, monkeypatch):
    token_jobs.encode(tokenizer, source_of(pictures), tmp_path / "t.npz", say=silent)
    content = token_files.read(tmp_path / "t.npz")
    options = {"batch_size": 2, "save_every": 5, "say": silent}
    token_jobs.decode(tokenizer, content, tmp_path / "whole", **options)
    save, saved = token_jobs.figures.save_png, []

    def stopping(path, picture):
        if len(saved) == 12:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, picture)

    with monkeypatch.context() as patch:
        patch.setattr(token_jobs.figures, "save_png", stopping)
        with pytest.raises(KeyboardInterrupt):
            token_jobs.decode(tokenizer, content, tmp_path / "broken", **options)
    assert not (tmp_path / "broken").exists()
    with pytest.raises(DataError, match="batch_size: 2 there, 3 here"):
        token_jobs.decode(tokenizer, content, tmp_path / "broken", **{**options, "batch_size": 3})
    saved.clear()
    monkeypatch.setattr(
        token_jobs.figures,
        "save_png",
        lambda path, picture: (saved.append(path), save(path, picture)),
    )
    paths = token_jobs.decode(tokenizer, content, tmp_path / "broken", **options)
    assert len(saved) == 13  # two units of five stood already
    assert [p.name for p in paths] == [f"p{i}.png" for i in range(23)]
    assert snapshot(tmp_path / "broken") == snapshot(tmp_path / "whole")


def test_a_batch_holds_pictures_of_one_size_and_nothing_is_lost():
    rng = np.random.default_rng(2)
    items = [((i, 0, 0), rng.random((rng.integers(1, 4), 3))) for i in range(50)]
    for batch_size, largest in ((4, 4), (None, 2**20)):
        seen = {}
        for keys, rows in token_batches.in_batches(iter(items), batch_size):
            assert len(keys) <= len(rows) <= largest
            assert len(rows) & (len(rows) - 1) == 0
            assert not rows[len(keys) :].any()
            seen |= dict(zip(keys, rows, strict=False))
        assert sorted(seen) == [key for key, _ in items]
        for key, array in items:
            np.testing.assert_array_equal(seen[key], array)


def test_waiting_pictures_are_bounded(monkeypatch):
    monkeypatch.setattr(token_batches, "_WAITING_BYTES", 100)
    held = most = 0

    def items():
        nonlocal held, most
        for i in range(40):
            held += 1
            most = max(most, held)
            yield (i, 0, 0), np.zeros((1, 1 + i % 13), np.uint8)

    for keys, _ in token_batches.in_batches(items(), 64):
        held -= len(keys)
    # 100 bytes are some 14 pictures of 1 to 13 bytes, and never fewer than 7.
    assert most < 25


def content_of(names, vocab_size=32, **changes):
    metadata = {
        "format": "logit_laplace_jax tokens 1", "model": "?", "eps": 0.05, "fit": "crop",
        "vocab_size": vocab_size, "downsampling": 2, "channels": 3, "image_size": None, **changes,
    }  # fmt: skip
    grids = [np.full((2, 2), i % vocab_size) for i in range(len(names))]
    return token_files.from_grids(grids, [(4, 3)] * len(names), names, metadata)


def test_names_stay_below_the_folder_and_apart(tokenizer, tmp_path):
    names = ["a.jpg", "a.png", "A.JPG", "../../evil.png", "/etc/passwd", "tfds/train[3]", "..", "."]
    names += ["C:\\x\\y.png", "line\nbreak.png", "deep/../a.png", ".hidden.png", "v1.5", "n" * 300]
    content = content_of(names)
    paths = token_jobs.decode(tokenizer, content, tmp_path / "o" / "u", force=True, say=silent)
    assert len({p.as_posix().lower() for p in paths}) == len(names)
    assert [p.relative_to(tmp_path / "o" / "u").as_posix() for p in paths[:10]] == [
        "a.png", "a_1.png", "A_2.png", "evil.png", "passwd.png", "tfds/train_3_.png",
        "image.png", "image_1.png", "y.png", "line_break.png",
    ]  # fmt: skip
    found = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {*paths, tmp_path / "o" / "u" / "tokens.json"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "of another time"}, "of another time"),
        ({"downsampling": 8}, "downsampling 8"),
        ({"channels": 1}, "channels 1"),
        ({"fit": "tile", "image_size": 6}, "3 x 3 tokens"),
        ({"vocab_size": 70_000}, r"\[0, 32\), got 0 to 32"),
    ],
)
def test_tokens_that_the_model_does_not_have_are_refused(tokenizer, tmp_path, changes, words):
    content = content_of([f"p{i}" for i in range(33)], **changes)
    with pytest.raises(DataError, match=words):
        token_jobs.decode(tokenizer, content, tmp_path / "out", force=True, say=silent)
    assert not list(tmp_path.iterdir())


def test_grey_images(tmp_path):
    config = DVAEConfig(
        group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4, channels=1
    )
    tokenizer = Tokenizer(config, tiny.params(config))
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    source = Source("g", "train", read=lambda i: grey, name=str, count=2, channels=1)
    token_jobs.encode(tokenizer, source, tmp_path / "t.npz", say=silent)
    content = token_files.read(tmp_path / "t.npz")
    for path in token_jobs.decode(tokenizer, content, tmp_path / "out", say=silent):
        with Image.open(path) as picture:
            assert (picture.mode, picture.size) == ("L", (8, 8))


# --- Killed for real ---------------------------------------------------------------------------


def test_killed_and_resumed_is_unbroken(here, start, place, tmp_path):
    rng = np.random.default_rng(5)
    (tmp_path / "many").mkdir()
    for i in range(250):
        pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "many" / f"{i:03d}.png")
    command = ["encode", place / "run", tmp_path / "many"]
    # Both go through batches of one picture.
    broken = [*command, f"--output={tmp_path / 'broken.npz'}", "--save-every=1"]
    whole = [*command, f"--output={tmp_path / 'whole.npz'}", "--batch-size=1"]
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    process = start(EXPERIMENTS / "tokens.py", *broken, cwd=ROOT, env=environment)
    part = tmp_path / "broken.npz.part"
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(part.glob("0*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, (out, err)
    assert not (tmp_path / "broken.npz").exists()
    assert 0 < len(list(part.glob("0*.npz"))) < 250
    for again, resumed in ((broken, True), (whole, False)):
        status, out, err, _ = here(*again)
        assert (status, err) == (0, "")
        assert ("resuming" in out) == resumed
    assert (tmp_path / "broken.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not part.exists()
