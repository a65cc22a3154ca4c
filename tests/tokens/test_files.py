"""Files of tokens: both formats hold the same, equal content gives equal bytes, damage is named.

And what goes into them: fits of images of any size, and sources of all images.
"""

import json

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from logit_laplace_jax.data.all_images import open_images
from logit_laplace_jax.data.errors import DataError, TooSmallImage
from logit_laplace_jax.tokens import files, tiles

METADATA = {"vocab_size": 8192, "eps": 0.1, "model": "0" * 16, "skipped": {"bad.png": "empty"}}
NAMES = ["a.png", "folder/ü 日本.jpg", "tfds/train[7]"]
ENDINGS = pytest.mark.parametrize("ending", files.ENDINGS)


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 8192, shape) for shape in ((4, 6), (1, 1), (32, 32))]
    sizes = [(31, 48), (8, 8), (256, 255)]
    return files.from_grids(grids, sizes, NAMES, METADATA)


# --- Both formats ------------------------------------------------------------------------------


@ENDINGS
def test_what_is_written_is_read(tokens, tmp_path, ending):
    path = tmp_path / f"tokens{ending}"
    halves = [
        files.from_grids([tokens[0]], tokens.sizes[:1], NAMES[:1], METADATA),
        files.from_grids([tokens[1], tokens[2]], tokens.sizes[1:], NAMES[1:], METADATA),
    ]
    files.write(path, halves, METADATA)
    again = files.read(path)
    assert again.names == tuple(NAMES)
    assert again.flat.dtype == np.int16
    assert len(again) == 3
    for i in range(3):
        np.testing.assert_array_equal(again[i], tokens[i])
        assert again[i].shape == tokens[i].shape
    np.testing.assert_array_equal(again.sizes, tokens.sizes)
    lost = {} if ending == ".npz" else {"skipped"}
    assert again.metadata == {k: v for k, v in METADATA.items() if k not in lost}
    with pytest.raises(IndexError):
        again[3]
    files.write(tmp_path / f"again{ending}", [again], METADATA)
    assert (tmp_path / f"again{ending}").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**15, np.int16), (2**15 + 1, np.int32)])
@ENDINGS
def test_the_largest_codes_fit(tmp_path, ending, vocab_size, dtype):
    metadata = {"vocab_size": vocab_size}
    grid = np.array([[0, vocab_size - 1]])
    part = files.from_grids([grid], [(8, 16)], ["a"], metadata)
    path = tmp_path / f"tokens{ending}"
    files.write(path, [part], metadata)
    assert files.read(path).flat.dtype == dtype
    np.testing.assert_array_equal(files.read(path)[0], grid)


def test_the_npz_is_as_documented(tokens, tmp_path):
    """Read without this package."""
    files.write(tmp_path / "t.npz", [tokens], METADATA)
    with np.load(tmp_path / "t.npz", allow_pickle=False) as held:
        assert set(held) == {"tokens", "offsets", "grids", "sizes", "names", "metadata"}
        assert [held[k].dtype for k in ("tokens", "offsets", "grids", "sizes")] == [
            np.int16, np.int64, np.int32, np.int32,
        ]  # fmt: skip
        start, stop = held["offsets"][2:4]
        np.testing.assert_array_equal(
            held["tokens"][start:stop].reshape(held["grids"][2]), tokens[2]
        )
        assert [name.decode() for name in held["names"]] == NAMES
        assert json.loads(str(held["metadata"])) == METADATA


def test_the_records_are_as_documented(tokens, tmp_path):
    files.write(tmp_path / "t.array_record", [tokens], METADATA)
    reader = array_record_module.ArrayRecordReader(str(tmp_path / "t.array_record"))
    assert reader.num_records() == 3
    line, data = reader.read([1])[0].split(b"\n", 1)
    assert json.loads(line) == {
        "name": NAMES[1], "grid": [1, 1], "size": [8, 8], "dtype": "<i2",
        **{k: v for k, v in METADATA.items() if k != "skipped"},
    }  # fmt: skip
    assert np.frombuffer(data, "<i2").tolist() == tokens[1].ravel().tolist()


# --- Damage ------------------------------------------------------------------------------------


def refused(path, *words):
    with pytest.raises(DataError) as info:
        files.read(path)
    assert "\n" not in str(info.value)
    for word in (path.name, *words):
        assert word in str(info.value)


@ENDINGS
def test_damaged_files_are_refused_in_one_line(tokens, tmp_path, ending):
    path = tmp_path / f"tokens{ending}"
    refused(path, "does not exist")
    path.write_bytes(b"")
    refused(path)
    path.write_bytes(b"neither the one nor the other" * 5000)
    refused(path)
    path.unlink()
    files.write(path, [tokens], METADATA)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path)
    path.unlink()
    path.mkdir()
    refused(path, "is a folder")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokens", None, "'tokens'"),
        ("tokens", np.zeros(5, np.int16), "5 tokens"),
        ("tokens", np.zeros(1049, np.float32), "float32"),
        ("offsets", np.zeros(4, np.int64), "offsets"),
        ("grids", np.full((3, 2), -1, np.int32), "grids"),
        ("sizes", np.zeros((3, 2), np.int32), "sizes"),
        ("sizes", np.ones((2, 2), np.int32), "sizes"),
        ("metadata", np.array("{"), "damaged"),
        ("metadata", np.array("[]"), "metadata"),
        ("names", np.array([{}], object), "damaged"),
    ],
)
def test_an_npz_that_contradicts_itself_is_refused(tokens, tmp_path, key, value, words):
    path = tmp_path / "tokens.npz"
    files.write(path, [tokens], METADATA)
    with np.load(path) as held:
        arrays = dict(held)
    if value is None:
        del arrays[key]
    else:
        arrays[key] = value
    np.savez(path, **arrays)
    refused(path, words)


