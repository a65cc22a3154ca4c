"""Folders of images: what is found, in which order, and which of it is held out."""

import hashlib
import logging
import os

import numpy as np
import pytest

from logit_laplace_jax.data import errors, folder


def listed(path, split):
    files = folder.list_split(str(path), split)
    return [files.name(i) for i in range(len(files))]


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
        files = folder.list_split(str(root), split)
        expected = [pair for pair in found if (pair[0] in held_out) == (split == "validation")]
        assert [(files.name(i), str(files.path(i))) for i in range(len(files))] == expected


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
        assert folder.list_images(str(tmp_path)) == ["open/a.png"]
    assert "closed: Permission denied" in caplog.text
    with pytest.raises(errors.DataError, match="closed cannot be read: Permission denied"):
        folder.list_images(str(tmp_path / "closed"))
