"""benchmark.py: its statistics, its rounds, its checks and its files; never its times."""

import contextlib
import importlib
import importlib.util
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(__file__).parents[2]
EXPERIMENTS = ROOT / "experiments"
TINY = ["--quick", "--batch=1", "--side=16", "--rounds=2", "--inner=2", "--least-sample=1e-4"]
SUMMARY = {"median", "q1", "q3", "least", "count"}


@pytest.fixture(scope="module")
def bench():
    """A function of a name that gives a module of the benchmark."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield lambda name: importlib.import_module(f"_bench.{name}")


@pytest.fixture(scope="module")
def run(bench):
    """A function of arguments that gives exit status, stdout and stderr."""
    spec = importlib.util.spec_from_file_location("script_benchmark", EXPERIMENTS / "benchmark.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*args):
        out, err = io.StringIO(), io.StringIO()
        status = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["benchmark.py", *map(str, args)])
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    script.run_script(script.main)
                except SystemExit as stop:
                    status = stop.code or 0
        return status, out.getvalue(), err.getvalue()

    return call


@pytest.fixture
def without(monkeypatch):
    """A function of names of modules, which then cannot be imported."""

    def hide(*names):
        for name in names:
            # What another test has loaded below it too.
            below = [loaded for loaded in sys.modules if loaded.startswith(f"{name}.")]
            for module in (name, *below):
                monkeypatch.setitem(sys.modules, module, None)

    return hide


def refused(result, *words):
    """One line on standard error, exit status 2."""
    status, _, err = result
    assert status == 2
    assert err.startswith("benchmark.py: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert str(word) in err
    return True


# --- Statistics and rounds ----------------------------------------------------------------------


def test_doctests(bench):
    """The package lies outside the folders that pytest searches for doctests."""
    import doctest

    for name in ("stats", "report", "options", "step", "loss"):
        failures, tests = doctest.testmod(bench(name))
        assert tests > 0
        assert failures == 0


def test_order_statistics_of_known_numbers(bench):
    summary = bench("stats").summarise([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 8.0, 7.0, 90.0])
    assert (summary.median, summary.q1, summary.q3) == (5.0, 3.0, 7.0)
    assert (summary.least, summary.count) == (1.0, 9)
    with pytest.raises(ValueError, match="no measurements"):
        bench("stats").summarise([])


def test_ratios_are_paired_by_rounds(bench):
    """Machines that slow down tenfold in one round leave the ratios alone."""
    report = bench("report")
    ours, theirs = [1.0, 10.0, 1.0], [2.0, 20.0, 2.0]
    section = report.Section("s", "", "a", [report.Row("a", seconds=ours)])
    ratio = section.ratios(report.Row("b", seconds=theirs))
    assert (ratio.median, ratio.q1, ratio.q3) == (2.0, 2.0, 2.0)
    assert section.ratios(report.Row("skipped")) is None


def test_rounds_interleave_in_changing_orders(bench):
    rounds = bench("rounds")
    log = []

    def contestant(name):
        def call(count):
            log.append((name, count))
            return 0.004 * count

        return rounds.Contestant(name, call)

    names = ["a", "b", "c", "d"]
    samples = rounds.run([contestant(n) for n in names], rounds=30, least_seconds=0.02, seed=0)
    assert list(samples) == names
    for name in names:
        # Five of 4 ms make 20 ms; a tenth more is asked for, so that shorter ones suffice.
        assert samples[name].repetitions in (5, 6)
        assert samples[name].seconds == pytest.approx([0.004] * 30)
    measured = log[-2 * 30 * 4 :]
    assert {count for _, count in measured[::2]} == {1}  # the untimed call before each sample
    orders = [tuple(name for name, _ in measured[8 * i + 1 : 8 * i + 8 : 2]) for i in range(30)]
    assert all(sorted(order) == names for order in orders)
    assert len(set(orders)) > 5
    log.clear()
    rounds.run([contestant(n) for n in names], rounds=30, least_seconds=0.02, seed=0)
    assert log[-2 * 30 * 4 :] == measured  # the seed decides


def test_work_that_is_long_enough_is_not_repeated(bench):
    calls = []
    repetitions = bench("rounds").repetitions(lambda n: calls.append(n) or 1.0, 0.005)
    assert repetitions == 1
    assert calls == [1, 1]  # warm, then timed


def test_two_of_one_name_are_refused(bench):
    rounds = bench("rounds")
    twice = [rounds.Contestant("a", lambda n: 1.0)] * 2
    with pytest.raises(ValueError, match="same name"):
        rounds.run(twice, 1, 0.1, 0)


# --- What agrees and what does not --------------------------------------------------------------


def entries(bench, peer):
    """A section of ours and one peer on few values."""
    loss = bench("loss")
    options = type("Options", (), {"rounds": 2, "least_sample": 1e-4, "seed": 0})
    arrays = loss._arrays(loss.make_inputs(1, 8, 0))
    make = lambda name, f: loss.fresh(name, loss.gradients(f), arrays, 0)  # noqa: E731
    makers = {
        "ours": lambda: make("ours", loss.ll.logit_laplace_loss),
        "peer": lambda: make("peer", peer()),
    }
    return loss.measure("s", "title", makers, options).rows[1]


def test_a_peer_that_agrees_is_compared(bench):
    row = entries(bench, lambda: bench("loss").jnp_loss)
    assert row.status == "ok"
    assert len(row.seconds) == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda loss: lambda x, m, s: loss(x, m, s) + 0.1, "value"),
        (lambda loss: lambda x, m, s: loss(x, m, s) + 0.1 * (m - lax.stop_gradient(m)), "in loc"),
        (lambda loss: lambda x, m, s: loss(x, m, s) + s * jnp.nan, "value is off by nan"),
    ],
)
def test_a_peer_that_computes_something_else_is_marked(bench, change, what):
    row = entries(bench, lambda: change(bench("loss").jnp_loss))
    assert row.status == "computes something else"
    assert what in row.note
    assert row.seconds  # timed all the same, and marked


def test_a_peer_that_fails_is_named(bench):
    def broken():
        raise RuntimeError("no compiler\nmore lines")

    row = entries(bench, broken)
    assert (row.status, row.note) == ("failed", "RuntimeError: no compiler")
    assert not row.seconds


def test_no_residual_is_near_a_tie_and_all_are_float32(bench):
    inputs = bench("loss").make_inputs(2, 16, 3)
    logit = np.log(inputs.x / (1 - inputs.x))
    assert np.abs(logit - inputs.loc).min() > 0.049  # 0.05, but for rounding
    assert {a.dtype.name for a in (inputs.x, inputs.loc, inputs.log_scale)} == {"float32"}


@pytest.mark.parametrize("keep", [False, True])
def test_both_kinds_of_buffers_give_the_same_results(bench, keep):
    loss = bench("loss")
    arrays = loss._arrays(loss.make_inputs(1, 8, 0))
    function = loss.gradients(loss.ll.logit_laplace_loss)
    entry = loss.kept("", function, arrays, 0, 3) if keep else loss.fresh("", function, arrays, 0)
    assert loss.disagreement(loss._host(function(*arrays)), entry.results(), 1e-5) == ""


# --- The command line ---------------------------------------------------------------------------


def test_loss_end_to_end(run, tmp_path, without):
    without("torch", "tensorflow_probability")
    path, picture = tmp_path / "a.json", tmp_path / "a.png"
    status, out, err = run("loss", *TINY, f"--json={path}", f"--plot={picture}")
    assert (status, err) == (0, "")
    assert "torch is not installed" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))

    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content) == {"schema", "command", "settings", "machine", "sections"}
    assert (content["schema"], content["command"]) == (1, "loss")
    assert content["settings"]["side"] == 16
    machine = content["machine"]
    assert {"cpu", "cores", "versions", "commit", "load_start", "load_end", "date"} <= set(machine)
    assert {"jax", "jaxlib"} <= set(machine["versions"])
    names = [section["name"] for section in content["sections"]]
    assert names[:4] == ["float32_fresh", "float32_kept", "pixels", "bfloat16"]
    for section in content["sections"]:
        for row in section["rows"]:
            check_row(row)
            assert row["status"] in ("ok", "skipped"), row
    first = {row["name"]: row for row in content["sections"][0]["rows"]}
    for name in ("torch", "TFP"):
        assert first[name]["status"] == "skipped"
        assert "is not installed" in first[name]["note"]
    assert first["ours"]["ratio"]["median"] == 1.0
    assert first["jnp and autodiff"]["extra"]["GB/s"] > 0

    assert refused(run("loss", *TINY, f"--json={path}"), path, "exists", "--json")
    assert refused(run("loss", *TINY, f"--plot={picture}"), picture, "exists", "--plot")


def check_row(row):
    assert set(row) == {"name", "status", "note", "seconds", "samples", "ratio", "extra"}
    if row["status"] == "skipped":
        assert row["note"]
        assert row["seconds"] is None
        assert row["samples"] == []
        return
    assert set(row["seconds"]) == set(row["ratio"]) == SUMMARY
    assert row["seconds"]["count"] == len(row["samples"]) == 2
    assert all(math.isfinite(s) and s > 0 for s in row["samples"])
    assert row["seconds"]["least"] <= row["seconds"]["q1"] <= row["seconds"]["median"]


@pytest.mark.parametrize("suite", ["loss", "step"])
def test_help_explains_every_option(run, suite):
    status, out, _ = run(suite, "--help")
    assert status == 0
    flags = set(re.findall(r"^  (--[a-z-]+)", out, re.MULTILINE))
    assert {"--quick", "--rounds", "--json", "--plot", "--markdown"} <= flags
    for flag in flags:
        explained = re.search(rf"^  {flag}\b[^\n]*?(  |\n {{10,}})\w+", out, re.MULTILINE)
        assert explained, flag


@pytest.mark.parametrize(
    ("args", "word"),
    [
        ([], "SUITE"),
        (["losses"], "losses"),
        (["loss", "--rounds=0"], "--rounds"),
        (["loss", "--no-such-option"], "--no-such-option"),
        (["loss", "--plot=picture.bmp"], ".png"),
        (["loss", "--json=no/such/folder/a.json"], "not a folder"),
        (["step", "--sizes=32"], "SIDE:BATCH"),
        (["step", "--sizes=30:2"], "multiples of 8"),
        (["step", "--n-hid=32"], "--n-hid"),
    ],
)
def test_wrong_requests_are_one_line(run, args, word):
    assert refused(run(*args), word)


def test_lean_images_run_what_they_can():
    """No tyro, Grain or TFDS: loss and step load and parse."""
    code = """
