"""Folders of images: what is found, in which order, and which of it is held out."""

import hashlib
import logging
import os

import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax.data import errors, folder, images, sources


def listed(path, split):
    images_of = folder.read_split(str(path), split)
    return [images_of["name"](i) for i in range(images_of["count"])]


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


# --- order and split -------------------------------------------------------------------------


def by_the_definition(root):
    """(name, file) of all images, by the simplest code; and the names that are held out."""
    found, entered = [], set()
    for place, folders, names in os.walk(root, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.join(place, name)
            ending = os.path.splitext(name)[1].lower()
            readable = os.path.isfile(path) or not os.path.exists(path)
            if not name.startswith(".") and ending in folder.EXTENSIONS and readable:
                relative = os.fsencode(os.path.relpath(path, root))
                found.append((relative.decode("utf-8", "backslashreplace"), path))
    found.sort()
    score = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        for name, _ in found
    }
    count = max(1, sum(value < 0.05 for value in score.values()))
    return found, set(sorted(score, key=score.__getitem__)[:count])


def test_order_and_split_follow_the_definition(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    # Blanks and hyphens sort before the slash, letters after it.
    for place in ("a", "a-b", "a b", "a/b", "a.png", "ab", "Ä", "z/deep/deeper", "."):
        for _ in range(25):
            name = "".join(rng.choice(list("ab-. _Äé漢"), 5))
            touch(root / place / f"{name}{rng.choice(['.png', '.JPG', '.txt', '.jpeg'])}")
    (root / "again").symlink_to(root / "z", target_is_directory=True)  # enters before z
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "dangling.png").symlink_to(root / "absent")
    (root / "circle.png").symlink_to(root / "circle.png")
    os.mkfifo(root / "pipe.png")
    try:
        for raw in (b"bad\xff.png", rb"bad\xff.png", b"bad\xfe\xff.png"):
            (root / os.fsdecode(raw)).touch()
    except OSError:
        pass  # This file system takes UTF-8 names only.
    found, held_out = by_the_definition(root)
    assert len(held_out) > 2
    for split in ("train", "validation"):
        part = folder.read_split(str(root), split)
        expected = [pair for pair in found if (pair[0] in held_out) == (split == "validation")]
        assert [(part["name"](i), str(part["read"](i))) for i in range(part["count"])] == expected


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_used(
    tmp_path, monkeypatch, caplog
):
    touch(tmp_path / "open" / "a.png")
    touch(tmp_path / "closed" / "b.png")
    real = os.scandir

    def scandir(path):
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with caplog.at_level(logging.WARNING):
        assert folder.find_images(str(tmp_path)) == (["open/a.png"], [])
    assert "closed: Permission denied" in caplog.text
    with pytest.raises(errors.DataError, match="closed cannot be read: Permission denied"):
        folder.find_images(str(tmp_path / "closed"))


# --- formats ---------------------------------------------------------------------------------


def test_every_ending_of_the_formats_that_are_decoded_is_looked_for():
    Image.init()
    formats = {*images._formats(), "MPO"}
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in formats}
    # A PFM holds floating-point values, which are refused.
    assert endings - {".pfm"} <= folder.EXTENSIONS
    assert not folder.EXTENSIONS & folder._OTHER_FORMATS


@pytest.mark.parametrize(
    ("ending", "kind", "mode"),
    [
        *((".jfif", "JPEG", "RGB"), (".JPE", "JPEG", "RGB"), (".mpo", "MPO", "RGB")),
        *((".pgm", "PPM", "L"), (".pbm", "PPM", "1"), (".pnm", "PPM", "RGB")),
        *((".apng", "PNG", "RGB"), (".avif", "AVIF", "RGB"), (".avif", "AVIF", "RGBA")),
    ],
)
def test_all_endings_of_a_format_are_read(tmp_path, ending, kind, mode):
    if ending in images.missing_endings():
        pytest.skip("this Pillow has no AVIF")
    Image.new(mode, (6, 4), "white").save(tmp_path / f"a{ending}", kind)
    source = sources.open_source(f"folder:{tmp_path}", "train")
    np.testing.assert_array_equal(source[0], np.full((4, 6, 3), 255))


def test_heif_is_read_where_its_package_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 48), "white").save(tmp_path / "a.heic")
    source = sources.open_source(f"folder:{tmp_path}", "train")
    assert source[0].shape == (48, 64, 3)
    assert source[0].min() > 250  # HEVC is lossy.


def test_image_files_that_cannot_be_read_are_counted_and_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(images, "_formats", lambda: ("PNG",))
    for name in ("b.AVIF", "a/c.heic", "raw.NEF", "note.txt"):
        touch(tmp_path / name)
    told = "3 image files have formats that cannot be read here (a/c.heic, b.AVIF, raw.NEF)"
    with pytest.raises(errors.DataError) as caught:
        folder.read_split(str(tmp_path), "train")
    assert str(caught.value).endswith(f"below it; {told}: convert to PNG or JPEG")
    touch(tmp_path / "a.png")
    for number in range(4):
        touch(tmp_path / f"x{number}.tga")
    for _ in range(2):
        assert listed(tmp_path, "train") == ["a.png"]
    assert [record.getMessage() for record in caplog.records] == [
        f"in {tmp_path} 7 image files have formats that cannot be read here "
        "(a/c.heic, b.AVIF, raw.NEF, x0.tga, x1.tga, …): convert to PNG or JPEG"
    ]
