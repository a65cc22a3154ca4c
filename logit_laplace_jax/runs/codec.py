"""A lossless codec by a trained model: its code lengths as files.

A file holds images: their tokens under the prior (or at log2 V bits each, without one), then their
pixels under the likelihood's exact masses given these tokens, by a range coder.

With a prior, an image is cut into tiles of the prior's size; without one it is coded whole. Borders
are padded for the networks, and the padding is not coded. Encoder and decoder compute every
distribution by the same programs from the same inputs, and round log probabilities to a grid before
they become the coder's integers. Where two machines differ all the same, the checksum tells.
"""

import dataclasses
import functools
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import constriction
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from logit_laplace_jax.models.prior import Prior, empty_cache
from logit_laplace_jax.runs import directory
from logit_laplace_jax.runs.errors import RunError
from logit_laplace_jax.training import optimal_scale
from logit_laplace_jax.training.config import PriorTrainConfig, TrainConfig, to_dict
from logit_laplace_jax.training.evaluation import stats_of, tokens_of

_MAGIC = b"LLC1"
_HEAD = struct.Struct("<4s8s8sI")
"""Magic, the model's fingerprint, a checksum of all that follows, the description's length."""

_BATCH = 16
"""Tiles that the networks see at once, at most."""

_PIXELS = 2**14
"""Pixels whose 256 masses are held at once."""

_GRID = 2.0**12
"""Log probabilities are rounded to multiples of 1 / _GRID nats."""

_GROUP = 16
"""Symbols in a group."""

_NOTHING = -1e9
"""The log probability of what is no symbol."""


