"""Two real processes with two simulated devices each, on loopback: one run, also when one is lost.

What takes long is done for ``pmap`` and for the mesh at the same time.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from logit_laplace_jax.runs import metrics, processes
from logit_laplace_jax.runs.directory import load, read_config
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.training import devices
from logit_laplace_jax.training.state import create_state

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "experiments" / "train.py"
STEPS = 32
TIMING = {"images_per_second", "data_wait_share"}
LAYOUTS = {
    "pmap": ["--parallel=pmap", "--model.n-hid=4", "--model.vocab-size=8"],
    # Some of whose arrays are worth spreading over four devices.
    "mesh": ["--parallel=mesh", "--fsdp", "--model.n-hid=32", "--model.vocab-size=64"],
}
END_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""As the fixture ``start``: these outlive their test, and must not outlive pytest."""
PATIENCE = 300.0
"""Seconds after which a run hangs; a quiet machine needs thirty."""
NOTICED = 90.0
"""Seconds in which the loss of a process is said. The aim is a minute and the heartbeat half of
one; the rest is for machines on which much else runs."""


# --- Processes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(paint, tmp_path_factory):
    """A folder of images, and one for compiled functions that all processes share."""
    root = tmp_path_factory.mktemp("place")
    paint(root / "here" / "images", {"train": 3, "val": 2})
    paint(root / "there" / "images", {"train": 4, "val": 2})
    return root


def options(folder, layout):
    """A small run."""
    return [
        "smoke",
        f"--run-dir={folder}",
        "--data=folder:images",
        f"--steps={STEPS}",
        "--batch-size=8",
        "--image-size=8",
        "--eval-every=16",
        "--checkpoint-every=4",
        "--evaluation.resize=1.0",
        "--evaluation.images=6",
        "--model.n-init=4",
        *LAYOUTS[layout],
    ]


def free_port():
    # Below the range that the kernel gives to connections, so that none takes it meanwhile.
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise AssertionError("no port is free")


class Process:
    """train.py in a process of its own, its output in files."""

    number = 0

    def __init__(self, place, args, count, cwd="here"):
        Process.number += 1
        self.paths = [place / f"{name}-{Process.number}.txt" for name in ("out", "err")]
        with contextlib.ExitStack() as stack:
            out, err = (stack.enter_context(path.open("w")) for path in self.paths)
            self.process = subprocess.Popen(
                [sys.executable, "-c", END_WITH_PARENT, str(SCRIPT), *args],
                cwd=place / cwd,
                env={
                    **os.environ,
                    "JAX_PLATFORMS": "cpu",
                    "NPROC": "8",
                    "PYTHONUNBUFFERED": "1",
                    "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
                    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                },
                stdout=out,
                stderr=err,
            )

    @property
    def out(self):
        return self.paths[0].read_text()

    @property
    def err(self):
        return self.paths[1].read_text()

    def finish(self, timeout=PATIENCE):
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"still running after {timeout} s: {self.out}{self.err}")

    def own_lines(self):
        """What it printed itself: the runtime's transport reports its connections on stdout."""
        return [line for line in self.out.splitlines() if not line.startswith("[Gloo]")]


def start_pair(place, folder, layout, extra=((), ()), cwd=("here", "here")):
    port = free_port()
    return [
        Process(
            place,
            [
                *options(folder, layout),
                "--distributed",
                f"--coordinator=127.0.0.1:{port}",
                "--num-processes=2",
                f"--process-id={i}",
                *extra[i],
            ],
            count=2,
            cwd=cwd[i],
        )
        for i in range(2)
    ]


def saved(folder):
    """Steps of all complete checkpoints."""
    with contextlib.suppress(FileNotFoundError):
        return {int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()}
    return set()


def wait_for_new_checkpoints(pairs, folders):
    """Waits until each run has written one more, or has ended."""
    before = {layout: saved(folder) for layout, folder in folders.items()}
    deadline = time.monotonic() + PATIENCE
    waiting = set(pairs)
    while waiting and time.monotonic() < deadline:
        for layout in list(waiting):
            over = any(p.process.poll() is not None for p in pairs[layout])
            if over or saved(folders[layout]) - before[layout]:
                waiting.remove(layout)
                yield layout
        time.sleep(0.005)
    assert not waiting


