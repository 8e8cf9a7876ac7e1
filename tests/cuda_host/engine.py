"""The cuda engine on the CPU: its own `kernels` module and kernel text, where only the launch is another.

As on a GPU, where CuPy asks for it, subnormal float32 numbers are 0 in all arithmetic.

`on_host` replaces what `lalref.engines.kernels` compiles with, and makes the front door choose that engine
for NumPy arrays. Nothing of the engine may be replaced beyond that.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import lalref.loss
import lalref.steps
from cuda_host.host import HostModule
from lalref.engines import array, kernels, kernels_geometry
from lalref.engines.kernels import TYPES, kernel_names, source

SMALL_TILES = {"TILE": (8, 4), "WIDE_TILE": (32, 1)}  # so that small images have several

# In which order threads and blocks run: numbers as `host.HostModule` takes them.
ORDERS = {"as numbered": 0, "reversed": 1, "shuffled": 12345}
NIGHTLY = "LALREF_NIGHTLY" in os.environ
if NIGHTLY:
    ORDERS |= {f"shuffled by {seed}": seed for seed in range(2, 18)}


@functools.cache
def compiled(
    dtype: str,
    space: str,
    channels: int = 0,
    options: tuple[str, ...] = (),
    sanitizer: str = "",
    fault: str = "",
) -> HostModule:
    """Build what `kernels.load` compiles; `fault` names one of `FAULTS` to plant first."""
    text = FAULTS[fault](source()) if fault else source()
    names = tuple(kernel_names(dtype, space, channels).values())
    return HostModule(text, names, options, sanitizer, flush=TYPES[dtype][1] == "float")


@contextlib.contextmanager
def on_host(order: int = 0, small_tiles: bool = False, last: int = 2**32 - 1, **build: Any) -> Iterator[None]:
    """Let lalref serve NumPy arrays by its cuda engine, the kernels running on the CPU."""

    def load(*which: Any) -> HostModule:
        module = compiled(*which, **build)
        module.order, module.last = order, last
        return module

    def choose(problem: Any, call: str) -> Any:
        return kernels if call in ("loss", "gradient") else array

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(kernels, "load", load))
        for door in (lalref.loss, lalref.steps):
            stack.enter_context(mock.patch.object(door, "choose", choose))
        if small_tiles:
            stack.enter_context(mock.patch.multiple(kernels_geometry, **SMALL_TILES))
        yield


@contextlib.contextmanager
def served_by_name() -> Iterator[None]:
    """Let engine="cuda" take NumPy arrays, its kernels running on the CPU; nothing else is replaced."""
    why_not = kernels.why_not

    def as_on_a_device(logits: Any, options: Any) -> str:
        with (
            mock.patch.object(kernels, "library", return_value="cupy"),
            mock.patch("importlib.util.find_spec", lambda name: name),
            mock.patch.dict(sys.modules, cupy=mock.Mock()),
        ):
            return why_not(logits, options)

    with (
        mock.patch.object(kernels, "load", compiled),
        mock.patch.object(kernels, "why_not", as_on_a_device),
    ):
        yield


def _without(line: str, instead: str = "", which: int = 0) -> Callable[[str], str]:
    """A fault: the `which`-th occurrence of `line` replaced."""

    def plant(text: str) -> str:
        parts = text.split(line)
        assert len(parts) > which + 1, f"the kernels no longer say {line!r}"
        return line.join(parts[: which + 1]) + instead + line.join(parts[which + 1 :])

    return plant


BEFORE_READING = "            __syncthreads();\n            if (p.label == kind)"

FAULTS: dict[str, Callable[[str], str]] = {
    "no barrier before the sums are read": _without(BEFORE_READING, "            if (p.label == kind)"),
    "no barrier before the sums are overwritten": _without(
        "__syncthreads();  // before the next class or channel overwrites the sums"
    ),
    "a shuffle taken for a barrier": _without(
        "        __syncthreads();\n        for (int warp", "\n        for (int warp"
    ),
    "no barrier before a block adds up": _without(
        "    found[threadIdx.x] = mine;\n    __syncthreads();", "    found[threadIdx.x] = mine;"
    ),
    "no barrier while a block adds up": _without(
        "found[threadIdx.x + half]);\n        __syncthreads();", "found[threadIdx.x + half]);"
    ),
    "no barrier before a block adds up again": _without(
        "__syncthreads();  // before `found` is written again"
    ),
    "a barrier that some threads pass by": _without(
        "    __syncthreads();\n    return weight",
        "    if (threadIdx.x > 0) __syncthreads();\n    return weight",
    ),
    "a write past the end of a map": _without("if (p.a < out.rows && p.b < out.columns) D[p.at]", "D[p.at]"),
    "a write past the end of a shared array": _without(
        "largest[id / 32] = kind", "largest[id / 32 + 32] = kind"
    ),
    "a write past the end of dynamic shared memory": _without(
        "weight[d] = call.sigma", "weight[d + 2000] = call.sigma"
    ),
    "a pixel's index of 31 bits": _without(
        "p.at = n * map.rows * map.columns + within",
        "p.at = (n * map.rows * map.columns + within) & 0x7fffffff",
    ),
    "a logit's index of 31 bits": _without(
        "x[min(first + g, last) * step_c + a * step_h + b * step_w]",
        "x[(min(first + g, last) * step_c + a * step_h + b * step_w) & 0x7fffffff]",
    ),
    "a row's index of 31 bits, by cells": _without(
        "const int* label = in.label + (Index)a * in.columns;",
        "const int* label = in.label + ((Index)a * in.columns & 0x7fffffff);",
    ),
    "a row's index of 31 bits, by class": _without(
        "in.label[(Index)(a - d) * in.columns + b]",
        "in.label[((Index)(a - d) * in.columns + b) & 0x7fffffff]",
    ),
    "a window's index of 31 bits, read": _without(
        "return !valid[i] ? 0 : omega ? omega[i] : 1;",
        "return !valid[i & 0x7fffffff] ? 0 : omega ? omega[i & 0x7fffffff] : 1;",
    ),
    "a window's index of 31 bits, written": _without("g[i] = valid[i] ?", "g[i & 0x7fffffff] = valid[i] ?"),
    "a window's index of 31 bits, counted on": _without(
        "i < count; i += (Index)gridDim.x * THREADS", "0 <= i && i < count; i = int(i + gridDim.x * THREADS)"
    ),
    "a number of windows of 31 bits": _without("*M = Index(seen);", "*M = Index(seen) & 0x7fffffff;"),
    "two blocks that write one address": _without(
        "int* list = kinds + (Index)blockIdx.x * (call.most + 1)", "int* list = kinds"
    ),
}
"""Mistakes in the kernels' text that the runtime or a sanitizer must find."""
