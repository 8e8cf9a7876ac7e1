"""CUDA kernels compiled by g++: what cupy.RawModule offers, over NumPy arrays and on one CPU thread.

The text stays as it is but for ``__shared__`` declarations, which become places in a block's arena. A launch
is held to a device's limits, and its arguments to the kernel's signature, which CuPy does not check.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
BUILDS = HERE.parents[1] / "build" / "cuda_host"
MOST_THREADS, MOST_SHARED = 1024, 48 << 10  # of a block; more shared memory needs asking for on a device
FLAGS = (
    "-std=c++20",
    "-O1",
    "-g",
    "-fPIC",
    "-fno-gnu-unique",
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
)


def to_host(text: str) -> str:
    """Turn shared arrays into places in the block's arena; no line moves."""
    text = re.sub(
        r"extern __shared__ (\w+) (\w+)\[\];",
        r"\1* const \2 = static_cast<\1*>(host::dynamic_shared());",
        text,
    )
    text = re.sub(r"__shared__ (\w+) (\w+)((?:\[\w+\])+);", r"auto& \2 = host::shared<\1\3>([] {});", text)
    if "__shared__" in text:
        raise ValueError("a __shared__ declaration that to_host does not know")
    return text


class HostModule:
    """Kernels by the names that NVRTC would be given: ``get_function(name)(grid, block, args, shared_mem=)``.

    Parameters
    ----------
    text : str
        CUDA C++.
    names : sequence of str
        The kernels to build, template arguments written out.
    options : sequence of str
        More options of the compiler, ``-D...`` for instance.
    sanitizer : str
        "address", "undefined" or "thread": then Python must run with its library loaded before all others.
    last : int
        Only so many blocks at the end of each launch are run.
    flush : bool
        Subnormal numbers are 0 in arithmetic, as CuPy has float32 compiled (on x86; elsewhere as without).
    order : int
        0: threads and blocks run as they are numbered; 1: backwards; any other number: shuffled by it.
    """

    def __init__(
        self,
        text: str,
        names: Sequence[str],
        options: Sequence[str] = (),
        sanitizer: str = "",
        order: int = 0,
        last: int = 2**32 - 1,
        flush: bool = False,
    ) -> None:
        self.names, self.order, self.last, self.flush = list(names), order, last, flush
        exports = "".join(f"HOST_EXPORT(host_kernel_{i}, {name})\n" for i, name in enumerate(names))
        self.folder = build(f'#include "host.h"\n{to_host(text)}\n{exports}', tuple(options), sanitizer)
        self.library = ctypes.CDLL(str(self.folder / "kernels.so"))

    def get_function(self, name: str) -> Callable[..., None]:
        """Return the kernel as something to launch."""
        symbol = f"host_kernel_{self.names.index(name)}"
        run, signature = (getattr(self.library, symbol + end) for end in ("", "_signature"))
        run.restype = signature.restype = ctypes.c_char_p
        return functools.partial(self._launch, name, run, signature().decode().split())

    def _launch(
        self,
        name: str,
        run: Callable[..., bytes | None],
        parameters: list[str],
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        shared_mem: int = 0,
    ) -> None:
        grid, block = ((*size, 1, 1)[:3] for size in (grid, block))
        fits = np.prod(block) <= MOST_THREADS and max(grid[1:]) < 2**16 and grid[0] < 2**31
        if not fits or min(*grid, *block) < 1 or not 0 <= shared_mem <= MOST_SHARED:
            raise ValueError(
                f"{name}: no device launches {grid} blocks of {block} with {shared_mem} bytes shared"
            )
        cells = [
            _cell(f"{name}: argument {i}", value, parameter)
            for i, (value, parameter) in enumerate(zip(args, parameters, strict=True))
        ]
        pointers = (ctypes.c_void_p * len(cells))(*(cell.ctypes.data for cell in cells))
        sizes = ((ctypes.c_uint * 3)(*size) for size in (grid, block))
        ctypes.c_int.in_dll(self.library, "host_flush").value = self.flush
        error = run(
            *sizes, ctypes.c_size_t(shared_mem), *map(ctypes.c_uint, (self.order, self.last)), pointers
        )
        if error:
            raise RuntimeError(f"{name}: {error.decode()}")


def _cell(what: str, value: Any, parameter: str) -> np.ndarray:
    """The bytes that are passed for one argument: an address, or the value itself."""
    kind, size = parameter[0], int(parameter[1:])
    array = np.asarray(value)
    if kind in "pP":
        if array.ndim == 0 and array.dtype == np.uint64 and not array:
            return array  # a null pointer
        given = f"{'P' if kind == 'P' else 'p'}{array.dtype.itemsize}"
        if not isinstance(value, np.ndarray) or array.dtype.names:
            given = "no array"
        elif kind == "p" and not array.flags.writeable:
            given = "a read-only array"
        cell = np.array(array.ctypes.data, np.uint64)
    else:
        letter = "s" if array.dtype.names else {"i": "i", "u": "i", "b": "i", "f": "f"}[array.dtype.kind]
        given, cell = f"{letter}{array.dtype.itemsize}", array
    if given != parameter:
        raise TypeError(f"{what} is {given}, the kernel has {kind}{size}")
    return cell


def build(text: str, options: tuple[str, ...], sanitizer: str) -> Path:
    """Compile; return the folder with kernels.so, an old one if nothing has changed."""
    flags = [*FLAGS, f"-I{HERE}"]
    instrument = [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"] if sanitizer else []
    parts = [text, *flags, *instrument, *options]
    parts += [(HERE / name).read_text(encoding="utf-8") for name in ("host.h", "scheduler.cpp")]
    folder = BUILDS / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    if (folder / "kernels.so").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:  # two processes may build the same at once
        unfinished = Path(work, "kernels.so")
        (folder / "kernels.cpp").write_text(text, encoding="utf-8")
        scheduler = [
            *flags,
            f"-DHOST_{sanitizer.upper()}",
            "-c",
            str(HERE / "scheduler.cpp"),
            "-o",
            f"{work}/scheduler.o",
        ]
        _compile(scheduler)
        kernels = [*instrument, *options, "-c", str(folder / "kernels.cpp"), "-o", str(folder / "kernels.o")]
        _compile([*flags, *kernels])
        _compile(
            [
                *flags,
                *instrument,
                *options,
                "-shared",
                str(folder / "kernels.o"),
                f"{work}/scheduler.o",
                "-o",
                str(unfinished),
            ]
        )
        unfinished.replace(folder / "kernels.so")
    return folder


def _compile(arguments: list[str]) -> None:
    done = subprocess.run(["g++", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"g++ says:\n{done.stderr[:4000]}")
