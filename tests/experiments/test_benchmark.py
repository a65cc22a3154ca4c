"""benchmark.py: its statistics, its rounds, its checks and its files; never its times."""

import doctest
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
TINY = ["--quick", "--batch=1", "--side=8", "--rounds=2", "--inner=2", "--least-sample=1e-4"]


@pytest.fixture(scope="module")
def bench():
    """A function of a name that gives a module of the benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield lambda name: importlib.import_module(f"benchmarks.{name}" if name else "benchmarks")


@pytest.mark.parametrize("name", ["", "rounds", "report", "step", "loss"])
def test_doctests(bench, name):
    """The package lies outside the folders that pytest searches for doctests."""
    failures, tests = doctest.testmod(bench(name))
    assert tests > 0
    assert failures == 0


# --- Rounds and tables --------------------------------------------------------------------------


def test_ratios_are_paired_by_rounds(bench):
    """Machines that slow down tenfold in one round leave the ratios alone."""
    report = bench("report")
    ours, theirs = [1.0, 10.0, 1.0], [2.0, 20.0, 2.0]
    section = report.Section("s", "", [report.Row("ours", seconds=ours)])
    ratio = section.ratios(report.Row("b", seconds=theirs))
    assert (ratio.median, ratio.q1, ratio.q3) == (2.0, 2.0, 2.0)
    assert section.ratios(report.Row("skipped")) is None


def test_rounds_interleave_in_changing_orders(bench):
    log = []

    def contestant(name):
        def call(count):
            log.append((name, count))
            return 0.004 * count

        return call

    calls = {name: contestant(name) for name in "abcd"}
    samples = bench("rounds").run(calls, rounds=30, least_seconds=0.02, seed=0)
    for name in calls:
        assert samples[name] == pytest.approx([0.004] * 30)
    measured = log[-2 * 30 * 4 :]
    assert {count for _, count in measured[::2]} == {1}  # the untimed call before each sample
    # Five of 4 ms make 20 ms; a tenth more is asked for, so that shorter ones suffice.
    assert {count for _, count in measured[1::2]} <= {5, 6}
    orders = [tuple(name for name, _ in measured[8 * i + 1 : 8 * i + 8 : 2]) for i in range(30)]
    assert all(sorted(order) == list("abcd") for order in orders)
    assert len(set(orders)) > 5
    log.clear()
    bench("rounds").run(calls, rounds=30, least_seconds=0.02, seed=0)
    assert log[-2 * 30 * 4 :] == measured  # the seed decides


def test_work_that_is_long_enough_is_not_repeated(bench):
    calls = []
    assert bench("rounds").repetitions(lambda n: calls.append(n) or 1.0, 0.005) == 1
    assert calls == [1, 1]  # warm, then timed


def test_tables_are_aligned_and_complete(bench):
    report = bench("report")
    rows = [
        report.Row("ours", seconds=[1e-3, 2e-3, 3e-3], extra={"images/s": 1234.5}),
        report.Row("slow", seconds=[4e-3, 4e-3, 4e-3]),
        report.Row("nobody", report.SKIPPED, "nobody is not installed"),
    ]
    title, blank, header, rule, *table = report.Section("s", "A title", rows).markdown().split("\n")
    assert (title, blank) == ("**A title**", "")
    assert {len(line) for line in table} == {len(header)} == {len(rule)}
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *table)]
    assert cells == [
        ["", "median, ms", "quartiles", "time / ours", "images/s", "remark"],
        ["ours", "2.00", "1.50 - 2.50", "1.00 (1.00 - 1.00)", "1,234", ""],
        ["slow", "4.00", "4.00 - 4.00", "2.00 (1.67 - 3.00)", "", ""],
        ["nobody", "", "", "", "", "skipped: nobody is not installed"],
    ]


# --- What agrees and what does not --------------------------------------------------------------


def _broken(loss):
    raise RuntimeError("no compiler\nmore lines")


@pytest.mark.parametrize(
    ("change", "status", "note"),
    [
        (lambda loss: loss, "ok", ""),
        (lambda loss: lambda x, m, s: loss(x, m, s) + 0.1, "computes something else", "value"),
        (
            lambda loss: lambda x, m, s: loss(x, m, s) + 0.1 * (m - jax.lax.stop_gradient(m)),
            "computes something else",
            "in loc",
        ),
        (
            lambda loss: lambda x, m, s: loss(x, m, s) + s * np.nan,
            "computes something else",
            "value is off by nan",
        ),
        (_broken, "failed", "RuntimeError: no compiler"),
    ],
)
def test_a_peer_is_checked_against_ours(bench, change, status, note):
    loss, peers = bench("loss"), bench("peers")
    arrays = list(loss.make_inputs(1, 8, 0).values())[1:]
    makers = {
        "ours": lambda: loss.fresh(loss.gradients(loss.ll.logit_laplace_loss), arrays),
        "peer": lambda: loss.fresh(loss.gradients(change(peers.formula)), arrays),
    }
    options = bench("").LossOptions(rounds=2, least_sample=1e-4)
    row = loss.measure(makers, options)[1]
    assert row.status == status
    assert note in row.note
    assert len(row.seconds) == (0 if status == "failed" else 2)  # timed all the same, and marked


def test_first_steps_that_disagree_are_marked(bench):
    step = bench("step")
    ours = {"platform": "cpu", "loss": -0.5, "kl": 1.0, "grad_norm": 2.0}
    assert step.disagreement(ours, ours, 1e-3) == ""
    assert "grad_norm" in step.disagreement(ours, ours | {"grad_norm": 2.1}, 1e-3)
    assert "ran on gpu" in step.disagreement(ours, ours | {"platform": "gpu"}, 1e-3)
    assert "kl" in step.disagreement(ours, ours | {"kl": math.nan}, 1e-3)


def test_no_residual_is_near_a_tie_and_all_are_float32(bench):
    inputs = bench("loss").make_inputs(2, 16, 3)
    logit = np.log(inputs["x"] / (1 - inputs["x"]))
    assert np.abs(logit - inputs["loc"]).min() > 0.049  # 0.05, but for rounding
    assert {inputs[name].dtype.name for name in ("x", "loc", "log_scale")} == {"float32"}


def test_both_kinds_of_buffers_give_the_same_results(bench):
    loss = bench("loss")
    arrays = list(loss.make_inputs(1, 8, 0).values())[1:]
    function = loss.gradients(loss.ll.logit_laplace_loss)
    for contestant in (loss.fresh(function, arrays), loss.kept(function, arrays, 3)):
        assert loss.disagreement(function(*arrays), contestant.results()) == ""


# --- The command line ---------------------------------------------------------------------------


def test_loss_end_to_end(bench, run_script, tmp_path, monkeypatch):
    peers = bench("peers")
    hidden = ("torch", "tensorflow_probability")
    load = peers.load

    def without(module):
        if module.startswith(hidden):
            raise peers.Missing(f"{module} is not installed")
        return load(module)

    monkeypatch.setattr(peers, "load", without)
    status, out, err, changed = run_script("benchmark.py", "loss", *TINY, "--out=made/here")
    assert (status, err) == (0, "")
    files = {f"made/here/loss.{end}" for end in ("json", "md", "png")}
    assert changed == {"made", "made/here", *files}
    assert "torch is not installed" in out
    assert (tmp_path / "made/here/loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "made/here/loss.md").read_text(encoding="utf-8").strip() in out

    content = json.loads((tmp_path / "made/here/loss.json").read_text(encoding="utf-8"))
    assert set(content) == {"suite", "settings", "machine", "sections"}
    assert content["settings"]["side"] == 8
    machine = content["machine"]
    assert {"cpu", "cores", "versions", "commit", "load_start", "load_end", "date"} <= set(machine)
    assert {"jax", "jaxlib", "numpyro"} <= set(machine["versions"])
    assert [section["name"] for section in content["sections"]] == ["fresh", "kept", "pixels"]
    for section in content["sections"]:
        for row in section["rows"]:
            if row["status"] == "skipped":
                assert "is not installed" in row["note"]
                assert row["seconds"] == []
                continue
            assert row["status"] == "ok", row
            assert set(row["median"]) == set(row["ratio"]) == {"median", "q1", "q3", "count"}
            assert len(row["seconds"]) == row["median"]["count"] == 2
            assert all(math.isfinite(s) and s > 0 for s in row["seconds"])
    rows = {row["name"]: row for row in content["sections"][0]["rows"]}
    skipped = {name for name, row in rows.items() if row["status"] == "skipped"}
    assert skipped == {"torch", "torch.distributions", "torch.compile", "TFP"}
    assert rows["ours"]["ratio"]["median"] == 1.0

    status, _, err, changed = run_script("benchmark.py", "loss", *TINY, "--out=made/here")
    assert (status, changed) == (2, set())
    assert "made/here/loss.png exists" in err


@pytest.mark.parametrize("suite", ["loss", "step"])
def test_help_explains_every_option(run_script, suite):
    status, out, _, _ = run_script("benchmark.py", suite, "--help")
    assert status == 0
    own = {"loss": ("batch", "inner", "side"), "step": ("sizes", "n-hid", "no-compile")}[suite]
    for option in ("quick", "rounds", "least-sample", "seed", "out", "overwrite", *own):
        assert f"--{option}" in out


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "no command"),
        (["losses"], "losses"),
        (["loss", "--rounds=0"], "--rounds"),
        (["loss", "--least-sample=0"], "--least-sample"),
        (["loss", "--no-such-option"], "--no-such-option"),
        (["loss", "--out=file/below"], "file is a file"),
        (["step", "--sizes", "32"], "SIDE:BATCH"),
        (["step", "--sizes", "30:2"], "multiples of 8"),
        (["step", "--n-hid=32"], "--n-hid"),
        (["step", "--precision=int8"], "int8"),
    ],
)
def test_wrong_requests_are_one_line(run_script, tmp_path, args, word):
    (tmp_path / "file").write_text("")
    status, _, err, changed = run_script("benchmark.py", *args)
    assert (status, changed) == (2, set())
    assert err.startswith("benchmark.py: error: ")
    assert err.count("\n") == 1
    assert word in err


# --- Processes ----------------------------------------------------------------------------------


def test_a_worker_says_what_went_wrong(bench, tmp_path):
    worker = bench("worker")
    with pytest.raises(worker.WorkerError, match="KeyError: 'batch'"):
        worker.Worker("step_jax", {}, {"JAX_PLATFORMS": "cpu"})


def test_suites_load_without_tyro():
    code = """
import sys
for name in ("tyro", "grain", "tensorflow_datasets", "torch", "PIL", "matplotlib"):
    sys.modules[name] = None
from benchmarks import LossOptions, StepOptions, load
load("loss"), load("step")
LossOptions(quick=True).check(), StepOptions(quick=True).check()
"""
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=EXPERIMENTS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_peak_memory_counts_what_is_held(bench):
    before = bench("machine").peak_bytes()
    block = np.ones(64 * 2**20, np.uint8)  # written, so that its pages exist
    assert bench("machine").peak_bytes() >= max(before, block.nbytes)
