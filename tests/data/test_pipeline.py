"""Batches: determinism, resuming, sharding, threads, bad images."""

import hashlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax.data import errors, pipeline, skipped, sources
from logit_laplace_jax.data.augment import eval_crop
from logit_laplace_jax.data.sources import Source


def make_source(count=7, bad=(), small=(), split="train"):
    def read(i):
        if i in bad:
            return b"junk"
        side = 10 if i in small else 40 + i
        return np.random.default_rng(i).integers(0, 256, (side, side + 9, 3), dtype=np.uint8)

    return Source("made", split, read=read, name=lambda i: f"image{i}", count=count)


def take(batches, count):
    taken = [next(batches)["pixels"] for _ in range(count)]
    batches.close()
    return np.stack(taken)


def train(source=None, *, count=6, **options):
    options = {"image_size": 16, "batch_size": 8, "seed": 3, "min_crop": 0.5, **options}
    return take(pipeline.train_batches(source or make_source(), **options), count)


def test_shape_dtype_and_determinism():
    first = train()
    assert first.shape == (6, 8, 16, 16, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, train())
    assert (first != train(seed=4)).any()


def test_a_stream_does_not_repeat_itself():
    crops = train(count=20).reshape(160, -1)
    assert len(np.unique(crops, axis=0)) == 160


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_threads_change_nothing(threads):
    np.testing.assert_array_equal(train(threads=threads), train(threads=2))


@pytest.mark.parametrize("bad", [(), (0, 4)])
@pytest.mark.parametrize("shard_count", [2, 4, 8])
def test_shards_put_together_are_the_whole_batch(shard_count, bad):
    shards = [
        train(make_source(bad=bad), shard_index=k, shard_count=shard_count)
        for k in range(shard_count)
    ]
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), train(make_source(bad=bad)))


def test_each_epoch_takes_every_image_once_in_a_new_order():
    flat = [np.full((20, 20), i, np.uint8) for i in range(12)]
    source = Source("flat", "train", read=flat.__getitem__, name=str, count=12)
    batches = pipeline.train_batches(source, image_size=16, batch_size=12, seed=0)
    epochs = take(batches, 5)[:, :, 0, 0, 0]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 5


@pytest.mark.parametrize("stop", [0, 1, 5, 13])
@pytest.mark.parametrize("threads", [0, 2])
def test_resuming_is_exact(stop, threads):
    import json

    options = {"image_size": 16, "batch_size": 4, "seed": 1, "threads": threads}
    whole = take(pipeline.train_batches(make_source(bad=(2,)), **options), stop + 4)
    broken = pipeline.train_batches(make_source(bad=(2,)), **options)
    for _ in range(stop):
        next(broken)
    state = json.loads(json.dumps(broken.get_state()))
    broken.close()
    again = pipeline.train_batches(make_source(bad=(2,)), **options)
    next(again)  # What was taken before does not matter.
    again.set_state(state)
    np.testing.assert_array_equal(take(again, 4), whole[stop:])


def test_resuming_with_another_number_of_shards():
    options = {"image_size": 16, "batch_size": 8, "seed": 1}
    whole = take(pipeline.train_batches(make_source(), **options), 6)
    first = pipeline.train_batches(make_source(), **options)
    for _ in range(2):
        next(first)
    state = first.get_state()
    shards = []
    for k in range(2):
        shard = pipeline.train_batches(make_source(), shard_index=k, shard_count=2, **options)
        shard.set_state(state)
        shards.append(take(shard, 4))
    np.testing.assert_array_equal(np.concatenate(shards, axis=1), whole[2:])


def test_a_state_of_other_data_is_refused():
    state = pipeline.train_batches(make_source(7), image_size=16, batch_size=4, seed=1).get_state()
    other = pipeline.train_batches(make_source(8), image_size=16, batch_size=4, seed=1)
    with pytest.raises(errors.DataError, match="does not fit"):
        other.set_state(state)