import sys
for name in ("tyro", "grain", "tensorflow_datasets", "torch", "PIL", "matplotlib"):
    sys.modules[name] = None
from _bench import load, options
for suite in ("loss", "step"):
    options.parse([suite, "--quick"])
    load(suite)
import _bench.step_jax, _bench.step_inputs, _bench.matrix_product, benchmark
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = [{str(ROOT)!r}]\n{code}"],
        cwd=EXPERIMENTS,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- Processes ----------------------------------------------------------------------------------


def test_a_worker_does_its_work_and_says_what_went_wrong(bench):
    worker = bench("worker")
    with worker.Worker("matrix_product", {"precision": "float32"}, {"JAX_PLATFORMS": "cpu"}) as w:
        assert w.facts["flops"] == 2.0 * 1024**3
        assert w.call(2) > 0
        assert w.finish() == {}
    with pytest.raises(worker.WorkerError, match="float31"):
        worker.Worker("matrix_product", {"precision": "float31"}, {"JAX_PLATFORMS": "cpu"})


def test_peak_memory_grows_with_what_is_held(bench):
    memory = bench("memory")
    before = memory.peak_bytes()
    block = np.ones(64 * 2**20, np.uint8)  # written, so that its pages exist
    after = memory.peak_bytes()
    # Pages that were resident already may be used again, but not half of them in one block.
    assert after >= before
    assert memory.peak_bytes() >= block.nbytes


