"""A run in this process: its directory, resuming, refusals, a loss that is not finite."""

import contextlib
import dataclasses
import json
import math
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from logit_laplace_jax.data.errors import DataError
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs import codecs, directory, loop, metrics, report, tasks
from logit_laplace_jax.runs.checkpoints import Checkpoints
from logit_laplace_jax.runs.errors import CheckpointError, NonFiniteLoss, RunError, Stopped
from logit_laplace_jax.runs.launch import Launch
from logit_laplace_jax.runs.streams import held_out
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import OptimizerConfig, from_dict
from logit_laplace_jax.training.evaluation import Evaluator
from logit_laplace_jax.training.schedules import Schedule

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEPS = 6
TIMING = {"images_per_second", "data_wait_share"}


@pytest.fixture(scope="module")
def base(photographs):
    return tiny.run_config(photographs)


def train(config, folder, launch=None, **changes):
    # The configuration is static to the compiler: runs of one name share what is compiled.
    assert folder.name == config.run_dir
    folder.parent.mkdir(exist_ok=True)
    said = []
    with contextlib.chdir(folder.parent):
        run = loop.train(tiny.change(config, **changes), launch=launch, say=said.append)
    return run, said


@pytest.fixture(scope="module")
def unbroken(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run, said = train(base, folder)
    return folder, run, said


@pytest.fixture
def copied(unbroken, tmp_path):
    """A finished run to do something to."""
    shutil.copytree(unbroken[0], tmp_path / "run")
    return tmp_path / "run"


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows_of(folder, split=None):
    rows = metrics.read(folder / "metrics.jsonl")
    rows = [{k: v for k, v in row.items() if k not in TIMING} for row in rows]
    return [row for row in rows if split in (None, row["split"])]


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def state_of(folder):
    state = directory.load(folder)
    return state.step, state.params, state.ema_params, state.opt_state


@contextlib.contextmanager
def signal_at_evaluation(number):
    """Raises a signal while the pictures of an evaluation are made."""
    real = tasks.reconstruct

    def interrupted(*args):
        signal.raise_signal(number)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "reconstruct", interrupted)
        yield


# --- The directory ---------------------------------------------------------------------------


def test_the_directory_holds_what_the_contract_says(unbroken, base):
    folder, run, _ = unbroken
    assert from_dict(json.loads((folder / "config.json").read_text())) == base.resolved()
    # The last two, as asked for, and the best of those that were evaluated.
    best = min(rows_of(folder, "validation"), key=lambda row: row["bpd_hard"])["step"]
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"4", "6", str(best)}
    assert (run.checkpoints[-1], run.best) == (6, best)
    pictures = {p.name for p in (folder / "reconstructions").iterdir()}
    assert pictures == {"step_0000003.png", "step_0000006.png"}
    for name in pictures:
        # Six crops of 8 with five gaps of 2, two rows, three times as large.
        assert Image.open(folder / "reconstructions" / name).size == (3 * 58, 3 * 18)
    assert [p for p in (folder / "tensorboard").iterdir() if "tfevents" in p.name]
    assert not [p for p in folder.rglob("*") if p.name.endswith(".part") or "tmp" in p.name]


def test_metrics_are_in_order_and_in_full_precision(unbroken):
    rows = [json.loads(line) for line in (unbroken[0] / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["step"], row["split"]) for row in rows]
    expected = [(step, "train") for step in range(1, 7)]
    expected.insert(3, (3, "validation"))
    assert steps == [*expected, (6, "validation")]
    for row in rows:
        values = {name: row[name] for name in row.keys() - {"step", "split"}}
        assert all(isinstance(v, float) and math.isfinite(v) for v in values.values())
        if row["split"] == "train":  # not one bit of a float32 rounded away
            assert all(float(np.float32(v)) == v for k, v in values.items() if k not in TIMING)


def test_metrics_follow_the_schedules(unbroken):
    for row in rows_of(unbroken[0], "train"):
        done = row["step"] - 1  # updates before this one
        rise = (1 - math.cos(math.pi * min(done / 4, 1))) / 2
        fall = (1 + math.cos(math.pi * done / STEPS)) / 2
        # float32 cosines.
        assert row["beta"] == pytest.approx(0.5 * rise, abs=1e-6)
        assert row["temperature"] == pytest.approx(0.5 + 0.5 * fall, rel=1e-6)
        assert row["learning_rate"] == pytest.approx(1e-3 + 9e-3 * fall, rel=1e-5)
        # f = 2, C = 3; two float32 roundings of numbers near 1.
        assert row["loss"] == pytest.approx(row["nll"] + row["beta"] * row["kl"] / 12, abs=1e-6)


