"""The folder of checkpoints: what is kept, what is written when, and what damage does to it."""

import contextlib
import errno
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import jax_utils
from PIL import Image

from logit_laplace_jax.runs import loop, records, run_directory
from logit_laplace_jax.runs.checkpoints import CheckpointError, Checkpoints, checksum
from logit_laplace_jax.training.loss_scaling import initial
from logit_laplace_jax.training.state import TrainState

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]


def state_at(step, seed=0):
    """A state of a few small arrays; no model is needed to save one."""
    rng = np.random.default_rng([seed, step])
    tree = {
        "encoder": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)},
        "decoder": {"bias": rng.normal(size=5).astype(np.float32)},
    }
    params = jax.tree.map(jnp.asarray, tree)
    # Moments that are not zero: what equals the fill value would not be on disk at all.
    moments = jax.tree.map(lambda leaf: leaf * 0.5 + 1.0, optax.adam(1.0).init(params)[0].mu)
    (adam, *rest) = optax.adamw(1.0).init(params)
    adam = adam._replace(count=jnp.int32(step), mu=moments, nu=jax.tree.map(jnp.exp, params))
    return TrainState(
        step=jnp.int32(step),
        params=params,
        ema_params=jax.tree.map(lambda leaf: leaf + 1.0, params),
        opt_state=(adam, *rest),
        loss_scale=None,
        config=None,
    )


def place(step):
    return {"next_index": step, "data": "0123456789abcdef"}


def measured(value):
    return {"bpd_hard": value, "psnr": 20.0}


def write(folder, measures, keep=None):
    """Checkpoints of the given steps, each with its measure or None."""
    with Checkpoints(folder, keep) as checkpoints:
        for step, value in measures.items():
            found = None if value is None else measured(value)
            checkpoints.save(state_at(step), place(step), found)
        checkpoints.wait()
        return checkpoints.steps, checkpoints.best


def folders(folder):
    return {path.name for path in folder.iterdir()}


def assert_same_bits(got, want):
    def same(a, b):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.reshape(-1).view(np.uint32), b.reshape(-1).view(np.uint32))

    jax.tree.map(same, got, want)


def read(folder, step=None):
    with Checkpoints(folder, create=False) as checkpoints:
        return checkpoints.restore(state_at(0), step)


# --- What is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "measures", "steps", "best"),
    [
        # The last two, and the best, wherever it lies.
        (2, {1: 5.0, 2: 3.0, 3: 4.0, 4: 4.5, 5: 4.2}, [2, 4, 5], 2),
        (2, {1: 5.0, 2: 4.0, 3: 3.0}, [2, 3], 3),
        # Of equals the earliest, which is there already.
        (1, {1: 3.0, 2: 3.0, 3: 3.0}, [1, 3], 1),
        # Nothing was evaluated: there is no best.
        (2, {1: None, 2: None, 3: None, 4: None}, [3, 4], None),
        # Steps without an evaluation do not count as good or bad.
        (1, {1: None, 2: 4.0, 3: None, 4: 5.0, 5: None}, [2, 5], 2),
        (1, {1: 2.0, 2: 1.0}, [2], 2),
        (None, {1: 3.0, 2: 1.0, 3: 2.0}, [1, 2, 3], 2),
    ],
)
def test_the_last_ones_and_the_best_stay(tmp_path, keep, measures, steps, best):
    assert write(tmp_path / "c", measures, keep) == (steps, best)
    assert folders(tmp_path / "c") == set(map(str, steps))
    # And a manager that comes later knows the same.
    with Checkpoints(tmp_path / "c", keep) as later:
        assert (later.steps, later.best, later.latest) == (steps, best, steps[-1])
    for step in steps:
        got, found = read(tmp_path / "c", step)
        assert_same_bits(got, state_at(step))
        assert found == place(step)


def test_a_resumed_manager_remembers_the_best(tmp_path):
    write(tmp_path / "c", {1: 3.0, 2: 4.0, 3: 5.0}, keep=1)
    assert write(tmp_path / "c", {4: 4.0, 5: None}, keep=1) == ([1, 5], 1)
    assert write(tmp_path / "c", {6: 2.0, 7: None}, keep=1) == ([6, 7], 6)


