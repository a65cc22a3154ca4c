"""What a study is: cells (what is compared), a small grid to tune each on, seeds."""

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from logit_laplace_jax.training.config import LikelihoodConfig, TrainConfig, flat
from logit_laplace_jax.training.schedules import Schedule

Phase = Literal["tuning", "final"]

STUDIES = ("smoke", "main", "main_large")

TUNING_SEED = 1_000
"""Far from the final runs' seeds, which count from 0."""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A point of the grid: the step size at the start, and the KL's weight at the end."""

    learning_rate: float
    beta: float


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the comparison.

    Attributes:
      name: what tables call it.
      likelihood: the options of the likelihood.
      tuned_as: the cell whose tuning it takes over; "" for its own.
      data: the data sets it is run on; empty: all of the study's.
      seeds: how many seeds; None: the study's.
      beta_factor: on the tuned weight of the KL.
      ablation: it changes one thing of the cell that it is tuned as; run last, told apart.
    """

    name: str
    likelihood: LikelihoodConfig
    tuned_as: str = ""
    data: tuple[str, ...] = ()
    seeds: int | None = None
    beta_factor: float = 1.0
    ablation: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
    """Everything that decides a study; ``base`` holds what all of its runs share.

    Attributes:
      base: network, initialisation, steps, batch size; data, likelihood, seed and what is tuned
        are filled in.
      data: names of data sets (:mod:`study.data`).
      cells: what is compared.
      grid: the points each cell is tuned on, on a split and with a seed of its own.
      seeds: seeds of the final runs, paired across cells.
      held_out: images of the final evaluation, at most.
    """

    base: TrainConfig
    data: tuple[str, ...]
    cells: tuple[Cell, ...]
    grid: tuple[Tuned, ...]
    seeds: int
    held_out: int

    def cell(self, name: str) -> Cell:
        """The cell of that name."""
        return next(cell for cell in self.cells if cell.name == name)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a cell on a data set with a seed, at a point of the grid."""

    study: str
    phase: Phase
    data: str
    cell: Cell
    tuned: Tuned
    seed: int

    @property
    def name(self) -> str:
        """The run's own name: the folder and the result file are called so."""
        point = f"_lr{self.tuned.learning_rate:g}_b{self.tuned.beta:g}"
        phase = "tune" if self.phase == "tuning" else f"seed{self.seed}"
        return f"{self.data}_{self.cell.name}{point if self.phase == 'tuning' else ''}_{phase}"

    def config(self, base: TrainConfig, channels: int, size: int, folder: Path) -> TrainConfig:
        """The configuration of the run."""
        return dataclasses.replace(
            base,
            run_dir=str(folder / self.name),
            seed=self.seed,
            image_size=size,
            data=dataclasses.replace(base.data, source=f"{self.study}:{self.data}"),
            likelihood=self.cell.likelihood,
            learning_rate=Schedule(
                self.tuned.learning_rate, self.tuned.learning_rate / 100, base.steps
            ),
            beta=Schedule(
                base.beta.start,
                self.tuned.beta * self.cell.beta_factor,
                base.beta.steps or base.steps,
            ),
            model=dataclasses.replace(base.model, channels=channels),
        )

    def design(self, base: TrainConfig) -> str:
        """Ten digits that change with whatever decides the run's numbers but the data set's size.

        Options at their defaults are left out: results stay valid when a version brings new ones.
        """
        usual = flat(TrainConfig(run_dir=""))
        values = flat(self.config(base, 3, base.image_size, Path()).resolved())
        told = {k: v for k, v in values.items() if k != "run_dir" and v != usual.get(k)}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:10]


def load(name: str) -> Study:
    """The study of that name."""
    study = importlib.import_module(f"study.{name}").STUDY
    assert isinstance(study, Study)
    return study


def tuning_jobs(name: str, study: Study) -> Iterator[Job]:
    """The grid of every cell that is tuned on its own."""
    for data in study.data:
        for cell in study.cells:
            if not cell.tuned_as and data in (cell.data or study.data):
                for tuned in study.grid:
                    yield Job(name, "tuning", data, cell, tuned, TUNING_SEED)


def final_jobs(name: str, study: Study, best: dict[tuple[str, str], Tuned]) -> Iterator[Job]:
    """The final runs: seed by seed, so that a study cut short has whole seeds.

    Args:
      name: the study's.
      study: the study.
      best: the tuned point by data set and cell; runs whose point is unknown are left out.
    """
    families = [cell for cell in study.cells if not cell.ablation]
    ablations = [cell for cell in study.cells if cell.ablation]
    for cells in (families, ablations):
        for seed in range(study.seeds):
            for data in study.data:
                for cell in cells:
                    point = best.get((data, cell.tuned_as or cell.name))
                    wanted = data in (cell.data or study.data)
                    if point and wanted and seed < (cell.seeds or study.seeds):
                        yield Job(name, "final", data, cell, point, seed)
