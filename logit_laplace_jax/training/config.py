"""The configuration of a run: frozen dataclasses, free of heavy imports.

The docstring under each field is what ``train.py --help`` prints.
"""

import dataclasses
import math
from typing import Any, Literal, get_args

from logit_laplace_jax import likelihoods
from logit_laplace_jax import pixel_map as pixel_maps
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.training.schedules import Schedule

Init = Literal["openai", "data"]
Objective = Literal["density", "mass"]
ScaleMode = Literal["per_pixel", "per_channel", "shared", "fixed", "optimal"]
ParallelMode = Literal["auto", "pmap", "mesh", "single"]
Freeze = Literal["none", "encoder", "decoder"]
Precision = Literal["float32", "bfloat16", "float16"]


FOLLOWS = {
    "model.stats_per_channel": "likelihood",
    "model.constant_scale": "scale",
    "model.dtype": "precision",
}
"""Fields that the run sets by itself, and by what."""
_SHARED_OPTIONS = ("eps", "min_log_scale")
"""Options that presets set for every likelihood: ε, for the encoder's input too, and a floor."""
_LIKELIHOOD_OPTIONS = (*_SHARED_OPTIONS, "scale", "fixed_scale", "components", "coupled")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and the parameter average (Ramesh et al. 2021, appendix A.2)."""

    b1: float = 0.9
    """AdamW's decay of the first moment."""
    b2: float = 0.999
    """AdamW's decay of the second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 1e-4
    """Decoupled weight decay, multiplied by the step size."""
    ema_decay: float = 0.999
    """Decay of the moving average of the parameters, which evaluation uses."""
    loss_scale: float = 32_768.0
    """With precision float16: the loss's factor at the start, a power of two."""
    loss_scale_growth: int = 2_000
    """With precision float16: updates without overflow after which the factor doubles."""

    def __post_init__(self) -> None:
        for name in ("b1", "b2", "ema_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not (math.isfinite(self.eps) and self.eps > 0.0):
            raise ValueError(f"AdamW's eps must be positive, got {self.eps}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0.0):
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if not (1.0 <= self.loss_scale <= 2.0**24 and math.log2(self.loss_scale).is_integer()):
            raise ValueError(
                f"loss_scale must be a power of two from 1 to 2**24, got {self.loss_scale}"
            )
        if self.loss_scale_growth < 1:
            raise ValueError(f"loss_scale_growth must be 1 or more, got {self.loss_scale_growth}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. The defaults are the paper's."""

    run_dir: str
    """Folder of the run: configuration, metrics, checkpoints, pictures; the same again resumes."""
    data: str
    """Images: photos (embedded), folder:PATH (searched recursively) or tfds:NAME."""
    steps: int = 3_000_000
    """Updates in all."""
    batch_size: int = 512
    """Images an update, over all devices together."""
    image_size: int = 256
    """Height and width of the training crops, in pixels; a multiple of the downsampling."""
    seed: int = 0
    """Seed of parameters, data order, augmentation and Gumbel noise."""
    likelihood: str = "logit_laplace"
    """Distribution of the pixels given the decoder's maps: logit_laplace, laplace (L1), normal
    (L2), logistic, logit_normal, truncated_normal, truncated_laplace, continuous_bernoulli,
    logistic_mixture or categorical."""
    objective: Objective = "density"
    """density: its log density at the pixel, as in the paper; mass: the exact log probability of
    the 8-bit value."""
    parallel: ParallelMode = "auto"
    """Devices: pmap, mesh (jit over a device mesh), single, or auto (pmap if several; mesh with
    fsdp)."""
    fsdp: bool = False
    """Spread parameters, their average and the optimiser's moments over the devices too (mesh)."""
    devices: int | None = None
    """Use the first so many devices; None: all."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, with their gradients added up: less
    memory, the same update."""
    precision: Precision = "float32"
    """Arithmetic of the networks: float32, bfloat16, or float16 with dynamic loss scaling.
    Parameters, their average, the codes' softmax and KL and the loss stay float32."""
    eval_every: int = 5_000
    """Updates between evaluations; 0: only at the end."""
    checkpoint_every: int = 5_000
    """Updates between checkpoints; 0: only at the end."""
    keep_checkpoints: int = 3
    """How many of the latest checkpoints stay, beside the best by held-out bits/dim."""
    log_every: int = 1
    """Updates between lines of metrics.jsonl; the loss of every update is checked all the same."""
    data_dir: str | None = None
    """Where TFDS data sets are prepared and looked for; default: TFDS's own (TFDS_DATA_DIR)."""
    data_threads: int | None = None
    """Threads of each process that read and decode images ahead of the devices; None: one a core,
    2 to 16."""
    eps: float = 0.1
    """ε of the pixel map, in [0, 0.5)."""
    scale: ScaleMode = "per_pixel"
    """Scale b: predicted per_pixel, learned per_channel or shared (one), fixed, or optimal (closed
    form from the batch)."""
    fixed_scale: float = 0.1
    """b with scale fixed, in the likelihood's own units (logit units for logit_laplace)."""
    min_log_scale: float | None = None
    """Soft floor of ln b; None: the family's own (none for logit_laplace, as in the paper)."""
    dequantize: bool = False
    """Add uniform noise of one grey level to the pixels that the density is taken at."""
    components: int = 10
    """Components of logistic_mixture."""
    coupled: bool = False
    """Let logistic_mixture predict green from red and blue from both, as PixelCNN++ does."""
    min_crop: float = 1.0
    """Smallest training crop as a share of the short side; 1, all of it, is the paper's."""
    eval_scale: float | None = None
    """Evaluate on all tiles of each image scaled by this; None: one centre crop an image."""
    eval_images: int | None = 2_048
    """Evaluate on at most this many crops; None: all."""
    init: Init = "openai"
    """Initial encoder: openai, or data: the same, normalised on a batch so that codes differ."""
    init_logit_std: float = 3.0
    """With init data: standard deviation of each code's logit over positions, in nats."""
    init_from: str | None = None
    """Start from trained weights: a run directory, a .safetensors or .pt file, or
    ENCODER.pkl,DECODER.pkl as OpenAI published them; what belongs to the likelihood starts anew
    where its maps are others in number."""
    freeze: Freeze = "none"
    """Leave the encoder (and so the tokens' meaning) or the decoder as it is at the start."""
    debug: bool = False
    """Check ranges and finiteness inside the step (checkify), at some cost in speed."""
    beta: Schedule = Schedule(0.0, 6.6, 5_000)
    """Weight of the KL."""
    temperature: Schedule = Schedule(1.0, 1.0 / 16.0, 150_000)
    """Temperature τ of the relaxation."""
    learning_rate: Schedule = Schedule(1e-4, 1.25e-6, 1_200_000)
    """Step size."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and the parameter average."""
    model: DVAEConfig = DVAEConfig()
    """Encoder, bottleneck and decoder."""

    def __post_init__(self) -> None:
        counts = (
            "steps",
            "batch_size",
            "image_size",
            "keep_checkpoints",
            "log_every",
            "accumulate",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        for name in ("eval_every", "checkpoint_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.data_threads is not None and self.data_threads < 0:
            raise ValueError(f"data_threads must be 0 or more, got {self.data_threads}")
        if self.devices is not None and self.devices < 1:
            raise ValueError(f"devices must be 1 or more, got {self.devices}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch size {self.batch_size} cannot be computed in {self.accumulate} equal parts"
            )
        if self.fsdp and self.parallel not in ("auto", "mesh"):
            raise ValueError(f"fsdp needs --parallel mesh, not {self.parallel}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        if not 0.0 < self.min_crop <= 1.0:
            raise ValueError(f"min_crop must lie in (0, 1], got {self.min_crop}")
        if self.init not in ("openai", "data"):
            raise ValueError(f"init must be openai or data, got {self.init!r}")
        if self.freeze not in get_args(Freeze):
            raise ValueError(f"freeze must be none, encoder or decoder, got {self.freeze!r}")
        if not self.init_logit_std > 0.0:
            raise ValueError(f"init_logit_std must be positive, got {self.init_logit_std}")
        if self.eval_scale is not None and not 0.0 < self.eval_scale <= 1.0:
            raise ValueError(f"eval_scale must lie in (0, 1], got {self.eval_scale}")
        if self.eval_images is not None and self.eval_images < 1:
            raise ValueError(f"eval_images must be 1 or more, got {self.eval_images}")
        for name in ("temperature", "learning_rate"):
            if min(getattr(self, name).start, getattr(self, name).end) <= 0:
                raise ValueError(f"{name} must stay above 0")
        if min(self.beta.start, self.beta.end) < 0:
            raise ValueError("beta must stay at 0 or above")
        if self.model.channels not in (1, 3):
            raise ValueError(f"model.channels must be 1 or 3, got {self.model.channels}")
        self.model.check_size(self.image_size, self.image_size)
        if self.objective not in ("density", "mass"):
            raise ValueError(f"objective must be density or mass, got {self.objective!r}")
        if self.dequantize and self.objective == "mass":
            raise ValueError("dequantize is for objective density: a mass has no use for it")
        pixel_maps.check_eps(self.eps)
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )
        # The head follows the likelihood, the arithmetic the precision; a user never sets both.
        follows: dict[str, Any] = {
            "stats_per_channel": self.build_likelihood().num_stats,
            "constant_scale": self.scale if self.scale in ("per_channel", "shared") else "none",
            "dtype": self.precision,
        }
        if any(getattr(self.model, name) != value for name, value in follows.items()):
            object.__setattr__(self, "model", dataclasses.replace(self.model, **follows))

    def build_likelihood(self) -> likelihoods.Likelihood:
        """The likelihood with those of this run's options that the family has.

        Raises:
          ValueError: an option was changed that the family does not have.
        """
        known = likelihoods.options(self.likelihood)
        chosen: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            if field.name not in _LIKELIHOOD_OPTIONS:
                continue
            value = getattr(self, field.name)
            if field.name in known:
                # A floor that is not given is the family's own.
                if not (field.name == "min_log_scale" and value is None):
                    chosen[field.name] = value
            elif field.name not in _SHARED_OPTIONS and value != field.default:
                flag = field.name.replace("_", "-")
                raise ValueError(f"likelihood {self.likelihood} has no option --{flag}")
        return likelihoods.get(self.likelihood, **chosen)

    def resolved(self) -> "TrainConfig":
        """The same with every schedule's length as a number of updates."""
        return dataclasses.replace(
            self,
            beta=self.beta.over(self.steps),
            temperature=self.temperature.over(self.steps),
            learning_rate=self.learning_rate.over(self.steps),
        )


@dataclasses.dataclass(frozen=True)
class Launch:
    """How a run is started: nothing of it changes what is computed, so nothing of it is saved."""

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
    """Only compile an update and tell parameters, memory, FLOPs and communication; no data needed,
    nothing written."""
    simulate: int | None = None
    """With dry_run: as if there were so many devices (simulated on the CPU)."""
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
        if self.dry_run and self.distributed:
            raise ValueError("--dry-run is for one process: give --simulate for many devices")


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as nested plain types, for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> TrainConfig:
    """The inverse of :func:`to_dict`.

    Raises:
      ValueError: a field is unknown or missing: the file is of another version.
    """
    nested: dict[str, Any] = {
        "beta": Schedule,
        "temperature": Schedule,
        "learning_rate": Schedule,
        "optimizer": OptimizerConfig,
        "model": DVAEConfig,
    }
    try:
        parts = {k: nested[k](**v) if k in nested else v for k, v in values.items()}
        return TrainConfig(**parts)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a configuration of this version: {error}") from None


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """What separates two runs: one line a field, without those that a resumed run may change.

    >>> a = TrainConfig(run_dir="a", data="photos")
    >>> b = dataclasses.replace(a, run_dir="b", seed=1)
    >>> differences(a, b)
    ['seed: 0 there, 1 here']
    """
    free = {
        "run_dir",
        "steps",
        "parallel",
        "fsdp",
        "devices",
        "accumulate",
        "data_threads",
        "eval_every",
        "checkpoint_every",
        "keep_checkpoints",
        "log_every",
        "data_dir",
        "eval_images",
        "debug",
    }
    lines = []

    def compare(a: dict[str, Any], b: dict[str, Any], prefix: str) -> None:
        for key in a:
            if not prefix and key in free:
                continue
            if f"{prefix}{key}" in FOLLOWS:
                continue
            if isinstance(a[key], dict):
                compare(a[key], b[key], f"{prefix}{key}.")
            elif a[key] != b[key]:
                lines.append(f"{prefix}{key}: {a[key]} there, {b[key]} here")

    compare(to_dict(old.resolved()), to_dict(new.resolved()), "")
    return lines