def without_timing(folder):
    rows = metrics.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def arrays(state):
    return state.params, state.ema_params, state.opt_state


def assert_every_step_once(folder):
    steps = [row["step"] for row in without_timing(folder) if row["split"] == "train"]
    assert steps == list(range(1, STEPS + 1))


# --- The same run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(place):
    """Runs that nothing disturbed, by layout: folders of two processes and of one."""
    folders = {layout: (place / layout, place / f"{layout}-one") for layout in LAYOUTS}
    pairs = {layout: start_pair(place, folders[layout][0], layout) for layout in LAYOUTS}
    for pair in pairs.values():
        for process in pair:
            assert process.finish() == 0, process.err
    ones = {
        layout: Process(place, options(folders[layout][1], layout), count=4) for layout in LAYOUTS
    }
    for process in ones.values():
        assert process.finish() == 0, process.err
    return folders, pairs


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_are_one(unbroken, layout):
    two, one = unbroken[0][layout]
    assert_every_step_once(two)
    rows, expected = without_timing(two), without_timing(one)
    assert len(rows) == len(expected)
    # The same sums over devices in another order, and a gradient near 0 may turn its sign: Adam
    # makes a whole step of it. Rounding, 6e-8, grows so over the updates; a process that read the
    # other's images, or gradients twice too large, would change the losses in the second digit.
    for got, want in zip(rows, expected, strict=True):
        assert got.keys() == want.keys()
        for name in ("loss", "nll", "kl", "grad_norm", "bpd_hard", "bpd_relaxed", "psnr"):
            if name in want:
                assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-5), (got, want)
        if got["step"] == 1:  # before any update only the sums differ
            assert got["loss"] == pytest.approx(want["loss"], rel=1e-6)
    got, want = load(two), load(one)
    for ours, theirs in ((got.params, want.params), (got.ema_params, want.ema_params)):
        # Of steps of 1e-3 a few may go the other way where a gradient is rounding alone.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_first_process_prints(unbroken, layout):
    first, second = unbroken[1][layout]
    assert first.err == second.err == ""
    assert second.own_lines() == []
    assert "4 x cpu in 2 processes" in first.out
    assert "PSNR" in first.out


def test_the_state_is_really_spread(unbroken):
    folder = unbroken[0]["mesh"][0]
    config = read_config(folder).resolved()
    shapes = jax.eval_shape(lambda key: create_state(config, key), jax.random.key(0))
    layout = devices.choose("mesh", config.batch_size, fsdp=True)
    spread = [
        leaf.size
        for leaf, sharding in zip(
            jax.tree.leaves(shapes), jax.tree.leaves(layout.state_shardings(shapes)), strict=True
        )
        if not sharding.is_fully_replicated
    ]
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    assert sum(spread) > total  # of parameters, average and moments together a quarter or more
    # And each process wrote a part of it: what it held.
    for i in range(2):
        written = folder / "checkpoints" / str(STEPS) / "state" / f"ocdbt.process_{i}"
        assert sum(p.stat().st_size for p in written.rglob("*")) > sum(spread)


# --- Stopped, killed, started again -----------------------------------------------------------


