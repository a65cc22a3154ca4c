"""Batches: determinism, resuming, sharding, threads, bad images."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax.data import errors, pipeline, sources
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
        ({"seed": -1}, "seed"),
        ({"channels": 1}, "3 channels, not 1"),
    ],
)
def test_wrong_options_are_refused_at_once(wrong, reason):
    options = {"image_size": 16, "batch_size": 8, "seed": 0, **wrong}
    with pytest.raises(errors.DataError, match=reason):
        pipeline.train_batches(make_source(), **options)


def test_large_seeds_and_one_image():
    for seed in (2**32, 2**80):
        assert train(make_source(1), seed=seed, count=3).shape == (3, 8, 16, 16, 3)


# --- evaluation ------------------------------------------------------------------------------


def test_evaluation_is_ordered_padded_and_repeatable():
    source = make_source(7, bad=(3,))
    batches = pipeline.eval_batches(source, image_size=16, batch_size=4)
    first, second = list(batches), list(batches)
    assert [batch["mask"].tolist() for batch in first] == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert first[0]["mask"].dtype == np.float32
    assert not first[1]["pixels"][2:].any()
    from logit_laplace_jax.data.augment import eval_crop

    rows = np.concatenate([batch["pixels"] for batch in first])[:6]
    expected = [eval_crop(source[i], 16) for i in (0, 1, 2, 4, 5, 6)]
    np.testing.assert_array_equal(rows, expected)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a["pixels"], b["pixels"])
    assert list(batches.skipped) == ["image3"]


@pytest.mark.parametrize("limit", [1, 4, 5, 41, 42, 100])
def test_grid_and_limit(limit):
    # Seven images, 40…46 high and 49…55 wide: 2×3 tiles of 16 each.
    batches = list(
        pipeline.eval_batches(
            make_source(7), image_size=16, batch_size=4, grid_scale=1.0, limit=limit, threads=0
        )
    )
    assert sum(batch["mask"].sum() for batch in batches) == min(limit, 42)
    assert len(batches) == -(-min(limit, 42) // 4)
    assert all(batch["pixels"].shape == (4, 16, 16, 3) for batch in batches)


def test_wrong_evaluation_options_are_refused():
    for wrong in ({"limit": 0}, {"grid_scale": 0.0}, {"grid_scale": 2.0}, {"batch_size": 0}):
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
    batches = pipeline.train_batches(spec, image_size=16, batch_size=16, seed=0)
    assert take(batches, 6).shape == (6, 16, 16, 16, 3)
    held_out = pipeline.eval_batches(spec, image_size=16, batch_size=4)
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
        "train": 8,
        "validation": 2,
    }
    source = sources.open_source("photos", "train", data_dir=data_dir)
    options = {"image_size": 32, "batch_size": 16, "seed": 0, "min_crop": 0.2}
    whole = take(pipeline.train_batches(source, **options), 3)
    # Real photographs: every batch has contrast, and the split is not the held-out one.
    assert whole.reshape(3, -1).std(axis=1).min() > 20
    by_spec = pipeline.train_batches("photos", data_dir=data_dir, **options)
    np.testing.assert_array_equal(take(by_spec, 3), whole)
    grid = pipeline.eval_batches(
        "photos", image_size=32, batch_size=64, data_dir=data_dir, grid_scale=0.5
    )
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