def test_rows_and_checkpoints_are_as_many_as_asked_for(base, tmp_path):
    options = {"log_every": 4, "evaluation__every": 0, "checkpoint_every": 0}
    train(base, tmp_path / "run", **options)
    rows = [(row["step"], row["split"]) for row in rows_of(tmp_path / "run")]
    assert rows == [(1, "train"), (4, "train"), (6, "train"), (6, "validation")]
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"6"}


def test_the_checkpoint_is_the_state_at_the_end(unbroken):
    folder, run, _ = unbroken
    state = run.state
    assert state.step == STEPS
    assert_same_bits(
        (state.step, state.params, state.ema_params, state.opt_state), state_of(folder)
    )


def test_evaluation_afterwards_equals_the_last_row(unbroken):
    last = rows_of(unbroken[0])[-1]
    state = directory.load(unbroken[0])
    layout = devices.choose("single", state.config.batch_size)
    evaluator = Evaluator(layout, state.config)
    key = directory.keys(state.config)[2]
    values = evaluator(layout.replicate(state), held_out(state.config), key)
    assert values == {name: last[name] for name in last if name not in ("split", "step")}


# --- Resuming --------------------------------------------------------------------------------


def test_more_steps_go_on_to_the_bits_of_an_unbroken_run(base, unbroken, tmp_path):
    first, _ = train(base, tmp_path / "run", steps=3)
    assert first.state.step == 3
    _, said = train(base, tmp_path / "run")
    assert any("resuming" in line and "step 3" in line for line in said)
    assert_same_bits(state_of(tmp_path / "run"), state_of(unbroken[0]))
    assert rows_of(tmp_path / "run") == rows_of(unbroken[0])


def test_what_was_written_after_the_checkpoint_is_written_again(base, unbroken, copied):
    # As a killed run leaves it: rows up to 5 and a part of one, the last checkpoint of step 4.
    shutil.rmtree(copied / "checkpoints" / "6")
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:6]) + lines[6][:40])
    train(base, copied)
    assert_same_bits(state_of(copied), state_of(unbroken[0]))
    assert rows_of(copied) == rows_of(unbroken[0])


def test_a_finished_run_is_left_alone(base, copied):
    before = snapshot(copied)
    run, said = train(base, copied)
    assert any("complete" in line for line in said)
    assert not run.trained
    assert snapshot(copied) == before


def test_a_signal_saves_that_step_and_the_run_goes_on(base, unbroken, tmp_path):
    with (
        signal_at_evaluation(signal.SIGTERM),
        pytest.raises(Stopped, match="stopped by SIGTERM after step 3"),
    ):
        train(base, tmp_path / "run", checkpoint_every=0)
    assert int(directory.load(tmp_path / "run").step) == 3
    train(base, tmp_path / "run")
    assert_same_bits(state_of(tmp_path / "run"), state_of(unbroken[0]))


def test_data_initialisation_comes_before_the_first_step_only(base, tmp_path):
    whole, _ = train(base, tmp_path / "whole" / "run", init="data")
    plain, _ = train(base, tmp_path / "plain" / "run")
    kernels = [r.state.params["encoder"]["output"]["kernel"] for r in (whole, plain)]
    assert not np.array_equal(*kernels)
    with contextlib.suppress(Stopped), signal_at_evaluation(signal.SIGINT):
        train(base, tmp_path / "parts" / "run", init="data")
    parts, _ = train(base, tmp_path / "parts" / "run", init="data")
    assert_same_bits(whole.state.params, parts.state.params)


@pytest.mark.parametrize("threads", [0, 3])
def test_the_number_of_threads_changes_no_bit(base, unbroken, tmp_path, threads):
    run, _ = train(base, tmp_path / "run", data__threads=threads)
    assert_same_bits(run.state.params, unbroken[1].state.params)
    assert rows_of(tmp_path / "run") == rows_of(unbroken[0])


def test_a_profile_changes_nothing(base, unbroken, tmp_path):
    run, _ = train(base, tmp_path / "run", Launch(profile=True))
    traces = [p for p in (tmp_path / "run" / "profile").rglob("*.xplane.pb") if p.stat().st_size]
    assert len(traces) == 1
    assert_same_bits(run.state.params, unbroken[1].state.params)
    with jax.profiler.trace(tmp_path / "another"):  # one left running would refuse the next
        pass


