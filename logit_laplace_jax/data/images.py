"""Bytes of an image file to 8-bit pixels, by fixed rules.

* Formats: PNG, JPEG (and MPO), WebP, BMP, TIFF, GIF, PPM family, AVIF where Pillow was built with
  it, HEIF where the package pillow-heif is installed. Nothing else is tried, so no file can reach
  Pillow's readers that start other programs (EPS runs Ghostscript).
* Of several frames or pages the first is taken.
* The EXIF orientation is applied; an unusable EXIF block counts as none.
* Palettes become RGB. Alpha, or a colour marked as transparent, is composited on white.
* 16-bit grey v becomes round(v/257), so that 65535 becomes 255, 12-bit grey round(v/4095·255); a
  TIFF whose zero is white is inverted. (16-bit colour, and 16-bit grey with alpha, are cut to their
  high byte by Pillow itself.) Floating-point and true 32-bit values are refused: they have no
  defined white.
* CMYK, YCbCr and CIELAB become RGB. Colour profiles are ignored: values are taken as sRGB.
* `channels=3` repeats grey three times; `channels=1` takes ITU-R 601 luma.
* A file that ends too early is refused. One that is complete but odd is decoded as its format's
  library does: a JPEG that declares more rows than it holds has grey ones at its end.

What one file may cost is bounded: bytes read (`MAX_BYTES`), pixels (`MAX_PIXELS`, of which each
takes up to about 16 bytes while it is decoded), passes over the pixels (`MAX_SCANS`), and, by
Pillow, what compressed texts inside a PNG may unfold to. Only regular files are read.
"""

import contextlib
import functools
import importlib.util
import io
import os
import stat

import numpy as np

from logit_laplace_jax.data.errors import DataError, UnreadableImage, missing_package, one_line

try:
    # Pillow knows the last two only once their modules are loaded.
    from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin, features
except ImportError as error:
    raise missing_package("pillow") from error

MAX_PIXELS = 178_956_970
"""Largest declared height times width that is decoded. It is the size at which Pillow refuses by
itself, kept here so that the limit holds even where somebody lifted Pillow's."""

MAX_BYTES = 2 * 2**30
"""Largest file that is read: above 8 bytes a pixel for `MAX_PIXELS`, so that any image allowed
fits, compressed or not."""

MAX_SCANS = 500
"""Most scans of a progressive JPEG. Usual ones have about ten; a few bytes are enough for another
pass over all pixels, so that a small file could keep a decoder busy for hours."""

_START_OF_SCAN = b"\xff\xda"

_FORMATS = (
    *("PNG", "JPEG", "BMP", "GIF", "PPM"),
    TiffImagePlugin.TiffImageFile.format,
    WebPImagePlugin.WebPImageFile.format,
)
_AVIF_ENDINGS = frozenset({".avif", ".avifs"})
_HEIF_ENDINGS = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})


