"""Folders of images: the walk, the index on disk, and when that no longer holds."""

import hashlib
import logging
import os
import shutil
import threading

import numpy as np
import pytest

from logit_laplace_jax.data import errors, folder, folder_index, walk


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
            if not name.startswith(".") and ending in walk.EXTENSIONS and readable:
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
        assert files.names(0, len(files)) == [name for name, _ in expected]
        assert files.names(1, 3) == [name for name, _ in expected[1:3]]
        assert files.names(1, 1) == []


def test_a_folder_that_cannot_be_read_is_named_and_the_others_are_used(
    tmp_path, monkeypatch, caplog
):
    touch(tmp_path / "open" / "a.png")
    touch(tmp_path / "closed" / "b.png")
    real = os.scandir

    def scandir(path):
        if path.endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with caplog.at_level(logging.WARNING):
        found = walk.walk(str(tmp_path))
    assert (len(found.files), found.files[0], found.complete) == (1, b"open/a.png", False)
    assert "closed: Permission denied" in caplog.text
    with pytest.raises(errors.DataError, match="closed cannot be read: Permission denied"):
        walk.walk(str(tmp_path / "closed"))


# --- the index on disk -----------------------------------------------------------------------


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """A folder whose index is kept at once, however small and new it is."""
    monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(folder_index, "_WORTH_KEEPING", 1)
    monkeypatch.setattr(folder_index, "_SETTLED", 0.0)
    monkeypatch.setattr(folder_index, "_file_system", lambda path: "ext4")
    root = tmp_path / "data"
    for place in ("a", "b/c", "."):
        for i in range(20):
            touch(root / place / f"{i}.png")
    (tmp_path / "elsewhere").mkdir()
    (root / "a" / "nowhere").symlink_to(tmp_path / "absent")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    return root


@pytest.fixture
def walks(monkeypatch):
    """The folders that were walked."""
    made = []
    real = walk.walk
    monkeypatch.setattr(folder_index, "walk", lambda root: made.append(root) or real(root))
    return made


def kept(root):
    return sorted((root.parent / "cache").glob("*"))


def wait_for_the_clock(root):
    """Returns once a change has another time than those before: file systems' clocks tick."""
    before = max(os.stat(place).st_ctime_ns for place, _, _ in os.walk(root.parent))
    probe = root.parent / "probe"
    while True:
        probe.write_text("")
        if probe.stat().st_ctime_ns > before:
            return


def test_a_folder_is_walked_once_for_both_splits_and_all_later_runs(indexed, walks):
    first = [listed(indexed, split) for split in ("train", "validation")]
    assert len(walks) == 1
    assert len(kept(indexed)) == 1
    assert [listed(indexed, split) for split in ("train", "validation")] == first
    assert len(walks) == 1
    assert len(first[0]) + len(first[1]) == 60
    link = indexed.parent / "link"
    link.symlink_to(indexed)
    assert listed(link, "train") == first[0]  # the same folder under another name
    assert len(walks) == 1


def put_back(root):
    """Adds a file as an archive does, which sets the folder's time to what it was."""
    times = (root / "a").stat()
    touch(root / "a" / "new.png")
    os.utime(root / "a", ns=(times.st_atime_ns, times.st_mtime_ns))


def another_folder(root):
    shutil.copytree(root / "b", root.parent / "copy")
    (root / "b").rename(root.parent / "old")
    touch(root.parent / "copy" / "c" / "new.png")
    (root.parent / "copy").rename(root / "b")


