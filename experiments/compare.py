"""Compares likelihoods side by side: the same networks, images, noise and updates for all.

python experiments/compare.py [STUDY] [--options]

Studies: smoke (seconds), main (two CPU cores, some six hours), main_large (one accelerator). The
same command goes on where it stopped.
"""

import dataclasses
import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out

from _cli import fail, one_line_errors, parse, quiet, run_script, say


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of compare.py."""

    images: Path | None = None
    """Folder that holds cifar10/, mnist/ and bsds500/: see the head of study/data.py."""
    results: Path | None = None
    """Folder of the results; default: runs/STUDY."""
    run_dirs: Path | None = None
    """Folder of the run directories, with checkpoints; default: runs/STUDY/training."""
    workers: int = 1
    """Runs side by side; each keeps to its share of the CPU's cores."""
    data: tuple[str, ...] = ()
    """Only these data sets of the study."""
    cells: tuple[str, ...] = ()
    """Only these cells (a likelihood, or an ablation's name)."""
    seeds: tuple[int, ...] = ()
    """Only these seeds in the final runs."""
    report_only: bool = False
    """Only the report, of what is there."""


def main(args: list[str]) -> None:
    """Tunes, runs, reports."""
    from study.design import STUDIES, Job, Study, final_jobs, load, tuning_jobs

    name = "main"
    if args and not args[0].startswith("-"):
        name, args = args[0], args[1:]
        if name not in STUDIES:
            fail(f"unknown study {name!r}; choose one of {', '.join(STUDIES)}")
    options = parse(Options, args, prog=f"compare.py {name}", description=__doc__)
    if options.workers < 1:
        fail("--workers must be 1 or more")
    quiet()
    from study import jobs, report, sanity

    from logit_laplace_jax.data.errors import DataError
    from logit_laplace_jax.runs.errors import CheckpointError, Stopped

    study: Study = load(name)
    for given, known in (
        (options.data, study.data),
        (options.cells, [c.name for c in study.cells]),
    ):
        for word in given:
            if word not in known:
                fail(f"the study {name} has no {word}; it has {', '.join(known)}")
    results = options.results or Path("runs") / name
    runs = options.run_dirs or results / "training"
    store = jobs.Store(results, study)

    chosen = {c.name: c.tuned_as or c.name for c in study.cells if c.name in options.cells}

    def wanted(job: Job) -> bool:
        cells = chosen.values() if job.phase == "tuning" else chosen
        return (
            (not options.data or job.data in options.data)
            and (not options.cells or job.cell.name in cells)
            and (job.phase == "tuning" or not options.seeds or job.seed in options.seeds)
            and store.read(job) is None
        )

    run = functools.partial(
        jobs.run_job, study=study, images=options.images, runs=runs, results=results
    )
    try:
        with one_line_errors(ValueError, CheckpointError, DataError):
            if not options.report_only:
                tuning = [job for job in tuning_jobs(name, study) if wanted(job)]
                say(f"tuning    {len(tuning)} runs to do; results in {results}")
                jobs.run_all(tuning, run, options.workers, say)
                best = jobs.best_points(name, study, store)
                final = [job for job in final_jobs(name, study, best) if wanted(job)]
                say(f"final     {len(final)} runs to do")
                jobs.run_all(final, run, options.workers, say)
                codecs = sanity.keep(
                    name, study, options.data or study.data, options.images, results
                )
            else:
                codecs = sanity.kept(results)
            report.write(study, store, results, say, runs=runs, sanity=codecs)
    except Stopped as stop:
        say(str(stop))
        sys.exit(128 + stop.signal_number)


if __name__ == "__main__":
    run_script(main)
