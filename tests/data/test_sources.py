"""Sources: folders, TFDS data sets and the embedded photographs, through one small interface."""

import hashlib
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from logit_laplace_jax.data import errors, photos, sources, tfds_images


def write(path, colour=(1, 2, 3), size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def names(source):
    return [source.name(i) for i in range(len(source))]


def open_both(path):
    return [sources.open_source(f"folder:{path}", split) for split in ("train", "validation")]


# --- folders ---------------------------------------------------------------------------------


def test_split_folders_are_used(tmp_path):
    write(tmp_path / "train" / "b" / "x.PNG")
    write(tmp_path / "train" / "a.jpeg")
    write(tmp_path / "valid" / "c.gif")
    write(tmp_path / "elsewhere.png")
    train, validation = open_both(tmp_path)
    assert names(train) == ["train/a.jpeg", "train/b/x.PNG"]
    assert names(validation) == ["valid/c.gif"]
    assert train[1].shape == (30, 40, 3)


def test_hold_out_is_a_partition_and_stable(tmp_path):
    for i in range(60):
        write(tmp_path / f"{i % 7}" / f"{i}.png", size=(1, 1))
    train, validation = open_both(tmp_path)
    assert set(names(train)).isdisjoint(names(validation))
    assert len(train) + len(validation) == 60
    # 60 independent hashes at 5 %: P(more than 12) < 1e-4, and at least one by rule.
    assert 1 <= len(validation) <= 12
    assert names(train) == sorted(names(train))
    for i in range(60, 120):
        write(tmp_path / f"{i % 7}" / f"{i}.png", size=(1, 1))
    # With several held out by their hashes, adding images moves none to the other side.
    if len(validation) > 1:
        assert set(names(validation)) <= set(names(open_both(tmp_path)[1]))


def test_two_images_give_one_to_each_split_and_one_gives_none(tmp_path):
    write(tmp_path / "a.png")
    train = sources.open_source(f"folder:{tmp_path}", "train")
    assert names(train) == ["a.png"]
    with pytest.raises(errors.DataError, match="single image"):
        sources.open_source(f"folder:{tmp_path}", "validation")
    write(tmp_path / "b.png")
    assert [len(source) for source in open_both(tmp_path)] == [1, 1]


def test_a_file_name_that_is_no_utf8_can_be_printed(tmp_path):
    raw = os.path.join(os.fsencode(tmp_path), b"bad\xff.png")
    try:
        with open(raw, "wb") as file:
            Image.new("RGB", (2, 2)).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = sources.open_source(f"folder:{tmp_path}", "train")
    source.name(0).encode()
    assert source[0].shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("folder:", "needs a path"),
        ("folder:{}/absent", "does not exist"),
        ("folder:{}/file.txt", "is a file"),
        ("folder:{}/empty", "no image in"),
        ("folders:{}", "give photos, folder:PATH or tfds:NAME"),
        ("folder", "unknown data source"),
        ("", "unknown data source"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path, spec, reason):
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.DataError, match=reason) as caught:
        sources.open_source(spec.format(tmp_path), "train")
    assert "\n" not in str(caught.value)


def test_a_wrong_split_is_refused():
    with pytest.raises(errors.DataError, match="unknown split"):
        sources.open_source("photos", "test")


# --- the source itself -----------------------------------------------------------------------


def counting_source(count=4, size=100, **options):
    reads = []

    def read(i):
        reads.append(i)
        return np.full((size, size), i, np.uint8)

    return sources.Source("s", "train", read=read, name=str, count=count, **options), reads


def test_decoded_images_are_kept_up_to_the_bound():
    source, reads = counting_source(cache_mib=3 * 30_000 / 2**20)
    for i in (0, 1, 2, 0, 1, 2):
        assert (source[i] == i).all()
    assert reads == [0, 1, 2]
    _ = source[3], source[1], source[0], source[3]  # There is no room for 3.
    assert reads == [0, 1, 2, 3, 3]


