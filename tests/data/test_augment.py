"""Crops: exact area resizing, the paper's distributions, and refusals."""

import numpy as np
import pytest

from logit_laplace_jax.data import augment, errors


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def block_mean(image: np.ndarray, factor: int) -> np.ndarray:
    height, width, channels = image.shape
    blocks = image.reshape(height // factor, factor, width // factor, factor, channels)
    return blocks.mean((1, 3))


def ramp(height: int, width: int) -> np.ndarray:
    """Channel 0 tells the column, channel 1 the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [1, 2, 3, 5])
def test_area_resize_is_the_block_mean(factor, channels):
    image = noise(8 * factor, 8 * factor, channels)
    resized = augment.eval_crop(image, 8)
    assert resized.shape == (8, 8, channels)
    # Rounded once, to the nearest: half a level, and the float32 error of sums of up to 255.
    assert np.abs(resized - block_mean(image, factor)).max() <= 0.5 + 1e-4


def exact_area(image: np.ndarray, size: int) -> np.ndarray:
    """Means over fractional areas: every pixel repeated `size` times, then whole block means."""
    side, channels = len(image), image.shape[2]
    rows = image.repeat(size, 0).reshape(size, side, side, channels).mean(1)
    return rows.repeat(size, 1).reshape(size, size, side, channels).mean(2)


@pytest.mark.parametrize(("side", "size"), [(60, 40), (48, 36), (33, 32), (75, 10)])
def test_area_resize_shares_out_border_pixels(side, size):
    image = noise(side, side)
    resized = augment.area_resize(image, (size, size))
    # As above.
    assert np.abs(resized - exact_area(image, size)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("side", "size"), [(170, 16), (413, 32)])
def test_large_factors_are_close_to_the_area(side, size):
    image = ramp(side, side)[..., :2] // 2
    image = np.concatenate([image, noise(side, side, 1) // 8 + 100], -1)
    resized = augment.area_resize(image, (size, size)).astype(float)
    # Block means are rounded to a level, the result again; blocks at a border count as flat, an
    # error of a few per cent of the variation inside a block, here a few levels.
    assert np.abs(resized - exact_area(image, size)).max() <= 2.0


def test_eval_crop_takes_the_centre():
    wide = ramp(8, 20)
    np.testing.assert_array_equal(augment.eval_crop(wide, 8), wide[:, 6:14])
    tall = ramp(20, 8)
    np.testing.assert_array_equal(augment.eval_crop(tall, 8), tall[6:14])


def test_train_crop_is_deterministic_and_varies():
    image = noise(60, 80)
    crops = [augment.train_crop(image, 32, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert (crops[0] != crops[2]).any()
    assert crops[0].dtype == np.uint8


def test_train_crop_equals_crop_resize_crop_step_by_step():
    """The shortcut (resizing only the part that is kept) against the paper's own steps."""
    image = noise(64 * 3, 64 * 3)
    size = 48  # 9/8 … 12/8 of it is 54 … 72; with t = 64 the factor is exactly 3.
    found = 0
    for seed in range(60):
        crop = augment.train_crop(image, size, np.random.default_rng(seed), flip=False)
        rng = np.random.default_rng(seed)
        top, left = rng.integers(0, endpoint=True), rng.integers(0, endpoint=True)
        assert (top, left) == (0, 0)
        t = rng.integers(54, 72, endpoint=True)
        if t != 64:
            continue
        y, x = rng.integers(t - size, endpoint=True), rng.integers(t - size, endpoint=True)
        expected = block_mean(image, 3)[y : y + size, x : x + size]
        assert np.abs(crop - expected).max() <= 1.0
        found += 1
    assert found


def test_flip_has_probability_one_half_and_changes_nothing_else():
    image = ramp(40, 40)
    flipped = 0
    for seed in range(400):
        plain = augment.train_crop(image, 16, np.random.default_rng(seed), flip=False)
        crop = augment.train_crop(image, 16, np.random.default_rng(seed))
        mirrored = crop[0, 0, 0] > crop[0, -1, 0]
        np.testing.assert_array_equal(crop, plain[:, ::-1] if mirrored else plain)
        flipped += mirrored
    # Binomial(400, ½) has standard deviation 10: five of them.
    assert abs(flipped - 200) <= 50


def test_t_is_uniform_on_its_range(monkeypatch):
    scales = []
    real = augment.area_resize

    def spy(image, size, box):
        scales.append((box[2] - box[0]) / size[0])
        return real(image, size, box)

    monkeypatch.setattr(augment, "area_resize", spy)
    image = noise(96, 96)
    rng = np.random.default_rng(0)
    for _ in range(1800):
        augment.train_crop(image, 16, rng)
    t = np.round(96 / np.array(scales)).astype(int)
    values, counts = np.unique(t, return_counts=True)
    np.testing.assert_array_equal(values, np.arange(18, 25))
    # 1800 draws over 7 values: mean 257, standard deviation 14.8; five of them.
    assert np.abs(counts - 1800 / 7).max() < 75


def test_t_is_cut_to_the_crops_side():
    image = noise(20, 30)  # Smaller than 9/8·19: no resizing, only the crop.
    seen = set()
    for seed in range(100):
        crop = augment.train_crop(image, 19, np.random.default_rng(seed), flip=False)
        windows = [
            (y, x)
            for y in range(2)
            for x in range(12)
            if (crop == image[y : y + 19, x : x + 19]).all()
        ]
        assert len(windows) == 1
        seen.add(windows[0])
    assert {y for y, _ in seen} == {0, 1}


def test_every_part_of_the_photograph_is_seen_in_the_small_crops():
    image = ramp(100, 200)
    rng = np.random.default_rng(0)
    crops = np.stack([augment.train_crop(image, 8, rng, min_crop=0.1) for _ in range(1500)])
    columns, rows = crops[..., 0], crops[..., 1]
    assert columns.min() <= 2
    assert columns.max() >= 197
    assert rows.min() <= 2
    assert rows.max() >= 97


def test_the_side_is_log_uniform_above_its_bound(monkeypatch):
    boxes = []
    real = augment.area_resize

    def spy(image, size, box):
        boxes.append((box[2] - box[0]) / size[0])
        return real(image, size, box)

    monkeypatch.setattr(augment, "area_resize", spy)
    rng = np.random.default_rng(0)
    draws = [augment.train_crop(noise(400, 400), 8, rng, min_crop=0.1) for _ in range(3)]
    assert all(draw.shape == (8, 8, 3) for draw in draws)
    image = noise(400, 400)
    boxes.clear()
    for _ in range(1500):
        augment.train_crop(image, 8, rng, min_crop=0.1)
    # side = scale · t with t in 9 … 12, so log(scale) is log-uniform smeared by log(12/9).
    scale = np.log(boxes)
    low, high = np.log(40 / 12), np.log(400 / 9)
    assert scale.min() >= low - 1e-9
    assert scale.max() <= high + 1e-9
    middle = (np.log(40) + np.log(400)) / 2 - np.log(np.arange(9, 13)).mean()
    # Uniform of width 2.3: standard error of the mean 0.66/√1500 = 0.017; five of them.
    assert abs(scale.mean() - middle) < 0.09


def test_nothing_is_enlarged():
    """With min_crop far below 9/8·size the square stays at 9/8·size."""
    image = ramp(120, 120)
    rng = np.random.default_rng(0)
    for _ in range(200):
        crop = augment.train_crop(image, 32, rng, min_crop=0.01, flip=False)
        step = np.diff(crop[0, :, 0].astype(int))
        assert (step >= 1).all()  # A step of 0 would be a repeated column.


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 33])
def test_odd_sizes(size):
    rng = np.random.default_rng(0)
    for height, width in ((size, size), (size + 1, size), (3 * size, 2 * size)):
        for min_crop in (0.3, 1.0):
            for _ in range(20):
                crop = augment.train_crop(noise(height, width), size, rng, min_crop=min_crop)
                assert crop.shape == (size, size, 3)