def test_the_fingerprint_is_a_hash_of_options_and_names():
    """Saved places in the data hold it, so its value must stay from version to version."""
    source = make_source(5000)  # more than are hashed at once
    digest = hashlib.sha256(repr((5000, 3, 16, 4, 1, 1.0)).encode())
    for i in range(5000):
        digest.update(f"image{i}".encode() + b"\0")
    batches = pipeline.train_batches(source, image_size=16, batch_size=4, seed=1)
    assert batches.get_state()["data"] == digest.hexdigest()[:16]
    for other in ({"max_crop": 0.5, "min_crop": 0.5}, {"jitter": 0.5}, {"augment": False}):
        changed = pipeline.train_batches(source, image_size=16, batch_size=4, seed=1, **other)
        assert changed.get_state()["data"] != digest.hexdigest()[:16]


def test_bad_images_are_named_once_counted_and_replaced(caplog):
    source = make_source(bad=(1,), small=(5,))
    batches = pipeline.train_batches(source, image_size=16, batch_size=8, seed=0)
    for _ in range(8):
        assert next(batches)["pixels"].shape == (8, 16, 16, 3)
    batches.close()
    assert list(batches.skipped) == ["image1", "image5"]
    assert "known format" in batches.skipped["image1"]
    assert "19×10 pixels are too small for 16×16" in batches.skipped["image5"]
    for name in ("image1", "image5"):
        assert caplog.text.count(f"skipped {name}:") == 1


def test_the_place_of_a_bad_image_is_shared_by_all_others():
    flat = [np.full((20, 20), i, np.uint8) for i in range(6)]
    flat[2] = b"junk"
    source = Source("flat", "train", read=flat.__getitem__, name=str, count=6)
    batches = pipeline.train_batches(source, image_size=16, batch_size=60, seed=0)
    values, counts = np.unique(take(batches, 20)[..., 0, 0, 0], return_counts=True)
    np.testing.assert_array_equal(values, [0, 1, 3, 4, 5])
    # 200 replacements over five images: 200 + 40 each, standard deviation 5.7; five of them.
    assert np.abs(counts - 240).max() < 29


def test_one_good_image_among_many_bad_ones_is_enough():
    source = make_source(count=300, bad=set(range(300)) - {123})
    batches = pipeline.train_batches(source, image_size=16, batch_size=4, seed=0)
    assert take(batches, 3).shape == (3, 4, 16, 16, 3)
    # How many it came across on the way depends on the draws.
    assert 100 <= len(batches.skipped) <= 299


def big_source(count, good=(), reads=None):
    def read(i):
        if reads is not None:
            reads.append(i)
        return np.full((20, 20), i % 251, np.uint8) if i in good else b"junk"

    return Source("big", "train", read=read, name=str, count=count)


def test_a_large_source_of_bad_images_ends_soon(monkeypatch):
    monkeypatch.setattr(pipeline, "_MOST_TRIES", 500)
    reads = []
    batches = pipeline.train_batches(
        big_source(20_000, reads=reads), image_size=16, batch_size=4, seed=0, threads=0
    )
    with pytest.raises(errors.DataError, match=r"none of 500 images drawn from the 20000 of big"):
        next(batches)
    # The image asked for, 32 draws and 500 more; each one that is drawn twice is tried once.
    assert len(reads) == len(set(reads)) <= 533


def test_few_good_images_of_many_are_found(monkeypatch):
    monkeypatch.setattr(pipeline, "_MOST_TRIES", 1000)
    good = set(range(0, 20_000, 100))
    reads = []
    source = big_source(20_000, good, reads)
    batches = pipeline.train_batches(source, image_size=16, batch_size=4, seed=0, threads=0)
    values = set(take(batches, 20).reshape(80, -1)[:, 0])
    assert values <= {i % 251 for i in good}
    assert len(values) > 40  # 80 draws of 200 images.
    bad = [i for i in reads if i not in good]
    assert len(bad) == len(set(bad)) == len(batches.skipped)


def test_checking_a_large_source_is_bounded_and_spread(monkeypatch):
    monkeypatch.setattr(pipeline, "_MOST_TRIES", 50)
    reads = []
    source = big_source(2001, reads=reads)
    monkeypatch.setattr(pipeline, "open_source", lambda *args, **options: source)
    with pytest.raises(errors.DataError, match="none of the 49 tried of the 2001 images"):
        pipeline.check_source("big", image_size=16)
    assert reads == list(range(0, 2001, 41))