# --- Refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, ["seed: 0 there, 5 here"]),
        (
            {"batch_size": 8, "likelihood__eps": 0.2},
            ["batch_size: 4 there, 8 here", "likelihood.eps: 0.1 there, 0.2"],
        ),
        ({"beta": Schedule(0.0, 0.5, 5)}, ["beta.steps: 4 there, 5 here"]),
        ({"likelihood__min_log_scale": None}, ["min_log_scale: -5.0 there, None here"]),
        ({"optimizer": OptimizerConfig(ema_decay=0.9)}, ["optimizer.ema_decay: 0.5 there"]),
        ({"model": DVAEConfig(group_count=2, n_hid=8)}, ["model.n_hid: 4 there, 8 here"]),
    ],
)
def test_another_configuration_is_refused(base, unbroken, changes, words):
    folder = unbroken[0]
    before = snapshot(folder)
    with pytest.raises(RunError, match="another configuration") as caught:
        train(base, folder, **changes)
    for word in [*words, "run holds", "--run-dir"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(folder) == before


def test_a_folder_that_is_no_run_is_refused(base, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty and holds no run"):
        train(base, tmp_path / "run")
    assert snapshot(tmp_path / "run") == {Path("thesis.txt"): b"years of work"}
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "run").write_text("more work")
    with pytest.raises(RunError, match="is a file"):
        train(base, tmp_path / "file" / "run")
    assert snapshot(tmp_path / "file") == {Path("run"): b"more work"}


@pytest.mark.parametrize("content", ["", "[]", "null", '{"steps": 3}', '{"surprise": 1}'])
def test_a_damaged_config_file_is_one_line(base, tmp_path, content):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    for attempt in (lambda: train(base, folder), lambda: directory.load(folder)):
        with pytest.raises(RunError, match=r"config\.json cannot be read") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert snapshot(folder) == {Path("config.json"): content.encode()}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_matmul_precision", "bfloat16"),
        ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 1),
    ],
)
def test_a_run_does_not_go_on_under_other_settings_of_jax(base, copied, name, value):
    before, here = snapshot(copied), jax.config.values[name]
    jax.config.update(name, value)
    try:
        with pytest.raises(RunError, match=f"{name.upper()}: {here} there, {value} here"):
            train(base, copied)
    finally:
        jax.config.update(name, here)
    assert snapshot(copied) == before
    (copied / "environment.json").write_text("{}")
    with pytest.raises(RunError, match=r"environment\.json cannot be read"):
        train(base, copied)


