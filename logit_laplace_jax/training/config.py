"""The configuration of a run: nested frozen dataclasses, free of heavy imports.

The docstring under each field is what ``train.py --help`` prints.
"""

import dataclasses
import math
import typing
from typing import Any, ClassVar, Literal, Self

from logit_laplace_jax import likelihoods, pixel_map
from logit_laplace_jax.models.config import DVAEConfig
from logit_laplace_jax.models.prior_config import PriorConfig
from logit_laplace_jax.training.schedules import Schedule

Init = Literal["openai", "data", "codebook"]
Objective = Literal["density", "mass"]
ScaleMode = Literal["per_pixel", "per_channel", "shared", "fixed", "optimal"]
ParallelMode = Literal["auto", "pmap", "mesh", "single"]
Freeze = Literal["none", "encoder", "decoder"]
Precision = Literal["float32", "bfloat16", "float16"]


def _at_least(config: Any, low: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < low:
            raise ValueError(f"{name} must be {low} or more, got {value}")


def _share(config: Any, name: str) -> None:
    value = getattr(config, name)
    if value is not None and not 0.0 < value <= 1.0:
        raise ValueError(f"{name} must lie in (0, 1], got {value}")


def _one_of(config: Any, name: str, kind: Any) -> None:
    value, allowed = getattr(config, name), typing.get_args(kind)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which images, and how training crops are cut from them."""

    source: str = "photos"
    """Images: photos (embedded), folder:PATH (searched recursively) or tfds:NAME."""
    data_dir: str | None = None
    """Where TFDS data sets are prepared and looked for; default: TFDS's own (TFDS_DATA_DIR)."""
    threads: int | None = None
    """Threads of each process that read and decode images ahead of the devices; default: one per
    core, from 2 to 16."""
    min_crop: float = 1.0
    """Smallest training crop as a share of the image's short side, in (0, 1]; the paper crops all
    of it."""
    max_crop: float = 1.0
    """Largest training crop as a share of the image's short side, from min_crop to 1."""
    jitter: float = 0.0
    """Strength of random changes of the training crops' contrast, brightness, saturation and hue;
    1 is mild, 0 (the paper) none."""
    augment: bool = True
    """Cut training crops at random places and flip half of them; without: the centre square, as in
    evaluation."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "threads", "jitter")
        _share(self, "min_crop")
        _share(self, "max_crop")
        if self.max_crop < self.min_crop:
            raise ValueError(f"max_crop must be min_crop ({self.min_crop}) or more")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out images: when, how many, at which size."""

    every: int = 5_000
    """Updates between evaluations; 0: only at the end."""
    images: int | None = 2_048
    """Evaluate on at most this many crops; None: all."""
    resize: float | None = None
    """Evaluate on all tiles of each image resized by this factor, in (0, 1]; default: one centre
    crop per image."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "every")
        _at_least(self, 1, "images")
        _share(self, "resize")


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig:
    """The distribution of the pixels given the decoder's maps, and what of it is minimised."""

    name: str = "logit_laplace"
    """Family: logit_laplace, laplace (L1), normal (L2), logistic, logit_normal, truncated_normal,
    truncated_laplace, continuous_bernoulli, logistic_mixture or categorical."""
    objective: Objective = "density"
    """density: the log density at the pixel, as in the paper; mass: the exact log probability of
    the 8-bit value."""
    dequantize: bool = False
    """Add uniform noise of one grey level to the pixels at which the density is taken."""
    eps: float = 0.1
    """ε of the pixel map, in [0, 0.5): of the encoder's input, and of the families in logit
    space."""
    scale: ScaleMode = "per_pixel"
    """Scale b: predicted per_pixel, learned per_channel or shared (one), fixed, or optimal (closed
    form from the batch)."""
    fixed_scale: float = 0.1
    """b with scale fixed, in the likelihood's own units (logit units for logit_laplace)."""
    min_log_scale: float | None = None
    """Soft floor of ln b; default: the family's own (none for logit_laplace, as in the paper)."""
    components: int = 10
    """Components of logistic_mixture."""
    coupled: bool = False
    """Let logistic_mixture predict green from red and blue from both, as PixelCNN++ does."""

    def __post_init__(self) -> None:
        _one_of(self, "objective", Objective)
        if self.dequantize and self.objective == "mass":
            raise ValueError("dequantize is for objective density: a mass has no use for it")
        pixel_map.check_eps(self.eps)
        self.build()

    def build(self) -> likelihoods.Likelihood:
        """The likelihood, with those of these options that its family has.

        Raises:
          ValueError: an option was changed that the family does not have.
        """
        known = likelihoods.options(self.name)
        chosen: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in known:
                if value is not None:  # else the family's own default
                    chosen[field.name] = value
            # ε is the encoder's too; a preset's floor must not forbid the families without one.
            elif field.name in ("scale", "fixed_scale", "components", "coupled") and (
                value != field.default
            ):
                raise ValueError(f"likelihood {self.name} has no option {field.name}")
        return likelihoods.get(self.name, **chosen)


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
        _at_least(self, 1, "loss_scale_growth")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every run has, whatever is trained. The defaults are the paper's."""

    measure: ClassVar[str]
    """The held-out measure by which a checkpoint is the best, the less the better."""

    run_dir: str
    """Folder of the run: configuration, metrics, checkpoints, pictures; the same again resumes."""
    steps: int = 3_000_000
    """Updates in all."""
    batch_size: int = 512
    """Images per update, over all devices together."""
    seed: int = 0
    """Seed of parameters, data order, augmentation and noise."""
    parallel: ParallelMode = "auto"
    """Devices: pmap, mesh (jit over a device mesh), single (the first one), or auto (pmap if there
    are several; mesh with fsdp)."""
    fsdp: bool = False
    """Spread parameters, their average and the optimiser's moments over the devices too (mesh)."""
    devices: int | None = None
    """Use the first so many devices; None: all."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, with their gradients added up: less
    memory, the same update."""
    precision: Precision = "float32"
    """Arithmetic of the networks: float32, bfloat16, or float16 with dynamic loss scaling.
    Parameters, their average, every softmax and the loss stay float32."""
    checkpoint_every: int = 5_000
    """Updates between checkpoints; 0: only at the end."""
    keep_checkpoints: int = 3
    """How many of the latest checkpoints stay, beside the best by held-out bits."""
    log_every: int = 1
    """Updates between lines of metrics.jsonl; the loss of every update is checked all the same."""
    debug: bool = False
    """Check ranges and finiteness inside the step (checkify), at some cost in speed."""
    learning_rate: Schedule = Schedule(1e-4, 1.25e-6, 1_200_000)
    """Step size."""
    data: DataConfig = DataConfig()
    """Images."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out images."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW and the parameter average."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "steps", "batch_size", "devices", "accumulate")
        _at_least(self, 1, "keep_checkpoints", "log_every")
        _at_least(self, 0, "checkpoint_every", "seed")
        _one_of(self, "precision", Precision)
        _one_of(self, "parallel", ParallelMode)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch size {self.batch_size} cannot be computed in {self.accumulate} equal parts"
            )
        if self.fsdp and self.parallel not in ("auto", "mesh"):
            raise ValueError(f"fsdp needs --parallel mesh, not {self.parallel}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        self._positive("learning_rate")

    def _positive(self, *schedules: str) -> None:
        for name in schedules:
            if min(getattr(self, name).start, getattr(self, name).end) <= 0:
                raise ValueError(f"{name} must stay above 0")

    def _follow(self, name: str, follows: dict[str, Any]) -> None:
        """Sets fields of a part that a user never sets."""
        part = getattr(self, name)
        if any(getattr(part, field) != value for field, value in follows.items()):
            object.__setattr__(self, name, dataclasses.replace(part, **follows))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes whose labels the batches have; a dVAE uses none."""
        return ()

    def resolved(self) -> Self:
        """The same with every schedule's length as a number of updates."""
        schedules: dict[str, Any] = {
            field.name: value.over(self.steps)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Schedule)
        }
        return dataclasses.replace(self, **schedules)


