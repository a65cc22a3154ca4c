"""The loss, value and both gradients, beside other libraries and the machine's own bandwidth.

Two kinds of sections. *Fresh buffers*: calls from Python, each with new result arrays; on a CPU
the system then clears and maps new pages, which can cost as much as the arithmetic (the column of
page faults tells). *Kept buffers*: evaluations inside one jitted step that writes into donated
arrays, as far as the library can do that: what remains is arithmetic and memory traffic.
"""

import argparse
import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _bench import peers, rounds, stats
from _bench.entry import Entry
from _bench.report import DIFFERS, FAILED, SKIPPED, Report, Row, Section
from jax import Array

import logit_laplace_jax as ll

Loss = Callable[..., Array]

OURS = "ours"
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""Of gradients, relative to |ours| + 1: rounding of logit x (4e-7) over the smallest b of the
inputs (0.02) stays below the first, rounding of results to bfloat16 (4e-3) below the second. Of
the mean, relative to |ours| + 1, too."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The same numbers for everyone.

    Attributes:
      pixels: uint8 [B, S, S, 3], uniform.
      x: float32, the mapped pixels.
      loc: float32, 0.05 to 2 away from logit x: next to a tie the sign in the gradient would hang
        on the last bit.
      log_scale: float32, uniform in [-4, 0].
    """

    pixels: np.ndarray
    x: np.ndarray
    loc: np.ndarray
    log_scale: np.ndarray


def make_inputs(batch: int, side: int, seed: int) -> Inputs:
    """Random inputs [batch, side, side, 3]."""
    generator = np.random.default_rng(seed)
    shape = (batch, side, side, 3)
    pixels = generator.integers(0, 256, shape, np.uint8)
    table = (0.1 + 0.8 * np.arange(256) / 255.0).astype(np.float32)
    logit = np.log(table / (1.0 - table))[pixels]
    distance = generator.uniform(0.05, 2.0, shape).astype(np.float32)
    sign = generator.choice(np.array([-1.0, 1.0], np.float32), shape)
    log_scale = generator.uniform(-4.0, 0.0, shape).astype(np.float32)
    return Inputs(pixels, table[pixels], logit + sign * distance, log_scale)


# --- Contestants in JAX -------------------------------------------------------------------------


def jnp_loss(x: Array, loc: Array, log_scale: Array) -> Array:
    """The formula as one writes it down, for autodiff."""
    log_x, log_1mx = jnp.log(x), jnp.log1p(-x)
    distance = jnp.abs(log_x - log_1mx - loc)
    return distance * jnp.exp(-log_scale) + log_scale + math.log(2.0) + log_x + log_1mx


def _pixel_formula(pixels: Array, loc: Array, log_scale: Array) -> Array:
    return jnp_loss(0.1 + 0.8 / 255.0 * pixels.astype(jnp.float32), loc, log_scale)


def _mapped(pixels: Array, loc: Array, log_scale: Array) -> Array:
    return ll.logit_laplace_loss(ll.map_pixels(pixels), loc, log_scale)


def _wide(x: Array, loc: Array, log_scale: Array) -> Array:
    return jnp_loss(x, loc.astype(jnp.float32), log_scale.astype(jnp.float32))


def _numpyro() -> Loss:
    peers.load("numpyro")
    dist = peers.load("numpyro.distributions")

    def loss(x: Array, loc: Array, log_scale: Array) -> Array:
        base = dist.Laplace(loc, jnp.exp(log_scale))
        sigmoid = dist.transforms.SigmoidTransform()
        return -dist.TransformedDistribution(base, sigmoid).log_prob(x)

    return loss


def _tfp() -> Loss:
    tfp = peers.load("tensorflow_probability.substrates.jax")

    def loss(x: Array, loc: Array, log_scale: Array) -> Array:
        base = tfp.distributions.Laplace(loc, jnp.exp(log_scale))
        return -tfp.distributions.TransformedDistribution(base, tfp.bijectors.Sigmoid()).log_prob(x)

    return loss


def _distrax() -> Loss:
    distrax = peers.load("distrax")

    def loss(x: Array, loc: Array, log_scale: Array) -> Array:
        base = distrax.Laplace(loc, jnp.exp(log_scale))
        return -distrax.Transformed(base, distrax.Sigmoid()).log_prob(x)

    return loss


JAX_PEERS: dict[str, Callable[[], Loss]] = {
    "jnp and autodiff": lambda: jnp_loss,
    "NumPyro": _numpyro,
    "TFP": _tfp,
    "distrax": _distrax,
}


def gradients(loss: Loss) -> Callable[..., Any]:
    """(x, loc, log_scale) to the mean loss and its gradients in loc and log_scale.

    ``loss`` gives one value an element, or the mean already.
    """
    return lambda x, loc, log_scale: jax.value_and_grad(
        lambda a, b: loss(x, a, b).mean(), argnums=(0, 1)
    )(loc, log_scale)


def stream(x: Array, loc: Array, log_scale: Array) -> Any:
    """Reads three arrays and writes two, one operation a value: the yardstick."""
    return jnp.zeros(()), (x.astype(loc.dtype) + loc, -log_scale)


def copy(x: Array, loc: Array, log_scale: Array) -> Any:
    """Reads one array and writes one."""
    return jnp.zeros(()), (-loc,)


def timed(work: Callable[[], Any], wait_each: bool) -> rounds.Call:
    """Times ``work``, which dispatches and returns arrays, up to the arrival of the results.

    On a CPU each call is waited for, since JAX may run several at once there; on an accelerator
    only the last one: it runs one after the other, and its queue is never empty.
    """

    def call(count: int) -> float:
        result = None
        started = time.perf_counter()
        for _ in range(count):
            # Or the last results would keep their memory, and this call would need other.
            del result
            result = work()
            if wait_each:
                jax.block_until_ready(result)
        jax.block_until_ready(result)
        return time.perf_counter() - started

    return call


def fresh(name: str, function: Callable[..., Any], arrays: Sequence[Array], nbytes: float) -> Entry:
    """A jitted call with new result arrays."""
    compiled = jax.jit(function)
    work = functools.partial(compiled, *arrays)
    return Entry(name, nbytes, timed(work, _on_cpu()), lambda: _host(work()))


def kept(
    name: str, function: Callable[..., Any], arrays: Sequence[Array], nbytes: float, inner: int
) -> Entry:
    """``inner`` evaluations inside one jitted step that writes into donated arrays."""
    shapes = jax.eval_shape(function, *arrays)[1]

    def step(out: Any, shift: Array, *args: Array) -> Any:
        def body(_: Any, carry: Any) -> Any:
            _, shift = carry
            # A zero that the compiler does not know to be one, and that hangs on the evaluation
            # before: else one evaluation would serve for all. Added to every argument, or what
            # hangs on the others alone (two of three logarithms) would be computed once. XLA makes
            # the sum part of the loops that follow.
            operands = tuple(a + shift.astype(a.dtype) for a in args)
            value, results = function(*operands)
            return results, shift * (value + results[0].ravel()[0].astype(jnp.float32))

        return jax.lax.fori_loop(0, inner, body, (out, shift))

    compiled = jax.jit(step, donate_argnums=(0,))
    state = [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)]
    zero = jnp.zeros(())

    def work() -> Any:
        state[0], last = compiled(state[0], zero, *arrays)
        return last

    single = jax.jit(function)

    def results() -> Any:
        work()
        return _host((single(*arrays)[0], state[0]))

    return Entry(name, nbytes, timed(work, _on_cpu()), results, units=inner)


def _host(results: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float32), results)


def _on_cpu() -> bool:
    return bool(jax.default_backend() == "cpu")


# --- Sections -----------------------------------------------------------------------------------


def measure(
    name: str,
    title: str,
    makers: dict[str, Callable[[], Entry]],
    options: argparse.Namespace,
    *,
    yardstick: str | None = None,
    unchecked: Sequence[str] = (),
    tolerance: float = TOLERANCE["float32"],
    notes: Sequence[str] = (),
) -> Section:
    """Prepares, checks against ours, measures, and counts bytes.

    Args:
      name: of the section.
      title: of the section.
      makers: functions that make the contestants, by name; the first is ours. ``peers.Missing``
        becomes a skipped row, any other exception a failed one.
      options: rounds, seed and shortest sample.
      yardstick: contestant whose bytes a second are the unit of the column "of stream".
      unchecked: contestants that compute something else on purpose, the yardsticks.
      tolerance: see TOLERANCE.
      notes: for readers.
    """
    rows: dict[str, Row] = {}
    entries: dict[str, Entry] = {}
    wanted: Any = None
    for own, make in makers.items():
        row = rows[own] = Row(own)
        try:
            entry = make()
            results = entry.results()
        except peers.Missing as error:
            row.status, row.note = SKIPPED, str(error)
            continue
        except Exception as error:
            if own == OURS:
                raise
            row.status, row.note = FAILED, peers.one_line(error)
            continue
        entries[own] = entry
        if own == OURS:
            wanted = results
        elif own not in unchecked and (fault := disagreement(wanted, results, tolerance)):
            row.status, row.note = DIFFERS, fault
    samples = rounds.run(
        [rounds.Contestant(own, entry.call, entry.units) for own, entry in entries.items()],
        options.rounds,
        options.least_sample,
        options.seed,
    )
    for own, entry in entries.items():
        row = rows[own]
        row.seconds = samples[own].seconds
        if entry.nbytes:
            row.extra["GB/s"] = entry.nbytes / stats.summarise(row.seconds).median / 1e9
        if yardstick in entries and entry.nbytes:
            unit = [s / entries[yardstick].nbytes for s in samples[yardstick].seconds]
            spent = [s / entry.nbytes for s in row.seconds]
            median = stats.summarise(stats.ratios(unit, spent)).median
            row.extra[f"of {yardstick}"] = f"{median:.0%}"
        if _on_cpu():
            row.extra["page faults"] = f"{stats.summarise(samples[own].faults).median:,.0f}"
    return Section(name, title, OURS, list(rows.values()), list(notes))


def disagreement(wanted: Any, found: Any, tolerance: float) -> str:
    """What differs between two (value, gradients), or nothing.

    Gradients are those of a mean over n values: n times them is of the order of 1.

    >>> same = (np.float32(1.0), (np.ones(4, np.float32), np.zeros(4, np.float32)))
    >>> disagreement(same, same, 1e-4)
    ''
    """
    n = wanted[1][0].size
    pairs = {"value": (wanted[0], found[0], 1)}
    for i, which in enumerate(("gradient in loc", "gradient in log_scale")):
        pairs[which] = (wanted[1][i], found[1][i], n)
    for which, (a, b, scale) in pairs.items():
        if a.shape != b.shape:
            return f"{which} has shape {b.shape}, not {a.shape}"
        error = np.max(np.abs(scale * a - scale * b) / (np.abs(scale * a) + 1.0))
        if not error <= tolerance:  # so that NaN is caught
            return f"{which} is off by {error:.1g}"
    return ""


def run(options: argparse.Namespace) -> Report:
    """All sections of the suite."""
    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
    batch = options.batch or ((4 if options.quick else 16) if _on_cpu() else 256)
    inputs = make_inputs(batch, options.side, options.seed)
    machine = {}
    if not _on_cpu():
        machine["accelerator"] = jax.devices()[0].device_kind
    names = ("quick", "rounds", "least_sample", "seed", "side", "inner")
    settings = {name: getattr(options, name) for name in names} | {"batch": batch}
    return Report(
        "loss",
        settings,
        machine,
        [
            _float_section(inputs, options, False),
            _float_section(inputs, options, True),
            _pixel_section(inputs, options),
            _half_section(inputs, options),
            *(_small_section(side, options) for side in (1, 16)),
        ],
    )


def _size(inputs: Inputs) -> str:
    return "×".join(map(str, inputs.x.shape))


def _yardstick() -> str:
    """A card's bandwidth is quoted as that of a copy."""
    return "stream" if _on_cpu() else "copy"


