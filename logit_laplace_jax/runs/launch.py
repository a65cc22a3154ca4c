"""How a run is started: nothing of it changes what is computed, so nothing of it is saved."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Launch:
    """Options of ``train.py`` that belong to one start and not to the run."""

    distributed: bool = False
    """One of several processes (``jax.distributed``): found by itself on TPU pods, Slurm and Open
    MPI, else by the next three."""
    coordinator: str | None = None
    """HOST:PORT of process 0, reachable from all processes."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    dry_run: bool = False
    """Only compile an update and tell parameters, memory and FLOPs; no data needed, nothing
    written."""
    simulate: int | None = None
    """With dry_run: as if there were so many devices (simulated on the CPU)."""
    topology: str | None = None
    """With dry_run: as on this hardware, by its own compiler and without it: v5e:4x4, v6e:2x2,
    v4:2x2x1, v5p:2x2x1 (chips along each axis; needs jax[tpu]), h100:8 (needs jax[cuda12])."""
    memory_report: bool = False
    """Tell first what an update needs on each device; a run that cannot fit is refused."""
    profile: bool = False
    """Write a JAX profiler trace of a few updates into the run directory's profile/."""

    def __post_init__(self) -> None:
        if not self.distributed:
            for name in ("coordinator", "num_processes", "process_id"):
                if getattr(self, name) is not None:
                    raise ValueError(f"--{name.replace('_', '-')} belongs to --distributed")
        if self.simulate is not None and not self.dry_run:
            raise ValueError("--simulate belongs to --dry-run")
        if self.simulate is not None and self.simulate < 1:
            raise ValueError(f"simulate must be 1 or more, got {self.simulate}")
        if self.topology is not None and not self.dry_run:
            raise ValueError("--topology belongs to --dry-run")
        if self.topology is not None and self.simulate is not None:
            raise ValueError("give --topology or --simulate, not both")
        if self.dry_run and self.distributed:
            raise ValueError(
                "--dry-run is for one process: give --topology or --simulate for many devices"
            )