def test_stopped_then_killed_then_finished(place, unbroken, tmp_path):
    folders = {layout: tmp_path / layout for layout in LAYOUTS}

    # Preemption reaches one process of each run: the second of one, the first of the other.
    told = {"pmap": 1, "mesh": 0}
    pairs = {layout: start_pair(place, folders[layout], layout) for layout in LAYOUTS}
    for layout in wait_for_new_checkpoints(pairs, folders):
        pairs[layout][told[layout]].process.send_signal(signal.SIGTERM)
    stopped = {}
    for layout, (first, second) in pairs.items():
        assert first.finish() == second.finish() == 143, (first.err, second.err)
        assert first.err == second.err == ""
        assert second.own_lines() == []
        last = first.own_lines()[-1]
        assert "stopped by SIGTERM after step" in last
        stopped[layout] = int(re.search(r"after step (\d+)", last)[1])
        assert max(saved(folders[layout])) == stopped[layout] < STEPS
        assert without_timing(folders[layout])[-1]["step"] == stopped[layout]

    # One process of each run is killed; the other does not wait for it for ever.
    lost = {"pmap": 1, "mesh": 0}
    pairs = {layout: start_pair(place, folders[layout], layout) for layout in LAYOUTS}
    for layout in wait_for_new_checkpoints(pairs, folders):
        pairs[layout][lost[layout]].process.kill()
    deadline = time.monotonic() + NOTICED
    for layout, pair in pairs.items():
        other = pair[1 - lost[layout]]
        assert other.finish(max(0.0, deadline - time.monotonic())) != 0
        assert f"resuming  at step {stopped[layout]}" in pair[0].out
        assert pair[lost[layout]].finish() == -signal.SIGKILL

    # The same commands again.
    last = {layout: max(saved(folder)) for layout, folder in folders.items()}
    pairs = {layout: start_pair(place, folders[layout], layout) for layout in LAYOUTS}
    for layout, pair in pairs.items():
        for process in pair:
            assert process.finish() == 0, process.err
        assert f"resuming  at step {last[layout]}" in pair[0].out
        assert_every_step_once(folders[layout])
        same = unbroken[0][layout][0]
        assert without_timing(folders[layout]) == without_timing(same)
        got, want = load(folders[layout]), load(same)
        jax.tree.map(np.testing.assert_array_equal, arrays(got), arrays(want))


# --- Mistakes ---------------------------------------------------------------------------------


def test_processes_that_differ_are_refused(place, tmp_path):
    cases = {
        "seed": {"extra": ((), ("--seed=1",)), "what": "the configuration"},
        "data": {"cwd": ("here", "there"), "what": "the data"},
    }
    for name, case in cases.items():
        what = case.pop("what")
        for process in start_pair(place, tmp_path / name, "pmap", **case):
            assert process.finish() == 2, process.err
            lines = process.err.splitlines()
            assert len(lines) == 1, process.err
            assert lines[0].startswith(f"train.py: error: {what} of process 1 differs"), lines
            assert "the same command on the same data" in lines[0]
        assert not (tmp_path / name).exists()


def test_wrong_options_are_refused(place, tmp_path):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        three = ["--coordinator=127.0.0.1:1", "--num-processes=2", "--process-id=0"]
        cases = {
            "--coordinator, --num-processes and --process-id": ["--distributed", three[0]],
            "cannot listen on port": ["--distributed", f"--coordinator=[::1]:{port}", *three[1:]],
        }
        started = {
            words: Process(place, [*options(tmp_path / "run", "pmap"), *args], count=2)
            for words, args in cases.items()
        }
        for words, process in started.items():
            assert process.finish() == 2, process.err
            lines = process.err.splitlines()
            assert len(lines) == 1, process.err
            assert lines[0].startswith("train.py: error: "), lines
            assert words in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("127.0.0.1:1", None, 0), "give all of --coordinator, --num-processes and --process-id"),
        (("127.0.0.1:1", 2, 2), "--process-id must lie in"),
        (("127.0.0.1:1", 2, -1), "--process-id must lie in"),
        (("localhost", 2, 0), "must be HOST:PORT"),
    ],
)
def test_wrong_options_in_words(args, words):
    with pytest.raises(RunError, match=words):
        processes.initialize(*args)


@pytest.mark.parametrize("host", ["127.0.0.1", "no.such.host.invalid"])
def test_a_wrong_address_is_said_in_good_time(monkeypatch, host):
    assert processes.ANSWER_SECONDS <= 60
    monkeypatch.setattr(processes, "ANSWER_SECONDS", 0.3)
    with pytest.raises(RunError, match=f"does not answer at --coordinator {re.escape(host)}:"):
        processes.initialize(f"{host}:{free_port()}", 2, 1)
