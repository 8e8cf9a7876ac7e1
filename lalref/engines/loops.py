"""The numba engine: stages 1 and 2 fused into loops over rows, for NumPy arrays of up to 3 spatial axes.

Read downwards: the engine's functions, then `Problem`, which brings a call into the shape that the kernels take.
The kernels are `lalref.engines.loops_kernels` (image sized) and `loops_maps` (one number a pixel); pooling is
`loops_pool`, lanes are `loops_lanes` and `loops_math`, threads `loops_threads`. Everything is compiled on first
use and kept on disk by numba; importing this module compiles nothing.

Logits that are not of the working dtype, or whose elements don't lie a whole number of elements apart, are
converted band by band, with the rows around that a band's windows reach.

What is computed does not depend on the number of threads: tasks are cut by the shape of the arrays alone, no
two write to the same place, and sums over tasks are added in their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lalref import minkowski
from lalref.engines import loops_kernels as kernels
from lalref.engines import loops_maps as maps
from lalref.engines.loops_kernels import Image, Steps, Task
from lalref.engines.loops_lanes import LANES
from lalref.engines.loops_pool import Ring, Window
from lalref.engines.loops_threads import run
from lalref.minkowski import Parts
from lalref.options import Options

Array = Any

#: The door need not widen 16-bit logits.
TAKES_16_BIT = True
MAX_SPATIAL_AXES = 3

_CACHE_BYTES = 1 << 20  # a ring of rows should stay in a core's cache
_GROUPS = 8  # tasks of the way back, over all images
_SUM_BLOCK = 1 << 18


def window_losses(logits: Array, labels: Array, valid: Array, options: Options) -> Array:
    """ell of every valid window, 0 elsewhere; (N, *grid) in the working dtype."""
    problem = Problem(logits, labels, valid, options)
    return problem.losses(None)[0]


def window_losses_vjp(logits: Array, labels: Array, valid: Array, options: Options, g: Array) -> Array:
    """The gradient that the windows send back to the logits; (N, C, *S) in the dtype of the logits."""
    problem = Problem(logits, labels, valid, options)
    if problem.irregular:
        return problem.send_back_by_bands(g)
    z_bar = problem.new_gradient()
    ell, log_u, log_pooled = problem.losses(z_bar)
    return problem.send_back(g, ell, log_u, log_pooled, z_bar)


def value_and_grad(
    logits: Array,
    labels: Array,
    valid: Array,
    omega: Array | None,
    options: Options,
    grad_output: float,
    total: Parts | None = None,
) -> tuple[Parts, Array]:
    """The parts of the value (8), and the gradient of the value times `grad_output`, in two sweeps of the logits.

    `omega` (N, *grid) float64, or None where every valid window weighs 1; `total` as at the front door.
    """
    problem = Problem(logits, labels, valid, options)
    z_bar = None if problem.irregular else problem.new_gradient()
    ell, log_u, log_pooled = problem.losses(z_bar)
    total = total or parts_of(ell, omega, valid, options)
    g = shares(ell, omega, valid, total, grad_output)
    if z_bar is None:
        return total, problem.send_back_by_bands(g)
    return total, problem.send_back(g, ell, log_u, log_pooled, z_bar)


# --- Stage 3 at full speed ---------------------------------------------------------------------------------------


def _integer_power(options: Options, maximum: float) -> bool:
    return options.p == int(min(options.p, 1024)) and 1e-290 < maximum < math.inf


def parts_of(ell: Array, omega: Array | None, valid: Array, options: Options) -> Parts:
    """`minkowski.parts`, by the loops of `loops_maps` where p is an integer and every loss a number."""
    flat = _flat(ell)
    blocks = [(i, min(i + _SUM_BLOCK, flat.size)) for i in range(0, flat.size, _SUM_BLOCK)]
    tops = _gather(lambda block: maps.largest_of(flat, *block), blocks)
    maximum = float(np.max(tops)) if blocks else 0.0
    if not _integer_power(options, maximum):
        weights = omega if omega is not None else valid.astype(np.float64)
        return minkowski.parts(ell, weights, valid, options)
    w = _flat(omega) if omega is not None else _flat(np.empty(0))
    sums = _gather(lambda block: maps.power_sum(flat, w, 1 / maximum, int(options.p), *block), blocks)
    count = np.count_nonzero(valid)
    weight = np.float64(count) if omega is None else np.sum(omega)
    return Parts(np.float64(maximum), np.sum(sums), weight, np.int64(count), options, ell.dtype.name)


def shares(ell: Array, omega: Array | None, valid: Array, total: Parts, grad_output: float) -> Array:
    """`minkowski.shares` times `grad_output` in the dtype of `ell`; only where valid does it mean anything."""
    options, p = total.options, total.options.p
    maximum, S = float(total.maximum), float(total.power_sum)
    B = float(total.weight) if options.reduction == "mean" else 1.0
    if p == 1 or not _integer_power(options, maximum):
        weights = omega if omega is not None else valid.astype(np.float64)
        return (minkowski.shares(ell, weights, total) * grad_output).astype(ell.dtype)
    factor = grad_output * ((S / B) ** (1 / p) / S)
    g = np.empty_like(ell)
    flat, to = _flat(ell), g.reshape(-1)
    w = _flat(omega) if omega is not None else _flat(np.empty(0))
    blocks = [(i, min(i + _SUM_BLOCK, flat.size)) for i in range(0, flat.size, _SUM_BLOCK)]
    run(lambda block: maps.write_shares(flat, w, 1 / maximum, int(p) - 1, factor, *block, to), blocks)
    return g


def _gather(function: Any, blocks: Sequence[tuple[int, int]]) -> Array:
    """function(block) of every block, in order; float64 (blocks,)."""
    found = np.zeros(len(blocks))

    def work(i: int) -> None:
        found[i] = function(blocks[i])

    run(work, range(len(blocks)))
    return found


# --- A call in the shape that the kernels take ------------------------------------------------------------------


class Problem:
    """A call's arrays with three spatial axes A, B, W, its window, and how it is cut into tasks."""

    def __init__(self, logits: Array, labels: Array, valid: Array, options: Options) -> None:
        axes = logits.ndim - 2
        self.shape, self.map_shape, self.dtype = logits.shape, valid.shape, logits.dtype
        self.working = np.dtype(np.float64 if logits.dtype == np.float64 else np.float32)
        self.options = options
        self.batch_is_axis = axes == 0  # then N points are a row of one image
        x = logits.T[None, :, None, None, :] if axes == 0 else logits
        if axes == 1:
            x = x[:, :, None, None, :]
        elif axes == 2:
            x = x[:, :, :, None, :]
        self.x = x  # (N, C, A, B, W)
        self.N, C, A, B, W = x.shape
        radii = _on_three_axes(options.radii(axes), 0)
        self.image = Image(C, A, B, W, *_on_three_axes(options.strides(axes), 1))
        self.pixels = Image(C, A, B, W, 1, 1, 1)  # a window at every pixel
        self.y, self.valid = _flat(labels), _flat(valid)
        self.radii = tuple(max(0, min(r, n - 1)) for r, n in zip(radii, (A, B, W), strict=True))
        self.by_count = options.normalize == "count"
        steps_fit = all(step % logits.itemsize == 0 for step in x.strides)
        self.irregular = self.dtype != self.working or not steps_fit or not logits.flags.aligned
        # exp(-d^2 / (2 sigma^2)) (1), in float64 and with 0 where the working dtype has 0
        far = np.arange(max(self.radii) + 1)
        log_w = np.zeros(len(far)) if options.sigma is None else -0.5 * (far / options.sigma) ** 2
        w = np.exp(log_w)
        self.log_weight, self.weight = log_w, np.where(w.astype(self.working) == 0, 0.0, w)
        if options.space == "probabilities":
            self.geometry = Geometry((0, 0, 0), np.ones(1), self.pixels, False, self.working)
            self.members = _flat(labels >= 0)
        else:
            self.geometry = Geometry(self.radii, self.weight, self.image, self.by_count, self.working)

    def new_gradient(self) -> Array:
        """Room for the gradient, (N, C, A, B, W)."""
        return np.empty((self.N, *self.image[:4]), self.working)

    def losses(self, z_bar: Array | None) -> tuple[Array, Array | None, Array | None]:
        """ell (N, *grid), and in probability space log u_y (N, A, B, W) and the pooled log (N, *grid); z_bar is filled."""
        ell = np.zeros(self.map_shape, self.working)
        if self.options.space == "logits":
            self._forward(self.image, self.valid, ell, ell[:0], z_bar)
            return ell, None, None
        nll = np.zeros((self.N, *self.image[1:4]), self.working)
        off = np.zeros_like(nll)
        self._forward(self.pixels, self.members, nll, off, z_bar)
        log_u = np.negative(nll, out=nll)
        log_pooled = np.zeros(self.map_shape)
        u, o, to, pooled = _flat(log_u), _flat(off), ell.reshape(-1), log_pooled.reshape(-1)
        call = (self.radii, self.weight, self.log_weight, self.by_count, to, pooled)
        run(
            lambda task: maps.pool_probability(task, self.image, self.y, self.valid, u, o, *call),
            self._bands(),
        )
        return ell, log_u, log_pooled

    def send_back(
        self, g: Array, ell: Array, log_u: Array | None, log_pooled: Array | None, z_bar: Array
    ) -> Array:
        """The gradient (N, C, *S) from what `losses` gave; z_bar becomes it."""
        valid, g = self._received(g, ell, log_u, log_pooled)
        grad = z_bar.reshape(-1)
        self.geometry.backward(self._channel_groups(), self.y, valid, g, grad, grad)
        return z_bar[0, :, 0, 0, :].T.copy() if self.batch_is_axis else z_bar.reshape(self.shape)

    def send_back_by_bands(self, g: Array) -> Array:
        """The gradient (N, C, *S) in the dtype of the logits, worked out anew for each band of rows."""
        if self.options.space == "logits":
            valid, g = self.valid, _flat(g)
        else:
            valid, g = self._received(g, *self.losses(None))
        image, reach = self.geometry.image, self.geometry.ring(1).planes // 2
        C, A, B, W = image[:4]
        out = np.empty((self.N, C, A, B, W), self.dtype)

        def work(task: Task) -> None:
            lo, x, part = self._cut(task, 2 * reach, image)
            z_bar, x_bar = np.empty((2, 1, *part[:4]), self.working)
            y, v, g_part = (
                self._rows(a, i, task.n, lo, part) for a, i in ((self.y, None), (valid, image), (g, image))
            )
            ell, off = (
                np.zeros(v.size, self.working),
                np.zeros(v.size if image is self.pixels else 0, self.working),
            )
            there = Task(0, max(0, task.a0 - reach) - lo, min(A, task.a1 + reach) - lo, 0, W, 0, C)
            here = Task(0, task.a0 - lo, task.a1 - lo, 0, W, 0, C)
            local = self.geometry.of(part)
            local.forward([there], x, y, v, self.options.label_smoothing, ell, off, z_bar)
            local.backward([here], y, v, g_part, z_bar.reshape(-1), x_bar.reshape(-1))
            with np.errstate(all="ignore"):  # a gradient beyond float16 is inf, as it should be
                out[task.n, :, task.a0 : task.a1] = x_bar[0, :, here.a0 : here.a1]

        run(work, self._bands())
        return out[0, :, 0, 0, :].T.copy() if self.batch_is_axis else out.reshape(self.shape)

    def _forward(self, image: Image, valid: Array, ell: Array, off: Array, z_bar: Array | None) -> None:
        alpha = self.options.label_smoothing
        ell, off = ell.reshape(-1), off.reshape(-1)
        if not self.irregular:
            self.geometry.forward(self._tiles(), self.x, self.y, valid, alpha, ell, off, z_bar)
            return
        reach = self.geometry.ring(1).planes // 2

        def work(task: Task) -> None:
            lo, x, part = self._cut(task, reach, image)
            y, v = self._rows(self.y, None, task.n, lo, part), self._rows(valid, image, task.n, lo, part)
            ell_part, off_part = self._rows(ell, image, task.n, lo, part), off[:0]
            if off.size:
                off_part = self._rows(off, image, task.n, lo, part)
            here = Task(0, task.a0 - lo, task.a1 - lo, 0, image.W, 0, image.C)
            self.geometry.of(part).forward([here], x, y, v, alpha, ell_part, off_part, None)

        run(work, self._bands())

    def _received(
        self, g: Array, ell: Array, log_u: Array | None, log_pooled: Array | None
    ) -> tuple[Array, Array]:
        """Which pixels the gradient comes through, and with what factor: the windows and g, or in probability space R (14)."""
        if log_u is None or log_pooled is None:
            return self.valid, _flat(g)
        R = np.zeros(log_u.shape, self.working)
        to, u = R.reshape(-1), _flat(log_u)
        call = (
            _flat(ell),
            _flat(log_pooled),
            _flat(g.astype(np.float64)),
            u,
            self.radii,
            self.weight,
            self.log_weight,
        )
        run(lambda task: maps.receive(task, self.image, self.y, self.valid, *call, to), self._bands())
        return _flat(R != 0), _flat(R)

    def _cut(self, task: Task, more: int, image: Image) -> tuple[int, Array, Image]:
        """The logits of a band and `more` rows around it, converted; the first of them (a multiple of the stride)."""
        lo = max(0, task.a0 - more) // image.stride_a * image.stride_a
        hi = min(image.A, task.a1 + more)
        x = np.ascontiguousarray(self.x[task.n : task.n + 1, :, lo:hi], dtype=self.working)
        return lo, x, image._replace(A=hi - lo)

    def _rows(self, a: Array, image: Image | None, n: int, lo: int, part: Image) -> Array:
        """The rows of a flat map that belong to a cut; `image` says with which strides it was made, None: none."""
        whole = image or self.pixels
        row = -(-whole.B // whole.stride_b) * -(-whole.W // whole.stride_w)
        first = n * -(-whole.A // whole.stride_a) + lo // whole.stride_a
        return a[first * row : (first + -(-part.A // whole.stride_a)) * row]

    def _bands(self) -> list[Task]:
        _, A, _, W = self.image[:4]
        rows = max(24, 4 * self.radii[0])
        if self.x.size == 0:
            return []
        return [
            Task(n, a, min(a + rows, A), 0, W, 0, self.image.C)
            for n in range(self.N)
            for a in range(0, A, rows)
        ]

    def _tiles(self) -> list[Task]:
        W, ring, bands = self.image.W, self.geometry.ring(1), self._bands()
        if not bands:
            return []
        column = (self.image.C + 1) * ring.planes * ring.rows * self.working.itemsize
        tiles = -(-W // max(256, _CACHE_BYTES // column))
        width = _up(-(-W // tiles))
        return [t._replace(w0=w, w1=min(w + width, W)) for t in bands for w in range(0, W, width)]

    def _channel_groups(self) -> list[Task]:
        C, A, _, W = self.image[:4]
        if self.x.size == 0:
            return []
        groups = min(C, -(-_GROUPS // self.N))
        ends = [C * i // groups for i in range(groups + 1)]
        return [Task(n, 0, A, 0, W, *c) for n in range(self.N) for c in zip(ends, ends[1:], strict=False)]


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
        self.window = _window([min(r, far) for r in radii], scaled)
        self.counted = (
            _window(radii, np.full(len(weight), self.unit, self.dtype)) if by_count else self.window
        )
        self.reach = self.counted.reach
        self.most_classes = 2 if self.window.reach <= 3 else 4

    def of(self, image: Image) -> Geometry:
        """The same window over another image."""
        other = object.__new__(Geometry)
        other.__dict__.update(self.__dict__, image=image)
        return other

    def ring(self, width: int) -> Ring:
        """The layout of the rows that a tile of `width` columns reads."""
        planes = 2 * int(np.max(self.counted.row_a)) + 1
        pad = _up(self.reach)
        return Ring(planes, self.image.B, pad + _up(width) + _up(self.reach + 2 * LANES), pad)

    def forward(
        self,
        tasks: Sequence[Task],
        x: Array,
        y: Array,
        valid: Array,
        alpha: float,
        ell: Array,
        off: Array,
        z_bar: Array | None,
    ) -> None:
        """`kernels.forward` of every task; maps are flat, x and z_bar (N, C, A, B, W)."""
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
        self, tasks: Sequence[Task], y: Array, valid: Array, g: Array, z_bar: Array, x_bar: Array
    ) -> None:
        """`kernels.backward` of every task, with g lifted out of the reach of subnormal products; all arrays flat."""
        largest = max(float(np.max(g, initial=0)), -float(np.min(g, initial=0)))
        if not math.isfinite(largest):
            largest = float(np.max(np.abs(g[np.isfinite(g)]), initial=0))
        highest = math.frexp(largest)[1]
        limits, shift = np.finfo(self.dtype), math.frexp(self.unit)[1] - 1
        lift = max(0, min(limits.maxexp - 28 - shift - highest, -limits.minexp - shift))
        up, down = self.dtype.type(2.0**lift), self.dtype.type(2.0 ** -(lift + shift))
        ring = self.ring(self.image.W)

        def work(task: Task) -> None:
            kernels.backward(
                task, self.image, y, valid, g, up, down, self.window, ring, self.most_classes, z_bar, x_bar
            )

        run(work, tasks)


def _window(radii: Sequence[int], weight: Array) -> Window:
    ra, rb, rw = radii
    rows = sorted((max(abs(a), abs(b)), a, b) for a in range(-ra, ra + 1) for b in range(-rb, rb + 1))
    shell, row_a, row_b = np.array(rows, np.int64).T.copy()
    begins = np.searchsorted(shell, np.arange(max(ra, rb) + 2))
    return Window(row_a, row_b, begins.astype(np.int64), weight, rw)


def _on_three_axes(lengths: Sequence[int], other: int) -> tuple[int, ...]:
    """Per-axis numbers for (A, B, W): an image's rows are its A, so that each is a plane of the ring."""
    if len(lengths) == 2:
        return (lengths[0], other, lengths[1])
    return (other,) * (3 - len(lengths)) + tuple(lengths)


def _flat(a: Array) -> Array:
    """A contiguous map as one row that the kernels only read."""
    row = np.ascontiguousarray(a).reshape(-1).view()
    row.flags.writeable = False
    return row


def _up(n: int) -> int:
    return -(-n // LANES) * LANES