@pytest.mark.parametrize("name", ["a [1]", "b*", "what?"])
def test_a_run_below_a_name_that_is_a_file_pattern(base, unbroken, tmp_path, name):
    folder = tmp_path / name / "run"
    folder.parent.mkdir()
    if name == "a [1]":
        train(base, folder)
    else:
        shutil.copytree(unbroken[0], folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    train(base, folder)
    assert_same_bits(state_of(folder), state_of(unbroken[0]))


def test_looking_at_what_is_no_complete_run_changes_nothing(unbroken, tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        directory.load(tmp_path / "nowhere")
    shutil.copy(unbroken[0] / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        directory.load(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json"}


def test_a_second_process_is_kept_out(base, copied):
    shutil.rmtree(copied / "checkpoints" / "6")
    with directory.lock(copied), pytest.raises(RunError, match="another process is training"):
        train(base, copied)


def test_several_processes_on_one_device_are_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.processes, "require_agreement", lambda what, value: None)
    with pytest.raises(ValueError, match="several processes need --parallel pmap or mesh"):
        train(base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Damaged checkpoints ---------------------------------------------------------------------


def truncate(step):
    for path in (p for p in step.rglob("*") if p.is_file() and p.stat().st_size):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero_the_numbers(step):
    for path in (p for p in (step / "state").rglob("*") if p.is_file()):
        if "d" in path.relative_to(step / "state").parts:
            path.write_bytes(b"\0" * path.stat().st_size)


def remove_the_state(step):
    shutil.rmtree(step / "state")


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize("damage", [truncate, zero_the_numbers, remove_the_state, empty])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(base, unbroken, copied, damage):
    damage(copied / "checkpoints" / "6")
    # Who only looks is told, and nothing is moved.
    before = snapshot(copied)
    with pytest.raises(CheckpointError, match=r"checkpoint 6 in .* cannot be read") as caught:
        directory.load(copied)
    assert "\n" not in str(caught.value)
    assert snapshot(copied) == before
    # Who trains goes on, and the damaged folder is kept.
    _, said = train(base, copied)
    line = next(line for line in said if line.startswith("damaged"))
    assert "checkpoint 6" in line
    assert "\n" not in line
    assert any("resuming  at step 4" in line for line in said)
    assert (copied / "checkpoints" / "6.damaged").is_dir()
    assert_same_bits(state_of(copied), state_of(unbroken[0]))
    assert rows_of(copied) == rows_of(unbroken[0])


def test_when_every_checkpoint_is_damaged_it_is_one_clear_line(base, copied):
    for step in list((copied / "checkpoints").iterdir()):
        truncate(step)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        train(base, copied)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_an_error(unbroken):
    state = directory.load(unbroken[0])
    wide = jax.tree.map(lambda a: jnp.zeros((*a.shape, 2), a.dtype), state.params)
    with (
        Checkpoints(unbroken[0] / "checkpoints") as checkpoints,
        pytest.raises(CheckpointError, match="checkpoint 6"),
    ):
        checkpoints.restore(state.replace(params=wide))


# --- A loss that is not finite ---------------------------------------------------------------


@pytest.mark.parametrize(("bad", "saved"), [(2, None), (4, 2)])
def test_a_loss_that_is_not_finite_ends_the_run(base, tmp_path, monkeypatch, bad, saved):
    real = tasks.step.train_step

    def poisoned(state, batch, key, **options):
        after, values = real(state, batch, key, **options)
        return after, {**values, "loss": jnp.where(after.step == bad, jnp.nan, values["loss"])}

    monkeypatch.setattr(tasks.step, "train_step", poisoned)
    folder = tmp_path / "run"
    with pytest.raises(NonFiniteLoss) as caught:
        train(base, folder, evaluation__every=0)
    message = str(caught.value)
    assert "\n" not in message
    assert f"the loss is nan at step {bad}; the last good step is {bad - 1}" in message
    assert (f"checkpoint is of step {saved}" if saved else "no checkpoint yet") in message
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(1, bad + 1))
    assert rows[-1]["loss"] is None  # JSON has no NaN
    # The bad step is not saved, and after its cause is gone the run goes on as if it never was.
    monkeypatch.undo()
    train(base, folder, evaluation__every=3)
    assert [row["step"] for row in rows_of(folder, "train")] == list(range(1, STEPS + 1))


def test_parameters_that_are_not_finite_are_never_saved(base, tmp_path):
    # The first loss is finite, the first update is not: 1e38 times anything overflows soon.
    rate = Schedule(3e38, 3e38, 1)
    changes = {"learning_rate": rate, "checkpoint_every": 1, "evaluation__every": 0}
    with pytest.raises(NonFiniteLoss, match="step 2; the last good step is 1"):
        train(base, tmp_path / "run", **changes)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        state = directory.load(tmp_path / "run", path.name)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)), path


def test_debug_names_the_check_and_the_last_good_step(base, tmp_path):
    changes = {"learning_rate": Schedule(1e30, 1e30, 1), "checkpoint_every": 0, "debug": True}
    with pytest.raises(NonFiniteLoss, match=r"at step 2; the last good step is 1, there is no"):
        train(base, tmp_path / "run", **changes)


# --- The report ------------------------------------------------------------------------------


def test_the_report_of_a_finished_run_is_left_alone(base, copied):
    run, _ = train(base, copied)
    said = []
    with contextlib.chdir(copied.parent):
        report.finish(run, said.append)
        before = snapshot(copied)
        pictures = {Path("reconstructions", name) for name in ("final.png", "learning.gif")}
        assert {Path("summary.json"), *pictures} <= before.keys()
        report.finish(run, said.append)
    assert snapshot(copied) == before
    assert any("PSNR" in line for line in said)
    assert said[-1].endswith("final.png")


def test_the_table_does_without_k_means_where_patches_are_few(base, copied, monkeypatch):
    run, _ = train(base, copied)
    monkeypatch.chdir(copied.parent)
    monkeypatch.setattr(codecs, "_MOST_TRAINING_CROPS", 1)
    with contextlib.chdir(copied.parent):
        lines, values = report.compare(run)
    assert "psnr_kmeans" not in values
    assert "k-means left out" in lines[-1]
    assert values["psnr_constant"] < values["psnr_pooled"]  # the images are gradients


def test_held_out_images_smaller_than_a_crop_at_that_size_still_count(base, tmp_path):
    train(dataclasses.replace(base, steps=1), tmp_path / "run", evaluation__resize=0.25)
    assert rows_of(tmp_path / "run")[-1]["images"] == 2


class Gradients:
    """The smallest data set of a user's own."""

    def split(self, name):
        rows, columns = np.mgrid[:20, :24]
        shades = range(3) if name == "train" else range(5, 7)
        return [
            np.stack([8 * rows + 20 * i, 6 * columns, 5 * (rows + columns)], -1).astype(np.uint8)
            for i in shades
        ]


def test_a_data_set_of_the_callers_own(base, tmp_path):
    config = tiny.change(base, steps=2, run_dir=str(tmp_path / "run"), data__source="gradients")
    said = []
    run = loop.train(config, Gradients(), say=said.append)
    assert any("gradients: 3 images, 2 held out" in line for line in said)
    assert rows_of(run.folder)[-1]["images"] == 6  # of tiles of both, at most six
    report.finish(run, said.append)
    assert (run.folder / "reconstructions" / "final.png").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [(object(), "needs a method split"), (type("Empty", (), {"split": lambda *_: []})(), "Empty")],
)
def test_a_data_set_that_is_none_is_refused(base, tmp_path, source, words):
    with pytest.raises(DataError, match=words):
        loop.train(tiny.change(base, run_dir=str(tmp_path / "run")), source, say=print)
    assert not (tmp_path / "run").exists()