def test_is_better_compares_with_all_that_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
        assert checkpoints.is_better(measured(99.0))
        for step, value in {1: 4.0, 2: 5.0}.items():
            checkpoints.save(state_at(step), place(step), measured(value))
        assert checkpoints.is_better(measured(3.9))
        assert not checkpoints.is_better(measured(4.0))  # a tie is nothing new
        assert not checkpoints.is_better(measured(4.5))
        assert not checkpoints.is_better(measured(float("nan")))


def test_a_step_is_written_once(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(state_at(1), place(1))
        checkpoints.wait()
        checkpoints.save(state_at(1, seed=1), place(9))
    got, found = read(tmp_path / "c")
    assert_same_bits(got, state_at(1))
    assert found == place(1)


def test_a_loss_scale_is_saved_too(tmp_path):
    scaled = state_at(1).replace(loss_scale=initial(1024.0)._replace(skipped=jnp.int32(3)))
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(scaled, place(1))
        checkpoints.wait()
        got, _ = checkpoints.restore(state_at(0).replace(loss_scale=initial(2.0)))
    assert type(got.loss_scale) is type(scaled.loss_scale)
    assert_same_bits(got, scaled)


# --- Writing in the background ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one device", "pmap", "spread"])
def test_what_happens_to_the_state_afterwards_changes_nothing_on_disk(tmp_path, kind):
    # Large enough that writing takes longer than the steps that follow.
    def step(tree):
        return jax.tree.map(lambda leaf: leaf + 1, tree)

    start = {"w": jnp.arange(2**18, dtype=jnp.float32).reshape(4, -1)}
    if kind == "pmap":
        start = jax_utils.replicate(start)
        advance = jax.pmap(step, donate_argnums=0)
    elif kind == "spread":
        mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("batch",))
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
        start = jax.device_put(start, spread)
        advance = jax.jit(step, donate_argnums=0)
    else:
        advance = jax.jit(step, donate_argnums=0)

    def stored(tree, number):
        if kind == "pmap":
            tree = jax.tree.map(lambda a: a.addressable_data(0).reshape(a.shape[1:]), tree)
        return TrainState(jnp.int32(number), tree, {}, (), None, None)

    running = start
    reused = 0
    with Checkpoints(tmp_path / "c") as checkpoints:
        for number in range(1, 6):
            checkpoints.save(stored(running, number), place(number))
            for _ in range(20):
                before = running["w"]
                running = advance(running)
                reused += before.is_deleted()
        checkpoints.wait()
        assert reused == 100  # the donation was real
        like = TrainState(jnp.int32(0), {"w": jnp.zeros((4, 2**16))}, {}, (), None, None)
        first = np.arange(2**18, dtype=np.float32).reshape(4, -1)
        for number in range(1, 6):
            got, _ = checkpoints.restore(like, number)
            np.testing.assert_array_equal(got.params["w"], first + 20 * (number - 1))


def test_save_returns_before_the_files_are_there(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "c") as checkpoints:
        real = checkpoints._manager.save
        held = []

        def save(*args, **options):
            result = real(*args, **options)
            held.append(checkpoints._manager.is_saving_in_progress())
            return result

        monkeypatch.setattr(checkpoints._manager, "save", save)
        for step in (1, 2, 3, 4, 5):
            checkpoints.save(state_at(step), place(step))
        checkpoints.wait()
        # The machine may be so busy that one is finished at once, but not five.
        assert any(held)
        assert not checkpoints._manager.is_saving_in_progress()


# --- Half-written folders --------------------------------------------------------------------


def test_a_half_written_folder_is_no_checkpoint_and_is_cleaned(tmp_path):
    folder = tmp_path / "c"
    write(folder, {1: 3.0, 2: None})
    shutil.copytree(folder / "1", folder / "3.orbax-checkpoint-tmp")
    shutil.rmtree(folder / "3.orbax-checkpoint-tmp" / "data")
    # Who only looks changes nothing, and does not see it.
    with Checkpoints(folder, create=False) as looking:
        assert looking.steps == [1, 2]
    assert folders(folder) == {"1", "2", "3.orbax-checkpoint-tmp"}
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.steps == [1, 2]
        checkpoints.save(state_at(3), place(3))
    assert folders(folder) == {"1", "2", "3"}
    assert_same_bits(read(folder)[0], state_at(3))


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_checkpoints as t
folder = Path(sys.argv[2])
with t.Checkpoints(folder) as checkpoints:
    checkpoints.save(t.state_at(1), t.place(1))
    checkpoints.wait()
    checkpoints.save(t.state_at(2), t.place(2))
    os._exit(9)  # in the middle of writing