@dataclasses.dataclass(frozen=True)
class TrainConfig(RunConfig):
    """Everything that decides a dVAE's run. The defaults are the paper's.

    Example:
      >>> config = TrainConfig(run_dir="runs/l1", likelihood=LikelihoodConfig("laplace"))
      >>> config.model.stats_per_channel
      2
    """

    measure: ClassVar[str] = "bpd_hard"

    image_size: int = 256
    """Height and width of the training crops, in pixels; a multiple of the downsampling."""
    init: Init = "openai"
    """Initial encoder: openai, or data: the same, normalised on a batch so that codes differ;
    codebook: normalised, and each code starts as a k-means centre of the batch's patches."""
    init_logit_std: float = 3.0
    """With init data or codebook: standard deviation of a code's logit over positions, in nats."""
    init_from: str | None = None
    """Start from trained weights: a run directory, a .safetensors or .pt file, or
    ENCODER.pkl,DECODER.pkl as OpenAI published them; what belongs to the likelihood starts anew
    where its maps are others in number."""
    freeze: Freeze = "none"
    """Leave the encoder (and so the tokens' meaning) or the decoder as it is at the start."""
    beta: Schedule = Schedule(0.0, 6.6, 5_000)
    """Weight of the KL."""
    temperature: Schedule = Schedule(1.0, 1.0 / 16.0, 150_000)
    """Temperature τ of the relaxation."""
    likelihood: LikelihoodConfig = LikelihoodConfig()
    """Distribution of the pixels."""
    model: DVAEConfig = DVAEConfig()
    """Encoder, bottleneck and decoder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least(self, 1, "image_size")
        for name, kind in (("init", Init), ("freeze", Freeze)):
            _one_of(self, name, kind)
        if not self.init_logit_std > 0.0:
            raise ValueError(f"init_logit_std must be positive, got {self.init_logit_std}")
        self._positive("temperature")
        if min(self.beta.start, self.beta.end) < 0:
            raise ValueError("beta must stay at 0 or above")
        if self.model.channels not in (1, 3):
            raise ValueError(f"model.channels must be 1 or 3, got {self.model.channels}")
        self.model.check_size(self.image_size, self.image_size)
        # The head follows the likelihood, the arithmetic the precision; a user never sets both.
        scale = self.likelihood.scale
        follows = {
            "stats_per_channel": self.likelihood.build().num_stats,
            "constant_scale": scale if scale in ("per_channel", "shared") else "none",
            "dtype": self.precision,
        }
        self._follow("model", follows)


@dataclasses.dataclass(frozen=True)
class PriorTrainOptions(RunConfig):
    """What a user decides about a prior's run; the rest is the dVAE's."""

    measure: ClassVar[str] = "bits_per_token"

    steps: int = 2_000
    batch_size: int = 64
    checkpoint_every: int = 500
    learning_rate: Schedule = Schedule(1e-3, 1e-5)
    optimizer: OptimizerConfig = OptimizerConfig(b2=0.98, weight_decay=1e-2, ema_decay=0.99)
    checkpoint: str = "latest"
    """Which of the dVAE's checkpoints: latest, best or a number of updates."""
    tokens: str | None = None
    """File of the training images' tokens, made by tokens.py encode with the same dVAE; default:
    made in every update from augmented images. Held-out images are --data's either way."""
    conditional: bool = False
    """Learn the tokens given a class: the folder that an image lies in, or TFDS's label."""
    prior: PriorConfig = PriorConfig()
    """Sizes of the transformer."""