def test_no_cache_and_an_image_larger_than_the_cache():
    source, reads = counting_source(cache_mib=0)
    _ = source[0], source[0]
    assert reads == [0, 0]


def test_what_is_kept_stays_within_its_bound_under_threads():
    source, reads = counting_source(count=50, cache_mib=10 * 30_000 / 2**20)

    def work(seed):
        for i in np.random.default_rng(seed).integers(0, 50, 500):
            assert (source[i] == i).all()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    reads.clear()
    _ = [source[i] for i in range(50)]
    assert len(reads) == 40  # ten are kept


def test_numbers_outside_are_refused_and_failures_are_unreadable():
    source, _ = counting_source()
    with pytest.raises(IndexError):
        source[4]
    with pytest.raises(IndexError):
        source.name(-1)

    def fail(i):
        raise RuntimeError("disk on fire")

    broken = sources.Source("s", "train", read=fail, name=str, count=1)
    with pytest.raises(errors.UnreadableImage, match="disk on fire"):
        broken[0]


# --- the photographs -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tfds"))
    photos.prepare(path)
    return path


def test_every_photograph_is_there_and_the_splits_share_no_scene(data_dir):
    for split, count in (("train", 9), ("validation", 2)):
        source = sources.open_source("photos", split, data_dir=data_dir)
        assert len(source) == count
        expected = {p.name for p in photos.PHOTOGRAPHS if p.split == split}
        assert set(names(source)) == expected
        assert all(source[i].ndim == 3 and source[i].shape[2] == 3 for i in range(count))
    by_name = {p.name: p.split for p in photos.PHOTOGRAPHS}
    assert by_name["motorcycle_left"] == by_name["motorcycle_right"]
    assert all(p.license and p.source for p in photos.PHOTOGRAPHS)


def test_examples_hold_the_very_bytes_and_their_license(data_dir):
    builder = photos.prepare(data_dir)
    skip = {"image": tfds.decode.SkipDecoding()}
    by_name = {p.name: p for p in photos.PHOTOGRAPHS}
    for example in builder.as_data_source("validation", decoders=skip):
        photograph = by_name[example["name"].decode()]
        assert hashlib.sha256(example["image"]).hexdigest() == photos.SHA256[photograph.file]
        assert example["license"].decode() == photograph.license
        assert example["source"].decode() == photograph.source


def test_grey_photographs_stay_grey_and_become_rgb(data_dir):
    colour = sources.open_source("photos", "train", data_dir=data_dir)
    grey = sources.open_source("photos", "train", data_dir=data_dir, channels=1)
    i = names(colour).index("camera")
    assert grey[i].shape == (512, 512, 1)
    np.testing.assert_array_equal(colour[i], np.repeat(grey[i], 3, -1))


def test_preparing_is_quiet_needs_no_tensorflow_and_imports_no_package_of_theirs(tmp_path):
    code = (
        "import sys; from logit_laplace_jax.data import open_source; "
        f"source = open_source('photos', 'train', data_dir={str(tmp_path)!r}); source[0]; "
        "assert not {'tensorflow', 'skimage', 'scipy', 'matplotlib'} & set(sys.modules)"
    )
    # Two at once: one wins the rename, both must succeed.
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert (child.returncode, out, err) == (0, "", "")
    left = [path.name for path in (tmp_path / "embedded_photos").iterdir()]
    assert left == ["1.0.0"]


def test_losing_the_race_is_no_error(tmp_path, monkeypatch):
    real = photos.EmbeddedPhotos.download_and_prepare

    def slower(self, **options):
        monkeypatch.setattr(photos.EmbeddedPhotos, "download_and_prepare", real)
        photos.prepare(str(tmp_path))
        raise OSError("Directory not empty")

    monkeypatch.setattr(photos.EmbeddedPhotos, "download_and_prepare", slower)
    assert photos.prepare(str(tmp_path)).info.splits["train"].num_examples == 9


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.DataError, match="photographs cannot be") as caught:
        photos.prepare(str(tmp_path / "file"))
    assert "\n" not in str(caught.value)