CHANGES = {
    "added": lambda root: touch(root / "a" / "new.png"),
    "added deep below": lambda root: touch(root / "b" / "c" / "new.png"),
    "added in a new folder": lambda root: touch(root / "b" / "d" / "new.png"),
    "removed": lambda root: (root / "a" / "3.png").unlink(),
    "renamed": lambda root: (root / "a" / "3.png").rename(root / "a" / "new.png"),
    "moved": lambda root: (root / "a" / "3.png").rename(root / "b" / "new.png"),
    "swapped folders": another_folder,
    "time put back": put_back,
    "behind a link": lambda root: touch(root.parent / "elsewhere" / "new.png"),
    "a link leads somewhere now": lambda root: touch(root.parent / "absent" / "new.png"),
    "folder removed": lambda root: shutil.rmtree(root / "b"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stale_index_is_never_used(indexed, walks, change):
    before = listed(indexed, "train")
    wait_for_the_clock(indexed)
    CHANGES[change](indexed)
    after = [listed(indexed, split) for split in ("train", "validation")]
    found, _ = by_the_definition(indexed)
    assert sorted(after[0] + after[1]) == [name for name, _ in found]
    assert after[0] != before
    assert len(walks) == 2
    assert len(kept(indexed)) == 1  # replaced


def test_what_is_in_a_file_does_not_matter(indexed, walks):
    listed(indexed, "train")
    wait_for_the_clock(indexed)
    (indexed / "a" / "3.png").write_bytes(b"other pixels")
    listed(indexed, "train")
    assert len(walks) == 1


def damaged(content):
    yield b""
    yield b"no index"
    yield content[: len(content) // 2]
    yield content[:-10]
    for place in range(0, len(content), max(1, len(content) // 40)):
        yield content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def test_a_damaged_index_is_written_anew(indexed, walks):
    expected = listed(indexed, "train")
    (place,) = kept(indexed)
    content = place.read_bytes()
    for number, wrong in enumerate(damaged(content)):
        place.write_bytes(wrong)
        assert listed(indexed, "train") == expected, number
    # A bit of the archive's own dates is no damage; most places are.
    assert len(walks) > 20
    count = len(walks)
    place.write_bytes(b"no index")
    listed(indexed, "train")
    listed(indexed, "train")
    assert len(walks) == count + 1


@pytest.mark.parametrize("key", ["ends", "folder_ends", "stamps", "held_out", "files", "about"])
@pytest.mark.parametrize("wrong", [[-5], [10**9], [[1, 2]], []])
def test_an_index_that_makes_no_sense_is_written_anew(indexed, walks, key, wrong):
    expected = listed(indexed, "train")
    (place,) = kept(indexed)
    arrays = dict(np.load(place))
    arrays[key] = np.array(wrong, np.int64)
    np.savez(place, **arrays)
    assert listed(indexed, "train") == expected
    assert len(walks) == 2


def test_other_rules_make_another_index(indexed, walks, monkeypatch):
    listed(indexed, "train")
    monkeypatch.setattr(folder_index, "_RULES", "of a later version")
    listed(indexed, "train")
    assert len(walks) == 2


def test_two_folders_are_not_taken_for_each_other(indexed, walks, monkeypatch):
    """Not even if they had the same key."""
    other = indexed.parent / "other"
    touch(other / "x.png")
    touch(other / "y.png")
    place = folder_index._place(str(indexed))
    monkeypatch.setattr(folder_index, "_place", lambda root: place)
    listed(indexed, "train")
    assert len(listed(other, "train")) == 1
    assert len(walks) == 2


@pytest.mark.parametrize("reason", ["turned off", "inside", "a file", "few", "new", "file system"])
def test_where_no_index_is_kept(indexed, walks, reason, monkeypatch):
    before = set(indexed.parent.rglob("*"))
    cache = indexed.parent / "cache"
    if reason == "turned off":
        monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", "")
    elif reason == "inside":
        monkeypatch.setenv("LOGIT_LAPLACE_JAX_CACHE", str(indexed / "b" / "cache"))
    elif reason == "a file":  # which no folder can be made in
        cache.write_text("")
        before.add(cache)
    elif reason == "few":
        monkeypatch.setattr(folder_index, "_WORTH_KEEPING", 61)
    elif reason == "new":
        monkeypatch.setattr(folder_index, "_SETTLED", 1e6)
    elif reason == "file system":
        monkeypatch.setattr(folder_index, "_file_system", lambda path: "fuse.bucket")
    for _ in range(2):
        assert len(listed(indexed, "train")) + len(listed(indexed, "validation")) == 60
    assert len(walks) == 4
    assert set(indexed.parent.rglob("*")) == before


def test_no_index_of_a_folder_that_could_not_be_read_in_full(indexed, monkeypatch):
    real = os.scandir

    def scandir(path):
        if path.endswith(b"b"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    with monkeypatch.context() as context:
        context.setattr(os, "scandir", scandir)
        assert len(listed(indexed, "train")) < 60
    assert not kept(indexed)
    assert len(listed(indexed, "train")) + len(listed(indexed, "validation")) == 60


def test_many_at_once(indexed):
    results = [None] * 8
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        results[number] = [listed(indexed, "train") for _ in range(5)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(names == results[0][0] for result in results for names in result)
    assert [place.suffix for place in kept(indexed)] == [".npz"]


def test_where_the_index_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("LOGIT_LAPLACE_JAX_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root = str(tmp_path / "data")
    for variable, folder_of_it in (
        (None, tmp_path / "home/.cache/logit_laplace_jax"),
        ("relative", tmp_path / "home/.cache/logit_laplace_jax"),  # as the XDG rules have it
        (str(tmp_path / "xdg"), tmp_path / "xdg/logit_laplace_jax"),
    ):
        if variable:
            monkeypatch.setenv("XDG_CACHE_HOME", variable)
        else:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert folder_index._place(root).parent == folder_of_it
    # The home folder itself holds its cache, so it gets none.
    assert folder_index._place(str(tmp_path)) is None


def test_the_file_system_is_that_of_the_nearest_and_latest_mount(tmp_path, monkeypatch):
    here = os.path.realpath(tmp_path)
    spaced = tmp_path / "with blank"
    spaced.mkdir()
    lines = f"""1 0 8:1 / / rw shared:1 - ext4 /dev/sda rw
2 1 0:5 / {here} rw - xfs /dev/sdb rw
3 1 0:6 / {here} rw - fuse.bucket bucket rw
4 1 0:7 / {here}/with\\040blank rw - nfs4 server rw
5 1 0:8 / {here}/with rw - vfat server rw"""
    monkeypatch.setattr(folder_index, "_mounts", lambda: lines.encode().splitlines())
    assert folder_index._file_system(b"/") == "ext4"
    assert folder_index._file_system(os.fsencode(tmp_path)) == "fuse.bucket"
    assert folder_index._file_system(os.fsencode(spaced)) == "nfs4"
    monkeypatch.setattr(folder_index, "_mounts", list)
    assert folder_index._file_system(b"/") == ""
