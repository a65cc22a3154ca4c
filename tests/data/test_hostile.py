"""Broken, odd and hostile images: each by itself, and whole streams over all of them."""

import collections
import os
import re
import subprocess
import sys
import threading

import hostile
import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax.data import errors, folder, images, pipeline, skipped, sources
from logit_laplace_jax.data.augment import eval_crop

# Pillow warns of many of these files, once each. That is as it should be.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The folder with the split folders train and val, and what to expect of train."""
    root = tmp_path_factory.mktemp("zoo")
    for split in ("train", "val"):
        (root / split).mkdir()
    expected = hostile.write_zoo(root / "train")
    for seed in range(8):
        hostile.photograph(seed).save(root / "val" / f"{seed}.png")
    return root, {f"train/{name}": reason for name, reason in expected.items()}


def open_train(zoo):
    return sources.open_source(f"folder:{zoo[0]}", "train")


def unusable(zoo):
    return {name for name, reason in zoo[1].items() if reason is not None}


# --- each by itself --------------------------------------------------------------------------


def test_every_file_is_found_and_is_what_it_should_be(zoo):
    source = open_train(zoo)
    found = {source.name(i): i for i in range(len(source))}
    assert set(found) == set(zoo[1])
    assert len(unusable(zoo)) > 90
    for name, reason in zoo[1].items():
        if reason is None:
            shape = (hostile.HEIGHT, hostile.WIDTH, 3)
            assert source[found[name]].shape == shape, name
            continue
        with pytest.raises(errors.UnreadableImage) as caught:
            source[found[name]]
        assert re.search(reason, str(caught.value)), (name, str(caught.value))
        assert "\n" not in str(caught.value)