def decode(data: bytes | os.PathLike[str], channels: int = 3) -> np.ndarray:
    """Decodes one image file by the rules at the top of this module.

    Args:
        data: the content of the file, or its path.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 [height, width, channels], values 0…255, read-only.

    Raises:
        UnreadableImage: the file is missing, empty, truncated, no regular file, not an image, of a
            format or pixel type that has no rule, or larger than allowed. The message is the
            reason.
        DataError: `channels` is neither 1 nor 3.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (4, 2), 7).save(file, "PNG")
        >>> decode(file.getvalue()).shape
        (2, 4, 3)
        >>> decode(b"no image")
        Traceback (most recent call last):
        ...
        logit_laplace_jax.data.errors.UnreadableImage: no image of a known format
    """
    check_channels(channels)
    try:
        content = data if isinstance(data, bytes) else _read(data)
        _check_size(len(content))
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImage(
                    f"{width}×{height} is more than the {MAX_PIXELS / 1e6:.0f} megapixels allowed"
                )
            # Inside a scan's data the byte 255 is always followed by a zero.
            if image.format in ("JPEG", "MPO") and content.count(_START_OF_SCAN) > MAX_SCANS:
                raise UnreadableImage(f"a JPEG of more than {MAX_SCANS} scans")
            image.load()
            with contextlib.suppress(Exception):  # A broken EXIF block says nothing of the pixels.
                ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image, channels)
    except UnreadableImage:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImage("no image of a known format") from None
    except MemoryError:
        raise UnreadableImage("too large for this machine's memory") from None
    except OSError as error:
        # The path that the system's message repeats is already part of the image's name.
        raise UnreadableImage(error.strerror or one_line(error)) from error
    except Exception as error:  # Pillow's decoders raise nearly every type on hostile input.
        raise UnreadableImage(one_line(error)) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here."""
    optional = []
    if features.check("avif"):
        importlib.import_module("PIL.AvifImagePlugin")
        optional.append("AVIF")
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        optional.append("HEIF")
    return (*_FORMATS, *optional)


def missing_endings() -> frozenset[str]:
    """Endings of the files that `decode` would read had Pillow another codec.

    Example:
        >>> missing_endings() <= {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif"}
        True
    """
    avif = frozenset() if "AVIF" in _formats() else _AVIF_ENDINGS
    return avif if "HEIF" in _formats() else avif | _HEIF_ENDINGS


def from_array(array: np.ndarray, channels: int = 3) -> np.ndarray:
    """Gives pixels that are already an array the asked number of channels.

    Args:
        array: uint8 [height, width] or [height, width, 1 | 3 | 4].
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8 [height, width, channels], read-only.

    Raises:
        UnreadableImage: another dtype or shape.
        DataError: `channels` is neither 1 nor 3.

    Example:
        >>> from_array(np.zeros((2, 4, 1), np.uint8)).shape
        (2, 4, 3)
    """
    check_channels(channels)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    shape_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (3, 4))
    if array.dtype != np.uint8 or not shape_ok or not array.size:
        raise UnreadableImage(
            f"needs uint8 [H, W, 1, 3 or 4], is {array.dtype} {list(array.shape)}"
        )
    return _pixels(Image.fromarray(np.ascontiguousarray(array)), channels)


def check_channels(channels: int) -> None:
    """Raises a DataError unless there are 1 or 3."""
    if channels not in (1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), not {channels!r}")


def _read(path: os.PathLike[str]) -> bytes:
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("no regular file")
        _check_size(status.st_size)
        return file.read(status.st_size)


def _open_at_once(path: str, flags: int) -> int:
    # Opening a pipe would wait until somebody writes into it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_size(size: int) -> None:
    if not size:
        raise UnreadableImage("the file is empty")
    if size > MAX_BYTES:
        raise UnreadableImage(
            f"{size / 2**30:.1f} GiB are more than the {MAX_BYTES / 2**30:.0f} GiB allowed"
        )


def _pixels(image: Image.Image, channels: int) -> np.ndarray:
    """uint8 [height, width, channels] of an image of any mode, read-only."""
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray(_eight_bit_grey(image))
    elif image.mode == "F":
        raise UnreadableImage("floating-point values have no defined white: convert it to 8 bit")
    elif image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        image = Image.alpha_composite(white, coloured).convert("RGB")
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        # CMYK has no direct way to grey in Pillow, and a palette's grey must come from its colours.
        image = image.convert("RGB").convert(mode)
    pixels = np.array(image).reshape(image.height, image.width, channels)
    pixels.flags.writeable = False  # Decoded images are shared, so writing into one must fail.
    return pixels


def _eight_bit_grey(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.int32)
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else 65535
    if values.size and not 0 <= values.min() <= values.max() <= white:
        raise UnreadableImage("32-bit values have no defined white: convert it to 8 or 16 bit")
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        values = white - values
    if isinstance(transparent := image.info.get("transparency"), int):
        values[values == transparent] = white
    return ((values * 255 + white // 2) // white).astype(np.uint8)