def _arrays(inputs: Inputs) -> tuple[Array, Array, Array]:
    return jnp.asarray(inputs.x), jnp.asarray(inputs.loc), jnp.asarray(inputs.log_scale)


def _yardsticks(make: Callable[..., Entry], arrays: Any) -> dict[str, Callable[[], Entry]]:
    moved = sum(a.nbytes for a in arrays) + arrays[1].nbytes + arrays[2].nbytes
    return {
        "stream": lambda: make("stream", stream, arrays, moved),
        "copy": lambda: make("copy", copy, arrays, 2 * arrays[1].nbytes),
    }


_BYTES = (
    "GB/s counts the least traffic, every input read and every gradient written once, whatever a "
    "program moves; stream does that and one operation a value; copy reads one array and writes "
    "one."
)


def _float_section(inputs: Inputs, options: argparse.Namespace, keep: bool) -> Section:
    arrays = _arrays(inputs)
    nbytes = 5 * inputs.x.nbytes
    make: Any = functools.partial(kept, inner=options.inner) if keep else fresh
    makers: dict[str, Callable[[], Entry]] = {
        OURS: lambda: make(OURS, gradients(ll.logit_laplace_loss), arrays, nbytes),
    }
    for name, load in JAX_PEERS.items():
        makers[name] = functools.partial(
            lambda name, load: make(name, gradients(load()), arrays, nbytes), name, load
        )

    def torch_entry(variant: str) -> Entry:
        peers.load("torch")
        from _bench import torch_loss

        return torch_loss.entry(variant, inputs, nbytes, keep, not _on_cpu())

    for variant in (
        ("torch compile",) if keep else ("torch", "torch.distributions", "torch compile")
    ):
        makers[variant] = functools.partial(torch_entry, variant)
    makers |= _yardsticks(make, arrays)
    how = (
        f"kept buffers: {options.inner} evaluations in one step, donated arrays"
        if keep
        else "fresh buffers: a call from Python"
    )
    return measure(
        "float32_kept" if keep else "float32_fresh",
        f"Mean loss and both gradients, float32 {_size(inputs)}; {how}",
        makers,
        options,
        yardstick=_yardstick(),
        unchecked=("stream", "copy"),
        notes=[
            _BYTES,
        ],
    )