"""


def test_killed_while_writing(tmp_path):
    folder = tmp_path / "c"
    here = str(Path(__file__).parent)
    result = subprocess.run(
        [sys.executable, "-c", KILLED, here, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 9, result.stderr
    with Checkpoints(folder) as checkpoints:
        # All of the second one or nothing of it.
        assert checkpoints.steps in ([1], [1, 2])
        got, found = checkpoints.restore(state_at(0))
        step = checkpoints.latest
    assert_same_bits(got, state_at(step))
    assert found == place(step)
    assert folders(folder) == set(map(str, range(1, step + 1)))


# --- Damage ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two checkpoints, the earlier one the better."""
    folder = tmp_path_factory.mktemp("pair") / "c"
    write(folder, {1: 3.0, 2: 4.0})
    return folder


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def kind_of(path, folder):
    """A name for a file of a checkpoint; those of numbers are named at random."""
    parts = path.relative_to(folder).parts
    return "/".join("*" if len(part) == 32 else part for part in parts)


def outcome(folder, capfd):
    """What reading the latest of the pair gives: "same" bits, or an "error" said in one line."""
    capfd.readouterr()
    try:
        with Checkpoints(folder, create=False) as checkpoints:
            # Whatever became of the second one, the first is as it was.
            assert checkpoints.best == 1
            assert checkpoints.latest == 2
            got, found = checkpoints.restore(state_at(0))
    except CheckpointError as error:
        message = str(error)
    else:
        message = ""
        assert_same_bits(got, state_at(2))
        assert found == place(2)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")  # no thread's traceback either
    if not message:
        return "same"
    assert "\n" not in message
    assert "checkpoint 2 in" in message
    assert "cannot be read" in message
    return "error"


def test_a_single_flipped_bit_is_found_or_does_not_matter(pair, tmp_path, capfd):
    folder = tmp_path / "c"
    shutil.copytree(pair, folder)
    rng = random.Random(0)
    seen = set()
    for _, path in itertools.product(range(12), files(folder / "2")):
        content = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        original = path.read_bytes()
        path.write_bytes(content)
        seen.add((kind_of(path, folder / "2"), outcome(folder, capfd)))
        path.write_bytes(original)
    assert outcome(folder, capfd) == "same"
    # Where the numbers and the place in the data are, every bit matters.
    for kind in ("state/d/*", "state/manifest.ocdbt", "data/metadata"):
        assert (kind, "error") in seen
        assert (kind, "same") not in seen


def test_the_place_in_the_data_and_the_measure_are_guarded(pair, tmp_path, capfd):
    # Digits that become other digits: still JSON, and as plausible as before.
    text = (pair / "2" / "data" / "metadata").read_text()
    changes = [('"next_index": 2', '"next_index": 3'), ('"bpd_hard": 4.0', '"bpd_hard": 0.0')]
    for number, (old, new) in enumerate(changes):
        folder = tmp_path / str(number)
        shutil.copytree(pair, folder)
        assert text.count(old) == 1
        (folder / "2" / "data" / "metadata").write_text(text.replace(old, new))
        assert outcome(folder, capfd) == "error"
    # With another name for a field it is no other error either.
    for name in ("iterator", "checksums", "checksum", "next_index"):
        folder = tmp_path / name
        shutil.copytree(pair, folder)
        (folder / "2" / "data" / "metadata").write_text(text.replace(f'"{name}"', '"other"'))
        assert outcome(folder, capfd) == "error"
    for content in ("[]", "null", "3", '"checksum"', "{}", ""):
        (folder / "2" / "data" / "metadata").write_text(content)
        assert outcome(folder, capfd) == "error"


