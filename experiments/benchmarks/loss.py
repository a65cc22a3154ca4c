"""The loss, value and both gradients, beside other libraries.

Two kinds of sections. *Fresh buffers*: calls from Python, each with new result arrays; on a CPU
the system then clears and maps new pages, which can cost as much as the arithmetic. *Kept
buffers*: evaluations inside one jitted step that writes into donated arrays, as far as the library
can do that: what remains is arithmetic and memory traffic.
"""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import logit_laplace_jax as ll
from benchmarks import LossOptions, peers, rounds
from benchmarks.peers import Loss
from benchmarks.report import DIFFERS, FAILED, OURS, SKIPPED, Report, Row, Section

Losses = dict[str, Callable[[], Loss]]
STREAM = "a stream of the same bytes, by XLA"
TOLERANCE = 1e-4
"""Of the mean and of the gradients, relative to |ours| + 1: rounding of logit x (4e-7) over the
smallest b of the inputs (0.02) stays below it."""


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What is timed, and can show its results.

    Attributes:
      call: does the work n times and returns the seconds.
      results: gives (mean loss, both gradients) as NumPy arrays.
      units: of work in one call.
    """

    call: rounds.Call
    results: Callable[[], Any]
    units: int = 1


def make_inputs(batch: int, side: int, seed: int) -> dict[str, np.ndarray]:
    """The same numbers for everyone, [batch, side, side, 3].

    Returns:
      ``pixels``, uniform uint8; ``x``, the mapped pixels, ``loc``, 0.05 to 2 away from logit x
      (next to a tie the sign in the gradient would hang on the last bit), and ``log_scale``,
      uniform in [-4, 0], all float32.
    """
    generator = np.random.default_rng(seed)
    shape = (batch, side, side, 3)
    pixels = generator.integers(0, 256, shape, np.uint8)
    table = (0.1 + 0.8 * np.arange(256) / 255.0).astype(np.float32)
    logit = np.log(table / (1.0 - table))[pixels]
    distance = generator.uniform(0.05, 2.0, shape).astype(np.float32)
    sign = generator.choice(np.array([-1.0, 1.0], np.float32), shape)
    log_scale = generator.uniform(-4.0, 0.0, shape).astype(np.float32)
    return {
        "pixels": pixels, "x": table[pixels], "loc": logit + sign * distance, "log_scale": log_scale
    }  # fmt: skip


def gradients(loss: Loss) -> Callable[..., Any]:
    """(x, loc, log_scale) to the mean loss and its gradients in loc and log_scale."""
    return lambda x, loc, log_scale: jax.value_and_grad(
        lambda a, b: loss(x, a, b).mean(), argnums=(0, 1)
    )(loc, log_scale)


def stream(x: Array, loc: Array, log_scale: Array) -> Any:
    """Reads three arrays and writes two, one operation per value: the yardstick."""
    return jnp.zeros(()), (x + loc, -log_scale)


def fresh(function: Callable[..., Any], arrays: Sequence[Array]) -> Contestant:
    """A jitted call with new result arrays."""
    work = functools.partial(jax.jit(function), *arrays)
    return Contestant(_timed(work), lambda: jax.tree.map(np.asarray, work()))


def kept(function: Callable[..., Any], arrays: Sequence[Array], inner: int) -> Contestant:
    """``inner`` evaluations inside one jitted step that writes into donated arrays."""

    def step(out: Any, shift: Array, *args: Array) -> Any:
        def body(_: Any, carry: Any) -> Any:
            _, shift = carry
            # A zero that the compiler does not know to be one, and that hangs on the evaluation
            # before: else one evaluation would serve for all. Added to every argument, or what
            # hangs on the others alone (two of three logarithms) would be computed once. XLA makes
            # the sum part of the loops that follow.
            value, results = function(*(a + shift.astype(a.dtype) for a in args))
            return results, shift * (value + results[0].ravel()[0])

        return jax.lax.fori_loop(0, inner, body, (out, shift))

    compiled = jax.jit(step, donate_argnums=(0,))
    shapes = jax.eval_shape(function, *arrays)[1]
    state = [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)]

    def work() -> Any:
        state[0], last = compiled(state[0], jnp.zeros(()), *arrays)
        return last

    def results() -> Any:
        work()
        return jax.tree.map(np.asarray, (jax.jit(function)(*arrays)[0], state[0]))

    return Contestant(_timed(work), results, inner)


def _timed(work: Callable[[], Any]) -> rounds.Call:
    """Times ``work``, which dispatches and returns arrays, up to the arrival of the results."""
    # On a CPU JAX may run several calls at once; an accelerator runs one after the other, and
    # waiting for the last one alone keeps its queue from being empty.
    wait_each = _on_cpu()

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


def in_torch(name: str, inputs: dict[str, np.ndarray], keep: bool) -> Contestant:
    """One of ``peers.TORCH_LOSSES``; with ``keep``, compiled and written into the same arrays."""
    loss, torch = peers.TORCH_LOSSES[name](), peers.load("torch")
    device = peers.torch_device(accelerator=not _on_cpu())
    x, loc, log_scale = (
        torch.from_numpy(inputs[key]).to(device) for key in ("x", "loc", "log_scale")
    )
    leaves = [loc.clone().requires_grad_(), log_scale.clone().requires_grad_()]
    both = torch.func.grad_and_value(lambda loc, s, x: loss(x, loc, s).mean(), argnums=(0, 1))
    out = torch.empty_like(loc), torch.empty_like(log_scale)

    def eager() -> Any:
        value = loss(x, *leaves).mean()
        return torch.autograd.grad(value, leaves), value.detach()

    def write(*args: Any) -> Any:
        grads, value = both(*args)
        for target, grad in zip(out, grads, strict=True):
            target.copy_(grad)
        return out, value

    work = eager
    if name == "torch.compile":
        work = functools.partial(
            torch.compile(write if keep else both, fullgraph=True), loc, log_scale, x
        )

    def results() -> Any:
        grads, value = work()
        return np.float32(value.item()), tuple(g.cpu().numpy() for g in grads)

    return Contestant(peers.torch_timed(work, device), results)


def _on_cpu() -> bool:
    return bool(jax.default_backend() == "cpu")


def measure(makers: dict[str, Callable[[], Contestant]], options: LossOptions) -> list[Row]:
    """Prepares, checks against ours, and measures.

    Args:
      makers: functions that make the contestants, by name; the first is ours. ``peers.Missing``
        becomes a skipped row, any other exception a failed one.
      options: rounds, seed and shortest sample.
    """
    rows = {own: Row(own) for own in makers}
    contestants: dict[str, Contestant] = {}
    wanted: Any = None
    for own, make in makers.items():
        row = rows[own]
        try:
            contestant = make()
            results = contestant.results()
        except peers.Missing as error:
            row.status, row.note = SKIPPED, str(error)
            continue
        except Exception as error:
            if own == OURS:
                raise
            row.status, row.note = FAILED, peers.one_line(error)
            continue
        contestants[own] = contestant
        wanted = results if own == OURS else wanted
        if own != STREAM and (fault := disagreement(wanted, results)):
            row.status, row.note = DIFFERS, fault
    samples = rounds.run(
        {own: contestant.call for own, contestant in contestants.items()},
        options.rounds or (7 if options.quick else 40),
        options.least_sample,
        options.seed,
    )
    for own, contestant in contestants.items():
        rows[own].seconds = [seconds / contestant.units for seconds in samples[own]]
    return list(rows.values())


def disagreement(wanted: Any, found: Any) -> str:
    """What differs between two (value, gradients), or nothing.

    Gradients are those of a mean over n values: n times them is of the order of 1.

    >>> same = (np.float32(1.0), (np.ones(4, np.float32), np.zeros(4, np.float32)))
    >>> disagreement(same, same)
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
        if not error <= TOLERANCE:  # so that NaN is caught
            return f"{which} is off by {error:.1g}"
    return ""


