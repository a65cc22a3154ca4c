"""What a run shows of itself: a profile, TensorBoard events, and the time spent on waiting."""

import contextlib
import dataclasses
import io
import json
import re
import shutil
import struct
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax.data import pipeline, sources
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs import loop, records
from logit_laplace_jax.training.config import Launch, TrainConfig
from logit_laplace_jax.training.schedules import Schedule

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 6
TIMING = {"images_per_second", "data_wait_share"}


@pytest.fixture(scope="module")
def base(photographs):
    return TrainConfig(
        run_dir="run",
        data=f"folder:{photographs}",
        steps=STEPS,
        batch_size=4,
        image_size=8,
        parallel="single",
        eval_every=3,
        checkpoint_every=2,
        min_log_scale=-5.0,
        eval_images=2,
        beta=Schedule(0.0, 0.5, 4),
        temperature=Schedule(1.0, 0.5, STEPS),
        learning_rate=Schedule(1e-2, 1e-3, STEPS),
        model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4),
    )


def train(config, folder, launch=None, **changes):
    said = []
    folder.mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        run = loop.Run(dataclasses.replace(config, **changes), said.append, launch)
        run.train()
    return run, said


@pytest.fixture(scope="module")
def plain(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    run, said = train(base, folder)
    return folder / "run", run, said


def assert_same_bits(got, want):
    parts = [(s.step, s.params, s.ema_params, s.opt_state) for s in (got, want)]
    jax.tree.map(np.testing.assert_array_equal, *parts)


def rows_of(folder):
    rows = records.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


# --- The profile -----------------------------------------------------------------------------


def traces(folder):
    return [path for path in (folder / "profile").rglob("*.xplane.pb") if path.stat().st_size]


def test_a_profile_changes_nothing(base, plain, tmp_path):
    run, _ = train(base, tmp_path, Launch(profile=True))
    assert len(traces(tmp_path / "run")) == 1
    assert_same_bits(run.state, plain[1].state)
    assert rows_of(tmp_path / "run") == rows_of(plain[0])
    assert not (plain[0] / "profile").exists()


def test_a_run_shorter_than_the_profile_is_profiled_too(base, tmp_path):
    train(base, tmp_path, Launch(profile=True), steps=2, eval_every=0)
    assert len(traces(tmp_path / "run")) == 1
    # And a profiler that is left running would refuse the next one.
    with jax.profiler.trace(tmp_path / "another"):
        pass


def test_a_run_that_fails_leaves_no_profiler_behind(base, tmp_path, monkeypatch):
    def broken(run, *args):
        raise RuntimeError("in the evaluation")

    monkeypatch.setattr(loop.Run, "_evaluate", broken)
    # The evaluation after five updates comes while the profile of the fourth to eighth runs.
    with pytest.raises(RuntimeError, match="in the evaluation"):
        train(base, tmp_path, Launch(profile=True), eval_every=5)
    with jax.profiler.trace(tmp_path / "another"):
        pass
    assert len(traces(tmp_path / "run")) == 1


# --- TensorBoard -----------------------------------------------------------------------------


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def events_of(path):
    """The events of one file, every checksum verified."""
    event = pytest.importorskip("tensorboardX.proto.event_pb2").Event
    content, events = path.read_bytes(), []
    while content:
        (length,), (check,) = struct.unpack("<Q", content[:8]), struct.unpack("<I", content[8:12])
        assert check == crc32c(content[:8])
        data, rest = content[12 : 12 + length], content[12 + length :]
        assert struct.unpack("<I", rest[:4])[0] == crc32c(data)
        events.append(event.FromString(data))
        content = rest[4:]
    return events


def board_of(folder):
    """What TensorBoard shows of a run: (tag, step) to the values that are not hidden."""
    shown = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        events = events_of(path)
        assert events[0].file_version == "brain.Event:2"
        for event in events:
            if event.HasField("session_log"):  # a new start hides what came later in the old one
                assert event.session_log.status == event.session_log.START
                shown = {key: v for key, v in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown.setdefault((value.tag, event.step), []).append(value)
    return shown


def assert_the_board_holds_the_rows(folder):
    expected = {}
    for row in records.read(folder / "metrics.jsonl"):
        step, split = row.pop("step"), row.pop("split")
        expected |= {(f"{split}/{name}", step): value for name, value in row.items()}
    shown = board_of(folder)
    assert all(len(values) == 1 for values in shown.values())  # none stands twice
    scalars = {key: v[0].simple_value for key, v in shown.items() if not v[0].HasField("image")}
    assert scalars.keys() == expected.keys()
    for key, value in scalars.items():
        assert value == np.float32(expected[key]), key
    return shown


def test_events_hold_every_number_and_the_picture(plain):
    folder = plain[0]
    shown = assert_the_board_holds_the_rows(folder)
    assert {("train/loss", 1), ("validation/bpd_hard", 3), ("train/data_wait_share", 6)} <= (
        shown.keys()
    )
    for step in (3, 6):
        encoded = shown["reconstructions", step][0].image.encoded_image_string
        picture = np.asarray(Image.open(io.BytesIO(encoded)))
        saved = np.asarray(Image.open(folder / "reconstructions" / f"step_{step:07d}.png"))
        np.testing.assert_array_equal(picture, saved[::3, ::3])  # the file is enlarged


def test_events_need_no_tensorflow(base, plain, tmp_path, monkeypatch):
    for name in ("tensorflow", "tensorboard"):  # importing them now is an error
        monkeypatch.setitem(sys.modules, name, None)
    train(base, tmp_path)
    assert board_of(tmp_path / "run").keys() == board_of(plain[0]).keys()


def test_without_tensorboardx_there_are_no_events(base, plain, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    train(base, tmp_path)
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert rows_of(tmp_path / "run") == rows_of(plain[0])


def test_no_step_is_shown_twice_after_a_kill(base, plain, tmp_path):
    # As a killed run leaves it: events and rows of all steps, the last checkpoint of step 4. It may
    # go on with another number of threads.
    folder = tmp_path / "run"
    shutil.copytree(plain[0], folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    run, _ = train(base, tmp_path, data_threads=3)
    assert_same_bits(run.state, plain[1].state)
    assert len(list((folder / "tensorboard").iterdir())) == 2
    shown = assert_the_board_holds_the_rows(folder)
    assert {step for tag, step in shown if tag == "train/loss"} == set(range(1, STEPS + 1))
    # The new file begins where the checkpoint ended.
    new = max((folder / "tensorboard").iterdir())
    assert {event.step for event in events_of(new) if event.summary.value} == {5, 6}


def test_what_is_flushed_is_in_the_file(tmp_path):
    pytest.importorskip("tensorboardX")
    log = records.Records(tmp_path)
    for step in range(1, 41):
        log.write(step, "train", {"loss": float(step)})
    log.flush()
    # Before it is closed: a kill after a checkpoint must not lose what came before it.
    shown = board_of(tmp_path)
    assert {step for _, step in shown} == set(range(1, 41))
    # A second start in the same second has a file of its own.
    again = records.Records(tmp_path, resume_step=30)
    again.write(31, "train", {"loss": 0.5})
    again.close()
    log.close()
    shown = board_of(tmp_path)
    assert {step for _, step in shown} == set(range(1, 32))
    assert shown["train/loss", 31][0].simple_value == 0.5


def test_numbers_that_are_none_reach_the_board(tmp_path):
    log = records.Records(tmp_path)
    log.write(1, "train", {"loss": float("nan"), "grad_norm": float("inf")})
    log.close()
    shown = board_of(tmp_path)
    assert np.isnan(shown["train/loss", 1][0].simple_value)
    assert np.isinf(shown["train/grad_norm", 1][0].simple_value)
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert row["loss"] is None


# --- Waiting for images ----------------------------------------------------------------------


def waiting(folder):
    rows = records.read(folder / "metrics.jsonl")
    return [row["data_wait_share"] for row in rows if row["split"] == "train"]


def shown_share(said):
    line = next(line for line in reversed(said) if line.startswith(f"step {STEPS}/"))
    return int(re.search(r"waiting for images (\d+) %", line)[1])


def test_the_share_of_waiting_is_measured_and_shown(plain):
    folder, _, said = plain
    shares = waiting(folder)
    assert len(shares) == STEPS
    assert all(0 < share < 1 for share in shares)
    assert shown_share(said) == round(100 * shares[-1])


def test_a_slow_source_shows(base, plain, tmp_path, monkeypatch):
    real = sources.Source.__getitem__

    def slow(source, index):
        if source.split == "train":
            time.sleep(0.1)
        return real(source, index)

    monkeypatch.setattr(sources.Source, "__getitem__", slow)
    # Without threads every batch is read when it is asked for: four images, 0.4 s.
    run, said = train(base, tmp_path, data_threads=0)
    shares = waiting(tmp_path / "run")
    # The step itself takes some ms, so even a machine ten times as slow stays above this.
    assert shares[-1] > 0.8
    assert shares[-1] <= 1
    assert shown_share(said) == round(100 * shares[-1])
    assert run.log.waiting_seconds > STEPS * 0.4
    # What was waited for is the same as ever.
    assert_same_bits(run.state, plain[1].state)


def test_the_number_of_threads_changes_no_bit(base, plain, tmp_path, monkeypatch):
    asked = []
    real = pipeline.train_batches

    def spied(*args, **options):
        asked.append(options["threads"])
        return real(*args, **options)

    monkeypatch.setattr(pipeline, "train_batches", spied)
    run, _ = train(base, tmp_path, data_threads=3)
    assert asked == [3]
    assert_same_bits(run.state, plain[1].state)
    assert rows_of(tmp_path / "run") == rows_of(plain[0])


def test_fewer_threads_than_none_are_refused(base):
    with pytest.raises(ValueError, match="data_threads must be 0 or more, got -1"):
        dataclasses.replace(base, data_threads=-1)
