"""The numba engine: stages 1 and 2 fused into loops over rows, for NumPy arrays of up to 3 spatial axes.

Read downwards: the engine's functions, then `Problem`, which brings a call into the shape that the kernels take;
`loops_geometry` sets them to work, `loops_stage3` is stage 3. The kernels are `loops_kernels` (image sized),
`loops_probability` (probability space) and `loops_maps` (stage 3); pooling is `loops_plan`, `loops_pool` and
`loops_columns`, stage 2 `loops_softmax`, what margins are measured from `loops_margins`, rows `loops_rows`, lanes
are `loops_type`, `loops_lanes` and `loops_math`, threads `loops_threads`. Everything is compiled on first use and
kept on disk (`loops_cache`); importing this module compiles nothing.

Logits that are not of the working dtype, or whose elements don't lie a whole number of elements apart, are
converted band by band, with the rows around that a band's windows reach.

What is computed does not depend on the number of threads: tasks are cut by the shape of the arrays alone, no
two write to the same place, and sums over tasks are added in their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from lalref.engines import loops_probability as probability
from lalref.engines.loops_cache import first_call
from lalref.engines.loops_geometry import Geometry, flat_labels, flat_view, round_up
from lalref.engines.loops_lanes import LANES
from lalref.engines.loops_margins import typical_margins
from lalref.engines.loops_rows import Image, Labels, Task
from lalref.engines.loops_stage3 import parts_of, shares
from lalref.engines.loops_threads import run
from lalref.minkowski import Parts
from lalref.options import Options

Array = Any

#: The door need not widen 16-bit logits.
TAKES_16_BIT = True
MAX_SPATIAL_AXES = 3

_CACHE_BYTES = 1 << 20  # a ring of rows should stay in a core's cache
_GROUPS = 8  # tasks of the way back, over all images


def window_losses(logits: Array, labels: Array, valid: Array, options: Options) -> Array:
    """ell of every valid window, 0 elsewhere; (N, *grid) in the working dtype."""
    with first_call(logits.dtype, options.space, "value"):
        problem = Problem(logits, labels, valid, options)
        return problem.losses(None)[0]


def window_losses_vjp(logits: Array, labels: Array, valid: Array, options: Options, g: Array) -> Array:
    """The gradient that the windows send back to the logits; (N, C, *S) in the dtype of the logits."""
    with first_call(logits.dtype, options.space, "gradient"):
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
    with first_call(logits.dtype, options.space, "gradient"):
        problem = Problem(logits, labels, valid, options)
        z_bar = None if problem.irregular else problem.new_gradient()
        ell, log_u, log_pooled = problem.losses(z_bar)
        total = total or parts_of(ell, omega, valid, options)
        # of ell nothing more is needed but in probability space
        g = shares(ell, omega, valid, total, grad_output, over_ell=log_u is None)
        if z_bar is None:
            return total, problem.send_back_by_bands(g)
        return total, problem.send_back(g, ell, log_u, log_pooled, z_bar)


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
        strides = _on_three_axes(
            options.strides(axes), 1
        )  # beyond the image one is as good as another, and fits int64
        strides = tuple(min(s, max(1, n)) for s, n in zip(strides, (A, B, W), strict=True))
        self.image = Image(C, A, B, W, *strides)
        self.pixels = Image(C, A, B, W, 1, 1, 1)  # a window at every pixel
        self.y, self.valid = flat_labels(labels), flat_view(valid)
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
            self.members = flat_view(labels >= 0)
            self.pooling = Geometry(self.radii, self.weight, self.image, self.by_count, np.float64)
            self.pooling.most_classes = (
                LANES  # never by cell: three channels are few, and sums keep their order
            )
        else:
            self.geometry = Geometry(self.radii, self.weight, self.image, self.by_count, self.working)
        mean = not self.by_count or (self.weight == 1).all()
        if not mean and options.space == "logits":  # z is no mean there, so nothing can be given back to it
            self.typical = np.zeros((self.N, C + 1), self.working)
        else:
            self.typical = typical_margins(x, self.image, self.y, self.valid, self.working)

    def new_gradient(self) -> Array:
        """Room for the gradient, (N, C, A, B, W)."""
        return np.empty((self.N, *self.image[:4]), self.working)

    def losses(self, z_bar: Array | None) -> tuple[Array, Array | None, Array | None]:
        """ell (N, *grid); in probability space also log u_y (N, A, B, W) and the pooled log (N, *grid). Fills z_bar."""
        ell = np.zeros(self.map_shape, self.working)
        if self.options.space == "logits":
            self._forward(self.image, self.valid, ell, ell[:0], z_bar)
            return ell, None, None
        nll = np.zeros((self.N, *self.image[1:4]), self.working)
        off = np.zeros_like(nll)
        self._forward(self.pixels, self.members, nll, off, z_bar)
        log_u = np.negative(nll, out=nll)
        log_pooled = np.zeros(self.map_shape)
        u, o, to, pooled = flat_view(log_u), flat_view(off), ell.reshape(-1), log_pooled.reshape(-1)
        of = self.pooling
        window = (of.window, of.counted, of.by_count, of.unit, of.ring(self.image.W), of.most_classes)
        call = (u, o, *window, self.radii, self.weight, self.log_weight, to, pooled)
        run(
            lambda task: probability.pool_probability(task, self.image, self.y, self.valid, *call),
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
            valid, g = self.valid, flat_view(g)
        else:
            valid, g = self._received(g, *self.losses(None))
        image, reach = self.geometry.image, self.geometry.ring(1).planes // 2
        C, A, B, W = image[:4]
        out = np.empty((self.N, C, A, B, W), self.dtype)

        def work(task: Task) -> None:
            lo, x, part = self._cut(task, 2 * reach, image)
            z_bar, x_bar = np.empty((2, 1, *part[:4]), self.working)
            y = self._labels(task.n, lo, part)
            v, g_part = (self._rows(a, image, task.n, lo, part) for a in (valid, g))
            ell, off = (
                np.zeros(v.size, self.working),
                np.zeros(v.size if image is self.pixels else 0, self.working),
            )
            there = Task(0, max(0, task.a0 - reach) - lo, min(A, task.a1 + reach) - lo, 0, W, 0, C)
            here = Task(0, task.a0 - lo, task.a1 - lo, 0, W, 0, C)
            local = self.geometry.of(part)
            typical = self.typical[task.n : task.n + 1]
            local.forward([there], x, y, v, typical, self.options.label_smoothing, ell, off, z_bar)
            local.backward([here], y, v, g_part, z_bar.reshape(-1), x_bar.reshape(-1))
            with np.errstate(all="ignore"):  # a gradient beyond float16 is inf, as it should be
                out[task.n, :, task.a0 : task.a1] = x_bar[0, :, here.a0 : here.a1]

        run(work, self._bands())
        return out[0, :, 0, 0, :].T.copy() if self.batch_is_axis else out.reshape(self.shape)

    def _forward(self, image: Image, valid: Array, ell: Array, off: Array, z_bar: Array | None) -> None:
        alpha = self.options.label_smoothing
        ell, off = ell.reshape(-1), off.reshape(-1)
        if not self.irregular:
            self.geometry.forward(self._tiles(), self.x, self.y, valid, self.typical, alpha, ell, off, z_bar)
            return
        reach = self.geometry.ring(1).planes // 2

        def work(task: Task) -> None:
            lo, x, part = self._cut(task, reach, image)
            y, v = self._labels(task.n, lo, part), self._rows(valid, image, task.n, lo, part)
            ell_part, off_part = self._rows(ell, image, task.n, lo, part), off[:0]
            if off.size:
                off_part = self._rows(off, image, task.n, lo, part)
            here = Task(0, task.a0 - lo, task.a1 - lo, 0, image.W, 0, image.C)
            typical = self.typical[task.n : task.n + 1]
            self.geometry.of(part).forward([here], x, y, v, typical, alpha, ell_part, off_part, None)

        run(work, self._bands())

    def _received(
        self, g: Array, ell: Array, log_u: Array | None, log_pooled: Array | None
    ) -> tuple[Array, Array]:
        """Which pixels send the gradient, and with what factor: the windows and g, or in probability space R (14)."""
        if log_u is None or log_pooled is None:
            return self.valid, flat_view(g)
        R = np.zeros(log_u.shape, self.working)
        of = self.pooling
        maps = (flat_view(ell), flat_view(log_pooled), flat_view(g.astype(np.float64)), flat_view(log_u))
        window = (of.window, of.unit, of.ring(self.image.W), of.most_classes)
        call = (*maps, *window, self.radii, self.weight, self.log_weight, R.reshape(-1))
        run(lambda task: probability.receive(task, self.image, self.y, self.valid, *call), self._bands())
        return flat_view(R != 0), flat_view(R)

    def _cut(self, task: Task, more: int, image: Image) -> tuple[int, Array, Image]:
        """The logits of a band and `more` rows around it, converted; the first of them (a multiple of the stride)."""
        lo = max(0, task.a0 - more) // image.stride_a * image.stride_a
        hi = min(image.A, task.a1 + more)
        x = np.ascontiguousarray(self.x[task.n : task.n + 1, :, lo:hi], dtype=self.working)
        return lo, x, image._replace(A=hi - lo)

    def _labels(self, n: int, lo: int, part: Image) -> Labels:
        narrow, wide = (self._rows(a, self.pixels, n, lo, part) for a in self.y)
        return Labels(narrow, wide)

    def _rows(self, a: Array, whole: Image, n: int, lo: int, part: Image) -> Array:
        """The rows of a flat map that belong to a cut; `whole` says with which strides it was made."""
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
        width = round_up(-(-W // tiles))
        return [t._replace(w0=w, w1=min(w + width, W)) for t in bands for w in range(0, W, width)]

    def _channel_groups(self) -> list[Task]:
        C, A, _, W = self.image[:4]
        if self.x.size == 0:
            return []
        groups = min(C, -(-_GROUPS // self.N))
        ends = [C * i // groups for i in range(groups + 1)]
        return [Task(n, 0, A, 0, W, *c) for n in range(self.N) for c in itertools.pairwise(ends)]


def _on_three_axes(lengths: Sequence[int], other: int) -> tuple[int, ...]:
    """Per-axis numbers for (A, B, W): an image's rows are its A, so that each is a plane of the ring."""
    if len(lengths) == 2:
        return (lengths[0], other, lengths[1])
    return (other,) * (3 - len(lengths)) + tuple(lengths)
