"""Reads a pickle as plain data: no import, no attribute look-up, no call that the file chooses.

A pickle is a program for a small stack machine, whose usual interpreter imports and calls whatever
the program names. This one is separate and smaller. It has the opcodes that writers of data emit
and no others, the names in a pickle stay strings that are looked up in tables of ours, and an
object of a listed class becomes an `Inert`: its name and its state, without behaviour.
"""

import dataclasses
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from logit_laplace_jax.weights.weights import WeightsError, shown

MAX_OPCODES = 1_000_000
"""OpenAI's encoder has some 15,000; a second or two of work at most."""
MAX_ARGUMENTS = 8
"""Torch's own functions take up to seven."""
_MAX_INT_BITS = 128
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_INTS = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"}
_STRINGS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}


@dataclasses.dataclass(frozen=True)
class Global:
    """A name in a pickle, such as ``collections.OrderedDict``; it stands for itself only."""

    name: str


@dataclasses.dataclass(eq=False)
class Inert:
    """An object of a listed class: what the pickle says of it, and nothing that could run."""

    name: str
    state: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the names in a pickle may be.

    Attributes:
      functions: functions of ours that stand for those of the same name in the file.
      classes: classes whose objects become `Inert`.
      values: names that may occur and are never called.
      persistent: what a persistent id stands for.
    """

    functions: Mapping[str, Callable[..., Any]]
    classes: frozenset[str]
    values: frozenset[str]
    persistent: Callable[[Any], Any]

    def find(self, name: str) -> Global:
        """The name, if it is listed; nothing is looked up outside the tables.

        Raises:
          WeightsError: it is not.
        """
        if name in self.functions or name in self.classes or name in self.values:
            return Global(name)
        raise WeightsError(
            f"the pickle in it names {shown(name)}, which these weights have no use for: refused, "
            "nothing in it was run"
        )

    def make(self, target: Any, arguments: Any) -> Any:
        """What calling a name gives.

        Raises:
          WeightsError: it is not a function or class of the tables.
        """
        if not isinstance(target, Global):
            raise WeightsError(f"the pickle in it calls {shown(target)}: refused")
        # A tuple can be shared by many calls, each of which would copy it.
        if not isinstance(arguments, tuple) or len(arguments) > MAX_ARGUMENTS:
            raise WeightsError(f"the pickle in it calls {shown(target.name)} strangely: refused")
        if target.name in self.classes:
            return Inert(target.name)
        if target.name not in self.functions:
            raise WeightsError(f"the pickle in it calls {shown(target.name)}: refused")
        return self.functions[target.name](*arguments)


def read(stream: BinaryIO, rules: Rules) -> Any:
    """Reads one pickle; the stream then stands behind its last opcode.

    Sets become lists, and the keys of dictionaries are strings. Time and memory are proportional
    to the stream's length.

    Args:
      stream: the pickle; the caller limits its length.
      rules: the names it may use.

    Raises:
      WeightsError: it is damaged, or asks for more than data.

    Example:
      >>> import io, pickle
      >>> rules = Rules({}, frozenset(), frozenset(), persistent=lambda key: None)
      >>> read(io.BytesIO(pickle.dumps({"a": [1, 2.5, (None, True)]})), rules)
      {'a': [1, 2.5, (None, True)]}
      >>> read(io.BytesIO(b"cos\\nsystem\\n(Vecho\\ntR."), rules)  # what pickle.loads would run
      Traceback (most recent call last):
        ...
      logit_laplace_jax.weights.weights.WeightsError: the pickle in it names 'os.system', ...

    Source: Python's ``pickletools``, which documents every opcode.
    """
    machine = _Machine(rules)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise WeightsError(f"the pickle in it has more than {MAX_OPCODES:,} opcodes")
            machine.step(opcode.name, argument)
        return machine.result()
    except WeightsError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
        raise WeightsError(f"the pickle in it is damaged ({type(error).__name__})") from None


class _Machine:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below the marks
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def step(self, name: str, argument: Any) -> None:
        push = self._stack.append
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                push(_VALUES[name])
            case _ if name in _INTS:
                # Sizes are multiplied later, which takes long for integers of megabytes.
                if int(argument).bit_length() > _MAX_INT_BITS:
                    raise WeightsError(f"the pickle in it has an integer above 2^{_MAX_INT_BITS}")
                push(argument)
            case "BINFLOAT" | "FLOAT":
                push(argument)
            case _ if name in _STRINGS:
                push(argument)
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                # Writers count from 0; large integers can be chosen to have one and the same hash.
                if argument >= MAX_OPCODES:
                    raise KeyError
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                push(self._memo[argument])
            case "MARK":
                self._outer.append(self._stack)
                self._stack = []
            case "POP":
                self._pop(1)
            case "POP_MARK":
                self._since_mark()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(self._pop(int(name[-1]))))
            case "TUPLE" | "LIST":
                items = self._since_mark()
                self._stack.append(tuple(items) if name == "TUPLE" else items)
            case "EMPTY_LIST" | "EMPTY_SET":
                push([])
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS" | "ADDITEMS":
                self._extend(self._since_mark())
            case "EMPTY_DICT":
                push({})
            case "DICT":
                items = self._since_mark()
                self._stack.append({})
                self._set(items)
            case "SETITEM":
                self._set(self._pop(2))
            case "SETITEMS":
                self._set(self._since_mark())
            case "GLOBAL":
                push(self._rules.find(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                push(self._rules.find(".".join(self._pop(2))))
            case "REDUCE" | "NEWOBJ":
                push(self._rules.make(*self._pop(2)))
            case "BUILD":
                self._build(*self._pop(1))
            case "BINPERSID":
                push(self._rules.persistent(*self._pop(1)))
            case _:
                raise WeightsError(
                    f"the pickle in it uses opcode {name}, which these weights have no use for: "
                    "refused, nothing in it was run"
                )

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing nested tuples, of which a pickle can share parts, may take exponential time,
            # and integers can be chosen to have one and the same hash.
            if not isinstance(key, str):
                raise TypeError
            target[key] = value

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if not isinstance(state, dict) or not isinstance(target, (Inert, dict)):
            raise WeightsError(f"the pickle in it sets the state of {shown(target)}: refused")
        # A dictionary's attributes (a state_dict's _metadata) say nothing about its tensors.
        if isinstance(target, Inert):
            target.state = state  # not a copy: many objects can share one large state