def test_truncated_and_deleted_files(pair, tmp_path, capfd):
    folder = tmp_path / "c"
    shutil.copytree(pair, folder)
    seen = set()
    for path in files(folder / "2"):
        original = path.read_bytes()
        kind = kind_of(path, folder / "2")
        for length in sorted({0, 1, len(original) // 2, len(original) - 1}):
            path.write_bytes(original[:length])
            seen.add((kind, outcome(folder, capfd)))
        path.unlink()
        seen.add((kind, outcome(folder, capfd)))
        path.write_bytes(original)
    for kind in ("state/d/*", "state/manifest.ocdbt", "data/metadata", "state/_METADATA"):
        assert (kind, "error") in seen
        assert (kind, "same") not in seen


def test_arrays_that_changed_places_are_found(tmp_path):
    # As if two files were exchanged: each is in itself whole.
    swapped = state_at(1)
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(swapped, place(1))
        checkpoints.save(swapped.replace(step=jnp.int32(2)), place(2))
        checkpoints.save(state_at(3), place(3))
    for step in ("1", "2"):  # the numbers of 3 under the name of 1 or 2
        target = tmp_path / "c" / step / "state"
        shutil.rmtree(target)
        shutil.copytree(tmp_path / "c" / "3" / "state", target)
        with pytest.raises(CheckpointError, match=r"the checksum of .* is wrong"):
            read(tmp_path / "c", int(step))


def damage(step):
    (step / "state" / "manifest.ocdbt").write_bytes(b"nothing")


def test_damaged_ones_are_set_aside_under_names_of_their_own(tmp_path):
    folder = tmp_path / "c"
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: where, state_at(0))
    for number in (1, 2, 3):
        write(folder, {1: 3.0, 2: None, 3: 2.0})
        damage(folder / "3")
        if number == 3:
            damage(folder / "2")
        said = []
        with Checkpoints(folder, keep=2) as checkpoints:
            assert checkpoints.best == 3
            got, found = checkpoints.restore_latest(state_at(0), shardings, said.append)
            expected = 1 if number == 3 else 2
            assert_same_bits(got, state_at(expected))
            assert found == place(expected)
            # What is damaged is no best either.
            assert checkpoints.best == 1
            assert checkpoints.is_better(measured(2.5))
            # The same step can be written again.
            checkpoints.save(state_at(3), place(3), measured(2.5))
            checkpoints.wait()
            assert (checkpoints.latest, checkpoints.best) == (3, 3)
        assert [line.split("(")[0] for line in said] == [
            f"damaged   checkpoint {step} " for step in ((3, 2) if number == 3 else (3,))
        ]
        assert all("\n" not in line and "going on from the one before" in line for line in said)
        # Nobody takes a damaged one for a checkpoint.
        names = folders(folder)
        with Checkpoints(folder, create=False) as looking:
            assert set(map(str, looking.steps)) == {name for name in names if name.isdigit()}
        for name in filter(str.isdigit, names):
            shutil.rmtree(folder / name)
    assert folders(folder) == {"3.damaged", "3.damaged2", "3.damaged3", "2.damaged"}


def test_when_all_are_damaged_nothing_is_moved(tmp_path):
    folder = tmp_path / "c"
    write(folder, {1: None, 2: None})
    damage(folder / "1")
    damage(folder / "2")
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: where, state_at(0))
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(CheckpointError, match=r"checkpoint 1 in .* cannot be read"),
    ):
        checkpoints.restore_latest(state_at(0), shardings, lambda line: None)
    assert folders(folder) == {"1", "2.damaged"}