@dataclasses.dataclass(frozen=True)
class PriorTrainConfig(PriorTrainOptions):
    """Everything that decides a prior's run.

    Example:
      >>> dvae = TrainConfig(run_dir="", image_size=32)
      >>> config = PriorTrainConfig("", dvae=dvae, classes=("cat", "dog"), precision="bfloat16")
      >>> config.prior.vocab_size, config.prior.height, config.prior.classes, config.prior.dtype
      (8192, 4, 2, 'bfloat16')
    """

    run: str = ""
    """Run directory of the dVAE whose tokens are learned."""
    dvae: TrainConfig = TrainConfig(run_dir="")
    """The dVAE's own configuration."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their labels; none: unconditional."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "classes", tuple(self.classes))
        height, width = self.dvae.model.token_grid(self.image_size, self.image_size)
        follows = {
            "vocab_size": self.dvae.model.vocab_size,
            "height": height,
            "width": width,
            "classes": len(self.classes),
            "dtype": self.precision,
        }
        self._follow("prior", follows)

    @property
    def image_size(self) -> int:
        """Height and width of the crops whose tokens are learned, in pixels: the dVAE's."""
        return self.dvae.image_size

    @property
    def model(self) -> DVAEConfig:
        """The dVAE's networks."""
        return self.dvae.model


Config = TrainConfig | PriorTrainConfig
"""What the loop trains."""

FOLLOWS = {
    "model.stats_per_channel": "likelihood",
    "model.constant_scale": "likelihood.scale",
    "model.dtype": "precision",
    "prior.vocab_size": "run",
    "prior.height": "run",
    "prior.width": "run",
    "prior.classes": "conditional",
    "prior.dtype": "precision",
}
"""Fields that a configuration sets by itself, and by which other field."""

_MAY_CHANGE = {
    "run_dir",
    "run",
    "tokens",
    "steps",
    "parallel",
    "fsdp",
    "devices",
    "accumulate",
    "checkpoint_every",
    "keep_checkpoints",
    "log_every",
    "debug",
    "data.data_dir",
    "data.threads",
    "evaluation.every",
    "evaluation.images",
}
"""Fields that a resumed run may have otherwise: they do not change what is trained."""


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested plain types, for JSON."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any]) -> TrainConfig | PriorTrainConfig:
    """The inverse of :func:`to_dict`.

    Raises:
      ValueError: a field is unknown or missing: the file is of another version.
    """
    try:
        config = _build(PriorTrainConfig if "dvae" in values else TrainConfig, values)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a configuration of this version: {error}") from None
    return typing.cast(TrainConfig | PriorTrainConfig, config)


def _build(kind: type, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    nested = {k: hints[k] for k in values if dataclasses.is_dataclass(hints.get(k))}
    return kind(**values | {k: _build(hint, values[k]) for k, hint in nested.items()})


def flat(config: RunConfig) -> dict[str, Any]:
    """Every value by its dotted name.

    Example:
      >>> flat(TrainConfig(run_dir="a"))["optimizer.b1"]
      0.9
    """
    pairs: dict[str, Any] = {}

    def walk(values: dict[str, Any], prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            else:
                pairs[f"{prefix}{name}"] = value

    walk(to_dict(config), "")
    return pairs


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """What separates two runs: one line per field, without those that a resumed run may change.

    Example:
      >>> a = TrainConfig(run_dir="a")
      >>> b = dataclasses.replace(a, run_dir="b", seed=1)
      >>> differences(a, b)
      ['seed: 0 there, 1 here']
    """
    there, here = flat(old.resolved()), flat(new.resolved())
    return [
        f"{name}: {value} there, {here.get(name)} here"
        for name, value in there.items()
        if value != here.get(name)
        and not {name, name.removeprefix("dvae.")} & (_MAY_CHANGE | set(FOLLOWS))
    ]