def _pixel_section(inputs: Inputs, options: argparse.Namespace) -> Section:
    arrays = (jnp.asarray(inputs.pixels), *_arrays(inputs)[1:])
    nbytes = inputs.pixels.nbytes + 4 * inputs.x.nbytes
    make: Any = functools.partial(kept, inner=options.inner)
    losses: dict[str, Loss] = {
        OURS: ll.logit_laplace_pixel_loss,
        "ours, map_pixels and loss": _mapped,
        "jnp and autodiff": _pixel_formula,
    }
    makers: dict[str, Callable[[], Entry]] = {
        name: functools.partial(make, name, gradients(loss), arrays, nbytes)
        for name, loss in losses.items()
    }
    makers |= _yardsticks(make, arrays)
    return measure(
        "pixels",
        f"From 8-bit pixels {_size(inputs)}: mean loss and both gradients; kept buffers",
        makers,
        options,
        yardstick=_yardstick(),
        unchecked=("stream", "copy"),
        notes=["ours is logit_laplace_pixel_loss."],
    )


def _half_section(inputs: Inputs, options: argparse.Namespace) -> Section:
    x, *parameters = _arrays(inputs)
    arrays = (x, *(a.astype(jnp.bfloat16) for a in parameters))
    nbytes = x.nbytes + 4 * arrays[1].nbytes
    losses: dict[str, Loss] = {
        OURS: ll.logit_laplace_loss,
        "jnp and autodiff": _wide,
    }
    make: Any = functools.partial(kept, inner=options.inner)
    makers: dict[str, Callable[[], Entry]] = {
        name: functools.partial(make, name, gradients(loss), arrays, nbytes)
        for name, loss in losses.items()
    }
    makers |= _yardsticks(make, arrays)
    return measure(
        "bfloat16",
        f"bfloat16 statistics {_size(inputs)}: mean loss and both gradients; kept buffers",
        makers,
        options,
        yardstick=_yardstick(),
        unchecked=("stream", "copy"),
        tolerance=TOLERANCE["bfloat16"],
        notes=["x is float32, loc, log_scale and their gradients are bfloat16."],
    )


