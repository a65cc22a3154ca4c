"""What the pickles of ``torch.save`` mean: tensors in storages, and modules that hold tensors.

The names that occur in files of tensors and in OpenAI's files of modules, and no others.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.weights import pickles
from logit_laplace_jax.weights.weights import StoredTensor, WeightsError, shown

_KINDS = ("_parameters", "_buffers", "_modules")
_MAX_ENTRIES = 1_000_000
_MAX_DEPTH = 16

_STORAGES = {
    f"{module}.{kind}Storage": dtype
    for module in ("torch", "torch.cuda")
    for kind, dtype in {
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Double": "float64",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
    }.items()
}
_MODULES = frozenset(
    {
        "dall_e.encoder.Encoder",
        "dall_e.encoder.EncoderBlock",
        "dall_e.decoder.Decoder",
        "dall_e.decoder.DecoderBlock",
        "dall_e.utils.Conv2d",
        "torch.nn.modules.activation.ReLU",
        "torch.nn.modules.container.ModuleDict",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.container.Sequential",
        "torch.nn.modules.linear.Identity",
        "torch.nn.modules.pooling.MaxPool2d",
        "torch.nn.modules.upsampling.Upsample",
    }
)
_INERT = frozenset({"torch.device"})
_VALUES = frozenset(
    {*_STORAGES, *(f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64"))}
)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a file holds: see `weights.TensorFile`."""

    tensors: dict[str, StoredTensor]
    post_gains: frozenset[float]


@dataclasses.dataclass(frozen=True)
class Storage:
    """A run of numbers in the file, of which a pickle knows key, dtype and length."""

    key: str
    dtype: str
    numel: int

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self.numel * int(jnp.dtype(self.dtype).itemsize)


