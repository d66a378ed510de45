"""From functions in LLVM's terms to machine code in this process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir


def compiled(*writers: Callable[[ir.Module], ir.Function]) -> list[Callable[..., None]]:
    """The functions that `writers` put into a module, for integers and addresses; they run without Python's lock.

    Not by Numba: loading it takes each process of a packing five times as long as this, even if its cache has the
    machine code. Nothing is kept on disk, as compiling takes less than a tenth of a second.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = ir.Module("shards")
    functions = [write(module) for write in writers]
    for function in functions:
        function.linkage = "external"
    try:
        features = llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # LLVM cannot list those of every machine; the processor's name says which it has at least
        features = ""
    target = llvm.Target.from_default_triple()
    machine = target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features, opt=3, jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), machine)
    engine.finalize_object()
    return [_callable(engine, function) for function in functions]


def _callable(engine: Any, function: ir.Function) -> Callable[..., None]:
    kinds = [ctypes.c_void_p if argument.type.is_pointer else ctypes.c_int64 for argument in function.args]
    call: Any = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(function.name))
    call.engine = engine  # holds the machine code
    return call