def test_the_first_twenty_skipped_images_are_named_and_all_are_listed_in_order(caplog):
    source = Source("many", "train", read=lambda i: b"", name=lambda i: f"image{i}", count=10**6)
    many = skipped.Skipped(source, 10**6)
    for i in range(100):
        many.add(99 - i, errors.UnreadableImage("the file is empty"))
    assert len(caplog.messages) == 21
    assert caplog.messages[-1] == "further skipped images of many are only counted"
    assert list(many.as_dict()) == [f"image{i}" for i in range(100)]


@pytest.mark.parametrize("threads", [0, 2])
def test_no_good_image_is_an_error(threads):
    source = make_source(count=5, bad=(0, 1, 2), small=(3, 4))
    batches = pipeline.train_batches(source, image_size=16, batch_size=4, seed=0, threads=threads)
    for _ in range(2):  # Also when asked again.
        with pytest.raises(errors.DataError, match="none of the 5 images of made"):
            next(batches)
    with pytest.raises(errors.DataError, match="none of the 5"):
        list(pipeline.eval_batches(source, image_size=16, batch_size=4, threads=threads))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"batch_size": 9, "shard_count": 2}, "do not divide"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index"),
        ({"batch_size": 0}, "batch_size"),
        ({"image_size": 0}, "image_size"),
        ({"threads": -1}, "threads"),
        ({"min_crop": 0.0}, "min_crop"),
        ({"jitter": -0.1}, "jitter"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_options_are_refused_at_once(wrong, reason):
    options = {"image_size": 16, "batch_size": 8, "seed": 0, **wrong}
    with pytest.raises(errors.DataError, match=reason):
        pipeline.train_batches(make_source(), **options)


def test_large_seeds_and_one_image():
    for seed in (2**32, 2**80):
        assert train(make_source(1), seed=seed, count=3).shape == (3, 8, 16, 16, 3)


# --- decoding ahead --------------------------------------------------------------------------


def slow_source(seconds, enough, reached):
    lock, reads = threading.Lock(), []

    def read(i):
        time.sleep(seconds)
        with lock:
            reads.append(i)
            if len(reads) >= enough:
                reached.set()
        return np.full((20, 20), i, np.uint8)

    return Source("slow", "train", read=read, name=str, count=200, cache_mib=0)


@pytest.mark.parametrize("evaluating", [False, True])
def test_batches_are_decoded_while_nobody_asks(evaluating):
    reached = threading.Event()
    options = {"image_size": 16, "batch_size": 8, "threads": 2}
    source = slow_source(0.0, 16, reached)
    if evaluating:
        batches = iter(pipeline.eval_batches(source, **options))
    else:
        batches = pipeline.train_batches(source, seed=0, **options)
    next(batches)
    # One batch was taken; only decoding ahead can bring another one. A minute is for ever.
    assert reached.wait(60)
    batches.close()


def test_threads_wait_for_slow_images_together():
    options = {"image_size": 16, "batch_size": 4, "seed": 0, "threads": 8}
    batches = pipeline.train_batches(slow_source(0.02, 1, threading.Event()), **options)
    started = time.perf_counter()
    for _ in range(16):
        next(batches)
    waited = time.perf_counter() - started
    batches.close()
    # One after the other the images alone take 16 · 4 · 0.02 s; eight threads an eighth of that.
    assert waited < 0.6 * 16 * 4 * 0.02


def test_the_default_number_of_threads(monkeypatch):
    for cores, threads in ((1, 2), (2, 2), (12, 12), (96, 16)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        assert pipeline.default_threads() == threads
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert pipeline.default_threads() == 2


# --- evaluation ------------------------------------------------------------------------------


def test_evaluation_is_ordered_padded_and_repeatable():
    source = make_source(7, bad=(3,))
    batches = pipeline.eval_batches(source, image_size=16, batch_size=4)
    first, second = list(batches), list(batches)
    # Image 3 cannot be used, and there is no eighth.
    assert [batch["mask"].tolist() for batch in first] == [[1, 1, 1, 0], [1, 1, 1, 0]]
    assert first[0]["mask"].dtype == np.float32
    rows = np.concatenate([batch["pixels"] for batch in first])
    used = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(rows[used], [eval_crop(source[i], 16) for i in used])
    assert not rows[[3, 7]].any()
    ids = np.concatenate([batch["id"] for batch in first])
    assert not ids[[3, 7]].any()
    assert len(set(ids[used])) == 6
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["pixels"], b["pixels"])
    assert list(batches.skipped) == ["image3"]


@pytest.mark.parametrize("limit", [1, 4, 5, 41, 42, 100])
def test_grid_and_limit(limit):
    # Seven images, 40…46 high and 49…55 wide: 2×3 tiles of 16 each.
    batches = list(
        pipeline.eval_batches(
            make_source(7), image_size=16, batch_size=4, resize=1.0, limit=limit, threads=0
        )
    )
    assert sum(batch["mask"].sum() for batch in batches) == min(limit, 42)
    assert len(batches) == -(-min(limit, 42) // 4)
    assert all(batch["pixels"].shape == (4, 16, 16, 3) for batch in batches)


def held_out(source, **options):
    return pipeline.eval_batches(source, **{"image_size": 16, "batch_size": 8, **options})


@pytest.mark.parametrize("resize", [None, 0.8])
@pytest.mark.parametrize("bad", [(), (0, 3, 8, 9, 10, 11, 12, 13, 14, 15, 20)])
@pytest.mark.parametrize("limit", [None, 1, 8, 13, 100])
@pytest.mark.parametrize("shard_count", [2, 8])
def test_evaluation_shards_put_together_are_the_whole_batches(resize, bad, limit, shard_count):
    source = make_source(21, bad=bad, small=(5,))
    options = {"resize": resize, "limit": limit, "threads": 0}
    if bad and limit == 1 and resize is None:
        limit = options["limit"] = 2  # Image 0 is bad: see below for what one process says then.
    whole = list(held_out(source, **options))
    shards = [
        list(held_out(source, shard_index=k, shard_count=shard_count, **options))
        for k in range(shard_count)
    ]
    assert {len(shard) for shard in shards} == {len(whole)}
    for number, batch in enumerate(whole):
        for key, value in batch.items():
            together = np.concatenate([shard[number][key] for shard in shards])
            np.testing.assert_array_equal(together, value)
            assert together.dtype == value.dtype


@pytest.mark.parametrize("limit", [None, 13])
def test_a_shard_decodes_its_own_images_only(limit):
    asked = set()

    def read(i):
        asked.add(i)
        return np.full((20, 20), i, np.uint8)

    source = Source("own", "validation", read=read, name=str, count=21)
    list(held_out(source, shard_index=1, shard_count=4, limit=limit))
    assert asked == ({2, 3, 10, 11, 18, 19} if limit is None else {2, 3, 10, 11})


def test_a_limit_counts_images_usable_or_not():
    masks = [batch["mask"].tolist() for batch in held_out(make_source(21, bad=(1,)), limit=3)]
    assert masks == [[1, 0, 1, 0, 0, 0, 0, 0]]


def test_a_shard_without_usable_images_does_not_stop_alone():
    everything = held_out(make_source(16, bad=range(16)))
    for _ in range(2):  # Also when asked again.
        with pytest.raises(errors.DataError, match="none of the 16 images of made"):
            list(everything)
    with pytest.raises(errors.DataError, match="none of the first 4 images of made"):
        list(held_out(make_source(16, bad=range(4)), limit=4))
    shard = held_out(make_source(16, bad=range(16)), shard_index=1, shard_count=2)
    assert [batch["mask"].sum() for batch in shard] == [0, 0]
    assert len(shard.skipped) == 8
    # Nor where a limit leaves it all images there are, and the other one nothing but padding.
    few = {"limit": 4, "shard_count": 2}
    for k in range(2):
        shard = held_out(make_source(16, bad=range(4)), shard_index=k, **few)
        assert [batch["mask"].sum() for batch in shard] == [0]
    tiles = held_out(make_source(16, bad=range(16)), shard_index=1, shard_count=2, resize=1.0)
    with pytest.raises(errors.DataError, match="none of the 16"):
        list(tiles)  # Each process sees all images, so all of them stop.


def test_wrong_evaluation_options_are_refused():
    for wrong in (
        {"limit": 0},
        {"resize": 0.0},
        {"resize": 2.0},
        {"batch_size": 0},
        {"shard_count": 3},
        {"shard_index": 1},
        {"shard_index": -1, "shard_count": 2},
    ):
        options = {"image_size": 16, "batch_size": 4, **wrong}
        with pytest.raises(errors.DataError):
            pipeline.eval_batches(make_source(), **options)


# --- whole sources ---------------------------------------------------------------------------


def write_folder(path, count=30):
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
    (path / "text.png").write_text("no image")
    (path / "empty.jpg").write_bytes(b"")
    return f"folder:{path}"


def test_a_folder_from_end_to_end(tmp_path):
    spec = write_folder(tmp_path)
    assert sum(pipeline.check_source(spec, image_size=16).values()) == 32
    train, validation = (sources.open_source(spec, split) for split in ("train", "validation"))
    batches = pipeline.train_batches(train, image_size=16, batch_size=16, seed=0)
    assert take(batches, 6).shape == (6, 16, 16, 16, 3)
    held_out = pipeline.eval_batches(validation, image_size=16, batch_size=4)
    rows = sum(int(batch["mask"].sum()) for batch in held_out)
    both = {**batches.skipped, **held_out.skipped}
    assert set(both) == {"text.png", "empty.jpg"}
    assert rows >= 1


def test_check_source_says_what_is_wrong(tmp_path):
    with pytest.raises(errors.DataError, match="unknown data source"):
        pipeline.check_source("nothing", image_size=16)
    (tmp_path / "a.png").write_text("no image")
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(errors.DataError, match=r"can be used.*known format"):
        pipeline.check_source(f"folder:{tmp_path}", image_size=16)
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    Image.new("RGB", (30, 20)).save(tmp_path / "b.png")
    assert pipeline.check_source(f"folder:{tmp_path}", image_size=20) == {
        "train": 1,
        "validation": 1,
    }
    with pytest.raises(errors.DataError, match="too small for 21×21"):
        pipeline.check_source(f"folder:{tmp_path}", image_size=21)


def test_photographs_from_end_to_end(tmp_path_factory):
    data_dir = str(tmp_path_factory.mktemp("tfds"))
    assert pipeline.check_source("photos", image_size=32, data_dir=data_dir) == {
        "train": 9,
        "validation": 2,
    }
    source = sources.open_source("photos", "train", data_dir=data_dir)
    options = {"image_size": 32, "batch_size": 16, "seed": 0, "min_crop": 0.2}
    whole = take(pipeline.train_batches(source, **options), 3)
    # Real photographs: every batch has contrast, and the split is not the held-out one.
    assert whole.reshape(3, -1).std(axis=1).min() > 20
    again = sources.open_source("photos", "train", data_dir=data_dir)
    np.testing.assert_array_equal(take(pipeline.train_batches(again, **options), 3), whole)
    held_out = sources.open_source("photos", "validation", data_dir=data_dir)
    grid = pipeline.eval_batches(held_out, image_size=32, batch_size=64, resize=0.5)
    # 150×226 (225.5 rounds to even) gives 4×7 tiles, 256×256 gives 8×8.
    assert sum(int(batch["mask"].sum()) for batch in grid) == 28 + 64
    assert not grid.skipped


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, logit_laplace_jax.data as data; data.DataError; "
        "heavy = {'grain', 'PIL', 'tensorflow_datasets', 'flax', 'optax'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "data.train_batches; assert 'tensorflow_datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_missing_package_is_named_with_its_extra():
    for package in ("grain", "PIL", "tensorflow_datasets"):
        code = (
            f"import sys; sys.modules[{package!r}] = None\n"
            "from logit_laplace_jax import data\n"
            "try:\n    data.check_source('photos', image_size=8, data_dir='unused')\n"
            "except data.DataError as error:\n    print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
        )
        assert "pip install -e '.[experiments]'" in done.stdout
