"""Batches of crops from any source, by Grain: the same ones for the same seed, everywhere.

Training. Position p = 0, 1, 2, … of an endless stream holds one crop; batch s of size B holds
positions s·B … s·B + B − 1. Position p takes its image from a shuffled order that changes every
epoch, and all its other choices from a random generator made of the seed and p alone. So the
stream depends neither on the number of threads nor on the number of shards, and its whole state is
the number of the next batch.

Shard k of n yields positions s·B + k·B/n … s·B + (k+1)·B/n − 1 of batch s: the shards' batches, put
together in the order of k, are the unsharded batch to the bit. That is the order in which JAX lays
out a batch over processes.

An image that cannot be used is tried once, named once in the log, counted, and replaced, at every
position that asks for it, by another one that the position's own generator draws. So bad images
change neither the sizes of batches nor any of the properties above. A position that finds no usable
image in `_MOST_TRIES` draws ends the stream: whatever the source's size, that is soon.

Evaluation. Without tiles, batch s holds the images s·B … s·B + B − 1 in order, and zeros with mask
0 in the place of one that cannot be used: no process needs to know what another could not read.

Grain runs with threads, not with worker processes: these would need parsed absl flags and a
`__main__` guard, and would outlive a killed parent.
"""

import collections
import contextlib
import functools
import hashlib
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from logit_laplace_jax.data.augment import area_resize, eval_crop, grid_crops, train_crop
from logit_laplace_jax.data.errors import DataError, TooSmallImage, UnreadableImage, missing_package
from logit_laplace_jax.data.skipped import Skipped
from logit_laplace_jax.data.sources import DataSet, Source, Split, open_source

try:
    import grain
except ImportError as error:
    raise missing_package("grain") from error

Batch = dict[str, Any]
_Row = tuple[np.ndarray, int]
"""A crop, or an image's tokens, and its label."""

_PREFETCHED = 4
"""So many batches, or single images in evaluation, are decoded ahead at least."""

_MOST_TRIES = 10_000
"""So many images are tried, for one position or before a run, until a source counts as unusable."""

_MOST_THREADS = 16
"""Most decoding threads unless asked for: more of them mostly wait for Python's lock."""


