"""What several devices add to a step, and what an all-reduce would cost many accelerators."""

import argparse
import contextlib
import math
from typing import Any

from _bench import rounds, stats
from _bench.options import ACCELERATORS
from _bench.report import DIFFERS, Report, Row, Section
from _bench.worker import Worker, WorkerError

SINGLE = "single, 1 device"
TOLERANCE = 1e-5
"""Of the first loss, relative to |single's| + 1: the same mean, summed in another order."""

_ROOFLINE_DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)


def run(options: argparse.Namespace) -> Report:
    """Simulated devices, then the roofline."""
    devices = sorted(set(options.devices))
    if any(options.batch % n for n in devices):
        raise ValueError(f"--batch {options.batch} must be a multiple of every number of --devices")
    names = ("quick", "rounds", "seed", "devices", "batch", "preset", "images_per_device")
    settings = {name: getattr(options, name) for name in names}
    peak, link = ACCELERATORS[options.accelerator]
    assumed = {
        "accelerator": options.accelerator,
        "peak_tflops": options.peak_tflops or peak,
        "link_gbytes": options.link_gbytes or link,
        "utilisation": options.utilisation,
        "hop_microseconds": options.hop_microseconds,
    }
    try:
        sections = [_simulated(devices, options), _roofline(options, assumed)]
    except WorkerError as error:
        raise ValueError(str(error)) from None
    return Report("scaling", settings | assumed, {}, sections)


def simulated_environment(count: int) -> dict[str, str]:
    """Variables that give JAX so many CPU devices."""
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        # On few cores, simulated devices can wait for each other for ever in a thread pool of that
        # size; this makes it larger.
        "NPROC": "8",
    }


def _simulated(devices: list[int], options: argparse.Namespace) -> Section:
    wanted = {SINGLE: ("single", 1)}
    for n in devices:
        for mode in ("pmap", "mesh"):
            wanted[f"{mode}, {n} device{'s' if n > 1 else ''}"] = (mode, n)
    rows = {name: Row(name) for name in wanted}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, (mode, n) in wanted.items():
            arguments = {
                "preset": options.preset,
                "mode": mode,
                "devices_used": n,
                "batch": options.batch,
                "precision": "float32",
            }
            worker = Worker("preset_step", arguments, simulated_environment(n))
            workers[name] = stack.enter_context(worker)
        samples = rounds.run(
            [rounds.Contestant(name, worker.call) for name, worker in workers.items()],
            options.rounds,
            options.least_sample,
            options.seed,
        )
    base = samples[SINGLE].seconds
    loss = workers[SINGLE].facts["loss"]
    for name, worker in workers.items():
        row = rows[name]
        row.seconds = samples[name].seconds
        if name != SINGLE:
            added = [own - one for own, one in zip(row.seconds, base, strict=True)]
            row.extra["added ms"] = 1e3 * stats.summarise(added).median
        row.extra["MB reduced"] = worker.facts["communicated_bytes"] / 1e6
        if not abs(worker.facts["loss"] - loss) <= TOLERANCE * (abs(loss) + 1.0):
            row.status = DIFFERS
            row.note = f"first loss is {worker.facts['loss']:.7g}, not {loss:.7g}"
    return Section(
        "simulated",
        f"A step of {options.preset}, {options.batch} images in all, on simulated devices that "
        "share these cores",
        SINGLE,
        list(rows.values()),
        [
            "The arithmetic is the same everywhere, so what is added is dispatch, placing the "
            "batch, collectives, and smaller pieces of work. Simulated devices show no speed-up."
        ],
    )


def roofline(
    flops: float, nbytes: float, count: int, assumed: dict[str, Any]
) -> tuple[float, float]:
    """Seconds of arithmetic and of a ring all-reduce, for one of ``count`` devices.

    A ring sends 2 (n-1)/n of the bytes through every link, in 2 (n-1) exchanges between
    neighbours; from 64 devices on a tree's 2 log2 n exchanges are fewer, and libraries take it.

    Args:
      flops: of one device's step.
      nbytes: all-reduced in a step.
      count: devices.
      assumed: peak_tflops, utilisation, link_gbytes, hop_microseconds.

    >>> assumed = {"peak_tflops": 1.0, "utilisation": 0.5, "link_gbytes": 1.0,
    ...            "hop_microseconds": 1e-9}
    >>> compute, reduce = roofline(1e12, 1e9, 2, assumed)
    >>> compute, round(reduce, 6)
    (2.0, 1.0)
    """
    compute = flops / (assumed["peak_tflops"] * 1e12 * assumed["utilisation"])
    sent = 2 * (count - 1) / count * nbytes / (assumed["link_gbytes"] * 1e9)
    hops = min(2 * (count - 1), 2 * math.ceil(math.log2(count)) if count >= 64 else math.inf)
    return compute, sent + hops * assumed["hop_microseconds"] * 1e-6


def _roofline(options: argparse.Namespace, assumed: dict[str, Any]) -> Section:
    preset = options.roofline_preset or ("cifar10" if options.quick else "dalle")
    batch = 2 * options.images_per_device
    arguments = {
        "preset": preset,
        "mode": "pmap",
        "devices_used": 2,
        "batch": batch,
        "precision": "bfloat16",
        "measure_only": True,
    }
    with Worker("preset_step", arguments, simulated_environment(2)) as worker:
        needs = worker.facts
    flops, nbytes = needs["flops"] / 2, needs["communicated_bytes"]
    rows = []
    for count in _ROOFLINE_DEVICES:
        compute, reduce = roofline(flops, nbytes, count, assumed)
        row = Row(f"{count} devices")
        row.extra = {
            "images a step": f"{count * options.images_per_device:,}",
            "arithmetic ms": 1e3 * compute,
            "all-reduce ms": 1e3 * reduce,
            "efficiency, one after the other": f"{compute / (compute + reduce):.1%}",
            "efficiency, overlapped": f"{compute / max(compute, reduce):.1%}",
        }
        rows.append(row)
    return Section(
        "roofline",
        f"On paper: a step of {preset} in bfloat16, {options.images_per_device} images on each of "
        f"many {assumed['accelerator']}",
        None,
        rows,
        [
            f"From the compiled step: {flops / 1e12:.3g} TFLOP and {nbytes / 1e6:.4g} MB "
            f"all-reduced a device, {needs['parameters']:,} parameters.",
            f"Assumed: {assumed['peak_tflops']:g} TFLOP/s at {assumed['utilisation']:.0%}, "
            f"{assumed['link_gbytes']:g} GB/s from each device, {assumed['hop_microseconds']:g} µs "
            "an exchange. Nothing here was measured on accelerators.",
        ],
    )
