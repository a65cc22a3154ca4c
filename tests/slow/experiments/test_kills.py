"""A run that is killed, stopped or started twice, at random moments, many times.

Python and JAX take seconds to start, so the runs are children of one process that has imported
everything and has started no device: each begins where a fresh process would after its imports.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from logit_laplace_jax.runs import loop, records

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "train.py"
STEPS = 32
TIMING = {"images_per_second", "data_wait_share"}
PATIENCE = 240.0
"""Seconds after which a run hangs; a quiet machine needs ten."""

# --- The parent of the runs ------------------------------------------------------------------

# Commands and answers are lines of JSON. A run's own steps on files, as Python sees them, are
# numbered by an audit hook, which can kill the run right before one of them: so a kill in the
# middle of a checkpoint falls there on slow machines and on fast ones. SIGUSR1 writes down where
# the main thread is.
PARENT = r"""
import contextlib, faulthandler, json, os, re, runpy, signal, sys

script = sys.argv[1]
sys.path.insert(0, os.path.dirname(script))
import configs, tyro, PIL.PngImagePlugin
from logit_laplace_jax.training import loop, processes, report
with contextlib.suppress(ImportError):
    import tensorboardX

KINDS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def watch(folder, pattern, count, where, trace):
    place = os.open(where, os.O_WRONLY)
    left = [count]

    def hook(kind, args):
        if kind not in KINDS:
            return
        name = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if name.startswith(folder + os.sep):
            name = os.path.relpath(name, folder)
        elif kind in ("os.remove", "os.rmdir") and args[1] >= 0:
            name = "within " + name  # a folder that is being removed
        else:
            return
        if kind == "open" and (not isinstance(args[1], str) or args[1].startswith("r")):
            return
        step = kind.removeprefix("os.") + " " + name
        if trace:
            os.write(place, (step + "\n").encode())
        elif re.search(pattern, step):
            left[0] -= 1
            if left[0] == 0:
                os.write(place, step.encode())
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run(out, err, where, args, folder, pattern, count, trace):
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(path, flags, 0o644), number)
    sys.stdout.reconfigure(line_buffering=True)
    # As in a terminal, also where the tests run in the background and SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, open(where, "w"), all_threads=False)
    if pattern or trace:
        watch(folder, pattern, count, where, trace)
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")


print(json.dumps(len(os.listdir("/proc/self/task"))), flush=True)
while line := os.read(0, 1 << 20):
    command = json.loads(line)
    if "wait" in command:
        flags = os.WNOHANG if command["quick"] else 0
        pid, status = os.waitpid(command["wait"], flags)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    else:
        answer = os.fork()
        if answer == 0:
            run(**command)
            sys.exit(0)
    print(json.dumps(answer), flush=True)
