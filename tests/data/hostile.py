"""A zoo of broken, odd and hostile image files, each with what should come of it."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, features

WIDTH, HEIGHT = 40, 30
"""Size of every image that is readable, whatever else is odd about it."""

_FORMATS = ("png", "jpeg", "gif", "webp", "tiff", "bmp", "ppm")
_CUT = "truncated|Truncated|no image of a known format|decoder"
_TOO_LARGE = "megapixels|exceeds limit"


def write_zoo(folder: Path) -> dict[str, str | None]:
    """Writes the whole zoo into an empty folder.

    Returns:
        For every file that a walk of the folder must find: its name, and None where it is readable,
        else a pattern that the reason must match. Other files must not be found.
    """
    expected: dict[str, str | None] = {}
    for group in (_odd, _cut, _not_images, _lying, _bombs):
        for name, (content, reason) in group().items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            expected[name] = reason
    expected |= _links(folder)
    # Files that a listing shows and that are never to be opened.
    os.mkfifo(folder / "pipe.png")
    (folder / "link to a pipe.png").symlink_to(folder / "pipe.png")
    (folder / "empty folder.png").mkdir()
    (folder / ".hidden.png").write_bytes(b"")
    return expected


def photograph(seed: int = 0) -> Image.Image:
    """Smooth random colours: unlike noise, every codec keeps them."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The file's content."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth, colour, rows, before=(), after=()) -> bytes:
    """A PNG of any header, with other chunks before and after its pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(rows)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def tiff(pixels=b"", **fields) -> bytes:
    """An uncompressed TIFF of one strip, with any of its fields changed."""
    tags = {
        **{"width": (256, WIDTH), "height": (257, HEIGHT), "bits": (258, 8)},
        **{"compression": (259, 1), "photometric": (262, 1), "place": (273, 8)},
        **{"samples": (277, 1), "rows": (278, HEIGHT), "size": (279, len(pixels))},
    }
    entries = [(tag, 4, 1, fields.pop(name, value)) for name, (tag, value) in tags.items()]
    entries += fields.pop("more", [])
    directory = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    start = struct.pack("<2sHI", b"II", 42, 8 + len(pixels)) + pixels
    return start + struct.pack("<H", len(entries)) + directory + fields.pop("next", bytes(4))


def _gif(width, height, left, top, frame_width, frame_height) -> bytes:
    screen = struct.pack("<HHBBB", width, height, 0, 0, 0)
    frame = struct.pack("<HHHHB", left, top, frame_width, frame_height, 0)
    return b"GIF89a" + screen + b"," + frame + b"\x02\x02\x4c\x01\x00;"


def _webp_canvas(width, height) -> bytes:
    """An animation of one small frame on a canvas of any size."""
    frame = encoded(photograph(), "WEBP")[12:]
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    place = bytes(6) + struct.pack("<I", WIDTH - 1)[:3] + struct.pack("<I", HEIGHT - 1)[:3]
    chunks = b"".join(
        kind + struct.pack("<I", len(body)) + body
        for kind, body in (
            (b"VP8X", bytes([2, 0, 0, 0]) + sides),
            (b"ANIM", bytes(6)),
            (b"ANMF", place + bytes(4) + frame),
        )
    )
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _jpeg_claiming(width, height) -> bytes:
    content = bytearray(encoded(photograph(), "JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def _bmp_claiming(width, height) -> bytes:
    content = bytearray(encoded(photograph(), "BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: 14 bytes for each further pass."""
    content = encoded(photograph(), "JPEG", progressive=True)
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def _odd() -> dict[str, tuple[bytes, str | None]]:
    """Readable, each by one of the rules."""
    picture, other = photograph(), photograph(1)
    grey = picture.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 3
    deep = np.asarray(grey).astype(np.uint16) * 257
    rows = b"".join(b"\0" + bytes(WIDTH * 6) for _ in range(HEIGHT))
    frames = {"save_all": True, "append_images": [other]}
    contents = {
        "turned.jpg": encoded(picture, "JPEG", exif=turned),
        "broken exif.png": encoded(picture, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "grey.png": encoded(grey, "PNG"),
        "grey alpha.png": encoded(picture.convert("LA"), "PNG"),
        "alpha.png": encoded(picture.convert("RGBA"), "PNG"),
        "palette.png": encoded(picture.convert("P"), "PNG"),
        "palette transparent.png": encoded(picture.convert("P"), "PNG", transparency=3),
        "one bit.png": encoded(picture.convert("1"), "PNG"),
        "16 bit.png": encoded(Image.fromarray(deep), "PNG"),
        "16 bit.tif": encoded(Image.fromarray(deep), "TIFF"),
        "16 bit colour.png": png(WIDTH, HEIGHT, 16, 2, rows),
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(picture.convert("CMYK"), "TIFF"),
        "animated.gif": encoded(picture, "GIF", **frames),
        "animated.webp": encoded(picture, "WEBP", **frames),
        "animated.png": encoded(picture, "PNG", **frames),
        "pages.tiff": encoded(picture, "TIFF", **frames),
        "several.jpg": encoded(picture, "MPO", **frames),
        "progressive.JPEG": encoded(picture, "JPEG", progressive=True),
        "top down.bmp": _bmp_claiming(WIDTH, -HEIGHT),
        "a jpeg.png": encoded(picture, "JPEG"),
        "line\nbreak.png": encoded(picture, "PNG"),
        "漢字 🦜.png": encoded(picture, "PNG"),
        "folder.png/inside.png": encoded(picture, "PNG"),
        "more pixels than declared.png": png(WIDTH, HEIGHT, 8, 2, rows * 20),
        "tag beyond the end.tif": tiff(
            bytes(WIDTH * HEIGHT), more=[(700, 1, 0xFFFFFFF0, 20)], next=struct.pack("<I", 8)
        ),
    }
    return {name: (content, None) for name, content in contents.items()}


def _cut() -> dict[str, tuple[bytes, str | None]]:
    files = {}
    for kind in (*_FORMATS, *(["avif"] if features.check("avif") else [])):
        content = encoded(photograph(), kind)
        for percent in range(10, 100, 10):
            files[f"cut {percent}.{kind}"] = (content[: len(content) * percent // 100], _CUT)
    return files


def _not_images() -> dict[str, tuple[bytes, str | None]]:
    unknown = "no image of a known format"
    return {
        "empty.png": (b"", "empty"),
        "text.png": (b"this is no image\n" * 50, unknown),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", unknown),
        "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", unknown),
        "vector.png": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', unknown),
        "zeros.bmp": (bytes(1000), unknown),
        "header only.png": (encoded(photograph(), "PNG")[:33], _CUT),
        "floating.tif": (encoded(Image.new("F", (9, 9)), "TIFF"), "floating-point"),
        "32 bit.tif": (encoded(Image.new("I", (9, 9), 70_000), "TIFF"), "32-bit"),
    }


def _lying() -> dict[str, tuple[bytes, str | None]]:
    """Headers that do not fit what follows them."""
    pixels = bytes(WIDTH * HEIGHT)
    return {
        "no width.png": (png(0, 5, 8, 2, b""), "no image of a known format"),
        "no size.jpg": (_jpeg_claiming(0, 0), "no image of a known format"),
        "no size.bmp": (_bmp_claiming(0, 0), "no image of a known format"),
        "negative.bmp": (_bmp_claiming(-WIDTH, HEIGHT), _TOO_LARGE),
        "no screen.gif": (_gif(0, 0, 0, 0, 0, 0), "no image of a known format"),
        "no frame.gif": (_gif(4, 4, 0, 0, 0, 0), "tile|known format|truncated"),
        "long number.ppm": (b"P6\n99999999999999999999 9\n255\n", "Token too long"),
        "negative.ppm": (b"P6\n-3 4\n255\nabc", "no image of a known format"),
        "wrong maximum.ppm": (b"P6\n3 4\n70000\nabc", "maxval"),
        "strip beyond the end.tif": (tiff(pixels, place=10**9), "truncated"),
        "no sides.tif": (tiff(pixels, width=0, height=0), "."),
        "many samples.tif": (tiff(pixels, samples=60_000), "no image of a known format"),
        "wrong compression.tif": (tiff(pixels, compression=5), "decoder"),
        "wrong checksum.png": (
            encoded(photograph(), "PNG").replace(b"IDAT", b"IDAT\x00", 1),
            "truncated|broken|known format",
        ),
    }


def _bombs() -> dict[str, tuple[bytes, str | None]]:
    """Small files that would cost much."""
    unfolds = zlib.compress(bytes(3 * 2**20))
    rows = (b"\0" + bytes(WIDTH * 3)) * HEIGHT
    text = "too large"
    return {
        "huge.png": (png(60_000, 60_000, 8, 2, bytes(100)), _TOO_LARGE),
        "huge.jpg": (_jpeg_claiming(60_000, 60_000), _TOO_LARGE),
        "huge.gif": (_gif(65_535, 65_535, 0, 0, 1, 1), _TOO_LARGE),
        "huge frame.gif": (_gif(4, 4, 0, 0, 65_535, 65_535), _TOO_LARGE),
        "huge.webp": (_webp_canvas(60_000, 60_000), _TOO_LARGE),
        "huge.bmp": (_bmp_claiming(2**31 - 1, 2**31 - 1), _TOO_LARGE),
        "huge.ppm": (b"P6\n9999999 9999999\n255\nabc", _TOO_LARGE),
        "huge.tif": (tiff(width=2**31 - 1, height=2**31 - 1), _TOO_LARGE),
        "text.zip.png": (
            png(WIDTH, HEIGHT, 8, 2, rows, before=[(b"zTXt", b"k\0\0" + unfolds)]),
            text,
        ),
        "text behind.png": (
            png(WIDTH, HEIGHT, 8, 2, rows, after=[(b"zTXt", b"k\0\0" + unfolds)]),
            text,
        ),
        "international text.png": (
            png(WIDTH, HEIGHT, 8, 2, rows, before=[(b"iTXt", b"k\0\1\0\0\0" + unfolds)]),
            text,
        ),
        "profile.png": (
            png(WIDTH, HEIGHT, 8, 2, rows, before=[(b"iCCP", b"k\0\0" + unfolds)]),
            text,
        ),
        "scans.jpg": (many_scans(600), "more than 500 scans"),
    }


def _links(folder: Path) -> dict[str, str | None]:
    """Files that are more than their content."""
    expected: dict[str, str | None] = {}
    (folder / "link.png").symlink_to("grey.png")
    expected["link.png"] = None
    (folder / "dangling.png").symlink_to(folder / "absent")
    expected["dangling.png"] = "No such file"
    (folder / "circle.png").symlink_to(folder / "circle.png")
    expected["circle.png"] = "symbolic links"
    (folder / "folder.png" / "up").symlink_to(folder, target_is_directory=True)
    with open(folder / "sparse.bmp", "wb") as file:
        file.truncate(2**31 + 1)  # It takes no space.
    expected["sparse.bmp"] = "2.0 GiB are more than the 2 GiB allowed"
    if os.geteuid():  # The superuser may read everything.
        (folder / "forbidden.png").write_bytes(encoded(photograph(), "PNG"))
        (folder / "forbidden.png").chmod(0)
        expected["forbidden.png"] = "Permission denied"
    return expected
