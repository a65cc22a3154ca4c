"""The folder of checkpoints: what is kept, what is written when, and what damage does to it."""

import errno
import os
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

from logit_laplace_jax.runs import errors
from logit_laplace_jax.runs.checkpoints import CheckpointError, Checkpoints
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
        # Of equals the latest.
        (1, {1: 3.0, 2: 3.0, 3: 3.0}, [3], 3),
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


def damage(step):
    (step / "state" / "manifest.ocdbt").write_bytes(b"nothing")


def test_damaged_ones_are_set_aside(tmp_path):
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
    assert folders(folder) == {"3.damaged", "2.damaged"}


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


def test_only_a_full_disk_is_called_one(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        with (
            pytest.raises(errors.RunError, match="is full") as caught,
            errors.clear_errors(tmp_path, "cpu"),
        ):
            raise OSError(number, os.strerror(number), "somewhere")
        assert "somewhere" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(PermissionError), errors.clear_errors(tmp_path, "cpu"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere")