def test_a_missing_or_changed_photograph_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "image_folder", lambda package: tmp_path)
    photograph = photos.PHOTOGRAPHS[0]
    with pytest.raises(errors.DataError, match="cannot be read"):
        photos.read_photograph(photograph)
    (tmp_path / photograph.file).write_bytes(b"another picture")
    with pytest.raises(errors.DataError, match="is not the photograph"):
        photos.read_photograph(photograph)


@pytest.mark.parametrize("package", ["scikit-image", "matplotlib"])
def test_without_a_package_the_extra_is_named(monkeypatch, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(errors.DataError, match=rf"{package}.*pip install -e '\.\[experiments\]'"):
        photos.image_folder(package)


# --- TFDS data sets --------------------------------------------------------------------------


class TinyImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set as a user would write it: PNG bytes, two splits, another feature beside."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None
    SPLITS = ("train", "test")

    def _features(self):
        return {"image": tfds.features.Image(), "label": tfds.features.Scalar(np.int64)}

    def _encode(self, pixels):
        import io

        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(self._features())
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        for i in range(40 if split == "train" else 3):
            image = self._encode(np.full((12, 10, 3), i, np.uint8))
            yield i, {"image": image, "label": i}


class TinyTrainOnly(TinyImages, skip_registration=True):
    SPLITS = ("train",)

    def _features(self):
        label = tfds.features.ClassLabel(names=[f"class {i}" for i in range(40)])
        return {"image": tfds.features.Image(), "label": label}


class TinyTensors(TinyImages, skip_registration=True):
    def _features(self):
        image = tfds.features.Tensor(shape=(12, 10, 3), dtype=np.uint8)
        return {"image": image, "label": tfds.features.Scalar(np.int64)}

    def _encode(self, pixels):
        return pixels


class TinyNoImage(TinyImages, skip_registration=True):
    def _features(self):
        return {"picture": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}

    def _generate_examples(self, split):
        yield 0, {"picture": "none", "label": 0}


@pytest.mark.parametrize("builder_class", [TinyImages, TinyTensors])
def test_a_prepared_data_set_is_found_by_name(tmp_path, builder_class):
    builder_class(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    spec = f"tfds:{builder_class.name}"
    train = sources.open_source(spec, "train", data_dir=str(tmp_path))
    held_out = sources.open_source(f"{spec}:1.0.0", "validation", data_dir=str(tmp_path))
    assert (len(train), len(held_out)) == (40, 3)
    assert sorted(int(train[i][0, 0, 0]) for i in range(40)) == list(range(40))
    assert train[0].shape == (12, 10, 3)
    assert held_out.name(2) == f"{builder_class.name}/1.0.0/test[2]"


def test_without_another_split_the_end_of_train_is_held_out(tmp_path):
    TinyTrainOnly(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    split = [
        sources.open_source("tfds:tiny_train_only", s, data_dir=str(tmp_path))
        for s in ("train", "validation")
    ]
    values = [{int(source[i][0, 0, 0]) for i in range(len(source))} for source in split]
    assert [len(v) for v in values] == [38, 2]
    assert values[0] | values[1] == set(range(40))
    for source in split:
        assert source.classes() == tuple(f"class {i}" for i in range(40))
        for i in range(len(source)):
            assert source.label(i) == f"class {source[i][0, 0, 0]}"


def test_a_data_set_without_images_lists_its_features(tmp_path):
    TinyNoImage(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(errors.DataError, match=r"no feature image.*picture"):
        sources.open_source("tfds:tiny_no_image", "train", data_dir=str(tmp_path))


def test_a_data_set_in_a_format_that_needs_tensorflow_is_said(tmp_path):
    TinyImages(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    info = tmp_path / "tiny_images" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(errors.DataError, match="prepared as tfrecord"):
        sources.open_source("tfds:tiny_images", "train", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cifarr10", "did you mean cifar10"),
        ("no_such_thing_at_all", "no TFDS data set is called"),
        ("mnist:9.9.9", "cannot be loaded at version 9.9.9"),
        ("", "no data set's name"),
        ("../../etc", "no data set's name"),
        ("ag_news_subset", "no feature image"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(tmp_path, name, reason, capsys):
    with pytest.raises(errors.DataError, match=reason) as caught:
        sources.open_source(f"tfds:{name}", "train", data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr() == ("", "")


# --- TFDS data sets that cannot be prepared --------------------------------------------------


@pytest.fixture
def no_tensorflow(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorflow" else real(name)
    )


@pytest.mark.parametrize("name", ["cifar10", "oxford_flowers102", "fashion_mnist", "imagenet2012"])
@pytest.mark.usefixtures("no_tensorflow")
def test_a_preparation_that_needs_tensorflow_is_refused_before_the_download(tmp_path, name):
    with pytest.raises(
        errors.DataError,
        match=rf"preparing tfds:{name} needs TensorFlow.*run  pip install -e '\.\[tensorflow\]'  "
        "and then the same command again",
    ) as caught:
        sources.open_source(f"tfds:{name}", "train", data_dir=str(tmp_path))
    assert not list(tmp_path.iterdir())
    # Of these, only ImageNet's files cannot be downloaded by TFDS.
    by_hand = f"download by hand into {tmp_path}/downloads/manual: manual_dir should contain two"
    assert (by_hand in str(caught.value)) == (name == "imagenet2012")
    assert "ILSVRC2012_img_train.tar" in str(caught.value) or name != "imagenet2012"
    assert "\n" not in str(caught.value)


def failing_builder(tmp_path, failure, instructions=None, urls=()):
    """A data set whose preparation fails with what `failure` raises, given the manual folder."""

    class TinyFails(TinyImages, skip_registration=True):
        MANUAL_DOWNLOAD_INSTRUCTIONS = instructions
        url_infos = {  # noqa: RUF012
            url: tfds.download.checksums.UrlInfo(size=1, checksum="00", filename=file)
            for url, file in urls
        }

        def _split_generators(self, dl_manager):
            failure(dl_manager)

    return TinyFails(data_dir=tmp_path, file_format="array_record")


@pytest.fixture
def network(monkeypatch):
    """A network that answers."""
    monkeypatch.setattr("requests.head", lambda url, timeout: None)


def why(builder):
    with pytest.raises(errors.DataError) as caught:
        tfds_images._download_and_prepare(builder, "tiny")
    assert "\n" not in str(caught.value)
    return str(caught.value)


IMAGENET = "manual_dir should contain two files: A_train.tar and\n A_val.tar."


def test_a_missing_manual_download_is_an_instruction(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    builder = failing_builder(tmp_path, lambda manager: manager.manual_dir, IMAGENET)
    expected = (
        f"tfds:tiny needs files that you download by hand into {manual}: manual_dir should contain "
        "two files: A_train.tar and A_val.tar, then run the same command again"
    )
    assert why(builder) == expected
    # One of two files is there, and the builder names the other.
    manual.mkdir(parents=True)
    (manual / "A_train.tar").touch()

    def missing(manager):
        raise AssertionError(f"{manager.manual_dir / 'A_val.tar'} is missing")

    assert why(failing_builder(tmp_path, missing, IMAGENET)) == expected

    def full(manager):
        raise OSError(28, "No space left on device")

    # Another failure is not blamed on the files.
    told = why(failing_builder(tmp_path, full, IMAGENET))
    assert told == "tfds:tiny cannot be prepared: [Errno 28] No space left on device"


URL = "https://files.example.org/sets/tiny.zip"
DRIVE = "https://drive.google.com/uc?export=download&id=0B7EVK8r0v71p"


def no_route(_):
    import requests

    try:
        try:
            raise OSError(-2, "Name or service not known")
        except OSError as error:
            raise requests.exceptions.RetryError("Max retries: /sets/tiny.zip") from error
    except requests.exceptions.RequestException as error:
        raise requests.exceptions.ConnectionError("Max retries: /sets/tiny.zip") from error


def proxy(_):
    import requests

    raise requests.exceptions.ProxyError("Tunnel connection failed: 403 Forbidden /sets/tiny.zip")


def not_found(_):
    raise tfds.download.DownloadError(f"Failed to get url {URL}. HTTP code: 404.")


def drive_refuses(_):
    raise ValueError(f"Failed to obtain confirmation link for GDrive URL {DRIVE}.")


def a_page_instead(_):
    raise tfds.download.download_manager.NonMatchingChecksumError(
        f"Artifact {DRIVE}, downloaded to here, has wrong checksum:\n* Expected: a\n* Got: b"
    )


@pytest.mark.parametrize(
    ("failure", "reason", "file"),
    [
        (no_route, "Name or service not known", f"{URL} as tiny.zip"),
        (proxy, "Tunnel connection failed: 403", f"{URL} as tiny.zip"),
        (not_found, "HTTP code: 404", f"{URL} as tiny.zip"),
        (drive_refuses, "confirmation link for GDrive", f"{DRIVE} as faces.zip"),
        (a_page_instead, "wrong checksum", f"{DRIVE} as faces.zip"),
    ],
)
@pytest.mark.usefixtures("network")
def test_a_failed_download_says_what_was_refused_and_the_way_around(
    tmp_path, failure, reason, file
):
    urls = [(URL, "tiny.zip"), (DRIVE, "faces.zip"), ("https://example.org/other", None)]
    told = why(failing_builder(tmp_path, failure, urls=urls))
    assert told.startswith("tfds:tiny cannot be downloaded (")
    assert reason in told
    assert "run the same command again" in told
    assert f"download {file} yourself into {tmp_path}/downloads/manual" in told
    # Without a list of its files the way around is told all the same.
    assert "download its files yourself" in why(failing_builder(tmp_path, failure))


@pytest.mark.parametrize("silent", [False, True])
def test_a_network_that_is_away_is_said_before_tfds_tries_for_minutes(
    tmp_path, monkeypatch, silent
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(tfds_images, "_PATIENCE_SECONDS", 0.1)
    server = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{server.getsockname()[1]}/tiny.zip"
    if not silent:
        server.close()
    begun = []
    told = why(failing_builder(tmp_path, begun.append, urls=[(url, "tiny.zip")]))
    server.close()
    assert told.startswith("tfds:tiny cannot be downloaded (")
    assert ("timed out" if silent else "Connection refused") in told
    assert "127.0.0.1" in told
    assert f"download its files yourself into {tmp_path}/downloads/manual" in told
    assert not begun


@pytest.mark.parametrize("place", ["manual/tiny.zip", "{cached}", "tiny_fails/{cached}"])
def test_no_network_is_needed_for_files_that_are_here(tmp_path, monkeypatch, place):
    monkeypatch.setattr("requests.head", lambda *_, **__: pytest.fail("the network was asked"))
    cached = tfds.core.download.resource.get_dl_fname(URL, "00")
    file = tmp_path / "downloads" / place.format(cached=cached)
    file.parent.mkdir(parents=True)
    file.touch()
    begun = []
    why(failing_builder(tmp_path, begun.append, urls=[(URL, "tiny.zip")]))
    assert begun


def test_tfds_takes_a_file_that_was_put_into_the_manual_folder(tmp_path):
    """What the instruction above rests on."""
    pytest.importorskip("importlib_resources")
    builder = failing_builder(
        tmp_path, lambda manager: manager.download(URL), urls=[(URL, "t.zip")]
    )
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "t.zip").write_bytes(b"wrong content")
    assert str(manual / "t.zip") in why(builder)


@pytest.mark.parametrize("name", ["imagenet_resized/64x64", "celeb_a"])
@pytest.mark.usefixtures("no_tensorflow", "network")
def test_the_real_sets_that_need_no_tensorflow_go_on_to_the_download(tmp_path, name, monkeypatch):
    def download(self, **options):
        raise tfds.download.DownloadError("the network is reached")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", download)
    with pytest.raises(errors.DataError, match=rf"tfds:{name} cannot be downloaded \(the network"):
        sources.open_source(f"tfds:{name}", "train", data_dir=str(tmp_path))