@pytest.mark.parametrize("record", [b"", b"{}\n", b"{}", b"no json\n", b'{"dtype": "<i2"}\n\x01\0'])
def test_records_of_something_else_are_refused(tmp_path, record):
    path = tmp_path / "t.array_record"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    writer.write(record)
    writer.close()
    refused(path)


def test_other_endings_are_refused(tokens, tmp_path):
    with pytest.raises(DataError, match=r"\.npz or \.array_record"):
        files.write(tmp_path / "t.txt", [tokens], METADATA)


# --- Fits --------------------------------------------------------------------------------------


def picture(height, width):
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, y + x], axis=-1).astype(np.uint8)


def test_crop_takes_the_centre():
    image = picture(11, 14)
    fitted = tiles.fit(image, "crop", 4)
    np.testing.assert_array_equal(fitted.pieces[0, 0], image[1:9, 1:13])
    assert fitted.size == (8, 12)
    square = tiles.fit(image, "crop", 4, 8)
    assert square.pieces.shape == (1, 1, 8, 8, 3)
    # The centre of the short side's square, 11 wide from column 1, has the mean of its columns.
    assert abs(float(square.pieces[..., 1].mean()) - (1 + 5)) < 0.5  # rounded to whole levels


@pytest.mark.parametrize("size", [(3, 9), (9, 3)])
def test_what_is_too_small_to_crop_says_so(size):
    with pytest.raises(TooSmallImage, match="×"):
        tiles.fit(picture(*size), "crop", 4)
    with pytest.raises(TooSmallImage, match="×"):
        tiles.fit(picture(*size), "crop", 4, 4)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 14), (17, 3), (16, 24)])
@pytest.mark.parametrize(("how", "image_size"), [("pad", None), ("tile", 8)])
def test_padding_repeats_the_edge_and_joins_back(size, how, image_size):
    image = picture(*size)
    fitted = tiles.fit(image, how, 4, image_size)
    multiple = image_size or 4
    rows, columns, height, width = fitted.pieces.shape[:4]
    assert height % multiple == width % multiple == 0
    assert 0 <= rows * height - size[0] < multiple
    assert 0 <= columns * width - size[1] < multiple
    if how == "pad":
        assert (rows, columns) == (1, 1)
    else:
        assert (height, width) == (8, 8)
    whole = tiles.join(fitted.pieces)
    np.testing.assert_array_equal(tiles.join(fitted.pieces, fitted.size), image)
    bottom, right = whole[size[0] :, : size[1]], whole[:, size[1] :]
    np.testing.assert_array_equal(bottom, np.broadcast_to(image[-1:], bottom.shape))
    np.testing.assert_array_equal(right, np.broadcast_to(whole[:, size[1] - 1, None], right.shape))


@pytest.mark.parametrize(
    ("how", "image_size", "words"),
    [
        ("tile", None, "tiles need an image size"),
        ("pad", 8, "leave the image size out"),
        ("crop", 6, "no positive multiple of 4"),
        ("tile", 0, "no positive multiple of 4"),
        ("stretch", None, "'stretch'"),
    ],
)
def test_options_that_do_not_go_together(how, image_size, words):
    with pytest.raises(DataError, match=words):
        tiles.fit(picture(8, 8), how, 4, image_size)


def test_tiles_must_divide_what_they_split():
    with pytest.raises(DataError, match="do not divide"):
        tiles.split(np.zeros((4, 6)), (4, 4))


# --- Sources -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("b/2.png", "a.png", "b/1.png", "c.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(5, 7)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def names(source):
    return [source.name(i) for i in range(len(source))]


def test_a_folder_gives_all_its_images_in_order(folder):
    for name in (str(folder), f"folder:{folder}"):
        source = open_images([name])
        assert names(source) == ["a.png", "b/1.png", "b/2.png", "c.png"]
        np.testing.assert_array_equal(source[2], picture(5, 7))
    train, held_out = (names(open_images([str(folder)], which=w)) for w in ("train", "validation"))
    assert sorted(train + held_out) == names(source)
    assert train
    assert held_out
    for path in sorted(folder.rglob("*.png"))[1:]:
        path.unlink()
    assert names(open_images([str(folder)])) == ["a.png"]


def test_files_are_taken_as_named(folder):
    paths = [str(folder / "c.png"), str(folder / "a.png")]
    assert names(open_images(paths)) == paths
    assert open_images(paths, channels=1)[0].shape == (5, 7, 1)


def test_both_splits_of_a_data_source(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    both = open_images(["photos"])
    train, held_out = (open_images(["photos"], which=w) for w in ("train", "validation"))
    assert names(both) == names(train) + names(held_out)
    np.testing.assert_array_equal(both[len(train)], held_out[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no images named"),
        (["no.png"], "no.png does not exist"),
        (["folder:missing"], "does not exist"),
        (["here", "a.png"], "here is a folder"),
        (["photos", "a.png"], "photos is a folder or data source"),
        (["empty"], "no image"),
    ],
)
def test_what_cannot_be_opened(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name in ("here", "empty"):
        (tmp_path / name).mkdir()
    Image.fromarray(picture(4, 4)).save("a.png")
    with pytest.raises(DataError, match=words) as info:
        open_images(arguments)
    assert "\n" not in str(info.value)


def test_splits_that_are_not_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture(4, 4)).save("a.png")
    with pytest.raises(DataError, match="no split train"):
        open_images(["a.png"], which="train")
    with pytest.raises(DataError, match="unknown split"):
        open_images(["a.png"], which="test")
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"\./photos"):
        open_images(["photos"])