def test_a_huge_declared_size_is_refused_without_memory():
    code = (
        "import resource, sys; from logit_laplace_jax.data import images, errors\n"
        f"sys.path.insert(0, {os.path.dirname(hostile.__file__)!r}); import hostile\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "for name, (content, _) in hostile._bombs().items():\n"
        "    try:\n        images.decode(content); print(name, 'was decoded')\n"
        "    except errors.UnreadableImage:\n        pass\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    # In KiB, on Linux. The smallest of the declared sizes would take 10 GB; making the files and
    # loading the decoders takes some MiB.
    assert int(done.stdout) < 100 * 1024


def test_as_many_scans_as_allowed_are_decoded():
    own = hostile.many_scans(0).count(b"\xff\xda")
    assert own > 1
    most = images.MAX_SCANS - own
    assert images.decode(hostile.many_scans(most)).shape == (hostile.HEIGHT, hostile.WIDTH, 3)
    with pytest.raises(errors.UnreadableImage, match="more than 500 scans"):
        images.decode(hostile.many_scans(most + 1))


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    (tmp_path / "a.png").write_bytes(bytes(1001))
    for data in (tmp_path / "a.png", bytes(1001)):
        with pytest.raises(errors.UnreadableImage, match="more than the"):
            images.decode(data)


def test_pipes_are_not_waited_for(tmp_path):
    """Should a file turn into a pipe after the folder was listed."""
    os.mkfifo(tmp_path / "a.png")
    caught = []

    def work():
        try:
            images.decode(tmp_path / "a.png")
        except errors.UnreadableImage as error:
            caught.append(str(error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert caught == ["no regular file"]


def grey_tiff(values, **fields):
    return hostile.tiff(values, width=4, height=1, rows=1, size=len(values), **fields)


def test_grey_of_more_than_eight_bits():
    values = np.array([0, 257, 32768, 65535], "<u2").tobytes()
    black_is_zero = images.decode(grey_tiff(values, bits=16, photometric=1), 1).ravel()
    np.testing.assert_array_equal(black_is_zero, [0, 1, 128, 255])
    white_is_zero = images.decode(grey_tiff(values, bits=16, photometric=0), 1).ravel()
    np.testing.assert_array_equal(white_is_zero, [255, 254, 127, 0])
    twelve = bytes([0xFF, 0xF8, 0x00, 0x00, 0x10, 0x00])  # 4095, 2048, 1, 0
    decoded = images.decode(grey_tiff(twelve, bits=12, photometric=1), 1).ravel()
    np.testing.assert_array_equal(decoded, np.round(np.array([4095, 2048, 1, 0]) * 255 / 4095))


def test_a_transparent_grey_of_sixteen_bits_becomes_white():
    rows = b"\0" + np.array([0, 257, 514], ">u2").tobytes()
    content = hostile.png(3, 1, 16, 0, rows, before=[(b"tRNS", b"\x01\x01")])
    np.testing.assert_array_equal(images.decode(content, 1).ravel(), [0, 255, 2])


# --- whole streams ---------------------------------------------------------------------------


def named_in_log(caplog):
    records = [r for r in caplog.records if r.name == skipped.__name__ and "only" not in r.msg]
    return collections.Counter(record.args[0] for record in records)


def train(zoo, count, **options):
    options = {"image_size": 16, "batch_size": 16, "seed": 5, **options}
    batches = pipeline.train_batches(open_train(zoo), **options)
    pixels = np.stack([next(batches)["pixels"] for _ in range(count)])
    batches.close()
    return pixels, batches.skipped


def test_training_never_stops_and_names_every_bad_image_once(zoo, monkeypatch, caplog):
    monkeypatch.setattr(skipped, "_NAMED_IN_LOG", 10**6)
    steps = 2 * len(zoo[1]) // 16 + 1  # At least two epochs.
    pixels, bad = train(zoo, steps, threads=4)
    assert pixels.shape == (steps, 16, 16, 16, 3)
    assert set(bad) == unusable(zoo)
    assert named_in_log(caplog) == dict.fromkeys(unusable(zoo), 1)
    for name, reason in bad.items():
        assert re.search(zoo[1][name], reason)
    again, _ = train(zoo, steps, threads=0)
    np.testing.assert_array_equal(pixels, again)
    shards = [
        train(zoo, steps, threads=3, shard_index=k, shard_count=4, batch_size=16)[0]
        for k in range(4)
    ]
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), pixels)


def evaluate(zoo, **options):
    options = {"image_size": 16, "batch_size": 8, **options}
    return pipeline.eval_batches(open_train(zoo), **options)


def test_evaluation_never_stops_and_names_every_bad_image_once(zoo, monkeypatch, caplog):
    monkeypatch.setattr(skipped, "_NAMED_IN_LOG", 10**6)
    batches = evaluate(zoo, threads=4)
    whole = list(batches)
    assert set(batches.skipped) == unusable(zoo)
    assert named_in_log(caplog) == dict.fromkeys(unusable(zoo), 1)
    source = open_train(zoo)
    mask = np.concatenate([batch["mask"] for batch in whole])
    pixels = np.concatenate([batch["pixels"] for batch in whole])
    for i in range(len(source)):
        usable = zoo[1][source.name(i)] is None
        assert mask[i] == usable
        expected = eval_crop(source[i], 16) if usable else np.zeros((16, 16, 3))
        np.testing.assert_array_equal(pixels[i], expected)
    assert not mask[len(source) :].any()
    shards = [list(evaluate(zoo, shard_index=k, shard_count=2, threads=k)) for k in range(2)]
    for number, batch in enumerate(whole):
        for key, value in batch.items():
            together = np.concatenate([shard[number][key] for shard in shards])
            np.testing.assert_array_equal(together, value)


def test_tiles_and_whole_images_of_the_zoo(zoo):
    tiles = evaluate(zoo, resize=1.0)
    # 40×30 holds two tiles of 16.
    good = len(zoo[1]) - len(unusable(zoo))
    assert sum(batch["mask"].sum() for batch in tiles) == 2 * good
    whole = pipeline.whole_batches(open_train(zoo), multiple=4, batch_size=4)
    names = [name for batch in whole for name in batch["names"]]
    assert set(names) == set(zoo[1]) - unusable(zoo)
    assert set(tiles.skipped) == set(whole.skipped) == unusable(zoo)


def test_the_zoo_passes_the_check_before_a_run(zoo):
    counts = pipeline.check_source(f"folder:{zoo[0]}", image_size=16)
    assert counts == {"train": len(zoo[1]), "validation": 8}


def test_files_that_vanish_or_change_after_they_were_listed(tmp_path):
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i, 0, 0)).save(tmp_path / f"{i:02}.png")
    found, _ = folder.find_images(str(tmp_path))
    source = sources.Source(
        "changing",
        "train",
        read=lambda i: tmp_path / found[i],
        name=lambda i: found[i],
        count=len(found),
    )
    (tmp_path / "03.png").unlink()
    (tmp_path / "05.png").write_bytes(b"")
    (tmp_path / "07.png").write_bytes((tmp_path / "08.png").read_bytes()[:60])
    (tmp_path / "09.png").unlink()
    (tmp_path / "09.png").mkdir()
    batches = pipeline.train_batches(source, image_size=16, batch_size=12, seed=0)
    reds = {int(value) for _ in range(3) for value in next(batches)["pixels"][:, 0, 0, 0]}
    batches.close()
    assert reds == {20 * i for i in range(12) if i not in (3, 5, 7, 9)}
    reasons = {"03.png": "No such file", "05.png": "empty", "07.png": "truncated|known format"}
    reasons["09.png"] = "directory"
    assert batches.skipped.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert re.search(reason, batches.skipped[name])
