"""The report of a study."""

import json
from collections.abc import Callable
from pathlib import Path

from study.design import Study
from study.jobs import Store


def write(study: Study, store: Store, folder: Path, say: Callable[[str], None]) -> None:
    """Writes results.json (one object for each run, without the values of single images)."""
    from logit_laplace_jax.runs.directory import write_whole

    runs = [{k: v for k, v in run.items() if k != "per_image"} for run in store.all()]
    write_whole(folder / "results.json", json.dumps(runs, indent=1) + "\n")
    say(f"results   {folder / 'results.json'}")
