"""compare.py: the smoke study from end to end, the statistics against closed forms and SciPy."""

import doctest
import json
import os
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import logit_laplace_jax as ll

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

from study import comparisons, design, openmoji, sanity, statistics

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DRAWS = 20_000
LOOSE = 0.03
"""The standard deviation of 20,000 draws has a relative error of 1/sqrt(40,000) = 0.5 %: six."""

# --- The statistics -------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [statistics, sanity, openmoji])
def test_examples(module):
    assert doctest.testmod(module).failed == 0


def test_bootstrap_of_one_seed_is_scipys():
    values = np.random.default_rng(1).exponential(size=60)
    ours = statistics.resampled_means(
        values[None], np.arange(60), np.random.default_rng(2), draws=DRAWS
    )
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=DRAWS, method="percentile", random_state=3
    ).confidence_interval
    # An end of the interval: sqrt(0.025 * 0.975 / draws) / density there (0.058) is 0.02 sigma.
    np.testing.assert_allclose(statistics.interval(ours), theirs, atol=0.1 * values.std() / 60**0.5)


def test_bootstrap_variance_of_additive_differences():
    # With d = a of the seed + b of the picture, the draws' variance is var(a)/S + var(b)/G, before
    # it is widened by S/(S - 1), which makes the first term that of the unbiased variance of a.
    rng = np.random.default_rng(4)
    of_seed, of_picture = rng.normal(size=5), rng.normal(size=40)
    groups = np.repeat(np.arange(40), 3)  # three images of each picture
    d = of_seed[:, None] + of_picture[groups]
    means = statistics.resampled_means(d, groups, rng, draws=DRAWS)
    expected = np.sqrt(5 / 4 * (of_seed.var() / 5 + of_picture.var() / 40))
    assert means.std() == pytest.approx(expected, rel=LOOSE)
    assert means.mean() == pytest.approx(d.mean(), abs=6 * expected / DRAWS**0.5)


def test_bootstrap_leaves_out_what_is_unknown():
    known = np.random.default_rng(5).normal(size=(2, 30))
    with_gaps = np.concatenate([known, np.full((2, 10), np.nan)], axis=1)
    groups = np.concatenate([np.arange(30), np.arange(10)])  # the gaps lie in pictures that count
    rngs = (np.random.default_rng(6) for _ in range(2))
    a = statistics.resampled_means(known, np.arange(30), next(rngs), draws=50)
    b = statistics.resampled_means(with_gaps, groups, next(rngs), draws=50)
    np.testing.assert_allclose(a, b, rtol=1e-12)  # the same sums, in float64


def test_p_value_is_the_normal_one():
    means = np.random.default_rng(7).normal(1.5, 1.0, 200_000)
    # The share of draws below 0 is 0.067 +- sqrt(0.067 / 200,000) = 0.0006; three of twice that.
    assert statistics.p_value(means) == pytest.approx(2 * stats.norm.sf(1.5), abs=0.0036)


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_as_its_definition(seed):
    p = np.random.default_rng(seed).uniform(size=6) ** 3
    corrected = np.array(statistics.holm(list(p)))
    for level in (0.01, 0.05, 0.2):
        rejected = np.zeros(6, bool)
        for rank, i in enumerate(np.argsort(p)):
            if p[i] > level / (6 - rank):
                break
            rejected[i] = True
        np.testing.assert_array_equal(corrected <= level, rejected)


# --- The comparisons ------------------------------------------------------------------------------


def run(cell, seed, shift=0.0, **more):
    rng = np.random.default_rng(seed)  # the same for all cells: paired
    bits = rng.normal(4.0, 1.0, 20) + shift
    return {
        "data": "d",
        "cell": cell,
        "seed": seed,
        "learning_rate": 1e-3,
        "beta": 1.0,
        "bpd_hard": bits.mean(),
        "code_perplexity": 10.0 * 2.0**shift,
        "per_image": {"bits": list(bits), "bits_edges": [None] * 20, "bits_flat": list(bits)},
        **more,
    }


def test_comparisons_are_paired_and_told_by_sign():
    C = comparisons.Comparison
    compared = comparisons.compare(
        [
            *(run("a", seed, -0.5) for seed in range(3)),
            *(run("b", seed) for seed in range(3)),
            run("a", 7),  # without a partner
            {**run("b", 8), "failed": "not finite"},
            run("a", 8),
        ],
        ["d", "e"],
        [
            C("H1", comparisons.BITS, "a", "b", -1),
            C("H3", comparisons.BITS, "b", "a", -1),
            C("H4", comparisons.PERPLEXITY, "a", "b", -1),
            C("H2", comparisons.EDGES, "a", "b", -1),  # no image has an edge
            C("H5", comparisons.BITS, "a", "nobody", 1),
        ],
        draws=99,
    )
    assert [row["hypothesis"] for row in compared] == ["H1", "H3", "H4"]
    bits, reverse, perplexity = (row["all"] for row in compared)
    assert bits["mean"] == pytest.approx(-0.5, abs=1e-12)  # a constant: any rounding is float64's
    assert perplexity["mean"] == pytest.approx(-0.5 * np.log(2.0), abs=1e-12)
    assert compared[0]["data"]["d"]["seeds"] == 3
    # 99 draws give p = 2/100 at the least; three comparisons.
    assert [row["p_holm"] for row in (bits, reverse, perplexity)] == pytest.approx([0.06] * 3)
    assert bits["verdict"] == "undecided"
    more = comparisons.compare(
        [run("a", 0, -0.5), run("b", 0)],
        ["d"],
        [C("H1", comparisons.BITS, "a", "b", -1), C("H3", comparisons.BITS, "b", "a", -1)],
    )
    assert [row["all"]["verdict"] for row in more] == ["holds", "reversed"]


