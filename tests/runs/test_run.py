"""A run in this process: its directory, resuming, refusals, a loss that is not finite."""

import contextlib
import dataclasses
import json
import math
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.runs import loop, records, report
from logit_laplace_jax.runs.checkpoints import CheckpointError, Checkpoints
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.config import OptimizerConfig, TrainConfig, from_dict
from logit_laplace_jax.training.evaluation import Evaluator
from logit_laplace_jax.training.schedules import Schedule

STEPS = 6
TIMING = {"images_per_second", "data_wait_share"}


@pytest.fixture(scope="module", autouse=True)
def steps_once(quick_compilation):
    """Each step once for all runs of this module, in memory too."""
    compiled = {}
    real = devices.Layout.compile

    def compile_(layout, step, donate=False, debug=False):
        key = layout, step, donate, debug
        if key not in compiled:
            compiled[key] = real(layout, step, donate, debug)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices.Layout, "compile", compile_)
        yield


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
        keep_checkpoints=2,
        log_every=1,
        min_log_scale=-5.0,
        min_crop=0.6,
        eval_scale=1.0,
        eval_images=6,
        beta=Schedule(0.0, 0.5, 4),
        temperature=Schedule(1.0, 0.5, STEPS),
        learning_rate=Schedule(1e-2, 1e-3, STEPS),
        optimizer=OptimizerConfig(ema_decay=0.5),
        model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4),
    )


def train(config, folder, **changes):
    # The configuration is static to the compiler: runs of one name share what is compiled.
    assert folder.name == config.run_dir
    said = []
    with contextlib.chdir(folder.parent):
        run = loop.Run(dataclasses.replace(config, **changes), said.append)
        run.train()
    return run, said


@pytest.fixture(scope="module")
def unbroken(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run, said = train(base, folder)
    return folder, run, said


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def without_timing(folder):
    rows = records.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def assert_same_bits(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def state_of(folder):
    state = loop.load(folder)
    return state.step, state.params, state.ema_params, state.opt_state


# --- The directory ---------------------------------------------------------------------------


def test_the_directory_holds_what_the_contract_says(unbroken, base):
    folder, _, _ = unbroken
    saved = from_dict(json.loads((folder / "config.json").read_text()))
    assert saved == base.resolved()
    # The last two, as asked for, and the best of those that were evaluated.
    rows = [row for row in without_timing(folder) if row["split"] == "validation"]
    best = min(rows, key=lambda row: row["bpd_hard"])["step"]
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"4", "6", str(best)}
    pictures = {p.name for p in (folder / "reconstructions").iterdir()}
    assert pictures == {"step_0000003.png", "step_0000006.png"}
    for name in pictures:
        # Six crops of 8 with five gaps of 2, two rows, three times as large.
        assert Image.open(folder / "reconstructions" / name).size == (3 * 58, 3 * 18)
    pytest.importorskip("tensorboardX")
    assert [p for p in (folder / "tensorboard").iterdir() if "tfevents" in p.name]


def test_no_half_written_file_is_left(unbroken):
    assert not [p for p in unbroken[0].rglob("*") if p.name.endswith(".part") or "tmp" in p.name]


def test_metrics_are_one_object_a_line_in_order(unbroken):
    rows = [json.loads(line) for line in (unbroken[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (3, "validation"),
        (4, "train"),
        (5, "train"),
        (6, "train"),
        (6, "validation"),
    ]
    for row in rows:
        for name in row.keys() - {"step", "split"}:
            assert isinstance(row[name], float), name
            assert math.isfinite(row[name]), name


def test_metrics_are_in_full_precision(unbroken):
    for row in without_timing(unbroken[0]):
        if row["split"] == "train":
            for name in row.keys() - {"step", "split"}:
                assert float(np.float32(row[name])) == row[name]  # not one bit rounded away
    values = [row["loss"] for row in without_timing(unbroken[0]) if "loss" in row]
    assert any(len(repr(value)) > 12 for value in values)


def test_metrics_follow_the_schedules(unbroken):
    rows = [row for row in without_timing(unbroken[0]) if row["split"] == "train"]
    for row in rows:
        done = row["step"] - 1  # updates before this one
        rise = (1 - math.cos(math.pi * min(done / 4, 1))) / 2
        fall = (1 + math.cos(math.pi * done / STEPS)) / 2
        # float32 cosines.
        assert row["beta"] == pytest.approx(0.5 * rise, abs=1e-6)
        assert row["temperature"] == pytest.approx(0.5 + 0.5 * fall, rel=1e-6)
        assert row["learning_rate"] == pytest.approx(1e-3 + 9e-3 * fall, rel=1e-5)
        # f = 2, C = 3; two float32 roundings of numbers near 1.
        assert row["loss"] == pytest.approx(row["nll"] + row["beta"] * row["kl"] / 12, abs=1e-6)
        assert row["kl"] >= 0


def test_rows_are_as_many_as_asked_for(base, tmp_path):
    train(base, tmp_path / "run", log_every=4, eval_every=0, checkpoint_every=0)
    rows = without_timing(tmp_path / "run")
    assert [(row["step"], row["split"]) for row in rows] == [
        (1, "train"),
        (4, "train"),
        (6, "train"),
        (6, "validation"),
    ]
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"6"}


def test_the_checkpoint_is_the_state_at_the_end(unbroken):
    folder, run, _ = unbroken
    assert run.state.step == STEPS
    state = run.state
    assert_same_bits(
        (state.step, state.params, state.ema_params, state.opt_state), state_of(folder)
    )


def test_evaluation_afterwards_equals_the_last_row(unbroken):
    last = without_timing(unbroken[0])[-1]
    state = loop.load(unbroken[0])
    layout = devices.choose("single", state.config.batch_size)
    evaluator = Evaluator(layout, state.config)
    crops = loop.held_out(state.config)
    values = evaluator(layout.replicate(state), crops, loop.evaluation_key(state.config))
    assert values == {name: last[name] for name in last if name not in ("split", "step")}


# --- Resuming --------------------------------------------------------------------------------


def test_more_steps_go_on_to_the_bits_of_an_unbroken_run(base, unbroken, tmp_path):
    first, _ = train(base, tmp_path / "run", steps=3)
    assert first.state.step == 3
    _, said = train(base, tmp_path / "run")
    assert any("resuming" in line and "step 3" in line for line in said)
    assert_same_bits(state_of(tmp_path / "run"), state_of(unbroken[0]))
    assert without_timing(tmp_path / "run") == without_timing(unbroken[0])


def test_what_was_written_after_the_checkpoint_is_written_again(base, unbroken, tmp_path):
    # As a killed run leaves it: rows up to 5 and a part of one, the last checkpoint of step 4.
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    shutil.rmtree(folder / "checkpoints" / "6")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:6]) + lines[6][:40])
    train(base, folder)
    assert_same_bits(state_of(folder), state_of(unbroken[0]))
    assert without_timing(folder) == without_timing(unbroken[0])


