"""Seconds: two families, a handful of updates on the embedded photographs; for tests."""

import dataclasses

from logit_laplace_jax.models.config import DVAEConfig
from study.design import Study, Tuned
from study.main import FAMILIES
from study.main import STUDY as MAIN

STUDY = Study(
    base=dataclasses.replace(
        MAIN.base,
        steps=4,
        batch_size=4,
        checkpoint_every=2,
        model=DVAEConfig(group_count=2, n_hid=4, n_blk_per_group=1, vocab_size=8, n_init=4),
    ),
    data=("photos",),
    cells=tuple(
        # One tuning run for both: nearly all of the time goes into tracing each run's programs.
        dataclasses.replace(cell, tuned_as="" if cell.name == "logit_laplace" else "logit_laplace")
        for cell in FAMILIES
        if cell.name in ("logit_laplace", "normal")
    ),
    grid=(Tuned(1e-3, 1.0),),
    seeds=1,
    held_out=8,
)