def test_every_cell_that_is_compared_is_in_the_main_study():
    cells = {cell.name for cell in design.load("main").cells}
    assert {name for c in comparisons.COMPARISONS for name in (c.a, c.b)} <= cells
    ablations = {cell.name for cell in design.load("main").cells if cell.ablation}
    assert ablations <= {c.a for c in comparisons.COMPARISONS}


def test_the_loss_without_the_jacobian_has_the_same_gradients():
    """H8: the copied abs(logit x - μ)/b + ln b + ln 2 differs by a term without a parameter."""
    keys = jax.random.split(jax.random.key(0), 3)
    pixels = jax.random.randint(keys[0], (4, 8, 8, 3), 0, 256).astype(jnp.uint8)
    stats_of = jax.random.normal(keys[1], (4, 8, 8, 6))
    likelihood = ll.likelihoods.get("logit_laplace")

    def copied(stats_of):
        loc, log_scale = jnp.split(stats_of, 2, axis=-1)
        x = ll.map_pixels(pixels)
        t = jnp.log(x) - jnp.log1p(-x)
        return (jnp.abs(t - loc) * jnp.exp(-log_scale) + log_scale + jnp.log(2.0)).mean()

    whole = jax.jit(jax.grad(lambda s: likelihood.loss(pixels, s).mean()))(stats_of)
    # Both are of size 1/values or above, by a handful of float32 operations each.
    np.testing.assert_allclose(jax.jit(jax.grad(copied))(stats_of), whole, rtol=2e-5, atol=1e-9)


# --- The program ----------------------------------------------------------------------------------


def test_smoke_study(run_script, quick_compilation):
    status, out, err, _ = run_script("compare.py", "smoke")
    assert (status, err) == (0, "")
    status, out, err, changed = run_script("compare.py", "smoke")  # nothing is left to do
    assert status == 0
    assert "final     0 runs to do" in out
    assert not any("runs/smoke/runs/" in name for name in changed)

    results = json.loads(Path("runs/smoke/results.json").read_text())
    assert [(r["split"], r["cell"]) for r in results] == [
        ("tuning", "logit_laplace"),
        ("final", "logit_laplace"),
        ("final", "normal"),
    ]
    for name in ("data", "likelihood", "scale", "objective", "seed", "bpd_hard", "psnr_median"):
        assert all(name in r for r in results)
    report = json.loads(Path("runs/smoke/report.json").read_text())
    assert {row["cell"] for row in report["cells"]} == {"logit_laplace", "normal"}
    assert {row["b"] for row in report["comparisons"]} == {"normal"}
    assert set(report["sanity"]["photos"]) == {"constant", "k_means", "png", "webp"}
    assert "| logit_laplace |" in Path("runs/smoke/report.md").read_text()
    pictures = {path.name for path in Path("runs/smoke").glob("*.png")}
    assert pictures >= {"rates.png", "codes.png", "calibration.png", "pictures_photos.png"}


def test_report_only_without_runs(run_script):
    status, out, err, _ = run_script("compare.py", "smoke", "--report-only", "--results", "empty")
    assert status == 0, err
    assert "no final run" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["mian"], "unknown study 'mian'"),
        (["smoke", "--data", "cifar"], "the study smoke has no cifar"),
        (["smoke", "--workers", "0"], "--workers must be 1 or more"),
        (["main", "--data", "mnist"], "--images"),
    ],
)
def test_wrong_requests(run_script, args, message):
    status, _, err, changed = run_script("compare.py", *args)
    assert status == 2
    assert message in err
    assert not changed


WORKERS = """
import os, pathlib, signal, sys, time
sys.path.insert(0, {experiments!r})

def work(name):  # like a training run, it ends a signal's way, by an exception of two arguments
    from logit_laplace_jax.runs.errors import Stopped

    def stop(number, _):
        signal.signal(number, signal.SIG_DFL)
        pathlib.Path(f"{{name}}.stopped").touch()
        raise Stopped("stopped", number)

    signal.signal(signal.SIGTERM, stop)
    pathlib.Path(f"{{name}}.pid").write_text(str(os.getpid()))
    time.sleep({seconds})
    return f"{{name}} on {{sorted(os.sched_getaffinity(0))}}"

if __name__ == "__main__":
    from _cli import run_script, say
    from study import jobs

    run_script(lambda args: jobs.run_all(["a", "b", "c"], work, 2, say))
"""


def begin(start, tmp_path, seconds):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS.format(experiments=str(EXPERIMENTS), seconds=seconds))
    return start(script, cwd=tmp_path, start_new_session=True)


def test_two_workers_share_the_cores(start, tmp_path):
    out, err = begin(start, tmp_path, 0.1).communicate()
    assert err == ""
    lines = sorted(line.split("] ", 1)[1] for line in out.splitlines())
    assert [line.split(" on ")[0] for line in lines] == ["a", "b", "c"]
    if len(os.sched_getaffinity(0)) == 2:
        # One core each; the worker that is up first may do all.
        assert {line.split(" on ")[1] for line in lines} <= {"[0]", "[1]"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_command(start, tmp_path, number):
    process = begin(start, tmp_path, 60)
    files = [tmp_path / f"{name}.pid" for name in "ab"]
    while not all(file.exists() and file.read_text() for file in files):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    if number == signal.SIGINT:  # as a terminal sends it: to all
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in err
    for file in files:
        while Path(f"/proc/{file.read_text()}").exists():
            time.sleep(0.05)
    # A run that is asked to stop may save; one whose command was killed ends at once.
    saved = {path.name for path in tmp_path.glob("*.stopped")}
    assert saved == (set() if number == signal.SIGKILL else {"a.stopped", "b.stopped"})
    assert not (tmp_path / "c.pid").exists()
