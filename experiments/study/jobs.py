"""Runs a study's jobs, side by side, each result stored as soon as it is there."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from study.design import Job, Study, Tuned, tuning_jobs

RESULTS = "runs"
"""Folder of the results, a file for each run, below that of the study."""


class Store:
    """The results of a study: one JSON file for each run.

    Args:
      folder: the study's folder.
      study: the study.
    """

    def __init__(self, folder: Path, study: Study):
        self.folder = folder / RESULTS
        self._base = study.base

    def read(self, job: Job) -> dict[str, Any] | None:
        """The result of a run; None while there is none.

        Raises:
          ValueError: it is of another design.
        """
        path = self.folder / f"{job.name}.json"
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text())
        if result["design"] != job.design(self._base):
            raise ValueError(
                f"{path} is of another design of the study: choose another --results folder, or "
                "delete the file to have it run again"
            )
        return result

    def write(self, job: Job, result: dict[str, Any]) -> None:
        """Stores a result, whole or not at all."""
        from logit_laplace_jax.runs.directory import write_whole

        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{job.name}.json", json.dumps(result) + "\n")

    def all(self) -> list[dict[str, Any]]:
        """All results, in the order of their names."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]


def best_points(name: str, study: Study, store: Store) -> dict[tuple[str, str], Tuned]:
    """The point of the grid with the fewest bits on the tuning split, where all are measured."""
    best: dict[tuple[str, str], Tuned] = {}
    found: dict[tuple[str, str], list[tuple[float, int, Tuned]]] = {}
    for job in tuning_jobs(name, study):
        result = store.read(job)
        if result is not None:
            points = found.setdefault((job.data, job.cell.name), [])
            points.append((result.get("bpd_hard", float("inf")), len(points), job.tuned))
    for key, points in found.items():
        if len(points) == len(study.grid):
            best[key] = min(points)[2]
    return best


def run_job(job: Job, study: Study, images: Path | None, runs: Path, results: Path) -> str:
    """Trains and measures one run, stores the result, and returns a line about it."""
    import jax

    from logit_laplace_jax.runs import compiled_programs, loop
    from logit_laplace_jax.runs.errors import NonFiniteLoss
    from study import data, measures

    started = time.perf_counter()
    compiled_programs.keep()
    chosen = data.load(job.data, images, job.phase, study.held_out)
    config = job.config(study.base, chosen.channels, chosen.size, runs)
    likelihood = config.likelihood
    head = {
        "study": job.study,
        "split": job.phase,
        "data": job.data,
        "cell": job.cell.name,
        "likelihood": likelihood.name,
        "scale": likelihood.scale,
        "objective": likelihood.objective,
        "seed": job.seed,
        "learning_rate": job.tuned.learning_rate,
        "beta": job.tuned.beta * job.cell.beta_factor,
        "design": job.design(study.base),
        "commit": commit(),
    }
    try:
        loop.train(config, chosen, say=lambda line: None)
        measured = measures.measure_run(config.run_dir, chosen, 64)
        if job.phase == "tuning":
            del measured["per_image"]  # only final runs are compared image by image
    except NonFiniteLoss as error:
        measured = {"failed": str(error)}
    jax.clear_caches()  # every run compiles anew, its configuration being static to the compiler
    seconds = time.perf_counter() - started
    Store(results, study).write(job, head | measured | {"seconds": round(seconds, 1)})
    if "failed" in measured:
        return f"{job.name}: {measured['failed']}"
    return (
        f"{job.name}: {measured['bpd_hard']:.3f} bits/dim, {measured['psnr']:.2f} dB, "
        f"perplexity {measured['code_perplexity']:.0f}, {seconds:.0f} s"
    )


def commit() -> str:
    """The commit of this checkout, with + where files differ from it; "" outside of git."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def run_all(
    jobs: Iterable[Job], run: Callable[[Job], str], workers: int, say: Callable[[str], None]
) -> None:
    """Runs jobs, in worker processes if several; a line for each, with the time left.

    Args:
      jobs: in the order in which they are begun.
      run: picklable, does one.
      workers: processes side by side; each keeps to its share of the cores.
      say: prints one line.
    """
    waiting = list(jobs)
    total, started, done = len(waiting), time.perf_counter(), 0

    def tell(line: str) -> None:
        nonlocal done
        done += 1
        left = (time.perf_counter() - started) / done * (total - done)
        say(f"[{done}/{total}, {left / 3600:.1f} h left] {line}")

    if workers == 1:
        for job in waiting:
            tell(run(job))
        return
    context = multiprocessing.get_context("spawn")
    pipes: dict[Any, Any] = {}
    for number in range(min(workers, total)):
        ours, theirs = context.Pipe()
        pipes[ours] = context.Process(target=_work, args=(theirs, run, number, workers))
        pipes[ours].start()
        theirs.close()
        ours.send(waiting.pop(0))
    try:
        while done < total:
            for pipe in wait(list(pipes)):
                try:
                    failed, line = pipe.recv()
                except EOFError:
                    raise ValueError("a worker ended unasked; the same command goes on") from None
                if failed:
                    raise ValueError(line)
                tell(line)
                if waiting:
                    pipe.send(waiting.pop(0))
    finally:
        for pipe, process in pipes.items():
            pipe.close()  # an idle worker ends with it
            if done < total:
                process.terminate()
        for process in pipes.values():
            process.join()  # a run that is asked to stop saves first


def _work(pipe: Any, run: Callable[[Job], str], number: int, workers: int) -> None:
    """Carries out the jobs that come, and answers (whether it failed, a line)."""
    from logit_laplace_jax.runs.errors import Stopped

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which ends this
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        # Two runs on one core each are faster than one after the other on two.
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number % len(cores) :: workers])
    with contextlib.suppress(Stopped, EOFError):  # the command is gone
        while True:
            job = pipe.recv()
            try:
                answer = False, run(job)
            except (ValueError, RuntimeError) as error:
                if isinstance(error, Stopped):
                    raise
                answer = True, str(error)
            pipe.send(answer)


def _end_with_parent() -> None:
    """A killed command must not leave processes behind that train on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