def test_a_finished_run_is_left_alone(base, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    before = snapshot(folder)
    _, said = train(base, folder)
    after = snapshot(folder)
    assert any("complete" in line for line in said)
    changed = {str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    assert changed == set()


# --- Refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, ["seed: 0 there, 5 here"]),
        ({"batch_size": 8, "eps": 0.2}, ["batch_size: 4 there, 8 here", "eps: 0.1 there, 0.2"]),
        ({"beta": Schedule(0.0, 0.5, 5)}, ["beta.steps: 4 there, 5 here"]),
        ({"min_log_scale": None}, ["min_log_scale: -5.0 there, None here"]),
        ({"optimizer": OptimizerConfig(ema_decay=0.9)}, ["optimizer.ema_decay: 0.5 there"]),
        ({"model": DVAEConfig(group_count=2, n_hid=8)}, ["model.n_hid: 4 there, 8 here"]),
    ],
)
def test_another_configuration_is_refused(base, unbroken, changes, words):
    folder = unbroken[0]
    before = snapshot(folder)
    with pytest.raises(ValueError, match="another configuration") as caught:
        train(base, folder, **changes)
    for word in [*words, "run holds", "--run-dir"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert snapshot(folder) == before


def test_a_folder_that_is_no_run_is_refused(base, tmp_path):
    foreign = tmp_path / "run"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and holds no run"):
        train(base, foreign)
    assert snapshot(foreign) == {Path("thesis.txt"): b"years of work"}
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "run").write_text("more work")
    with pytest.raises(ValueError, match="is a file"):
        train(base, tmp_path / "file" / "run")
    assert snapshot(tmp_path / "file") == {Path("run"): b"more work"}


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"steps": 3}', '{"surprise": 1}'])
def test_a_damaged_config_file_is_one_line(base, tmp_path, content):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    for attempt in (lambda: train(base, folder), lambda: loop.load(folder)):
        with pytest.raises(loop.RunError, match=r"config\.json cannot be read") as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert snapshot(folder) == {Path("config.json"): content.encode()}


