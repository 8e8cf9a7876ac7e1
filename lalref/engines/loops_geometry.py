"""A window over an image, ready for the kernels, and the kernels set to work on it by threads."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lalref.engines import loops_kernels as kernels
from lalref.engines.loops_lanes import LANES
from lalref.engines.loops_plan import RINGS, Ring, Window
from lalref.engines.loops_rows import Image, Labels, Steps, Task
from lalref.engines.loops_threads import run

Array = Any


class Geometry:
    """A window over an image, ready for the kernels."""

    def __init__(self, radii: Sequence[int], weight: Array, image: Image, by_count: bool, dtype: Any) -> None:
        self.image, self.dtype, self.by_count = image, np.dtype(dtype), by_count
        far = int(np.count_nonzero(weight)) - 1  # beyond this distance weights are 0 and nothing is read
        # Products with subnormal numbers take a hundred times as long; a power of two more makes none of them.
        low = math.frexp(float(weight[far]))[1]
        least = np.finfo(self.dtype).minexp + 26
        self.unit = 2.0 ** max(0, least - low)
        scaled = (weight[: far + 1] * self.unit).astype(self.dtype)
        self.window = _window(tuple(min(r, far) for r in radii), scaled.tobytes(), self.dtype)
        ones = np.full(len(weight), self.unit, self.dtype)
        self.counted = _window(tuple(radii), ones.tobytes(), self.dtype) if by_count else self.window
        self.reach, self.planes = self.counted.reach, 2 * int(np.max(self.counted.row_a)) + 1
        self.most_classes = 2 if self.window.reach <= 3 else 4

    def of(self, image: Image) -> Geometry:
        """The same window over another image."""
        other = object.__new__(Geometry)
        other.__dict__.update(self.__dict__, image=image)
        return other

    def ring(self, width: int) -> Ring:
        """The layout of the rows that a tile of `width` columns reads."""
        pad = round_up(self.counted.sets * RINGS)  # `loops_pool` reads so far
        return Ring(self.planes, self.image.B, pad + round_up(width) + pad, pad)

    def forward(
        self,
        tasks: Sequence[Task],
        x: Array,
        y: Labels,
        valid: Array,
        typical: Array,
        alpha: float,
        ell: Array,
        off: Array,
        z_bar: Array | None,
    ) -> None:
        """`kernels.forward` of every task; maps are flat, x and z_bar (N, C, A, B, W), typical (N, C + 1)."""
        steps = Steps(*(step // x.itemsize for step in x.strides))
        start = np.lib.stride_tricks.as_strided(x, shape=(1,), strides=(x.itemsize,), writeable=False)
        out = np.empty(0, self.dtype) if z_bar is None else z_bar.reshape(-1)
        window = (self.window, self.counted, self.by_count, self.unit)
        with_gradient = z_bar is not None

        def work(task: Task) -> None:
            ring = self.ring(task.w1 - task.w0)
            kernels.forward(
                task,
                self.image,
                start,
                steps,
                y,
                valid,
                typical,
                *window,
                ring,
                alpha,
                self.most_classes,
                ell,
                off,
                out,
                with_gradient,
            )

        run(work, tasks)

    def backward(
        self, tasks: Sequence[Task], y: Labels, valid: Array, g: Array, z_bar: Array, x_bar: Array
    ) -> None:
        """`kernels.backward` of every task, with g where no product is subnormal or infinite; all arrays flat."""
        largest = max(float(np.max(g, initial=0)), -float(np.min(g, initial=0)))
        if not math.isfinite(largest):
            largest = float(np.max(np.abs(g[np.isfinite(g)]), initial=0))
        highest = math.frexp(largest)[1]
        limits, shift = np.finfo(self.dtype), math.frexp(self.unit)[1] - 1
        lift = min(limits.maxexp - 28 - shift - highest, -limits.minexp - shift)
        up, down = self.dtype.type(2.0**lift), self.dtype.type(2.0 ** -(lift + shift))
        ring = self.ring(self.image.W)

        def work(task: Task) -> None:
            kernels.backward(
                task, self.image, y, valid, g, up, down, self.window, ring, self.most_classes, z_bar, x_bar
            )

        run(work, tasks)


@functools.lru_cache(maxsize=64)
def _window(radii: tuple[int, ...], weight_bytes: bytes, dtype: Any) -> Window:
    weight = np.frombuffer(weight_bytes, dtype)
    ra, rb, rw = radii
    rows = sorted((max(abs(a), abs(b)), a, b) for a in range(-ra, ra + 1) for b in range(-rb, rb + 1))
    shell, row_a, row_b = np.array(rows, np.int64).T.copy()
    begins = np.searchsorted(shell, np.arange(max(ra, rb) + 2))
    sets = max(1, -(-max(radii) // RINGS))
    padded = np.zeros(max(len(weight), 1 + sets * RINGS), weight.dtype)
    padded[: len(weight)] = weight
    return Window(row_a, row_b, begins.astype(np.int64), padded, rw, sets)


def flat_view(a: Array) -> Array:
    """A contiguous map as one row that the kernels only read."""
    row = np.ascontiguousarray(a).reshape(-1).view()
    row.flags.writeable = False
    return row


def flat_labels(labels: Array) -> Labels:
    """The labels (N, *S), int8 or int32, as the kernels read them."""
    flat = flat_view(labels)
    other = flat_view(np.empty(0, np.int32 if labels.dtype == np.int8 else np.int8))
    return Labels(flat, other) if labels.dtype == np.int8 else Labels(other, flat)


def round_up(n: int) -> int:
    return -(-n // LANES) * LANES