class TrainBatches(Iterator[Batch]):
    """The endless iterator that `train_batches` returns.

    `get_state` and `set_state` resume it to the bit.
    """

    def __init__(self, source: Source, skipped: Skipped, iterator: Any, fingerprint: str):
        self.source = source
        self._iterator = iterator
        self._skipped = skipped
        self._fingerprint = fingerprint

    def __next__(self) -> Batch:
        return next(self._iterator)

    @property
    def skipped(self) -> dict[str, str]:
        """The images skipped until now: name to reason."""
        return self._skipped.as_dict()

    def get_state(self) -> dict[str, Any]:
        """The place in the stream, as plain JSON: how many batches were taken, and from what."""
        return {**self._iterator.get_state(), "data": self._fingerprint}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called, in this process or another.

        Raises:
            DataError: the state is from other data or other options, so that the stream would not
                continue as it was.
        """
        if state.get("data") != self._fingerprint:
            raise DataError(
                f"the saved place in the data does not fit {self.source.spec} as it is now: the "
                "images, the image size, the batch size, the seed or the crop have changed; "
                "start a new run"
            )
        self._iterator.set_state({key: state[key] for key in state if key != "data"})

    def close(self) -> None:
        """Ends the threads. The iterator cannot be used afterwards."""
        self._iterator.close()


def train_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    min_crop: float = 1.0,
    max_crop: float = 1.0,
    jitter: float = 0.0,
    augment: bool = True,
    classes: Sequence[str] | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    threads: int | None = None,
) -> TrainBatches:
    """An endless stream of augmented training batches.

    Args:
        source: the images, as of `sources.open_source`.
        image_size: side S of the crops, in pixels.
        batch_size: number B of crops in a batch, over all shards.
        seed: decides order and crops, any integer ≥ 0.
        min_crop, max_crop: bounds of the crops, as shares of the short side (see
            `augment.train_crop`).
        jitter: strength of random changes of colour (see `augment.jitter_colours`).
        augment: False cuts the centre square of every image, as evaluation does.
        classes: names of classes; the batches then have labels, which are places in this list.
        shard_index: which part of every batch is wanted, 0 … shard_count − 1.
        shard_count: into how many equal parts batches are cut; divides `batch_size`.
        threads: number of decoding threads; 0 decodes when a batch is asked for, None takes one a
            core (see `default_threads`). It changes no pixel.

    Returns:
        Iterator of {"pixels": uint8 [B / shard_count, S, S, C]}, with classes also
        "labels": int32 [B / shard_count].

    Raises:
        DataError: a wrong option, or, when iterating, no usable image at all.

    Example:
        >>> photo = np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3)
        >>> source = Source("demo", "train", read=lambda i: photo, name=str, count=2)
        >>> batches = train_batches(source, image_size=16, batch_size=4, seed=0)
        >>> next(batches)["pixels"].shape
        (4, 16, 16, 3)
        >>> batches.close()
    """
    _check_at_least(1, image_size=image_size)
    _check_at_least(0, jitter=jitter)
    if not 0 < min_crop <= max_crop <= 1:
        raise DataError(
            f"min_crop and max_crop must be in (0, 1] and in order, not {min_crop} and {max_crop}"
        )
    skipped = Skipped(source, len(source))
    label = _labeller(source, classes)

    def cut(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not augment:
            return eval_crop(image, image_size)
        return train_crop(
            image, image_size, rng, min_crop=min_crop, max_crop=max_crop, jitter=jitter
        )

    def crop(index: int, rng: np.random.Generator) -> _Row:
        for candidate in _candidates(index, len(source), rng):
            if candidate in skipped:
                continue
            try:
                return cut(source[candidate], rng), label(candidate)
            except (UnreadableImage, TooSmallImage) as error:
                skipped.add(candidate, error)
        skipped.check()
        raise skipped.none_of(f"none of {_MOST_TRIES} images drawn from the {len(source)} of")

    # The shards are left out: one state fits any number of them.
    options: tuple[Any, ...] = (image_size, batch_size, seed, min_crop)
    # Left out at their defaults: places saved before they existed stay valid.
    if max_crop < 1 or jitter:
        options += (max_crop, jitter)
    if not augment or classes is not None:
        options += (augment, tuple(classes or ()))
    return _endless(
        source,
        skipped,
        "pixels",
        crop,
        options,
        batch_size=batch_size,
        seed=seed,
        labelled=classes is not None,
        shard_index=shard_index,
        shard_count=shard_count,
        threads=threads,
    )


def token_batches(
    source: Source,
    tokens: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    classes: Sequence[str] | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    threads: int | None = None,
) -> TrainBatches:
    """An endless stream of training batches of images that are tokens already.

    Args:
        source: tells the images' names and classes; none is read.
        tokens: int32 [N, L], those of each image.
        batch_size, seed, classes, shard_index, shard_count, threads: as for `train_batches`.

    Returns:
        Iterator of {"tokens": int32 [B / shard_count, L]}, with classes also "labels".

    Example:
        >>> source = Source("demo", "train", read=str, name=str, count=3)
        >>> batches = token_batches(source, np.zeros((3, 6), np.int32), batch_size=4, seed=0)
        >>> next(batches)["tokens"].shape
        (4, 6)
        >>> batches.close()
    """
    label = _labeller(source, classes)
    return _endless(
        source,
        Skipped(source, len(source)),
        "tokens",
        lambda index, rng: (tokens[index], label(index)),
        (zlib.crc32(tokens.tobytes()), batch_size, seed, tuple(classes or ())),
        batch_size=batch_size,
        seed=seed,
        labelled=classes is not None,
        shard_index=shard_index,
        shard_count=shard_count,
        threads=threads,
    )


def _endless(
    source: Source,
    skipped: Skipped,
    name: str,
    row: Callable[[int, np.random.Generator], _Row],
    options: tuple[Any, ...],
    *,
    batch_size: int,
    seed: int,
    labelled: bool,
    shard_index: int,
    shard_count: int,
    threads: int | None,
) -> TrainBatches:
    """Rows of a source in an order shuffled every epoch, stacked under a name in the batch.

    `options` are all that decides the stream beside the source.
    """
    _check_at_least(1, batch_size=batch_size)
    _check_at_least(0, threads=threads, seed=seed)
    part = _part(batch_size, shard_index, shard_count)

    def stacked(rows: Sequence[_Row]) -> Batch:
        batch = {name: np.stack([values for values, _ in rows])}
        if labelled:
            batch["labels"] = np.array([label for _, label in rows], np.int32)
        return batch

    # Grain wants 32-bit seeds.
    shuffle_seed, row_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
    stream = (
        grain.MapDataset.range(len(source))
        .repeat()
        .map_with_index(_epoch_order(len(source), shuffle_seed))
        .random_map(row, seed=row_seed)
        # Parts of one batch are consecutive here, so every shard takes each shard_count-th one.
        .batch(part, drop_remainder=True, batch_fn=stacked)
    )
    if shard_count > 1:
        stream = stream[shard_index::shard_count]
    return TrainBatches(
        source,
        skipped,
        iter(_threaded(stream, threads, _PREFETCHED)),
        _fingerprint(source, options),
    )


class EvalBatches:
    """Batches in which every image comes once: each iteration is a full pass.

    Args:
        source: the images.
        skipped: those that cannot be used.
        one_pass: gives the batches of one pass.
    """

    def __init__(self, source: Source, skipped: Skipped, one_pass: Callable[[], Iterator[Batch]]):
        self.source = source
        self._skipped = skipped
        self._one_pass = one_pass

    @property
    def skipped(self) -> dict[str, str]:
        """The images skipped until now: name to reason. With shards, those this one came across."""
        return self._skipped.as_dict()

    def __iter__(self) -> Iterator[Batch]:
        return self._one_pass()


def eval_batches(
    source: Source,
    *,
    image_size: int,
    batch_size: int,
    limit: int | None = None,
    resize: float | None = None,
    classes: Sequence[str] | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    threads: int | None = None,
) -> EvalBatches:
    """Every image of a split once, in order, without chance.

    Shard k of n yields rows k·B/n … (k+1)·B/n − 1 of every batch: the shards' batches, put together
    in the order of k, are the unsharded batch to the bit, and all shards yield equally many. With
    centre crops a shard decodes its own images only. With tiles, of which an image may have any
    number, each decodes all images and takes its rows.

    Args:
        source, shard_index, shard_count, threads: as of `train_batches`.
        image_size: side S of the crops, in pixels.
        batch_size: number B of rows in every batch, over all shards.
        limit: the first so many images, usable or not, with centre crops, so there are at most so
            many crops; the first so many tiles, with tiles. None takes all.
        resize: None takes one centre crop of each image (`augment.eval_crop`); a number takes
            all tiles of each image at that size (`augment.grid_crops`).
        classes: names of classes; the batches then have "labels", int32 [R].

    Returns:
        Iterable of {"pixels": uint8 [R, S, S, C], "mask": float32 [R], "id": int32 [R]} with
        R = B / shard_count. The mask is 1 on crops and 0 on rows of zeros: those that fill up the
        last batch, and with centre crops the place of every image that cannot be used, so the mask
        of a whole batch may be 0. The id is a checksum of the crop's pixels, so that chance can be
        drawn by crop and not by place.

    Raises:
        DataError: a wrong option, or, when iterating, no usable image at all. That last one is not
            raised by shards of centre crops: none sees all images, and one that raised alone would
            leave the others waiting. Their masks are then all 0, and it is the sum of the masks
            over all shards that tells.

    Example:
        >>> photo = np.zeros((60, 80, 3), np.uint8)
        >>> source = Source("demo", "validation", read=lambda i: photo, name=str, count=3)
        >>> for batch in eval_batches(source, image_size=16, batch_size=2):
        ...     print(batch["pixels"].shape, batch["mask"])
        (2, 16, 16, 3) [1. 1.]
        (2, 16, 16, 3) [1. 0.]
    """
    _check_at_least(1, image_size=image_size, batch_size=batch_size, limit=limit)
    _check_at_least(0, threads=threads)
    _check_resize(resize)
    part = _part(batch_size, shard_index, shard_count)
    label = _labeller(source, classes)
    # The limit is one of images here, and one of tiles below.
    count = min(limit or len(source), len(source)) if resize is None else len(source)
    skipped = Skipped(source, count if shard_count == 1 or resize is not None else None)

    def crops(index: int) -> list[_Row | None]:
        if index >= count:
            return [None]
        try:
            image = source[index]
            if resize is None:
                return [(eval_crop(image, image_size), label(index))]
            return [(tile, label(index)) for tile in grid_crops(image, image_size, resize)]
        except (UnreadableImage, TooSmallImage) as error:
            skipped.add(index, error)
            return [None] if resize is None else []

    first = shard_index * part
    if resize is None:
        # Only this shard's rows. A batch of small crops is decoded while the devices work on
        # another.
        rows = grain.MapDataset.range(-(-count // batch_size) * part)
        images = rows.map(lambda row: row // part * batch_size + first + row % part)
        stream = _threaded(images.map(crops), threads, max(part, _PREFETCHED))
        size, most, own = part, None, slice(part)
    else:
        stream = _threaded(grain.MapDataset.range(count).map(crops), threads, _PREFETCHED)
        size, most, own = batch_size, limit, slice(first, first + part)

    def one_pass() -> Iterator[Batch]:
        with contextlib.closing(iter(stream)) as found:
            every = itertools.islice(itertools.chain.from_iterable(found), most)
            while rows := list(itertools.islice(every, size)):
                rows += [None] * (size - len(rows))
                yield _masked(
                    rows[own], (image_size, image_size, source.channels), classes is not None
                )

    return EvalBatches(source, skipped, one_pass)


def whole_batches(
    source: Source,
    *,
    multiple: int,
    batch_size: int,
    limit: int | None = None,
    resize: float | None = None,
    threads: int | None = None,
) -> EvalBatches:
    """Every image of a split once and entire, at any size, in batches of images of one size.

    Args:
        source, threads: as of `train_batches`.
        multiple: the model's downsampling; sides are padded to a multiple of it by repeating the
            last row and column.
        batch_size: number B of rows in every batch.
        limit: the first so many images; None takes all.
        resize: size of the images evaluated, as a share of their own, in (0, 1]; None is 1.

    Returns:
        Iterable of batches as of `eval_batches`, with `size` = (height, width) of the images
        without their padding, and `names` of those that count. Every size is a shape of its own
        for the compiler.

    Raises:
        DataError: a wrong option, or, when iterating, no readable image at all.

    Example:
        >>> photos = [np.zeros((8, n, 3), np.uint8) for n in (8, 10, 8)]
        >>> source = Source("demo", "validation", read=photos.__getitem__, name=str, count=3)
        >>> for batch in whole_batches(source, multiple=4, batch_size=2):
        ...     print(batch["pixels"].shape, batch["size"], batch["names"])
        (2, 8, 8, 3) (8, 8) ('0', '2')
        (2, 8, 12, 3) (8, 10) ('1',)
    """
    _check_at_least(1, multiple=multiple, batch_size=batch_size, limit=limit)
    _check_at_least(0, threads=threads)
    _check_resize(resize)
    count = min(limit or len(source), len(source))
    skipped = Skipped(source, count)

    def image(index: int) -> tuple[str, np.ndarray] | None:
        try:
            pixels = source[index]
        except UnreadableImage as error:
            skipped.add(index, error)
            return None
        if resize is not None and resize < 1:
            height, width = (max(1, round(side * resize)) for side in pixels.shape[:2])
            pixels = area_resize(pixels, (width, height))
        return source.name(index), pixels

    stream = _threaded(grain.MapDataset.range(count).map(image), threads, _PREFETCHED)

    def batch(images: list[tuple[str, np.ndarray]]) -> Batch:
        height, width = images[0][1].shape[:2]
        beyond = ((0, -height % multiple), (0, -width % multiple), (0, 0))
        rows: list[_Row | None] = [(np.pad(x, beyond, mode="edge"), 0) for _, x in images]
        rows += [None] * (batch_size - len(rows))
        shape = (height + beyond[0][1], width + beyond[1][1], source.channels)
        names = tuple(name for name, _ in images)
        return {**_masked(rows, shape), "size": (height, width), "names": names}

    def one_pass() -> Iterator[Batch]:
        waiting = collections.defaultdict(list)
        with contextlib.closing(iter(stream)) as found:
            for name, pixels in filter(None, found):
                waiting[pixels.shape].append((name, pixels))
                if len(waiting[pixels.shape]) == batch_size:
                    yield batch(waiting.pop(pixels.shape))
        for images in waiting.values():
            yield batch(images)

    return EvalBatches(source, skipped, one_pass)


def check_source(
    spec: str | DataSet,
    *,
    image_size: int,
    channels: int = 3,
    data_dir: str | None = None,
) -> dict[str, int]:
    """Makes sure, before anything long starts, that both splits exist and can be used.

    Each split is opened, prepared where needed, and read up to the first image that is readable
    and large enough. Of a large split at most `_MOST_TRIES` images, evenly spread, are tried.

    Args:
        spec: a source's specification (see `sources.open_source`).
        image_size: side of the crops, in pixels.
        channels: 3 for RGB, 1 for grey.
        data_dir: where TFDS keeps its data sets.

    Returns:
        The number of images in `train` and `validation`, usable or not.

    Raises:
        DataError: what is wrong, and what to do.
    """
    _check_at_least(1, image_size=image_size)
    counts: dict[str, int] = {}
    splits: tuple[Split, Split] = ("train", "validation")
    for split in splits:
        source = open_source(spec, split, data_dir=data_dir, channels=channels, cache_mib=0)
        tried = range(0, len(source), -(-len(source) // _MOST_TRIES))
        example = ""
        for index in tried:
            try:
                eval_crop(source[index], image_size)
                break
            except (UnreadableImage, TooSmallImage) as error:
                example = example or f"{source.name(index)}: {error}"
        else:
            which = "" if len(tried) == len(source) else f"{len(tried)} tried of the "
            raise DataError(
                f"none of the {which}{len(source)} images of {source.spec} ({split}) can be used; "
                f"{example}"
            )
        counts[split] = len(source)
    return counts


def default_threads() -> int:
    """One decoding thread for each core that this process may use, from 2 to 16.

    Decoding and resizing run outside Python's lock for the most part, so they gain by more cores.
    """
    # sched_getaffinity knows of containers and `taskset`, but Linux alone has it.
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(max(cores, 2), _MOST_THREADS)


def _epoch_order(count: int, seed: int) -> Callable[[int, int], int]:
    """Position in the endless stream to image number: a new permutation of all images each epoch.

    Grain's own `shuffle` walks the permutation of a 16-bit range until it meets a number below
    `count`: with 13 images that takes 2 ms a crop, ten times the crop itself.
    """

    # Prefetching threads work at two epochs at most while one gives way to the next, unless
    # an epoch is shorter than what is prefetched.
    @functools.lru_cache(maxsize=4)
    def permutation(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(count)

    def number(position: int, _: int) -> int:
        epoch, place = divmod(position, count)
        return int(permutation(epoch)[place])

    return number


def _candidates(index: int, count: int, rng: np.random.Generator) -> Iterator[int]:
    """`index`, then others to take its place: some at random, at last every one, or many."""
    yield index
    # Drawn, not the next in line: that one would be seen too often.
    for _ in range(32):
        yield int(rng.integers(count))
    if count <= _MOST_TRIES:
        for step in range(1, count):
            yield (index + step) % count
    else:
        # Where one in a thousand can be used, all of these fail once in 20,000 positions.
        for _ in range(_MOST_TRIES):
            yield int(rng.integers(count))


def _threaded(stream: Any, threads: int | None, ahead: int) -> Any:
    """Decodes at least `ahead` elements of the stream ahead, and one in each thread."""
    threads = default_threads() if threads is None else threads
    buffered = max(ahead, threads) if threads else 0
    return stream.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered)
    )


def _check_at_least(least: int, **options: float | None) -> None:
    for name, value in options.items():
        if value is not None and value < least:
            raise DataError(f"{name} must be at least {least}, not {value}")


def _check_resize(resize: float | None) -> None:
    if resize is not None and not 0 < resize <= 1:
        raise DataError(f"resize must be in (0, 1], not {resize}")


def _part(batch_size: int, shard_index: int, shard_count: int) -> int:
    """The number of rows of a batch that one shard has."""
    if not 0 <= shard_index < shard_count:
        raise DataError(f"shard_index {shard_index} is not in 0…{shard_count - 1}")
    if batch_size % shard_count:
        raise DataError(f"{shard_count} shards do not divide the batch size {batch_size}")
    return batch_size // shard_count


def _fingerprint(source: Source, options: tuple[Any, ...]) -> str:
    """Changes when the stream would: other options, or other images by number or name."""
    digest = hashlib.sha256(repr((len(source), source.channels, *options)).encode())
    for index in range(len(source)):
        digest.update(f"{source.name(index)}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _labeller(source: Source, classes: Sequence[str] | None) -> Callable[[int], int]:
    """The label of an image by its number: 0 without classes."""
    if classes is None:
        return lambda index: 0
    places = {name: place for place, name in enumerate(classes)}

    def label(index: int) -> int:
        name = source.label(index)
        if name not in places:
            raise DataError(
                f"{source.name(index)} is of the class {name!r}, which no training image has"
            )
        return places[name]

    return label


def _masked(rows: Sequence[_Row | None], shape: tuple[int, ...], labelled: bool = False) -> Batch:
    """One batch: zeros, with mask 0, in the place of each row that is None."""
    count = len(rows)
    batch: Batch = {
        "pixels": np.zeros((count, *shape), np.uint8),
        "mask": np.zeros(count, np.float32),
        "id": np.zeros(count, np.int32),
    }
    if labelled:
        batch["labels"] = np.zeros(count, np.int32)
    for place, row in enumerate(rows):
        if row is not None:
            batch["pixels"][place], batch["mask"][place] = row[0], 1
            batch["id"][place] = zlib.crc32(row[0].tobytes()) >> 1
            if labelled:
                batch["labels"][place] = row[1]
    return batch