def test_no_run_directory(tmp_path):
    with pytest.raises(loop.RunError, match="is not a run directory"):
        loop.load(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_looking_at_a_run_without_a_checkpoint_changes_nothing(unbroken, tmp_path):
    shutil.copy(unbroken[0] / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        loop.load(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json"}


# --- Damaged checkpoints ---------------------------------------------------------------------


def damage_truncate(step):
    for path in (p for p in step.rglob("*") if p.is_file() and p.stat().st_size):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_arrays(step):
    for path in (p for p in (step / "state").rglob("*") if p.is_file()):
        if "d" in path.relative_to(step / "state").parts:  # where the numbers are
            path.write_bytes(b"\0" * path.stat().st_size)


def damage_remove_state(step):
    shutil.rmtree(step / "state")


def damage_empty(step):
    shutil.rmtree(step)
    step.mkdir()


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_arrays, damage_remove_state, damage_empty],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(base, unbroken, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    damage(folder / "checkpoints" / "6")
    # Who only looks is told, and nothing is moved.
    before = snapshot(folder)
    with pytest.raises(CheckpointError, match=r"checkpoint 6 in .* cannot be read") as caught:
        loop.load(folder)
    assert "\n" not in str(caught.value)
    assert snapshot(folder) == before
    # Who trains goes on, and the damaged folder is kept.
    _, said = train(base, folder)
    line = next(line for line in said if line.startswith("damaged"))
    assert "checkpoint 6" in line
    assert "\n" not in line
    assert any("resuming  at step 4" in line for line in said)
    assert (folder / "checkpoints" / "6.damaged").is_dir()
    assert_same_bits(state_of(folder), state_of(unbroken[0]))
    assert without_timing(folder) == without_timing(unbroken[0])


def test_when_every_checkpoint_is_damaged_it_is_one_clear_line(base, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    for step in list((folder / "checkpoints").iterdir()):
        damage_truncate(step)
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        train(base, folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_model_is_an_error(unbroken):
    state = loop.load(unbroken[0])
    wide = jax.tree.map(lambda a: jnp.zeros((*a.shape, 2), a.dtype), state.params)
    with (
        Checkpoints(unbroken[0] / "checkpoints") as checkpoints,
        pytest.raises(CheckpointError, match="checkpoint 6"),
    ):
        checkpoints.restore(state.replace(params=wide))


# --- A loss that is not finite ---------------------------------------------------------------


@pytest.mark.parametrize(("bad", "saved"), [(2, None), (4, 2)])
def test_a_loss_that_is_not_finite_ends_the_run(base, tmp_path, monkeypatch, bad, saved):
    real = loop.train_step

    def poisoned(state, batch, key, **options):
        after, metrics = real(state, batch, key, **options)
        return after, {**metrics, "loss": jnp.where(after.step == bad, jnp.nan, metrics["loss"])}

    monkeypatch.setattr(loop, "train_step", poisoned)
    folder = tmp_path / "run"
    with pytest.raises(loop.NonFiniteLoss) as caught:
        train(base, folder, eval_every=0)
    message = str(caught.value)
    assert "\n" not in message
    assert f"the loss is nan at step {bad}; the last good step is {bad - 1}" in message
    assert (f"checkpoint is of step {saved}" if saved else "no checkpoint yet") in message
    rows = without_timing(folder)
    assert [row["step"] for row in rows] == list(range(1, bad + 1))
    assert rows[-1]["loss"] is None  # JSON has no NaN
    assert all(row["loss"] is not None for row in rows[:-1])
    # The bad step is not saved, and after its cause is gone the run goes on as if it never was.
    monkeypatch.undo()
    train(base, folder, eval_every=3)
    assert [row for row in without_timing(folder) if row["step"] == STEPS]
    steps = [row["step"] for row in without_timing(folder) if row["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))


def test_parameters_that_are_not_finite_are_never_saved(base, tmp_path):
    # The first loss is finite, the first update is not: 1e38 times anything overflows soon.
    rate = Schedule(3e38, 3e38, 1)
    with pytest.raises(loop.NonFiniteLoss, match="step 2; the last good step is 1"):
        train(base, tmp_path / "run", learning_rate=rate, checkpoint_every=1, eval_every=0)
    for step in (int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()):
        with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
            state, _ = checkpoints.restore(loop.load(tmp_path / "run"), step)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params)), step


# --- Records ---------------------------------------------------------------------------------


def test_records_write_numbers_exactly_and_nan_as_null(tmp_path):
    log = records.Records(tmp_path)
    values = {"a": 0.1, "b": float(np.float32(1 / 3)), "c": math.nan, "d": math.inf, "e": 5e-324}
    log.write(3, "train", values)
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert not re.search("NaN|Infinity", text)
    assert records.read(tmp_path / "metrics.jsonl") == [
        {"step": 3, "split": "train", **values, "c": None, "d": None}
    ]


@pytest.mark.parametrize("last", ["", '{"step": 5, "spl', '{"step": 5}\n\n', "\0\0\0"])
def test_records_drop_what_a_killed_run_left(tmp_path, last):
    path = tmp_path / "metrics.jsonl"
    kept = "".join(json.dumps({"step": s, "split": "train"}) + "\n" for s in (1, 2, 3))
    path.write_text(kept + json.dumps({"step": 4, "split": "train"}) + "\n" + last)
    log = records.Records(tmp_path, resume_step=3)
    log.write(4, "train", {"loss": 1.0})
    log.close()
    assert path.read_text() == kept + '{"step": 4, "split": "train", "loss": 1.0}\n'


# --- What a stranger's review found ------------------------------------------------------------


def test_a_signal_during_an_evaluation_saves_that_step(base, tmp_path, monkeypatch):
    real = loop.Run._evaluate

    def interrupted(run, *args):
        real(run, *args)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "_evaluate", interrupted)
    with pytest.raises(loop.Stopped, match="stopped by SIGTERM after step 3"):
        train(base, tmp_path / "run", checkpoint_every=0)
    assert int(loop.load(tmp_path / "run").step) == 3


def test_debug_names_the_check_and_the_last_good_step(base, tmp_path):
    ruinous = Schedule(1e30, 1e30, 1)
    with pytest.raises(
        loop.NonFiniteLoss, match=r"at step 2; the last good step is 1, there is no"
    ):
        train(base, tmp_path / "run", learning_rate=ruinous, checkpoint_every=0, debug=True)


def test_data_initialisation_comes_before_the_first_step_only(base, tmp_path):
    for name in ("whole", "plain", "parts"):
        (tmp_path / name).mkdir()
    whole, _ = train(base, tmp_path / "whole" / "run", init="data")
    plain, _ = train(base, tmp_path / "plain" / "run")
    kernels = [r.state.params["encoder"]["output"]["kernel"] for r in (whole, plain)]
    assert not np.array_equal(*kernels)
    # Stopped and resumed it is not normalised again.
    with contextlib.suppress(loop.Stopped), pytest.MonkeyPatch.context() as patch:
        real = loop.Run._evaluate

        def interrupted(run, *args):
            real(run, *args)
            signal.raise_signal(signal.SIGINT)

        patch.setattr(loop.Run, "_evaluate", interrupted)
        train(base, tmp_path / "parts" / "run", init="data")
    parts, _ = train(base, tmp_path / "parts" / "run", init="data")
    assert_same_bits(whole.state.params, parts.state.params)


def test_held_out_images_too_small_for_the_scale_still_count(base, tmp_path):
    run, _ = train(base, tmp_path / "run", eval_scale=0.25)
    assert records.read(tmp_path / "run" / "metrics.jsonl")[-1]["images"] == 2
    assert not run.held_out.skipped


def test_several_processes_on_one_device_are_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.processes, "require_agreement", lambda what, value: None)
    with pytest.raises(ValueError, match="several processes need --parallel pmap or mesh"):
        loop.Run(dataclasses.replace(base, run_dir=str(tmp_path / "run")), print)
    assert not (tmp_path / "run").exists()


def test_the_report_of_a_finished_run_is_left_alone(base, tmp_path):
    run, _ = train(base, tmp_path / "run")
    with contextlib.chdir(tmp_path):
        report.finish(run)
        before = snapshot(tmp_path / "run")
        assert {Path("summary.json"), Path("reconstructions/final_val_0_png.png")} <= before.keys()
        report.finish(run, trained=False)
    assert snapshot(tmp_path / "run") == before


def test_the_table_does_without_k_means_where_patches_are_few(base, tmp_path):
    run, _ = train(base, tmp_path / "run")
    crops = loop.stack_crops(run.held_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_MOST_TRAINING_CROPS", 1)
        lines, values = report.compare(run.config, run.state, crops)
    assert "psnr_kmeans" not in values
    assert "k-means left out" in lines[-1]
    assert values["psnr_constant"] < values["psnr_pooled"]  # the images are gradients