def test_first_steps_that_disagree_are_marked(bench):
    step = bench("step")
    ours = {"loss": -0.5, "kl": 1.0, "grad_norm": 2.0}
    assert step.disagreement(ours, ours, 1e-3) == ""
    assert step.disagreement(ours, {}, 1e-3) == ""  # a yardstick
    assert "grad_norm" in step.disagreement(ours, ours | {"grad_norm": 2.1}, 1e-3)
    assert "ran on gpu" in step.disagreement({"platform": "cpu"}, {"platform": "gpu"}, 1e-3)
    assert "kl" in step.disagreement(ours, ours | {"kl": math.nan}, 1e-3)


def test_tables_are_aligned_and_complete(bench):
    report = bench("report")
    section = report.Section(
        "s",
        "A title",
        "ours",
        [
            report.Row("ours", seconds=[1e-3, 2e-3, 3e-3], extra={"images/s": 1234.5}),
            report.Row("slow", seconds=[4e-3, 4e-3, 4e-3]),
            report.Row("nobody", report.SKIPPED, "nobody is not installed"),
        ],
    )
    header, table = report.cells(section)
    assert header[1:3] == ["median ms", "quartiles"]
    assert table[0][:3] == ["ours", "2.00", "1.50 – 2.50"]
    assert table[1][5] == "2.00 (1.67 – 3.00)"
    assert table[0][6] == "1,234"
    assert table[2][-1] == "skipped: nobody is not installed"
    assert {len(line) for line in table} == {len(header)}
