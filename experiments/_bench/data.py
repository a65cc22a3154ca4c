"""Crops a second of the training pipeline, its parts, and what a training step consumes."""

import argparse
import contextlib
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from _bench import machine, rounds, stats
from _bench.report import FAILED, Report, Row, Section
from _bench.worker import Worker, WorkerError

_CROP, _DECODE = "ours, a training crop", "ours, decode a JPEG"


def run(options: argparse.Namespace) -> Report:
    """The pipeline by threads beside the step; the parts of the work on one crop."""
    from configs import load

    from logit_laplace_jax.data import errors, sources

    preset = load(options.preset)
    if options.batches is None:
        options.batches = 16 if options.quick else 64
    if options.threads is None:
        most = 2 * machine.cores()
        options.threads = [0, *(2**i for i in range(max(1, most).bit_length()) if 2**i <= most)]
    if min(options.threads) < 0 or len(set(options.threads)) < len(options.threads):
        raise ValueError("--threads takes different numbers, 0 or more")
    try:
        source = sources.open_source(options.data, "train", data_dir=options.data_dir)
        # Opened again without a cache, to time decoding itself.
        uncached = sources.open_source(
            options.data, "train", data_dir=options.data_dir, cache_mib=0
        )
        sections = [
            _pipeline(source, "cached", preset, options),
            _pipeline(uncached, "uncached", preset, options),
            *_parts(uncached, preset, options),
        ]
    except errors.DataError as error:
        raise ValueError(str(error)) from None
    names = ("quick", "rounds", "seed", "data", "preset", "threads", "batches", "least_sample")
    return Report("data", {name: getattr(options, name) for name in names}, {}, sections)


