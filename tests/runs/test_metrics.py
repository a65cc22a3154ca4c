"""metrics.jsonl and TensorBoard's events: exact, whole, and nothing twice after a kill."""

import json
import math
import struct
import types

import numpy as np
import pytest
import tiny
from tensorboardX.proto.event_pb2 import Event

from logit_laplace_jax.runs import metrics
from logit_laplace_jax.runs.errors import NonFiniteLoss


def board_of(folder):
    """What TensorBoard shows of a run: (tag, step) to the values that are not hidden."""
    shown = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            if event.HasField("session_log"):  # a new start hides what came later in the old one
                shown = {key: v for key, v in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown.setdefault((value.tag, event.step), []).append(value)
    return shown


def test_numbers_are_exact_and_nan_is_null(tmp_path):
    values = {"a": 0.1, "b": float(np.float32(1 / 3)), "c": math.nan, "d": math.inf, "e": 5e-324}
    writer = metrics.Writer(tmp_path, 0)
    writer.write(3, "train", values)
    picture = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    writer.image(3, "sheet", picture)
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    want = {"step": 3, "split": "train", **values, "c": None, "d": None}
    assert metrics.read(tmp_path / "metrics.jsonl") == [want]
    shown = board_of(tmp_path)
    assert shown["train/b", 3][0].simple_value == np.float32(1 / 3)
    assert np.isnan(shown["train/c", 3][0].simple_value)
    assert shown["sheet", 3][0].image.width == 4


@pytest.mark.parametrize("last", ["", '{"step": 5, "spl', '{"step": 5}\n\n', "\0\0\0"])
def test_what_a_killed_run_left_is_written_once(tmp_path, last):
    writer = metrics.Writer(tmp_path, 0)
    for step in (1, 2, 3, 4):
        writer.write(step, "train", {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(last)
    again = metrics.Writer(tmp_path, 3)
    again.write(4, "train", {"loss": 0.5})
    again.flush()  # before it is closed: a kill must not lose what came before
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [1.0, 2.0, 3.0, 0.5]
    again.close()
    shown = board_of(tmp_path)
    assert all(len(values) == 1 for values in shown.values())
    assert shown["train/loss", 4][0].simple_value == 0.5


def test_a_skipped_update_is_no_failure_until_the_loss_scale_ends(tmp_path):
    rows = []
    writer = types.SimpleNamespace(write=lambda *row: rows.append(row), flush=lambda: None)
    log = metrics.MetricLog(tiny.config(), writer, 0, None, lambda: "no checkpoint")

    def give(step, **values):
        usual = {"loss": 1.0, "nll": 1.0, "kl": 0.0, "grad_norm": 1.0, "skipped_steps": 0.0}
        log.add(step, usual | values, 0.0)
        log.flush()

    give(1, skipped=0.0, loss_scale=4.0)
    give(2, skipped=1.0, loss_scale=2.0, grad_norm=np.inf, loss=np.nan)
    with pytest.raises(NonFiniteLoss, match="smallest loss scale, 1, at step 3"):
        give(3, skipped=1.0, loss_scale=1.0, grad_norm=np.inf)
    assert [row[0] for row in rows] == [1, 2, 3]
