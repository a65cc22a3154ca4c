"""Decoding: the rules for every kind of pixel, and limits. (Hostile files: test_hostile.py.)"""

import contextlib

import numpy as np
import pytest
from hostile import encoded, png
from PIL import Image

from logit_laplace_jax.data import errors, images


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_exactly(kind):
    pixels = noise(5, 7)
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(pixels), kind)), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_read(kind):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    decoded = images.decode(encoded(Image.fromarray(flat), kind, quality=95))
    # A flat colour passes both codecs up to the rounding of their colour transforms.
    assert np.abs(decoded.astype(int) - flat).max() <= 3


def test_a_path_is_read_like_its_bytes(tmp_path):
    pixels = noise(5, 7)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    np.testing.assert_array_equal(images.decode(path), pixels)


def test_grey_is_repeated_and_colour_becomes_luma():
    grey = noise(4, 6, 1)
    np.testing.assert_array_equal(
        images.decode(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, -1)
    )
    colour = noise(4, 6)
    luma = images.decode(encoded(Image.fromarray(colour)), channels=1)
    assert luma.shape == (4, 6, 1)
    # ITU-R 601; Pillow rounds in 16-bit fixed point.
    expected = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma[..., 0] - expected).max() <= 0.51


def test_the_result_cannot_be_written_into():
    assert not images.decode(encoded(Image.fromarray(noise(2, 2)))).flags.writeable


def test_alpha_is_composited_on_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    decoded = images.decode(encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(decoded[0, :, 0], [255, 127, 0])


def test_grey_with_alpha():
    pixels = np.array([[[0, 0], [100, 255]]], np.uint8)
    decoded = images.decode(encoded(Image.fromarray(pixels, "LA")), channels=1)
    np.testing.assert_array_equal(decoded[0, :, 0], [255, 100])


def test_palette_and_palette_with_a_transparent_entry():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    np.testing.assert_array_equal(images.decode(encoded(image)), [[[255, 0, 0], [0, 0, 255]]])
    decoded = images.decode(encoded(image, transparency=1))
    np.testing.assert_array_equal(decoded, [[[255, 0, 0], [255, 255, 255]]])


def test_one_bit():
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(images.decode(encoded(image), 1)[..., 0], [[0, 255]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_rounded(kind):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    decoded = images.decode(encoded(Image.fromarray(values), kind), channels=1)
    np.testing.assert_array_equal(decoded[0, :, 0], np.round(values[0] / 257).astype(int))


def test_values_without_a_white_are_refused():
    with pytest.raises(errors.UnreadableImage, match="floating-point"):
        images.decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
    with pytest.raises(errors.UnreadableImage, match="32-bit"):
        images.decode(encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"))


def test_cmyk_is_converted():
    pixels = images.decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    # Cyan 0, magenta and yellow full: red.
    assert pixels.shape == (16, 16, 3)
    assert pixels[..., 0].min() > 250
    assert pixels[..., 1:].max() < 5


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_exif_orientation_is_applied(kind):
    pixels = noise(4, 6)
    turned_over = pixels[::-1, ::-1]
    upright = {
        **{0: pixels, 1: pixels, 2: pixels[:, ::-1], 3: turned_over, 4: pixels[::-1], 9: pixels},
        **{5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1)},
        **{7: turned_over.swapaxes(0, 1), 8: np.rot90(pixels)},
    }
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(Image.fromarray(pixels), kind, exif=exif)
        np.testing.assert_array_equal(images.decode(content), expected)
        deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        decoded = images.decode(encoded(deep, kind, exif=exif), channels=1)
        np.testing.assert_array_equal(decoded, expected[..., :1])


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_counts_as_none():
    pixels = noise(4, 6)
    content = encoded(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(images.decode(content), pixels)


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "green")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(images.decode(content)[0, 0], [255, 0, 0])


def test_the_limit_holds_where_pillows_is_lifted(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(errors.UnreadableImage, match="60000×60000 is more than the 179 megapixels"):
        images.decode(png(60_000, 60_000, 8, 2, bytes(100)))


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_any_cut_of_a_file_is_readable_or_unreadable_but_nothing_else():
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF"):
        content = encoded(Image.fromarray(noise(24, 24)), kind)
        for end in range(1, len(content), max(1, len(content) // 25)):
            with contextlib.suppress(errors.UnreadableImage):
                assert images.decode(content[:end]).shape == (24, 24, 3)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(errors.UnreadableImage, match="No such file"):
        images.decode(tmp_path / "absent.png")
    with pytest.raises(errors.UnreadableImage, match="directory"):
        images.decode(tmp_path)


def test_other_channel_counts_are_refused():
    with pytest.raises(errors.DataError, match="channels"):
        images.decode(b"", channels=4)


def test_arrays_are_given_channels():
    grey = noise(3, 4, 1)
    np.testing.assert_array_equal(images.from_array(grey), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(images.from_array(grey[..., None], 1)[..., 0], grey)
    colour = noise(3, 4)
    np.testing.assert_array_equal(images.from_array(colour[:, ::-1]), colour[:, ::-1])
    for wrong in (colour.astype(np.float32), noise(3, 4)[..., :2], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(errors.UnreadableImage, match="needs uint8"):
            images.from_array(wrong)