def _pipeline(source: Any, kind: str, preset: Any, options: argparse.Namespace) -> Section:
    from logit_laplace_jax.data import pipeline

    # Decoding every image anew is slower: fewer batches are enough for it.
    count = options.batches if kind == "cached" else max(options.batches // 8, 2)

    def stream(threads: int) -> rounds.Call:
        def call(_: int) -> float:
            started = time.perf_counter()
            batches = pipeline.train_batches(
                source,
                image_size=preset.image_size,
                batch_size=preset.batch_size,
                seed=options.seed,
                min_crop=preset.min_crop,
                threads=threads,
            )
            for _ in range(count):
                next(batches)
            seconds = time.perf_counter() - started
            batches.close()
            return seconds

        return call

    named = {f"{n} thread{'' if n == 1 else 's'}": stream(n) for n in options.threads}
    rows: dict[str, Row] = {name: Row(name) for name in named}
    default = pipeline.default_threads()
    reference = next(iter(named))
    if default in options.threads:
        reference = f"{default} thread{'' if default == 1 else 's'}"
        rows[reference].note = "the default here"
    contestants = [
        rounds.Contestant(name, call, units=count, repeat=False, lead=False)
        for name, call in named.items()
    ]
    consumer = f"step of {options.preset}"
    with contextlib.ExitStack() as stack:
        if kind == "cached" and not options.no_step:
            rows[consumer] = Row(consumer)
            try:
                worker = stack.enter_context(Worker("preset_step", {"preset": options.preset}))
                contestants.append(rounds.Contestant(consumer, worker.call))
                rows[consumer].note = "what consumes the crops, on this machine"
            except WorkerError as error:
                rows[consumer].status, rows[consumer].note = FAILED, str(error)
        samples = rounds.run(contestants, options.rounds, options.least_sample, options.seed)
    for name, sample in samples.items():
        row = rows[name]
        row.seconds = sample.seconds
        row.extra["crops/s"] = preset.batch_size / stats.summarise(row.seconds).median
        if consumer in samples and name != consumer:
            spare = stats.ratios(samples[consumer].seconds, row.seconds)
            row.extra["of the step's need"] = f"{stats.summarise(spare).median:.1f} ×"
    side = preset.image_size
    what = "decoded images in memory" if kind == "cached" else "every image decoded anew"
    return Section(
        f"pipeline_{kind}",
        f"A batch of {preset.batch_size} training crops, {side}×{side}, from {source.spec} "
        f"({len(source)} images); {what}",
        reference,
        list(rows.values()),
        [f"Each sample starts a new stream and takes {count} batches; starting counts in."],
    )


def _parts(source: Any, preset: Any, options: argparse.Namespace) -> list[Section]:
    """The work on one crop, step by step, beside Pillow alone."""
    from PIL import Image

    from logit_laplace_jax.data import augment
    from logit_laplace_jax.data import images as decoding

    side = preset.image_size
    indices = range(min(len(source), 4))
    images = [source[i] for i in indices]
    pictures = [Image.fromarray(image) for image in images]
    files = [_jpeg(picture) for picture in pictures]
    seeds = range(32)
    boxes = [
        _box(images[seed % len(images)], side, preset.min_crop, np.random.default_rng(seed))
        for seed in seeds
    ]
    crops = [np.zeros((side, side, 3), np.uint8)] * preset.batch_size

    def train_crop(seed: int) -> Any:
        image = images[seed % len(images)]
        generator = np.random.default_rng(seed)
        return augment.train_crop(image, side, generator, min_crop=preset.min_crop)

    def area_resize(seed: int) -> Any:
        return augment.area_resize(images[seed % len(images)], (side, side), boxes[seed])

    def box_filter(seed: int) -> Any:
        picture = pictures[seed % len(images)]
        return np.asarray(picture.resize((side, side), Image.Resampling.BOX, box=boxes[seed]))

    def pillow_decode(i: int) -> Any:
        with Image.open(io.BytesIO(files[i])) as picture:
            return np.asarray(picture.convert("RGB"))

    # What is done once for each number of a range: all contestants see the same images and boxes.
    work: dict[str, tuple[Callable[[int], Any], Sequence[int], int, str]] = {
        _CROP: (train_crop, seeds, 1, "draws, crops, resizes by exact area means, mirrors"),
        "ours, resize a box": (area_resize, seeds, 1, "exact area means"),
        "Pillow, resize a box": (box_filter, seeds, 1, "the same boxes, BOX filter"),
        _DECODE: (
            lambda i: decoding.decode(files[i]),
            indices,
            1,
            "the first images at full size, quality 90, checked",
        ),
        "Pillow, decode a JPEG": (pillow_decode, indices, 1, "the same files"),
        "ours, read an image": (source.__getitem__, indices, 1, f"as {source.spec} stores them"),
        "stack a batch": (lambda _: np.stack(crops), seeds, len(crops), "its share of one crop"),
    }

    def timed(part: Callable[[int], Any], numbers: Sequence[int]) -> rounds.Call:
        def call(count: int) -> float:
            started = time.perf_counter()
            for _ in range(count):
                for number in numbers:
                    part(number)
            return time.perf_counter() - started

        return call

    samples = rounds.run(
        [
            rounds.Contestant(name, timed(part, numbers), units=len(numbers) * share)
            for name, (part, numbers, share, _) in work.items()
        ],
        options.rounds,
        options.least_sample,
        options.seed,
    )
    rows = []
    for name, (*_, note) in work.items():
        seconds = samples[name].seconds
        median = stats.summarise(seconds).median
        rows.append(Row(name, note=note, seconds=seconds, extra={"a second": 1.0 / median}))
    first = next(i for i, row in enumerate(rows) if row.name == _DECODE)
    return [
        Section(
            "crop",
            f"Augmentation of one image in memory, in one thread: {side}×{side}, smallest crop "
            f"{preset.min_crop:g} of the short side",
            _CROP,
            rows[:first],
        ),
        Section("read", "Before and after it, for one image", _DECODE, rows[first:]),
    ]


def _jpeg(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


def _box(
    image: np.ndarray, side: int, min_crop: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """A box like the augmentation's: a random square, less what its second crop takes off."""
    height, width = image.shape[:2]
    short = min(height, width)
    low = min(max(min_crop * short, side * 9 / 8), short)
    part = low * (short / low) ** generator.random() * 8 / 10.5
    left, top = generator.random() * (width - part), generator.random() * (height - part)
    return left, top, left + part, top + part