def run(options: LossOptions) -> Report:
    """All sections of the suite."""
    warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
    batch = options.batch or ((4 if options.quick else 16) if _on_cpu() else 256)
    inputs = make_inputs(batch, options.side, options.seed)
    pixels, x, *stats = (jnp.asarray(array) for array in inputs.values())

    def section(
        name: str, what: str, losses: Losses, source: Array, torch: Iterable[str]
    ) -> Section:
        keep = not name.endswith("fresh")
        make = functools.partial(kept, inner=options.inner) if keep else fresh
        arrays = (source, *stats)
        makers = {
            own: lambda load=load: make(gradients(load()), arrays) for own, load in losses.items()
        }
        makers |= {own: functools.partial(in_torch, own, inputs, keep) for own in torch}
        makers[STREAM] = lambda: make(stream, arrays)
        how = "fresh buffers: a call from Python"
        if keep:
            how = f"kept buffers: {options.inner} evaluations in one step, donated arrays"
        size = "×".join(map(str, x.shape))
        title = f"Mean loss and both gradients, float32 {size}, from {what}; {how}"
        return Section(name, title, measure(makers, options))

    def mapped(loss: Loss) -> Loss:
        return lambda pixels, *stats: loss(ll.map_pixels(pixels), *stats)

    ours: Losses = {OURS: lambda: ll.logit_laplace_loss}
    by_pixels: Losses = {
        OURS: lambda: ll.logit_laplace_pixel_loss,
        "ours, map_pixels and logit_laplace_loss": lambda: mapped(ll.logit_laplace_loss),
        "map_pixels and the formula in jnp": lambda: mapped(peers.formula),
    }
    sections = [
        section("fresh", "values", ours | peers.JAX_LOSSES, x, peers.TORCH_LOSSES),
        section("kept", "values", ours | peers.JAX_LOSSES, x, ["torch.compile"]),
        section("pixels", "8-bit pixels", by_pixels, pixels, []),
    ]
    settings = dataclasses.asdict(options) | {"batch": batch}
    return Report("loss", settings, {"device": jax.devices()[0].device_kind}, sections)
