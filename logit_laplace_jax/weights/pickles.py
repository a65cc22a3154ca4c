"""The pickles of ``torch.save`` as plain data: nothing in them is imported or run.

A pickle is a program. It is read twice: `_check` walks over its opcodes, which must be those of
data and of bounded size, and only then `pickle.Unpickler` runs it, with a closed table of names.
What the names stand for are the inert classes and functions below, which no opcode can change.
"""

import io
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import jax.numpy as jnp
import numpy as np

from logit_laplace_jax.weights.errors import WeightsError, shown

MAX_OPCODES = 1_000_000
"""OpenAI's encoder has about 15,000; a second or two of work at most."""
_MAX_INT_BITS = 128
_MAX_MODULES = 1_000_000
_MAX_DEPTH = 16
_MAX_NAME = 100

_OPCODES = re.findall(
    "[A-Z0-9_]+",
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST "
    "APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_SET BINPUT LONG_BINPUT MEMOIZE BINGET "
    "LONG_BINGET GLOBAL STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID",
)
"""What protocols 2 to 5 write for modules and tensors."""


# --- What the names in a pickle stand for ------------------------------------------------------


class Storage(NamedTuple):
    """A run of numbers in the file."""

    key: str
    dtype: str
    size: int

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self.size * int(jnp.dtype(self.dtype).itemsize)


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, data: bytes) -> np.ndarray:
        """Its numbers, given those of the storage."""
        dtype = jnp.dtype(self.storage.dtype)
        steps = [step * dtype.itemsize for step in self.strides]
        return np.ndarray(self.shape, dtype, data, self.offset * dtype.itemsize, steps)


class _Module:
    """An object of a listed class: what the pickle says of it, and no behaviour."""

    __slots__ = ("state",)
    name = ""

    state: dict[str, Any]

    def __new__(cls) -> Self:  # NEWOBJ calls it, and not __init__
        module = super().__new__(cls)
        module.state = {}
        return module

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise WeightsError(f"the pickle in it sets a strange state of {self.name}: refused")
        self.state = state  # not a copy: many objects can share one large state


class _Dict(dict[str, Any]):
    """An OrderedDict; its attributes (a state_dict's _metadata) say nothing about its tensors."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Name:
    """A listed name; calling it gives what ``call`` makes of the arguments, if there is one."""

    # Slots and a state that is refused: otherwise BUILD could set attributes.
    __slots__ = ("_call", "name")

    def __init__(self, name: str, call: Callable[..., Any] | None = None) -> None:
        self.name, self._call = name, call

    def __call__(self, *args: Any) -> Any:
        if self._call is None:
            raise WeightsError(f"the pickle in it calls {self.name}: refused")
        return self._call(*args)  # none of them takes *args, which repeated calls would copy

    def __setstate__(self, state: Any) -> None:
        raise WeightsError(f"the pickle in it sets the state of {self.name}: refused")


def _tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = None,
    hooks: Any = None,
    metadata: Any = None,
) -> Tensor:
    """Stands for torch's own function that makes a tensor from a storage."""
    proper = isinstance(storage, Storage) and len(size) == len(stride) <= 8
    # Copies: lists could be changed by what follows in the pickle.
    size, stride = (tuple(size), tuple(stride)) if proper else ((), ())
    if not proper or not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride)):
        raise WeightsError("it describes a tensor by values that do not make one")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 in size or last >= storage.size:
        raise WeightsError(
            f"it has a tensor of shape {size} that does not lie inside its storage of "
            f"{storage.size} values"
        )
    # Each step passes over all that the smaller steps reach: no value is used twice, so the
    # tensor is no larger than what the file holds.
    reach = 0
    for step, n in sorted((step, n) for n, step in zip(size, stride, strict=True) if n > 1):
        if step <= reach:
            raise WeightsError(f"it has a tensor of shape {size} whose values overlap")
        reach += (n - 1) * step
    return Tensor(storage, offset, size, stride)