@dataclasses.dataclass(frozen=True)
class Image:
    """An image to code.

    Attributes:
      name: what it is called.
      pixels: uint8 [H, W, C].
      label: its class, with a conditional prior.
    """

    name: str
    pixels: np.ndarray
    label: int = 0


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A coded file.

    Attributes:
      content: the file.
      token_bits, pixel_bits: the exact code lengths that the model promises, summed in float64.
      charged_bits: what the coder charges of both: rare symbols cost less than promised, as no
        probability in it is below 2^-24.
      header_bytes: what of the file is neither tokens nor pixels.
    """

    content: bytes
    token_bits: float
    pixel_bits: float
    charged_bits: float
    header_bytes: int


class Codec:
    """Codes images by a run's model, of a dVAE alone or with a prior.

    Args:
      folder: the run directory of the dVAE, or of the prior.
      checkpoint: which of its checkpoints.

    Raises:
      RunError: not a run directory.
      CheckpointError: no complete checkpoint, or a damaged one.
    """

    def __init__(self, folder: str | Path, checkpoint: str = "latest"):
        config = directory.read_config(Path(folder))
        kind = "prior" if isinstance(config, PriorTrainConfig) else "dVAE"
        state = directory.load(folder, checkpoint, kind)
        self._prior: PriorTrainConfig | None = state.config if kind == "prior" else None
        self.config: TrainConfig = state.config.dvae if kind == "prior" else state.config
        self.classes: tuple[str, ...] = self._prior.classes if self._prior else ()
        self._params = state.frozen if kind == "prior" else state.ema_params
        self._prior_params = state.ema_params if kind == "prior" else None
        self._likelihood = self.config.likelihood.build()
        self.fingerprint = _fingerprint(self.config, self._params, self._prior, self._prior_params)

    def compress(self, images: Sequence[Image]) -> Encoded:
        """Codes images.

        Raises:
          RunError: an image has other channels than the model, or a label is unknown.
        """
        channels = self.config.model.channels
        for image in images:
            if image.pixels.dtype != np.uint8 or image.pixels.shape[2:] != (channels,):
                raise RunError(f"{image.name}: the model codes 8-bit images of {channels} channels")
            if self.classes and not 0 <= image.label < len(self.classes):
                raise RunError(f"{image.name}: no class has the number {image.label}")
        encoded: list[tuple[list[Tile], np.ndarray, np.ndarray]] = []
        for tiles in self._batches([image.pixels.shape[:2] for image in images]):
            pixels = np.stack([_cut(images[tile.image].pixels, tile) for tile in tiles])
            encoded.append((tiles, pixels, np.asarray(_encode(self._params, pixels, self.config))))
        log_scale = self._log_scale(encoded)
        coder = _Encoder()
        for tiles, pixels, tokens in encoded:
            labels = np.array([images[tile.image].label for tile in tiles], np.int32)
            self._tokens(coder, len(tiles), tokens.shape[1:], labels, tokens)
            self._pixels(coder, tiles, tokens, log_scale, pixels)
        description: dict[str, Any] = {
            "images": [[image.name, *image.pixels.shape[:2]] for image in images],
            "pixels": _digest(image.pixels for image in images),
        }
        if self.classes:
            description["labels"] = [image.label for image in images]
        if log_scale is not None:
            description["log_scale"] = float(log_scale)
        packed = zlib.compress(json.dumps(description, separators=(",", ":")).encode(), 9)
        body = packed + coder.content()
        head = _HEAD.pack(_MAGIC, self.fingerprint, hashlib.sha256(body).digest()[:8], len(packed))
        return Encoded(
            head + body,
            coder.token_bits,
            coder.pixel_bits,
            coder.charged_bits,
            len(head) + len(packed),
        )

    def decompress(self, content: bytes) -> list[Image]:
        """Decodes a file to the very images.

        Raises:
          RunError: it is no such file, cut, damaged, of another model, or this machine computes
            other probabilities than the one that wrote it.
        """
        if len(content) < _HEAD.size or content[:4] != _MAGIC:
            raise RunError("this is no file of codec.py")
        _, fingerprint, checksum, length = _HEAD.unpack_from(content)
        body = content[_HEAD.size :]
        if hashlib.sha256(body).digest()[:8] != checksum:
            raise RunError("the file is cut or damaged: its checksum does not fit")
        if fingerprint != self.fingerprint:
            raise RunError(
                f"the file was written by another model ({fingerprint.hex()}; this one is "
                f"{self.fingerprint.hex()})"
            )
        try:
            description = json.loads(zlib.decompress(body[:length]))
            shapes = [(int(height), int(width)) for _, height, width in description["images"]]
        except (zlib.error, ValueError, KeyError, TypeError):
            raise RunError("the file is damaged: its header cannot be read") from None
        channels = self.config.model.channels
        arrays = [np.zeros((*shape, channels), np.uint8) for shape in shapes]
        labels = description.get("labels", [0] * len(shapes))
        log_scale = description.get("log_scale")
        scale = None if log_scale is None else np.float32(log_scale)
        coder = _Decoder(body[length:])
        try:
            for tiles in self._batches(shapes):
                grid = self.config.model.token_grid(*tiles[0].padded)
                own = np.array([labels[tile.image] for tile in tiles], np.int32)
                tokens = self._tokens(coder, len(tiles), grid, own, None)
                pixels = self._pixels(coder, tiles, tokens, scale, None)
                for tile, values in zip(tiles, pixels, strict=True):
                    part = arrays[tile.image][tile.top :, tile.left :]
                    part[: tile.height, : tile.width] = values[: tile.height, : tile.width]
        except (AssertionError, ValueError) as error:  # the coder's, for a stream that cannot be
            raise RunError(f"{_DIFFERS} ({error})") from None
        if _digest(arrays) != description["pixels"]:
            raise RunError(_DIFFERS)
        names = [str(name) for name, _, _ in description["images"]]
        return [Image(*each) for each in zip(names, arrays, labels, strict=True)]

    # --- Tiles ----------------------------------------------------------------------------------

    def _batches(self, shapes: Sequence[tuple[int, ...]]) -> Iterator[list["Tile"]]:
        """Tiles of equal padded size, up to a fixed number of them, by order."""
        side = self.config.image_size
        multiple = self.config.model.downsampling
        groups: dict[tuple[int, int], list[Tile]] = {}
        for number, (height, width) in enumerate(shapes):
            if self._prior is None:
                padded = (height + -height % multiple, width + -width % multiple)
                groups.setdefault(padded, []).append(Tile(number, 0, 0, height, width, padded))
                continue
            for top in range(0, height, side):
                for left in range(0, width, side):
                    size = min(side, height - top), min(side, width - left)
                    tile = Tile(number, top, left, *size, (side, side))
                    groups.setdefault(tile.padded, []).append(tile)
        for tiles in groups.values():
            for start in range(0, len(tiles), _BATCH):
                yield tiles[start : start + _BATCH]

    # --- Tokens ---------------------------------------------------------------------------------

    def _tokens(
        self,
        coder: "_Coder",
        count: int,
        grid: tuple[int, ...],
        labels: np.ndarray,
        tokens: np.ndarray | None,
    ) -> np.ndarray:
        """Codes the tokens of a batch, or decodes them: int32 [count, h, w]."""
        if self._prior is None:
            known = None if tokens is None else tokens.ravel()
            coded = coder.uniform(known, math.prod(grid) * count, self.config.model.vocab_size)
            return coded.reshape(count, *grid)
        prior = self._prior.prior
        rows = None if tokens is None else tokens.reshape(count, -1)
        cache = empty_cache(prior, count)
        found = np.zeros((count, prior.length), np.int32)
        previous = np.zeros(count, np.int32)
        given = labels if prior.classes else None
        for position in range(prior.length):
            log_probs, cache = _step(
                self._prior_params, previous, position, cache, given, self._prior
            )
            now = None if rows is None else rows[:, position]
            previous = coder.symbols(now, np.asarray(log_probs), "token")
            found[:, position] = previous
        return found.reshape(count, *grid)

    # --- Pixels ---------------------------------------------------------------------------------

    def _log_scale(
        self, encoded: Sequence[tuple[list["Tile"], np.ndarray, np.ndarray]]
    ) -> np.float32 | None:
        """ln of the images' own optimal scale, where the likelihood takes that."""
        if not optimal_scale.is_optimal(self._likelihood):
            return None
        total, count = [], 0
        for tiles, pixels, tokens in encoded:
            stats = np.asarray(_decode(self._params, tokens, self.config))
            for tile, values, maps in zip(tiles, pixels, stats, strict=True):
                shape = slice(tile.height), slice(tile.width)
                likelihood: Any = self._likelihood
                moment = likelihood.optimal_scale_moment(values[shape][None], maps[shape][None])
                number = values[shape].size
                total.append(float(moment[0]) * number)
                count += number
        mean = jnp.float32(math.fsum(total) / count)
        return np.float32(optimal_scale.log_scale_of(self._likelihood, mean))

    def _pixels(
        self,
        coder: "_Coder",
        tiles: Sequence["Tile"],
        tokens: np.ndarray,
        log_scale: np.float32 | None,
        pixels: np.ndarray | None,
    ) -> np.ndarray:
        """Codes the pixels of a batch given its tokens, or decodes them: uint8 [B, H, W, C]."""
        stats = _decode(self._params, tokens, self.config)
        likelihood = self._likelihood
        if log_scale is not None:
            scale = jnp.asarray(log_scale)
            likelihood, stats = optimal_scale.at_log_scale(likelihood, stats, scale)
        channels = self.config.model.channels
        inside = np.zeros((len(tiles), *tiles[0].padded), bool)
        for row, tile in enumerate(tiles):
            inside[row, : tile.height, : tile.width] = True
        maps = np.asarray(stats)[inside]
        given = None if pixels is None else pixels[inside]
        found = np.zeros((len(maps), channels), np.uint8)
        for start in range(0, len(maps), _PIXELS):
            part = slice(start, min(start + _PIXELS, len(maps)))
            number = part.stop - part.start
            # A power of two, so that few shapes are compiled.
            rows = max(256, 2 ** math.ceil(math.log2(number)))
            filled = np.zeros((rows, maps.shape[1]), maps.dtype)
            filled[:number] = maps[part]
            # Channel by channel: some families predict green from red, and blue from both.
            known = np.zeros((rows, channels), np.uint8)
            for channel in range(channels):
                log_masses = _log_masses(filled, known, channel, likelihood)[:number]
                values = None if given is None else given[part, channel].astype(np.int32)
                known[:number, channel] = coder.symbols(values, np.asarray(log_masses), "pixel")
            found[part] = known[:number]
        result = np.zeros((*inside.shape, channels), np.uint8)
        result[inside] = found
        return result