def test_steps_that_are_not_there(pair, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 in .* \(there: 1, 2\)"):
        read(pair, 7)
    with pytest.raises(CheckpointError, match="no complete checkpoint yet"):
        read(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no complete checkpoint in"):
        read(tmp_path / "empty")
    assert folders(tmp_path) == {"empty"}


# --- A full disk -----------------------------------------------------------------------------


def test_a_write_that_fails_is_one_line(tmp_path, monkeypatch):
    # tensorstore's own error, as a full disk gave it; and the operating system's.
    texts = 'RESOURCE_EXHAUSTED: Error opening "zarr" driver:\nFailed to write: '
    for error, words in (
        (ValueError(texts + os.strerror(errno.ENOSPC)), "the disk is full"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "f"), "the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), "f"), "the disk is full"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "f"), "Permission denied"),
        (ValueError("strange\nand long"), "strange"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(state_at(1), place(1))
            checkpoints.wait()

            def fail(error=error, words=words):
                if "full" not in words:
                    raise error
                raise RuntimeError("in the background") from error

            with monkeypatch.context() as patch:
                patch.setattr(checkpoints._manager, "check_for_errors", fail)
                with pytest.raises(CheckpointError, match=words) as caught:
                    checkpoints.check()
            message = str(caught.value)
            assert "\n" not in message
            assert "the last complete one is of step 1" in message
            assert str(folder) in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("which", ["metrics", "board"])
def test_records_on_a_full_disk(tmp_path, which):
    log = records.Records(tmp_path)
    log.write(1, "train", {"loss": 1.0})
    log.flush()
    before = {path: path.read_bytes() for path in files(tmp_path)}
    if which == "board":
        pytest.importorskip("tensorboardX")

    def write_more():  # far more than a queue would hold, whose reader is gone
        for step in range(2, 200):
            log.write(step, "train", {f"metric_{n}": 1.0 for n in range(50)})
            log.flush()

    with contextlib.ExitStack() as stack:
        if which == "metrics":
            stack.callback(log._file.close)
            log._file = Path("/dev/full").open("a")  # noqa: SIM115 (closing it is the test)
        else:
            stack.callback(log._board._file._writer.close)
            log._board._file._writer = Path("/dev/full").open("ab")  # noqa: SIM115
        with pytest.raises(OSError, match="No space left"):
            write_more()
        with pytest.raises(OSError, match="No space left"):
            log.close()
        # All is closed, so that nothing is tried again when it is collected.
        assert log._file.closed
        assert log._board is None or log._board._file._writer.closed
    after = {path: path.read_bytes() for path in files(tmp_path)}
    assert after.keys() == before.keys()
    assert all(after[path].startswith(content) for path, content in before.items())


def test_only_a_full_disk_is_called_one(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        with (
            pytest.raises(run_directory.RunError, match="is full") as caught,
            run_directory.full_disk_in_one_line(tmp_path),
        ):
            raise OSError(number, os.strerror(number), "somewhere")
        assert "somewhere" in str(caught.value)
        assert "\n" not in str(caught.value)
    with (
        pytest.raises(PermissionError),
        run_directory.full_disk_in_one_line(tmp_path),
    ):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere")


OPTIONS = [
    *("smoke", "--run-dir=disk/run", "--parallel=single", "--steps=40", "--batch-size=4"),
    *("--image-size=8", "--eval-every=20", "--checkpoint-every=10", "--eval-scale=1.0"),
    *("--eval-images=6", "--model.n-hid=4", "--model.n-init=4", "--model.vocab-size=8"),
]
# A file system of its own, seen by these processes alone; it goes when they end.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=400k none disk && touch mounted || exit 77
"$@"; echo $? >first
mount -o remount,size=16m disk
cp -r disk/run full
"$@"; echo $? >second
cp -r disk/run run
"""


def test_a_real_full_disk(tmp_path):
    """400 KiB are too few for the third checkpoint; with more room the run goes on."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs Linux's unshare")
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        for number in range(3):
            rows, columns = np.mgrid[:20, :24]
            pixels = np.stack([8 * rows + 20 * number, 6 * columns, 5 * rows], axis=-1)
            target = tmp_path / "images" / split / f"{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(target)
    (tmp_path / "disk").mkdir()
    command = [sys.executable, str(ROOT / "experiments" / "train.py"), *OPTIONS]
    command.append(f"--data=folder:{tmp_path / 'images'}")
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

    def run(*words):
        return subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    result = run(unshare, "-Urm", "sh", "-c", ON_A_SMALL_DISK, "sh", *command)
    if not (tmp_path / "mounted").exists():
        pytest.skip(f"no small file system could be made here: {result.stderr.strip()}")
    assert (tmp_path / "first").read_text().strip() == "2", result.stderr
    errors = result.stderr.splitlines()
    assert len(errors) == 1, result.stderr
    assert errors[0].startswith("train.py: error: the disk ")
    assert "is full" in errors[0]
    assert "the same command goes on from" in errors[0]
    assert (tmp_path / "second").read_text().strip() == "0", result.stderr
    # The same run on a disk with room.
    plain = run(*(word.replace("disk/run", "plain") for word in command))
    assert plain.returncode == 0, plain.stderr
    got, want = loop.load(tmp_path / "run"), loop.load(tmp_path / "plain")
    assert int(got.step) == 40
    for name in ("params", "ema_params", "opt_state"):
        assert_same_bits(getattr(got, name), getattr(want, name))

    def rows(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        timing = {"images_per_second", "data_wait_share"}
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [{k: v for k, v in row.items() if k not in timing} for row in found]

    assert rows(tmp_path / "run") == rows(tmp_path / "plain")
    # What was written before is there, but for a line that the disk cut.
    before = rows(tmp_path / "full")
    assert before == rows(tmp_path / "plain")[: len(before)]
    assert [path for path in (tmp_path / "full" / "checkpoints").iterdir() if path.name.isdigit()]


# --- Checksums -------------------------------------------------------------------------------

ARRAYS = {
    "number": np.float32(1.5),
    "integer": np.int32(-7),
    "empty": np.zeros((0, 3), np.float32),
    "vector": np.arange(5, dtype=np.int32) - 2,
    "kernel": np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32),
    "odd sides": np.random.default_rng(1).normal(size=(7, 5, 3)).astype(np.float32),
    # Zeros of both signs, infinities, subnormals, and NaNs with payloads: bits, not values.
    "special": np.array(
        [0, 1 << 31, 0x7F800000, 0xFF800000, 1, 0x7FC00000, 0x7FC12345, 0xFFFFFFFF, 0x7F800001],
        np.uint32,
    ).view(np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_the_checksum_is_the_same_on_host_and_devices(name):
    array = np.asarray(ARRAYS[name])
    want = checksum(array)
    assert checksum(jax.device_put(array)) == want
    if array.ndim > 1:  # the memory's order is not the array's
        assert checksum(np.asfortranarray(array)) == want
        assert checksum(np.ascontiguousarray(array.T)) != want or array.size == 0
        assert checksum(np.repeat(array, 2, axis=0)[::2]) == want


def test_the_checksum_is_the_same_however_the_array_is_spread():
    array = np.random.default_rng(2).normal(size=(8, 4, 4)).astype(np.float32)
    want = checksum(array)
    axes = ("a", "b")
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()).reshape(2, 2), axes)
    spec = jax.sharding.PartitionSpec
    for parts in (spec(), spec("a"), spec(None, "b"), spec("b", None, "a"), spec(("a", "b"))):
        spread = jax.device_put(array, jax.sharding.NamedSharding(mesh, parts))
        assert checksum(spread) == want, parts


def test_the_checksum_finds_every_flipped_bit():
    for name in ("number", "integer", "vector", "special"):
        array = np.atleast_1d(ARRAYS[name])
        want = checksum(array)
        for index, bit in itertools.product(range(array.size), range(32)):
            words = array.view(np.uint32).copy()
            words[index] ^= np.uint32(1) << np.uint32(bit)
            assert checksum(words.view(array.dtype)) != want, (name, index, bit)


def test_the_checksum_finds_elements_that_changed_places():
    rng = np.random.default_rng(3)
    values = rng.normal(size=600).astype(np.float32)
    # Values whose words differ in the highest bits alone, which weights in arithmetic progression
    # do not tell apart at distances that are powers of two.
    values[::2] = 2.0 ** rng.integers(-3, 3, 300)
    values[1::4] *= -1
    values[3::4] = -values[1::4]
    want = checksum(values)
    tried = 0
    for distance in (1, 2, 4, 64, 128, 256, 512):
        for first in range(0, 600 - distance, 7):
            second = first + distance
            if values[first] == values[second]:
                continue
            swapped = values.copy()
            swapped[[first, second]] = swapped[[second, first]]
            assert checksum(swapped) != want, (first, second)
            tried += 1
    assert tried > 300
    zeros = np.zeros(10, np.float32)
    assert checksum(zeros) != checksum(-zeros)