_DTYPES = {
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
}
_STORAGES = {
    f"{module}.{kind}Storage": dtype
    for module in ("torch", "torch.cuda")
    for kind, dtype in _DTYPES.items()
}
_MODULES = (
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
)
_FUNCTIONS: dict[str, Callable[..., Any] | None] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, requires_grad, hooks, state: data,
    "torch.Size": lambda items=(): items,  # not copied: many calls can share one large argument
    "torch.device": lambda kind, index=None: None,
    "collections.OrderedDict": lambda: _Dict(),
    "builtins.set": lambda items=(): None,
    "__builtin__.set": lambda items=(): None,
    **dict.fromkeys(f"torch.{name}" for name in ("float16", "bfloat16", "float32", "float64")),
    **dict.fromkeys(_STORAGES),
}
_NAMES: dict[str, Any] = {
    **{name: type("_Module", (_Module,), {"__slots__": (), "name": name}) for name in _MODULES},
    **{name: _Name(name, call) for name, call in _FUNCTIONS.items()},
}


# --- Reading ------------------------------------------------------------------------------------


def read(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    r"""Reads one pickle; the stream then stands behind it.

    Time and memory are proportional to the pickle's length.

    Args:
      stream: the pickle, and anything after it.

    Returns:
      What it holds, made of plain data and the classes of this module; and its storages by key.

    Raises:
      WeightsError: it is damaged, or asks for more than data.

    Example:
      >>> read(io.BytesIO(pickle.dumps({"a": [1, 2.5, (None, True)]})))
      ({'a': [1, 2.5, (None, True)]}, {})
      >>> read(io.BytesIO(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R."))
      Traceback (most recent call last):
        ...
      logit_laplace_jax.weights.errors.WeightsError: the pickle in it names 'os.system', ...
    """
    try:
        start = stream.tell()
        _check(stream)
        end = stream.tell()
        unpickler = _Unpickler(stream.getvalue()[start:end])
        return unpickler.load(), unpickler.storages
    except WeightsError:
        raise
    except (
        pickle.UnpicklingError,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise WeightsError(f"the pickle in it is damaged ({type(error).__name__})") from None


def _check(stream: io.BytesIO) -> None:
    """Refuses what would run, and what would take more time or memory than the file is long.

    It follows the kinds of objects on the stack, to see that the keys of dictionaries are strings:
    hashing nested tuples, of which a pickle can share parts, may take exponential time.
    """
    text, mark = pickletools.pyunicode, pickletools.markobject
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MAX_OPCODES:
            raise WeightsError(f"the pickle in it has more than {MAX_OPCODES:,} opcodes")
        if opcode.name not in _OPCODES:
            raise WeightsError(
                f"the pickle in it uses opcode {opcode.name}, which these weights have no use "
                "for: refused, nothing in it was run"
            )
        if isinstance(argument, int) and argument.bit_length() > _MAX_INT_BITS:
            raise WeightsError(f"the pickle in it has an integer above 2^{_MAX_INT_BITS}")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT":
                if argument >= MAX_OPCODES:  # Unpickler's memo is an array
                    raise IndexError
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case _:
                fixed = list(opcode.stack_before)
                taken: list[Any] = []
                if mark in fixed:
                    fixed = fixed[: fixed.index(mark)]
                    while stack[-1] is not mark:
                        taken.append(stack.pop())
                    stack.pop()
                for _ in fixed:
                    taken.append(stack.pop())
                taken.reverse()
                if mark in taken:
                    raise ValueError
                if opcode.name.startswith("SETITEM") and any(k is not text for k in taken[1::2]):
                    raise TypeError
                stack.extend(opcode.stack_after)
    if stack:
        raise ValueError


class _Unpickler(pickle.Unpickler):
    """Runs a pickle that `_check` has passed."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), fix_imports=False)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """The inert class or function of a listed name; nothing is looked up elsewhere."""
        found = _NAMES.get(f"{module}.{name}")
        if found is None:
            raise WeightsError(
                f"the pickle in it names {shown(f'{module}.{name}')}, which these weights have no "
                "use for: refused, nothing in it was run"
            )
        return found

    def persistent_load(self, identity: Any) -> Any:
        """Storages by their key; and classes, which the old container names with their source."""
        match identity if isinstance(identity, tuple) and len(identity) <= 6 else ():
            case ("module", type() as found, _, _):
                return found
            case ("storage", _Name() as kind, str(key), str(), int(size), *rest):
                # A sixth item, None since long ago, would be a view of another storage.
                if kind.name not in _STORAGES or any(item is not None for item in rest):
                    raise WeightsError(f"its storage {shown(key)} is of no known kind")
                # The key becomes the name of an entry of the archive: digits, and nothing else.
                proper = type(size) is int and 0 <= size < 2**48
                if not proper or not re.fullmatch("[0-9]{1,20}", key):
                    raise WeightsError(f"its storage {shown(key)} has no proper key or size")
                storage = Storage(key, _STORAGES[kind.name], size)
                if self.storages.setdefault(key, storage) != storage:
                    raise WeightsError(f"it describes its storage {key} in two ways")
                return storage
        raise WeightsError("the pickle in it refers to something that is not a storage: refused")


# --- Modules and dictionaries to named tensors --------------------------------------------------


def named_tensors(root: Any) -> tuple[dict[str, Tensor], set[float]]:
    """The tensors of a module or state_dict that `read` gave, named as ``state_dict`` does.

    Returns:
      The tensors by name, and every ``post_gain`` of the modules.

    Raises:
      WeightsError: it holds something else.
    """
    gains: set[float] = set()
    if isinstance(root, _Module):
        found: Iterable[tuple[str, Any]] = _walk(root, gains)
    elif isinstance(root, dict):
        found = root.items()
    else:
        raise WeightsError(f"it holds {shown(root)}, neither modules nor a dictionary of tensors")
    tensors: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    for name, value in found:
        if not isinstance(value, Tensor):
            raise WeightsError(f"{shown(value)} stands under {shown(name)}, not a tensor")
        # One reading per storage: the work is then bounded by the length of the file.
        if owners.setdefault(value.storage.key, name) != name or name in tensors:
            raise WeightsError(
                f"its tensors {shown(owners[value.storage.key])} and {shown(name)} share one "
                "storage: save clones of them"
            )
        tensors[name] = value
    return tensors, gains


def _walk(root: _Module, gains: set[float]) -> Iterator[tuple[str, Any]]:
    """The parameters and buffers of a module and of those inside it."""
    waiting = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, module, depth = waiting.pop()
        entries = {}
        for kind in ("_parameters", "_buffers", "_modules"):
            entries[kind] = module.state.get(kind, {})
            # With names of any length, names of paths could grow to the length of the file each.
            if not isinstance(entries[kind], dict) or any(
                len(n) > _MAX_NAME for n in entries[kind]
            ):
                raise WeightsError(
                    f"its {module.name} has no proper {kind}, or names of over 100 characters"
                )
        # Modules can contain themselves, or one another many times over.
        seen += 1 + sum(map(len, entries.values()))
        if seen > _MAX_MODULES or depth > _MAX_DEPTH:
            raise WeightsError("its modules are nested too deeply, or there are too many")
        gain = module.state.get("post_gain")
        if isinstance(gain, float):
            gains.add(gain)
        for name, value in (entries["_parameters"] | entries["_buffers"]).items():
            if value is not None:
                yield prefix + name, value
        for name, child in entries["_modules"].items():
            if not isinstance(child, _Module):
                raise WeightsError(f"its module {shown(prefix + name)} is {shown(child)}")
            waiting.append((f"{prefix}{name}.", child, depth + 1))
