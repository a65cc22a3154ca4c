"""Suites of benchmark.py, a module each: ``run(options)`` returns a :class:`report.Report`.

Nothing here needs tyro, grain or TFDS, so that a lean GPU image can call ``run`` from Python.
"""

import dataclasses
import importlib
import math
from pathlib import Path
from types import ModuleType
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Options:
    """What all suites share."""

    quick: bool = False
    """Fewer and smaller measurements: a look, not a result."""
    rounds: int | None = None
    """Times that every contestant is measured; default: 40 for loss and 15 for step, with --quick
    7 and 3."""
    least_sample: float = 0.005
    """Seconds of the shortest sample: short work is repeated until it takes this long."""
    seed: int = 0
    """Seed of the inputs and of the order in each round."""
    out: Path = Path("runs/benchmark")
    """Folder for SUITE.json (every sample), SUITE.md (the tables) and SUITE.png; it is made if it
    does not exist."""
    overwrite: bool = False
    """Replace files that exist; without it nothing is overwritten."""

    def check(self) -> None:
        """Refuses what cannot be measured.

        Raises:
          ValueError: names the option, what it takes and what it got.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            option = f"--{field.name.replace('_', '-')}"
            if type(value) is int and field.name != "seed" and value < 1:
                raise ValueError(f"{option} must be 1 or more, got {value}")
            if type(value) is float and not 0.0 < value < math.inf:
                raise ValueError(f"{option} must be above 0, got {value}")


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """Command line of benchmark.py loss."""

    batch: int | None = None
    """Images; default: 16 on a CPU (4 with --quick), 256 on an accelerator."""
    side: int = 256
    """Height and width of an image, pixels."""
    inner: int = 8
    """Evaluations inside one jitted step, for the sections with kept buffers."""


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """Command line of benchmark.py step.

    The paper's model on a GPU: --n-hid 256 --vocab 8192 --precision bfloat16 --sizes 256:8.
    """

    sizes: tuple[str, ...] | None = None
    """SIDE:BATCH, pixels on a side and images per step; default: 32:32 64:16 128:8, with --quick
    32:8."""
    n_hid: int = 64
    """Width of the model, from 64 on, a multiple of 4."""
    blocks: int = 2
    """Residual blocks per group."""
    vocab: int = 1024
    """Codes, from 512 on."""
    precision: str = "float32"
    """Arithmetic of the networks in both libraries: float32 or bfloat16."""
    no_compile: bool = False
    """Leave out torch.compile, which takes minutes."""

    def pairs(self) -> list[tuple[int, int]]:
        """The sizes as pairs of side and batch.

        >>> StepOptions(quick=True).pairs()
        [(32, 8)]
        """
        texts = self.sizes or (("32:8",) if self.quick else ("32:32", "64:16", "128:8"))
        return [(int(side), int(batch)) for side, batch in (text.split(":") for text in texts)]

    def check(self) -> None:
        """Refuses what the models do not take."""
        super().check()
        try:
            pairs = self.pairs()
        except ValueError:
            raise ValueError(f"--sizes takes SIDE:BATCH, such as 32:32, got {self.sizes}") from None
        if any(side < 8 or side % 8 or batch < 1 for side, batch in pairs):
            raise ValueError(
                "--sizes: the model halves images three times, so SIDE must be one of "
                "the multiples of 8 pixels, and BATCH 1 or more"
            )
        if self.n_hid < 64 or self.n_hid % 4 or self.vocab < 512:
            raise ValueError(
                "OpenAI's modules take --n-hid from 64 on, a multiple of 4, and --vocab from 512 on"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"--precision must be float32 or bfloat16, got {self.precision}")


@dataclasses.dataclass(frozen=True)
class CompiledOptions:
    """Command line of benchmark.py compiled."""

    target: Literal["v4", "v5e", "v5p", "v6e", "h100"] = "v5e"
    """Device whose compiler is asked; no such device is needed."""
    blocks: tuple[str, ...] = ()
    """Only blocks whose name contains one of these words; default: all."""
    paper: bool = False
    """Also the paper's update (256 x 256, n_hid 256, 8192 codes), which compiles for many
    minutes."""
    ours: bool = False
    """Leave out the peers."""
    quick: bool = False
    """Small arrays: a look, not a result."""
    out: Path = Path("runs/benchmark")
    """Folder for compiled.json, compiled.md and compiled.png, and for what is known of programs
    that were compiled before (programs_TARGET.json)."""
    overwrite: bool = False
    """Replace files that exist; without it nothing is overwritten."""

    def check(self) -> None:
        """Readies the environment for the target's compiler.

        Raises:
          ValueError: it is not installed.
        """
        from logit_laplace_jax.runs import targets

        targets.prepare(self.target)


def load(suite: str) -> ModuleType:
    """The suite's module."""
    return importlib.import_module(f"benchmarks.{suite}")
