"""What a pickle of torch.save would build, found out without building it.

torch.load runs no code of a file, but it allocates what the file names: a storage of 10¹² bytes, a list of lists that
has 2¹⁰⁰ entries, a tensor that reaches beyond its storage. `scan` follows the same instructions as torch's reader with
placeholders, and refuses what is larger than the file accounts for. What it accepts is plain values and tensors
without cycles, nested at most 60 levels deep, and every tensor lies within its storage.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

from fastmoco.checkpoints.pickled_calls import ARGUMENTS, CALLS, STATES
from fastmoco.checkpoints.pickled_parts import LONGEST, STORAGES, Account, Made, Named, Refused, Storage, Unknown

_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_PYTHON_2 = {"__builtin__.set": "builtins.set", "__builtin__.bytearray": "builtins.bytearray",
             "__builtin__.complex": "builtins.complex"}  # fmt: skip
_MOST_ELEMENTS = 1 << 48
_EMPTY = Made("tuple")


@dataclass(frozen=True)
class Scanned:
    """What a pickle would build.

    Attributes:
        value: the whole, with placeholders.
        storages: all that it refers to, by key.
    """

    value: Any
    storages: dict[str, Storage]

    def strings(self) -> list[str] | None:
        """The strings of a list; None where the value is something else."""
        if not isinstance(self.value, Made) or self.value.kind != "list":
            return None
        return list(self.value.items) if all(isinstance(one, str) for one in self.value.items) else None


def scan(file: BinaryIO, bound: int) -> Scanned:
    """Follow a pickle to its end without building anything.

    Args:
        file: at the beginning of the pickle; afterwards behind it.
        bound: size of the whole file: its storages together cannot have more bytes.

    Raises:
        Refused: torch.load would refuse it, or build more than the file accounts for.
        Exception: it is no pickle.
    """
    machine = _Machine(Account(bound))
    begin: int | None = None
    for code, given, place in pickletools.genops(file):
        begin = (place or 0) if begin is None else begin
        machine.account.read = (place or 0) - begin
        if machine.account.read > LONGEST:
            raise Refused(f"it describes its content in more than {LONGEST:,} bytes, which torch.save does not")
        if code.name == "STOP":
            return Scanned(machine.stack.pop(), machine.account.storages)
        step = _STEPS.get(code.name)
        if step is None:
            raise Refused(f"it has the instruction {code.name}, which torch.save does not write")
        step(machine, given)
    raise Refused("it has no end")


class _Machine:
    """The stack of a pickle, of None, bool, int, float, str, torch.dtype, Named, Storage and Made."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks before each mark
        self._memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: object) -> None:
        self._below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self._below.pop()
        return items

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise Refused("it takes values that it has not given")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def remember(self, place: int) -> None:
        self._memo[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.push(self._memo[place])

    def tuple_of(self, items: list[Any]) -> None:
        self.push(self.account.make("tuple", items, items=tuple(items)))

    def append(self, items: list[Any]) -> None:
        into = self._open("list")
        assert isinstance(into.items, list)
        self.account.place(into, items)
        into.items.extend(items)

    def set_items(self, items: list[Any]) -> None:
        into = self._open("dict", "OrderedDict", "Counter")
        if len(items) % 2:
            raise Refused("it gives a key without its value")
        self.account.set_keys(into, items[::2])
        self.account.place(into, items)

    def _open(self, *kinds: str) -> Made:
        into = self.stack[-1]
        if not isinstance(into, Made) or into.kind not in kinds:
            raise Refused(f"it adds to what is no {kinds[0]}")
        if into.placed:  # its depth is counted already, and a cycle has none
            raise Refused("it changes a value that it has placed in another")
        return into

    def name(self, given: str) -> None:
        name = given.replace(" ", ".")
        name = _PYTHON_2.get(name, name)
        if name in _DTYPES:
            self.push(_DTYPES[name])
        elif name in STORAGES or name in CALLS or name in ARGUMENTS:
            self.push(Named(name))
        else:
            raise Unknown(name.removeprefix("builtins.").removeprefix("__builtin__."))

    def call(self, _: object) -> None:
        function, given = self.last(2)
        if not isinstance(function, Named) or function.name not in CALLS:
            raise Refused("it calls what is no function")
        if not isinstance(given, Made) or given.kind != "tuple":
            raise Refused("it calls a function without arguments")
        made = CALLS[function.name](self.account, list(given.items))
        if made is None:
            raise Refused(f"it calls {function.name.split('.')[-1]} with arguments that torch.save does not write")
        self.push(made)

    def set_state(self, _: object) -> None:
        into, state = self.last(2)
        known = STATES.get(into.kind) if isinstance(into, Made) and not into.placed else None
        if known is None or not isinstance(state, Made) or not known(self.account, into, state):
            raise Refused("it changes an object as torch.save does not")
        self.account.place(into, [state])
        self.push(into)

    def storage(self, _: object) -> None:
        saved = self.stack.pop()
        match saved.items if isinstance(saved, Made) and saved.kind == "tuple" else ():
            case ["storage", Named(name), str(key), str(), int(count), *view] if (
                name in STORAGES and 0 <= count < _MOST_ELEMENTS
            ):
                found = Storage(key, count * STORAGES[name], STORAGES[name])
                self.account.store(found)
                self.push(_part(found, view))
            case _:
                raise Refused("it names a storage as torch.save does not")


def _part(storage: Storage, view: list[Any]) -> Storage:
    match view:
        case [] | [None]:
            return storage
        case [Made("tuple", [str(), int(offset), int(size)])]:
            return storage.part(offset, size)
    raise Refused("it names a storage as torch.save does not")


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"), _Machine.push
    ),
    "EMPTY_TUPLE": lambda machine, _: machine.push(_EMPTY),
    "EMPTY_LIST": lambda machine, _: machine.push(machine.account.make("list", items=[])),
    "EMPTY_DICT": lambda machine, _: machine.push(machine.account.make("dict")),
    "EMPTY_SET": lambda machine, _: machine.push(machine.account.make("set")),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.tuple_of(machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.tuple_of(machine.last(1)),
    "TUPLE2": lambda machine, _: machine.tuple_of(machine.last(2)),
    "TUPLE3": lambda machine, _: machine.tuple_of(machine.last(3)),
    "APPEND": lambda machine, _: machine.append(machine.last(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.set_state,
    "BINPERSID": _Machine.storage,
}
"""What each instruction does: those that torch's reader knows, with the same meaning."""