"""


class Parent:
    """The process that starts runs, one line at a time."""

    def __init__(self, environment):
        self._process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(SCRIPT)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.threads = self._answer()

    def _answer(self):
        return json.loads(self._process.stdout.readline())

    def ask(self, **command):
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self):
        self._process.stdin.close()
        self._process.wait(timeout=PATIENCE)


class Child:
    """One run: its process, what it printed, and where it was when it was killed."""

    number = 0

    def __init__(self, parent, place, folder, args, pattern="", count=1, trace=False):
        Child.number += 1
        self.parent, self.status = parent, None
        self.paths = {
            name: place / f"{name}-{Child.number}.txt" for name in ("out", "err", "where")
        }
        self.pid = parent.ask(
            **{name: str(path) for name, path in self.paths.items()},
            args=args,
            folder=str(folder),
            pattern=pattern,
            count=count,
            trace=trace,
        )

    def text(self, name):
        path = self.paths[name]
        return path.read_text() if path.exists() else ""

    def ended(self):
        if self.status is None:
            self.status = self.parent.ask(wait=self.pid, quick=True)
        return self.status is not None

    def wait_until(self, condition):
        """Waits until the condition holds or the run has ended."""
        deadline = time.monotonic() + PATIENCE
        while not self.ended() and not condition():
            assert time.monotonic() < deadline, (self.text("out"), self.text("err"))
            time.sleep(0.002)

    def send(self, number):
        # The parent alone clears a dead child away, so this number is never another process's.
        if not self.ended():
            os.kill(self.pid, number)

    def kill(self):
        """SIGKILL, after the main thread has written down where it is."""
        self.send(signal.SIGUSR1)
        deadline = time.monotonic() + 0.2
        while "<module>" not in self.text("where") and time.monotonic() < deadline:
            time.sleep(0.0005)
        self.send(signal.SIGKILL)
        return self.finish()

    def finish(self):
        self.wait_until(lambda: False)
        return self.status

    def where(self):
        """In which part of a run it was killed."""
        text = self.text("where")
        if text and "File" not in text:  # a step on a file
            for phase, pattern in FILES.items():
                if re.search(pattern, text):
                    return phase
        for phase, pattern in STACK.items():
            if re.search(pattern, text):
                return phase
        return "start"


# A step on a file, and the part of a run that it belongs to.
FILES = {
    "report": r"final_|summary\.json",
    "evaluation": r"reconstructions",
    "checkpoint": r"checkpoints/\d+\.",
    "removal": r"within |checkpoints/\d+",
    "resuming": r"metrics\.jsonl\.part",
    "set-up": r"config\.json|checkpoints$",
}
# A function that the main thread is in.
STACK = {
    "report": r"report\.py",
    "evaluation": r"in _evaluate\b",
    "checkpoint": r"checkpoints\.py.* in (save|wait|check|__exit__)\b",
    "resuming": r"in restore_latest\b",
    "step": r"in _updates\b",
    "set-up": r"loop\.py",
}


# --- Runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(paint, tmp_path_factory):
    """A folder of images, and one for compiled functions that all runs share."""
    root = tmp_path_factory.mktemp("place")
    paint(root / "images", {"train": 3, "val": 2})
    return root


def options(place, folder, steps=STEPS, every=2):
    """A tiny run on one device that evaluates between checkpoints as well as at one."""
    return [
        "smoke",
        f"--run-dir={folder}",
        f"--data=folder:{place / 'images'}",
        f"--steps={steps}",
        "--batch-size=4",
        "--image-size=8",
        "--parallel=single",
        "--eval-every=5",
        f"--checkpoint-every={every}",
        "--keep-checkpoints=1",  # nothing to fall back on but the best
        "--evaluation.resize=1.0",
        "--evaluation.images=6",
        "--model.n-hid=4",
        "--model.n-init=4",
        "--model.vocab-size=8",
    ]


@pytest.fixture(scope="module")
def environment(place):
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "NPROC": "8",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture(scope="module")
def parent(environment):
    parent = Parent(environment)
    # Of its threads a child has only the forking one. NumPy's BLAS starts one a core and makes
    # them anew in a child; JAX's, which do not come back, start with the first device.
    assert parent.threads <= 1 + (os.cpu_count() or 1)
    yield parent
    parent.close()


@pytest.fixture(scope="module")
def unbroken(place, parent):
    """A run that nothing disturbed, and its steps on files."""
    folder = place / "unbroken"
    child = Child(parent, place, folder, options(place, folder), trace=True)
    assert child.finish() == 0, child.text("err")
    return folder, child.text("where").splitlines()


def saved(folder):
    """Steps of all complete checkpoints."""
    with contextlib.suppress(FileNotFoundError):
        return {int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()}
    return set()


def without_timing(folder):
    rows = records.read(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def arrays(state):
    return state.step, state.params, state.ema_params, state.opt_state


def assert_same_run(folder, reference):
    got, want = loop.load(folder), loop.load(reference)
    assert int(got.step) == STEPS
    jax.tree.map(np.testing.assert_array_equal, arrays(got), arrays(want))
    rows = without_timing(folder)
    assert [r["step"] for r in rows if r["split"] == "train"] == list(range(1, STEPS + 1))
    assert rows == without_timing(reference)
    for name in ("config.json", "summary.json"):
        ours, theirs = (json.loads((f / name).read_text()) for f in (folder, reference))
        assert {**ours, "run_dir": None} == {**theirs, "run_dir": None}
    pictures = {
        f: {p.name: p.read_bytes() for p in (f / "reconstructions").iterdir()}
        for f in (folder, reference)
    }
    assert pictures[folder] == pictures[reference]


def snapshot(folder):
    return {p: p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


# --- Kills ----------------------------------------------------------------------------------


def plan(chance):
    """The kills: (kind, what to wait for, how many times or how many seconds later)."""
    early = [
        ("fresh", "", chance.uniform(0.1, 1.5)),
        ("file", r"rename config\.json", chance.randint(1, 2)),
        ("line", "train.py", chance.uniform(0, 0.8)),
    ]
    middle = [
        ("line", "compiling", chance.uniform(0, 1.5)),
        *(("new", "", chance.uniform(0, 0.3)) for _ in range(2)),
        ("line", "held out", chance.uniform(0, 0.05)),
        ("file", r"rename metrics\.jsonl\.part", 1),
        *(("file", r"checkpoints/\d+\.", chance.randint(1, 28)) for _ in range(2)),
        ("file", r"rename checkpoints/\d+\.orbax-checkpoint-tmp$", chance.randint(1, 3)),
        ("file", r"rename reconstructions/step_", 1),
        ("file", r"within ", chance.randint(1, 20)),
    ]
    late = [
        ("line", "trained", chance.uniform(0, 0.6)),
        ("file", r"rename reconstructions/final_", chance.randint(1, 2)),
        ("file", r"rename summary\.json", 1),
    ]
    chance.shuffle(middle)
    # One in the middle of things first: what resuming does must come to pass.
    return [*early, *sorted(middle, key=lambda kill: "metrics" in kill[1]), *late]


def kill_once(parent, place, folder, environment, kill):
    """Starts or resumes the run and kills it. Returns the exit status and where that was."""
    kind, what, amount = kill
    args = options(place, folder)
    if kind == "fresh":  # a process of its own, somewhere in its imports
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *args],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(amount)
        process.kill()
        return process.wait(), "start"
    if kind == "file":
        child = Child(parent, place, folder, args, pattern=what, count=amount)
        return child.finish(), child.where()
    before = saved(folder)
    child = Child(parent, place, folder, args)
    if kind == "line":
        child.wait_until(lambda: f"\n{what}" in "\n" + child.text("out"))
    else:
        child.wait_until(lambda: saved(folder) - before)
    time.sleep(amount)
    return child.kill(), child.where()


def test_killed_many_times_and_resumed_is_unbroken(parent, place, unbroken, environment, tmp_path):
    seed = int(os.environ.get("KILL_SEED", random.randrange(2**32)))
    print(f"KILL_SEED={seed} repeats these moments")
    folder = tmp_path / "run"
    fallen = []
    for kill in plan(random.Random(seed)):
        before = max(saved(folder), default=0)
        status, phase = kill_once(parent, place, folder, environment, kill)
        last = max(saved(folder), default=0)
        fallen.append((phase, last))
        print(f"{kill}: status {status} in {phase}, last checkpoint {last}")
        assert status == -signal.SIGKILL
        assert last >= before
        if last:  # it can be read at once, also by those who only look
            assert int(loop.load(folder).step) == last
    phases = [phase for phase, _ in fallen]
    assert len(fallen) >= 12
    assert sum(last > 0 for _, last in fallen) >= 8
    assert {"start", "checkpoint", "removal", "evaluation", "resuming", "report"} <= set(phases)

    child = Child(parent, place, folder, options(place, folder))
    assert child.finish() == 0, child.text("err")
    assert child.text("err") == ""
    assert_same_run(folder, unbroken[0])
    names = {p.name for p in (folder / "checkpoints").iterdir()}
    assert names == {p.name for p in (unbroken[0] / "checkpoints").iterdir()}
    for name in names:
        assert int(loop.load(folder, checkpoint=name).step) == int(name)
    assert not [p for p in folder.rglob("*") if p.name.endswith(".part")]


def test_files_appear_complete_or_not_at_all(unbroken):
    # Between opening a file and filling it there is no step to kill at: so by their names.
    opened = [line.removeprefix("open ") for line in unbroken[1] if line.startswith("open ")]
    assert len(opened) > STEPS
    grows = r"metrics\.jsonl$|tensorboard/"  # line by line; readers cope with half a line
    in_part = r"\.part$|checkpoints/\d+\.orbax-checkpoint-tmp"  # renamed when complete
    assert [name for name in opened if not re.search(f"{grows}|{in_part}", name)] == []


# --- Signals ---------------------------------------------------------------------------------


def test_signals_at_random_moments(parent, place, tmp_path):
    seed = int(os.environ.get("KILL_SEED", random.randrange(2**32)))
    print(f"KILL_SEED={seed} repeats these moments")
    chance = random.Random(seed)
    folder = tmp_path / "run"
    # No checkpoint comes by itself but of the evaluations that are the best, each fifth step.
    args = options(place, folder, steps=100_000, every=0)
    step = 0
    for turn in range(4):
        number = (signal.SIGTERM, signal.SIGINT)[turn % 2]
        child = Child(parent, place, folder, args)
        # First while the step is compiled and the first updates run, then among later updates.
        sign = "compiling" if turn < 2 else "held out  step"
        child.wait_until(lambda child=child, sign=sign: sign in child.text("out"))
        time.sleep(chance.uniform(0, 1.0))
        child.send(number)
        assert child.finish() == 128 + number, child.text("err")
        assert child.text("err") == ""
        assert ("resuming" in child.text("out")) == (turn > 0)
        if turn:
            assert f"resuming  at step {step}" in child.text("out")
        last = child.text("out").splitlines()[-1]
        assert f"stopped by {number.name} after step" in last
        assert "the same command goes on" in last
        before, step = step, int(re.search(r"after step (\d+)", last)[1])
        assert step > before
        assert max(saved(folder)) == step
        assert without_timing(folder)[-1]["step"] == step
        assert int(loop.load(folder).step) == step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_before_the_first_update(parent, place, tmp_path, number):
    folder = tmp_path / "run"
    child = Child(parent, place, folder, options(place, folder))
    child.wait_until(lambda: child.text("out"))  # the configuration; devices are still to come
    child.send(number)
    assert child.finish() == 128 + number, child.text("err")
    lines = child.text("err").splitlines()
    if lines:
        assert len(lines) == 1
        assert f"stopped by {number.name}; the same command" in lines[0]
    else:  # so late that an update could be saved
        assert f"stopped by {number.name} after step" in child.text("out").splitlines()[-1]


# --- Two at once ----------------------------------------------------------------------------


def test_a_second_process_is_refused(parent, place, tmp_path):
    folder = tmp_path / "run"
    args = options(place, folder, steps=100_000)
    first = Child(parent, place, folder, args)
    first.wait_until(lambda: saved(folder))
    first.send(signal.SIGSTOP)  # so that whatever changes is the second one's doing
    before = snapshot(folder)
    second = Child(parent, place, folder, args)
    assert second.finish() == 2
    assert snapshot(folder) == before
    assert len(second.text("err").splitlines()) == 1
    assert second.text("err").startswith("train.py: error: another process is training in")
    assert str(folder) in second.text("err")
    first.send(signal.SIGCONT)
    first.send(signal.SIGTERM)
    assert first.finish() == 143, first.text("err")
    assert "stopped by SIGTERM after step" in first.text("out")