def test_too_small_names_both_sizes():
    with pytest.raises(errors.TooSmallImage, match="40×31 pixels are too small for 32×32"):
        augment.eval_crop(noise(31, 40), 32)
    with pytest.raises(errors.TooSmallImage):
        augment.train_crop(noise(31, 40), 32, np.random.default_rng(0))
    with pytest.raises(errors.TooSmallImage, match="40×31 pixels are too small for 32×32"):
        augment.grid_crops(noise(31, 40), 32, 0.5)


def test_a_photograph_too_small_for_its_scale_is_reduced_less():
    image = noise(40, 62)
    (tile,) = augment.grid_crops(image, 32, 0.5)
    np.testing.assert_array_equal(tile, augment.area_resize(image, (50, 32))[:, 9:41])


def test_grid_crops_tile_the_centre():
    image = ramp(19, 26)
    tiles = augment.grid_crops(image, 8)
    assert [tuple(tile[0, 0, :2]) for tile in tiles] == [(x, y) for y in (1, 9) for x in (1, 9, 17)]
    scaled = augment.grid_crops(noise(32, 48), 8, 0.5)
    expected = block_mean(noise(32, 48), 2)
    assert len(scaled) == 6
    assert np.abs(scaled[4] - expected[8:16, 8:16]).max() <= 1.0


@pytest.mark.parametrize("wrong", [0.0, -1.0, 1.5, float("nan")])
def test_shares_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match="must be in"):
        augment.train_crop(noise(9, 9), 4, np.random.default_rng(0), min_crop=wrong)
    with pytest.raises(ValueError, match="must be in"):
        augment.grid_crops(noise(9, 9), 4, wrong)


def test_the_largest_crop_bounds_what_is_taken():
    # Channel 0 tells the column: its range over a crop tells the crop's width.
    image = ramp(200, 200)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        crop = augment.train_crop(image, 16, rng, min_crop=0.1, max_crop=0.25)
        assert np.ptp(crop[..., 0].astype(int)) <= 50  # a quarter of 200


def test_jitter_keeps_grey_grey_and_repeats_itself():
    image = noise(8, 8)
    changed = [augment.jitter_colours(image, 1.0, np.random.default_rng(s)) for s in (0, 0, 1)]
    np.testing.assert_array_equal(changed[0], changed[1])
    assert (changed[0] != changed[2]).any()
    still = augment.jitter_colours(image, 0.0, np.random.default_rng(0))
    # The turn by no angle is the identity up to float32, far less than half a level.
    np.testing.assert_array_equal(still, image)
    grey = np.repeat(noise(8, 8, 1), 3, -1)
    assert (np.ptp(augment.jitter_colours(grey, 1.0, np.random.default_rng(2)), -1) == 0).all()


def test_without_jitter_the_crops_are_as_before():
    image = noise(60, 80)
    plain = augment.train_crop(image, 16, np.random.default_rng(5))
    crop = augment.train_crop(image, 16, np.random.default_rng(5), jitter=1.0)
    assert (plain != crop).any()
    rng = np.random.default_rng(5)
    augment.train_crop(image, 16, rng)
    np.testing.assert_array_equal(crop, augment.jitter_colours(plain, 1.0, rng))


@pytest.mark.parametrize("options", [{"max_crop": 0.0}, {"min_crop": 2.0}, {"jitter": -1.0}])
def test_refused_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        augment.train_crop(noise(20, 20), 16, np.random.default_rng(0), **options)