@dataclasses.dataclass(frozen=True)
class Tile:
    """A part of an image that the networks see at once: place and size, and size with padding."""

    image: int
    top: int
    left: int
    height: int
    width: int
    padded: tuple[int, int]


def _cut(pixels: np.ndarray, tile: Tile) -> np.ndarray:
    part = pixels[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width]
    beyond = tile.padded[0] - tile.height, tile.padded[1] - tile.width
    return np.pad(part, ((0, beyond[0]), (0, beyond[1]), (0, 0)), mode="edge")


_DIFFERS = (
    "the images that were decoded are not those that were coded: this machine or version of JAX "
    "computes other probabilities than the one that wrote the file"
)


def _digest(arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _fingerprint(config: TrainConfig, params: Any, prior: Any, prior_params: Any) -> bytes:
    """Eight bytes that change with anything which the probabilities depend on."""
    values = to_dict(config)
    parts: list[Any] = [values["model"], values["likelihood"], config.image_size]
    parts.append(to_dict(prior)["prior"] if prior is not None else None)
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for tree in (params, prior_params):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.digest()[:8]


# --- The coder ------------------------------------------------------------------------------------


class _Coder(Protocol):
    """Codes or decodes symbols; both sides make the same calls."""

    def symbols(self, symbols: np.ndarray | None, log_probs: np.ndarray, kind: str) -> np.ndarray:
        """Codes int32 [N] under float32 [N, K], or gives what was coded, for None."""

    def uniform(self, symbols: np.ndarray | None, count: int, size: int) -> np.ndarray:
        """The same for ``count`` symbols that are equally likely."""


# The coder's probabilities are multiples of 2^-24. A symbol is coded as its group of 16 and its
# place in it, so that masses down to 2^-48 cost what the model says; rarer symbols cost less.


def _grouped(log_probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log probabilities [N, groups, _GROUP] on the grid, and those of the groups [N, groups]."""
    logs = np.round(log_probs.astype(np.float64) * _GRID) / _GRID
    missing = -logs.shape[1] % _GROUP
    logs = np.pad(logs, ((0, 0), (0, missing)), constant_values=_NOTHING)
    logs = logs.reshape(len(logs), -1, _GROUP)
    return logs, np.logaddexp.reduce(logs, axis=2)


def _within(logs: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Log probabilities of the places in the chosen groups, up to a constant: [N, _GROUP]."""
    return logs[np.arange(len(logs)), group]


def _probabilities(logs: np.ndarray) -> np.ndarray:
    """What both sides tell the coder, which makes integers of it, none of them zero."""
    if logs.shape[1] == 1:  # the coder wants two symbols
        logs = np.pad(logs, ((0, 0), (0, 1)), constant_values=_NOTHING)
    relative = np.exp(logs - logs.max(axis=1, keepdims=True))
    return relative / relative.sum(axis=1, keepdims=True)


_FAMILY = constriction.stream.model.Categorical(perfect=False)


class _Encoder:
    def __init__(self) -> None:
        self._coder = constriction.stream.queue.RangeEncoder()
        self.token_bits = 0.0
        self.pixel_bits = 0.0
        self.charged_bits = 0.0

    def symbols(self, symbols: np.ndarray | None, log_probs: np.ndarray, kind: str) -> np.ndarray:
        assert symbols is not None
        if not np.isfinite(log_probs).all():
            raise RunError("the model gives probabilities that are no numbers: it is damaged")
        symbols = symbols.astype(np.int32)
        group, place = np.divmod(symbols, _GROUP)
        logs, groups = _grouped(log_probs)
        for part, chosen in ((groups, group), (_within(logs, group), place)):
            probabilities = _probabilities(part)
            self._coder.encode(chosen, _FAMILY, probabilities)
            charged = np.maximum(probabilities[np.arange(len(part)), chosen], 2.0**-24)
            self.charged_bits -= math.fsum(np.log2(charged))
        chosen = np.take_along_axis(log_probs, symbols[:, None].astype(np.int64), 1)
        bits = -math.fsum(chosen.ravel().astype(np.float64)) / math.log(2.0)
        if kind == "token":
            self.token_bits += bits
        else:
            self.pixel_bits += bits
        return symbols

    def uniform(self, symbols: np.ndarray | None, count: int, size: int) -> np.ndarray:
        assert symbols is not None
        self._coder.encode(symbols.astype(np.int32), constriction.stream.model.Uniform(size))
        self.token_bits += count * math.log2(size)
        self.charged_bits += count * math.log2(size)
        return symbols

    def content(self) -> bytes:
        words: np.ndarray = self._coder.get_compressed()
        return words.astype("<u4").tobytes()


class _Decoder:
    def __init__(self, content: bytes) -> None:
        if len(content) % 4:
            raise RunError("the file is cut or damaged")
        words = np.frombuffer(content, "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)

    def symbols(self, symbols: np.ndarray | None, log_probs: np.ndarray, kind: str) -> np.ndarray:
        logs, groups = _grouped(log_probs)
        group: np.ndarray = self._coder.decode(_FAMILY, _probabilities(groups))
        place: np.ndarray = self._coder.decode(_FAMILY, _probabilities(_within(logs, group)))
        return _GROUP * group + place

    def uniform(self, symbols: np.ndarray | None, count: int, size: int) -> np.ndarray:
        model = constriction.stream.model.Uniform(size)
        decoded: np.ndarray = self._coder.decode(model, count)
        return decoded


# --- The programs, the same for both sides --------------------------------------------------------


_encode = jax.jit(tokens_of, static_argnames="config")
_decode = jax.jit(stats_of, static_argnames="config")


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def _step(
    params: Any,
    previous: Array,
    position: Array,
    cache: Array,
    labels: Array | None,
    config: PriorTrainConfig,
) -> tuple[Array, Array]:
    result: Any = Prior(config.prior).apply(
        {"params": params}, previous, position, cache, labels, method="step"
    )
    logits, cache = result
    return jax.nn.log_softmax(logits), cache


@functools.partial(jax.jit, static_argnames=("channel", "likelihood"))
def _log_masses(stats: Array, known: Array, channel: int, likelihood: Any) -> Array:
    """The log masses of all 256 values of a channel, given the channels before: [N, 256]."""

    def mass(level: Array) -> Array:
        pixels = known.at[:, channel].set(level.astype(jnp.uint8))
        result: Array = likelihood.log_mass(pixels, stats)[:, channel]
        return result

    return jax.lax.map(mass, jnp.arange(256)).T