class Storages:
    """The storages that a pickle names, and the tensors in them."""

    def __init__(self, fetch: Callable[[Storage], bytearray]) -> None:
        self._fetch = fetch
        self.named: dict[str, Storage] = {}

    def persistent(self, identity: Any) -> Any:
        """Storages by their key; and classes, which the old container names with their source."""
        match identity if isinstance(identity, tuple) and len(identity) <= 6 else ():
            case ("module", pickles.Global() as found, _, _):
                return found
            case ("storage", pickles.Global(name), str(key), str(), int(numel), *rest):
                # A sixth item, None since long ago, would be a view of another storage.
                if name not in _STORAGES or any(item is not None for item in rest):
                    raise WeightsError(f"its storage {shown(key)} is of no known kind")
                # The key becomes the name of an entry of the archive: digits, and nothing else.
                proper = type(numel) is int and 0 <= numel < 2**48
                if not proper or not re.fullmatch("[0-9]{1,20}", key):
                    raise WeightsError(f"its storage {shown(key)} has no proper key or size")
                storage = Storage(key, _STORAGES[name], numel)
                if self.named.setdefault(key, storage) != storage:
                    raise WeightsError(f"it describes its storage {key} in two ways")
                return storage
        raise WeightsError("the pickle in it refers to something that is not a storage: refused")

    def tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any
    ) -> tuple[Storage, StoredTensor]:
        """Stands for torch's own function that makes a tensor from a storage."""
        proper = isinstance(storage, Storage) and len(size) == len(stride) <= 8
        # Copies: lists could be changed by what follows in the pickle.
        size, stride = (tuple(size), tuple(stride)) if proper else ((), ())
        if not proper or not all(
            type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride)
        ):
            raise WeightsError("it describes a tensor by values that do not make one")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 in size or last >= storage.numel:
            raise WeightsError(
                f"it has a tensor of shape {size} that does not lie inside its storage of "
                f"{storage.numel} values"
            )
        # Each step passes over all that the smaller steps reach: no value is used twice, so the
        # tensor is no larger than what the file holds.
        reach = 0
        for step, n in sorted((step, n) for n, step in zip(size, stride, strict=True) if n > 1):
            if step <= reach:
                raise WeightsError(f"it has a tensor of shape {size} whose values overlap")
            reach += (n - 1) * step
        read = functools.partial(self._view, storage, offset, size, stride)
        return storage, StoredTensor(size, storage.dtype, read)

    def _view(
        self, storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> np.ndarray:
        dtype = jnp.dtype(storage.dtype)
        steps = tuple(step * dtype.itemsize for step in stride)
        data = self._fetch(storage)
        return np.ndarray(size, dtype, data, offset * dtype.itemsize, steps)

    def rules(self) -> pickles.Rules:
        """The names that such files use."""
        return pickles.Rules(
            functions={
                "torch._utils._rebuild_tensor": self.tensor,
                "torch._utils._rebuild_tensor_v2": self.tensor,
                "torch._utils._rebuild_parameter": lambda data, *_: data,
                "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
                # What is passed on is not copied: many calls can share one large argument.
                "torch.Size": lambda items=(): items,
                "collections.OrderedDict": lambda: {},
                "builtins.set": lambda items=(): items,
                "__builtin__.set": lambda items=(): items,
            },
            classes=_MODULES | _INERT,
            values=_VALUES,
            persistent=self.persistent,
        )


# --- Modules and dictionaries to named tensors --------------------------------------------------


def contents_of(root: Any) -> Contents:
    """The tensors of a module or state_dict, as `pickles.read` gives it with `Storages.rules`.

    Raises:
      WeightsError: it holds something else.
    """
    gains: set[float] = set()
    if isinstance(root, dict):
        found: Iterable[tuple[str, Any]] = root.items()
    elif isinstance(root, pickles.Inert):
        found = _walk(root, gains)
    else:
        raise WeightsError(f"it holds {shown(root)}, neither modules nor a dictionary of tensors")
    tensors: dict[str, StoredTensor] = {}
    owners: dict[str, str] = {}
    for name, value in found:
        match value:
            case (Storage(key), StoredTensor() as tensor):
                # One reading a storage: the work is then bounded by the length of the file.
                if owners.setdefault(key, name) != name or name in tensors:
                    raise WeightsError(
                        f"its tensors {shown(owners[key])} and {shown(name)} share one storage: "
                        "save clones of them"
                    )
                tensors[name] = tensor
            case _:
                raise WeightsError(f"{shown(value)} stands under {shown(name)}, not a tensor")
    return Contents(tensors, frozenset(gains))


def _walk(root: pickles.Inert, gains: set[float]) -> Iterator[tuple[str, Any]]:
    """The parameters and buffers of a module, named as ``state_dict`` names them."""
    waiting = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        # Modules can contain themselves, or one another many times over.
        seen += 1 + sum(len(module.state.get(kind, ())) for kind in _KINDS)
        if seen > _MAX_ENTRIES or depth > _MAX_DEPTH:
            raise WeightsError("its modules are nested too deeply, or there are too many")
        if module.name not in _MODULES:
            raise WeightsError(f"its module {shown(prefix)} is a {module.name}")
        gain = module.state.get("post_gain")
        if isinstance(gain, float):
            gains.add(gain)
        for kind in ("_parameters", "_buffers"):
            for name, value in _entries(module, kind):
                if value is not None:
                    yield prefix + name, value
        for name, child in _entries(module, "_modules"):
            if not isinstance(child, pickles.Inert):
                raise WeightsError(f"its module {shown(prefix + name)} is {shown(child)}")
            waiting.append((f"{prefix}{name}.", child, depth + 1))


def _entries(module: pickles.Inert, kind: str) -> list[tuple[str, Any]]:
    entries = module.state.get(kind, {})
    if not isinstance(entries, dict):
        raise WeightsError(f"its {module.name} has no proper {kind}")
    # With names of any length, names of paths could grow to the length of the file each.
    if any(len(name) > 100 for name in entries):
        raise WeightsError(f"its {module.name} has names of over 100 characters")
    return list(entries.items())
