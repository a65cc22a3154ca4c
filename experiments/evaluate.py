"""Evaluates trained runs on held-out crops: a table on the terminal, and JSON.

python experiments/evaluate.py RUN_DIR... [--options]
"""

import dataclasses
import json
import time
from pathlib import Path

from _cli import fail, one_line_errors, parse, quiet, run_script

ROWS = {
    "psnr": ("PSNR, hard codes", "dB"),
    "psnr_relaxed": ("PSNR, relaxed codes", "dB"),
    "nll_hard": ("NLL, hard codes", "nats a value"),
    "nll_relaxed": ("NLL, relaxed codes", "nats a value"),
    "kl": ("KL to uniform", "nats a token"),
    "elbo_hard": ("ELBO, hard codes (ln V a token)", "nats a value"),
    "elbo_relaxed": ("ELBO, relaxed codes", "nats a value"),
    "code_usage": ("codes in use", "share"),
    "code_perplexity": ("perplexity of the codes", "codes"),
    "floor_share": ("ln b at its floor", "share"),
    "images": ("crops", ""),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Command line of evaluate.py."""

    run_dirs: tuple[Path, ...]
    """Run directories that train.py wrote."""
    data: str | None = None
    """Held-out images: photos, folder:PATH or tfds:NAME; default: what the run was trained on."""
    json: Path | None = None
    """Also write the numbers to this file; it must not exist."""


def main(args: list[str]) -> None:
    """Evaluates every run at its last checkpoint."""
    import tyro

    options = parse(
        Options,
        args,
        prog="evaluate.py",
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )
    quiet()
    from logit_laplace_jax.training import checkpoints, loop

    if not options.run_dirs:
        fail("name at least one run directory: evaluate.py RUN_DIR...")
    if options.json is not None and options.json.exists():
        fail(f"{options.json} exists; choose another --json file")
    if options.json is not None and not options.json.parent.is_dir():
        fail(f"{options.json.parent} is not a folder; make it, or choose another --json file")
    results = {}
    for folder in options.run_dirs:
        with one_line_errors(ValueError, checkpoints.CheckpointError):
            started = time.perf_counter()
            results[str(folder)] = values = loop.evaluate_run(folder, options.data)
        seconds = time.perf_counter() - started
        print(f"{folder}: step {values['step']:.0f}, evaluated in {seconds:.1f} s")
        for name, (label, unit) in ROWS.items():
            print(f"  {label:<34} {values[name]:10.4f} {unit}".rstrip())
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
