"""The calls that a pickle of torch.save may make, and what each gives (`pickles.scan`).

Each function gets the arguments, and returns a placeholder of what the call gives. None means that the arguments are
not those that torch.save writes.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from fastmoco.checkpoints.pickled_parts import Account, Made, Named, Storage

Given = list[Any]
_NUMPY_CODE = re.compile(r"[<>|=]?(?:[?bBhHiIlLqQefdgFD]|[biufc]\d{1,2}|[SU]\d{0,4})")
_MOST_DIMENSIONS = 32
_ENTRY = 100  # bytes of an entry of a dictionary, about


def _numbers(value: Any) -> list[int] | None:
    """The sizes or strides of a tensor."""
    items = value.items if isinstance(value, Made) and value.kind in ("tuple", "list", "Size") else None
    if items is None or len(items) > _MOST_DIMENSIONS or not all(type(one) is int and one >= 0 for one in items):
        return None
    return list(items)


def _tensor(account: Account, given: Given, dtype: torch.dtype | None = None) -> Made | None:
    storage, offset, shape, stride = given[0], given[1], _numbers(given[2]), _numbers(given[3])
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        return None
    if shape is None or stride is None or len(shape) != len(stride):
        return None
    account.cover(storage, offset, shape, stride, storage.width if dtype is None else dtype.itemsize)
    return account.make("tensor")


def _tensor_1(account: Account, given: Given) -> Made | None:
    return _tensor(account, given) if len(given) == 4 else None


def _tensor_2(account: Account, given: Given) -> Made | None:
    match given[4:]:
        case [bool(), Made("OrderedDict", keys=None), *more] if _no_metadata(more):
            return _tensor(account, given)
    return None


def _tensor_3(account: Account, given: Given) -> Made | None:
    match given[4:]:
        case [bool(), Made("OrderedDict", keys=None), torch.dtype() as dtype, *more] if _no_metadata(more):
            return _tensor(account, given, dtype)
    return None


def _no_metadata(more: Given) -> bool:
    return all(one is None or (isinstance(one, Made) and one.kind == "dict" and not one.keys) for one in more)


def _parameter(account: Account, given: Given) -> Made | None:
    match given:
        case [Made("tensor"), bool(), Made("OrderedDict", keys=None)]:
            return account.make("tensor")
    return None


def _ordered(account: Account, given: Given) -> Made | None:
    made = account.make("OrderedDict", given)
    match given:
        case []:
            return made
        case [Made("list", items)]:  # of list of two, as Python 2 wrote it
            pairs = [one.items for one in items if isinstance(one, Made) and one.kind in ("list", "tuple")]
            if len(pairs) == len(items) and all(len(pair) == 2 for pair in pairs):
                account.charge(_ENTRY * len(pairs))
                account.set_keys(made, [pair[0] for pair in pairs])
                return made
    return None


def _counter(account: Account, given: Given) -> Made | None:
    match given:
        case []:
            return account.make("Counter")
        case [Made("dict", keys=keys)]:
            account.charge(_ENTRY * len(keys or ()))
            return account.make("Counter", given)
    return None


def _set(account: Account, given: Given) -> Made | None:
    match given:
        case [Made("list", items)]:
            made = account.make("set", items)
            account.charge(_ENTRY * len(items))
            account.set_keys(made, list(items))
            return made
    return None


def _size(account: Account, given: Given) -> Made | None:
    numbers = _numbers(given[0]) if len(given) == 1 else None
    return None if numbers is None else account.make("Size", items=tuple(numbers))


def _bytes(account: Account, given: Given) -> Made | None:
    match given:
        case [str(text), "latin1" | "latin-1"]:
            account.charge(len(text))
            return account.make("bytes", size=len(text))
    return None


def _bytearray(account: Account, given: Given) -> Made | None:
    match given:
        case []:
            return account.make("bytearray")
        case [Made("bytes", size=size)]:
            account.charge(size)
            return account.make("bytearray")
    made = _bytes(account, given)
    return None if made is None else account.make("bytearray")


def _complex(account: Account, given: Given) -> Made | None:
    return account.make("number") if [type(one) for one in given] == [float, float] else None


def _device(account: Account, given: Given) -> Made | None:
    match given:
        case [str()] | [str(), int()]:
            return account.make("device")
    return None


def _path(account: Account, given: Given) -> Made | None:
    if not all(isinstance(one, str) for one in given):
        return None
    account.charge(sum(len(one) + _ENTRY for one in given))
    return account.make("path")


def _namespace(account: Account, given: Given) -> Made | None:
    return None if given else account.make("Namespace")


def _numpy_dtype(account: Account, given: Given) -> Made | None:
    match given:
        case [str(code), bool() | int(), bool() | int()] if _NUMPY_CODE.fullmatch(code):
            width = int(re.sub(r"\D", "", code) or 16)
            return account.make("numpy dtype", size=4 * width if "U" in code else width)
    return None


def _numpy_scalar(account: Account, given: Given) -> Made | None:
    match given:
        case [Made("numpy dtype", size=size), Made("bytes")]:
            account.charge(size)
            return account.make("number")
    return None


def _numpy_array(account: Account, given: Given) -> Made | None:
    match given:
        case [Named("numpy.ndarray"), Made("tuple", (0,)), Made("bytes")]:
            return account.make("numpy array")
    return None


CALLS: dict[str, Callable[[Account, Given], Made | None]] = {
    "torch._utils._rebuild_tensor": _tensor_1,
    "torch._utils._rebuild_tensor_v2": _tensor_2,
    "torch._utils._rebuild_tensor_v3": _tensor_3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _size,
    "torch.device": _device,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "_codecs.encode": _bytes,
    "argparse.Namespace": _namespace,
    "pathlib.PosixPath": _path,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _numpy_array,
    "numpy._core.multiarray._reconstruct": _numpy_array,
}
ARGUMENTS = {"numpy.ndarray"}
"""Classes that are named as arguments alone."""


def _set_ordered(account: Account, into: Made, state: Made) -> bool:
    # `_metadata` of a state dictionary. A name of the class's own would hide its method
    keys = state.keys or ()
    return state.kind == "dict" and all(isinstance(key, str) and not hasattr(OrderedDict, key) for key in keys)


def _set_namespace(account: Account, into: Made, state: Made) -> bool:
    return state.kind == "dict" and all(isinstance(key, str) for key in state.keys or ())


def _set_numpy_dtype(account: Account, into: Made, state: Made) -> bool:
    match state.items:
        case [3, "<" | ">" | "|" | "=", None, None, None, int(size), int(), int()] if size <= 1 << 16:
            into.size = max(into.size, size)
            return True
    return False


def _set_numpy_array(account: Account, into: Made, state: Made) -> bool:
    match state.items:
        case [int(), Made("tuple") as shape, Made("numpy dtype"), bool() | int(), Made("bytes", size=size)]:
            numbers = _numbers(shape)
            account.charge(size)
            return numbers is not None and math.prod(numbers) <= max(size, 1)  # numpy compares the bytes itself
    return False


STATES: dict[str, Callable[[Account, Made, Made], bool]] = {
    "OrderedDict": _set_ordered,
    "Namespace": _set_namespace,
    "numpy dtype": _set_numpy_dtype,
    "numpy array": _set_numpy_array,
}
"""Kinds that are given a state after they are made, and whether the state is one that torch.save writes."""