def _small_section(side: int, options: argparse.Namespace) -> Section:
    """What a call costs when there is next to nothing to compute."""
    inputs = make_inputs(1, side, options.seed)
    arrays = _arrays(inputs)
    pixels = jnp.asarray(inputs.pixels)

    def plain(name: str, function: Callable[..., Array], *args: Array) -> Entry:
        work = functools.partial(function, *args)
        # Values alone: to the check they look like a value with gradients of nothing.
        return Entry(name, 0, timed(work, True), lambda: (_host(work()).mean(), (np.zeros(1),) * 2))

    makers: dict[str, Callable[[], Entry]] = {
        OURS: lambda: plain(OURS, ll.logit_laplace_loss, *arrays),
        "ours, from pixels": lambda: plain(
            "ours, from pixels", ll.logit_laplace_pixel_loss, pixels, *arrays[1:]
        ),
        "jnp, jitted": lambda: plain("jnp, jitted", jax.jit(jnp_loss), *arrays),
        "one addition, jitted": lambda: plain(
            "one addition, jitted", jax.jit(jnp.add), *arrays[:2]
        ),
    }

    def torch_entry() -> Entry:
        peers.load("torch")
        from _bench import torch_loss

        return torch_loss.small(inputs, not _on_cpu())

    makers["torch"] = torch_entry
    return measure(
        f"small_{inputs.x.size}",
        f"What a call costs: the loss alone of {_size(inputs)} values, float32, from Python",
        makers,
        options,
        unchecked=("one addition, jitted",),
        notes=["Values only, no gradients; every call is waited for."],
    )
