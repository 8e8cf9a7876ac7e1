"""The three stages as a textbook in dense matrices, cut into pieces that a mistake overrides one at a time.

`Textbook()` is a subject, ``f(logits, labels, **options) -> (value, grad)``. It works in the dtype it is given
and takes every option. Every pixel has a row, so that all shapes are the same whatever is valid: Q pixels,
K offsets of a window, C classes. The backward of each stage is derived from its forward by the tape; a
mistake in a forward piece therefore has the gradient that belongs to it, and one in a backward overrides
one of the pieces named ``…_back``. No engine, no truth and no error unit may come in.
"""

# mypy: disable-error-code="no-any-return"
# An operation between a Traced and an array, which is Any, is Any to mypy, and a Traced to Python.

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lalref.oracle.case import ARGUMENTS
from lalref.oracle.mistakes.scene import Array, Groups, Scene, Vjp
from lalref.oracle.mistakes.tape import Traced, column, exp, linear, log, vjp, where

__all__ = ["Array", "Groups", "Scene", "Textbook", "Vjp", "evaluate", "evaluated"]

STAGES_OF = {"logits": ("pool", "cross_entropy"), "probabilities": ("probability", "pool", "negative_log")}


class Textbook:
    """The right loss. Pieces are named after what they give, in the symbols of the specification."""

    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Array]:
        return evaluate(self, self, logits, labels, options)

    # ---- what is read, and how

    def precision(self, dtype: Any) -> Any:
        """Working dtype."""
        return np.float64 if dtype == np.float64 else np.float32

    def options(self, o: dict[str, Any]) -> dict[str, Any]:
        """Every option by name, as the rest will find them."""
        return o

    def layout(self, shape: tuple[int, ...], axis: int) -> Array:
        """(Q, C), where in the logits' memory each number is."""
        C = shape[axis]
        return np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis, -1).reshape(-1, C)

    def gradient_layout(self, shape: tuple[int, ...], axis: int) -> Array:
        """(Q, C), where in the gradient each number goes."""
        return self.layout(shape, axis)

    def labels(self, labels: Array, s: Scene) -> Array:
        """(Q,)"""
        return labels.reshape(-1).astype(int)

    def ignored(self, s: Scene) -> Array:
        """(Q,)"""
        return np.isin(s.y, [] if s.o["ignore_index"] is None else s.o["ignore_index"])

    def hidden(self, s: Scene) -> Array:
        """(Q, 1) or (Q, C), logits that are read as 0 and get no gradient: those of ignored pixels."""
        return self.ignored(s)[:, None]

    def classes(self, s: Scene) -> Array:
        """(Q, C), the label one-hot; zeros where it is no class."""
        return (s.y[:, None] == np.arange(s.C)).astype(s.dtype)

    def class_weight(self, s: Scene) -> Array:
        """(Q,)"""
        if s.o["class_weight"] is None:
            return np.ones(s.y.shape, s.dtype)
        return np.asarray(s.o["class_weight"], s.dtype)[np.clip(s.y, 0, s.C - 1)]

    def pixel_weight(self, s: Scene) -> Array:
        """(Q,)"""
        given = s.o["pixel_weight"]
        return np.ones(s.y.shape, s.dtype) if given is None else given.reshape(-1).astype(s.dtype)

    def omega(self, s: Scene) -> Array:
        """(Q,), equation (3)."""
        return self.class_weight(s) * self.pixel_weight(s)

    def on_grid(self, s: Scene) -> Array:
        """(Q,), pixels that are the centre of a window."""
        return (s.at[:, 1:] % s.per_axis("stride") == 0).all(1)

    # ---- stage 1: which pixels, how much

    def offsets(self, s: Scene) -> Array:
        """(K, axes), the window's cells as steps from its centre."""
        r = (s.per_axis("kernel_size") - 1) // 2
        return self.box(-r, r)

    def box(self, low: Array, high: Array) -> Array:
        """(K, axes), all steps from `low` to `high`, both included."""
        extent = np.maximum(high - low + 1, 1)
        return np.indices(tuple(extent)).reshape(len(extent), math.prod(extent)).T + low

    def neighbours(self, offsets: Array, s: Scene) -> Array:
        """(Q, K), the pixel in each cell of each window, -1 where there is none."""
        there = s.at[:, None, 1:] + offsets  # (Q, K, axes)
        inside = ((there >= 0) & (there < s.size)).all(-1)
        return np.where(inside, self.index(s.at[:, None, :1], there, s), -1)

    def index(self, image: Array, there: Array, s: Scene) -> Array:
        """Number of the pixel at a position."""
        flat = image[..., 0]
        for a, n in enumerate(s.shape[1:]):
            flat = flat * n + there[..., a]
        return flat

    def distance(self, offsets: Array, s: Scene) -> Array:
        """(K,)"""
        return abs(offsets).max(-1, initial=0)

    def weight(self, d: Array, sigma: float) -> Array:
        """(K,), equation (1)."""
        return np.exp(-((d / sigma) ** 2) / 2)

    def joins(self, q: Array, s: Scene) -> Array:
        """(Q, K), whether the pixel q (Q, K) is in the group of the window, equation (2)."""
        return s.y[q] == s.y[:, None]

    def groups(self, s: Scene) -> Groups:
        """Put the matrices together."""
        ignored, omega = self.ignored(s), self.omega(s)
        valid = ~ignored & self.on_grid(s) & (omega > 0)
        offsets = self.offsets(s)
        q = self.neighbours(offsets, s)  # (Q, K)
        member = (q >= 0) & self.joins(np.maximum(q, 0), s)
        w, members = self.matrices(q, member, self.cells(offsets, s), s)
        D = self.divisor(w, members, s)
        D = np.where(valid & (D > 0), D, 1).astype(s.dtype)
        return Groups(w, members, D, valid, np.where(valid, omega, 0).astype(s.dtype), ignored)

    def cells(self, offsets: Array, s: Scene) -> Array:
        """(K,), the weight of each cell."""
        if s.o["sigma"] is None:
            return np.ones(len(offsets), s.dtype)
        return self.weight(self.distance(offsets, s).astype(s.dtype), s.dtype(s.o["sigma"]))

    def matrices(self, q: Array, member: Array, cells: Array, s: Scene) -> tuple[Array, Array]:
        """(Q, Q) twice: a cell of weight w, filled by pixel q, adds w to row p, column q."""
        Q = len(s.y)
        where = (np.arange(Q)[:, None] * Q + q)[member]
        w = np.bincount(where, np.broadcast_to(cells, q.shape)[member], Q * Q)
        members = np.bincount(where, minlength=Q * Q)
        return w.reshape(Q, Q).astype(s.dtype), members.reshape(Q, Q).astype(s.dtype)

    def divisor(self, w: Array, members: Array, s: Scene) -> Array:
        """(Q,), equation (7)."""
        return (members if s.o["normalize"] == "count" else w).sum(1)

    def pool(self, x: Traced, g: Groups, s: Scene) -> Traced:
        """(Q, C) to (Q, C), equation (4); in probability space (Q, 1) to (Q, 1)."""
        return linear(g.w, x) / g.D[:, None]

    # ---- stage 2

    def log_softmax(self, z: Traced, s: Scene) -> Traced:
        """(Q, C)"""
        a = z - z.value.max(1, keepdims=True, initial=-math.inf)
        return a - column(log(exp(a).sum(1)))

    def target(self, s: Scene) -> Array:
        """(Q, C)"""
        alpha = s.o["label_smoothing"]
        return ((1 - alpha) * self.classes(s) + alpha / s.C).astype(s.dtype)

    def cross_entropy(self, z: Traced, g: Groups, s: Scene) -> Traced:
        """(Q, C) to (Q,), equation (5)."""
        t = self.target(s)
        return -where(t > 0, t * self.log_softmax(z, s), 0).sum(1)

    def probability(self, x: Traced, g: Groups, s: Scene) -> Traced:
        """(Q, C) to (Q, 1), u of the pixel's own label; what is pooled in probability space."""
        return column(self.own(exp(self.log_softmax(x, s)), s))

    def negative_log(self, v: Traced, g: Groups, s: Scene) -> Traced:
        """(Q, 1) to (Q,), equation (6)."""
        return -log(where(g.valid[:, None], v, 1)).sum(1)

    def own(self, v: Traced, s: Scene) -> Traced:
        """(Q, C) to (Q,), the entry of the pixel's own label."""
        return v[np.arange(len(s.y)), np.clip(s.y, 0, s.C - 1)]

    # ---- stage 3

    def minkowski(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        """(Q,) to (), equations (8) and (9)."""
        p, top = s.o["p"], ell.value.max(initial=0)
        if top == 0:
            return Traced(np.zeros((), s.dtype))
        if p == math.inf:
            tied = np.where(ell.value >= (1 - 16 * np.finfo(s.dtype).eps) * top, g.omega, 0)
            share = (tied / tied.sum()).astype(s.dtype)
            return Traced(top, (ell, lambda g_out: g_out * share))
        S, B = self.power_sum(ell / top, p, g, s), self.base(g, s)
        return self.root(S / B, p) * top

    def power_sum(self, r: Traced, p: float, g: Groups, s: Scene) -> Traced:
        """S"""
        return (r**p * g.omega).sum()

    def base(self, g: Groups, s: Scene) -> Array:
        """B"""
        return g.omega.sum() if s.o["reduction"] == "mean" else s.dtype(1)

    def root(self, mean: Traced, p: float) -> Traced:
        """The p-th root."""
        return mean ** (1 / p)

    def window_map(self, ell: Traced, g: Groups, s: Scene) -> Traced:
        """(Q,) to (Q,), equation (10)."""
        return ell * g.omega

    def empty(self, s: Scene) -> float:
        """Value without any valid window."""
        return math.nan if s.o["empty"] == "nan" else 0.0

    # ---- backward: what the tape derived, unless a mistake says otherwise

    def upstream(self, g_out: Array, s: Scene) -> Array:
        """The upstream gradient, () or (Q,)."""
        return g_out

    def minkowski_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        """Gradient of each ell, (Q,), equation (11)."""
        return back(g_out)

    def window_map_back(self, g_out: Array, back: Vjp, ell: Array, g: Groups, s: Scene) -> Array:
        """Gradient of each ell under reduction="none", (Q,)."""
        return back(g_out)

    def cross_entropy_back(self, ell_bar: Array, back: Vjp, z: Array, g: Groups, s: Scene) -> Array:
        """(Q,) to (Q, C), equation (12)."""
        return back(ell_bar)

    def negative_log_back(self, ell_bar: Array, back: Vjp, v: Array, g: Groups, s: Scene) -> Array:
        """(Q,) to (Q, 1)."""
        return back(ell_bar)

    def pool_back(self, z_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        """(Q, C) to (Q, C), equation (13); in probability space (Q, 1) to (Q, 1)."""
        return back(z_bar)

    def probability_back(self, u_bar: Array, back: Vjp, x: Array, g: Groups, s: Scene) -> Array:
        """(Q, 1) to (Q, C)."""
        return back(u_bar)

    def finish(self, x_bar: Array, g: Groups, s: Scene) -> Array:
        """The last word on the gradient, (Q, C)."""
        return x_bar


def evaluate(
    forward: Textbook, backward: Textbook, logits: Array, labels: Array, options: Mapping[str, Any]
) -> tuple[Array, Array]:
    """Value by `forward`; gradient by the formulas of `backward`, at the intermediate numbers of `forward`."""
    value, gradient = evaluated(forward, backward, logits, labels, options)
    return value, gradient()


def evaluated(
    forward: Textbook, backward: Textbook, logits: Array, labels: Array, options: Mapping[str, Any]
) -> tuple[Array, Callable[[], Array]]:
    """The value, and what gives its gradient: half of the work, where nobody wants that."""
    s, g = _read(forward, logits, labels, options)
    mapped = s.o["reduction"] == "none"
    last = "window_map" if mapped else "minkowski"
    v, steps = s.x, []
    for stage in (*STAGES_OF[s.o["space"]], last):
        if stage == last:
            v = np.where(g.valid, v, 0)
        made, back = vjp(_bound(forward, stage, g, s), v)
        steps.append((stage, v, back))
        v = made

    value, given = v, np.asarray(options.get("grad_output", 1.0), s.dtype)
    if mapped:
        value, given = _on_map(v, given, g, s)
    elif not g.valid.any():
        value = s.dtype(forward.empty(s))

    def gradient() -> Array:
        t, h = (s, g) if backward is forward else _read(backward, logits, labels, options)
        bar = backward.upstream(given, t)
        for stage, x, own in reversed(steps):
            back = own if backward is forward else vjp(_bound(backward, stage, h, t), x)[1]
            bar = getattr(backward, f"{stage}_back")(bar, back, x, h, t)
            if x.ndim == 1:  # of each ell
                bar = np.where(h.valid, bar, 0).astype(s.dtype)
        # a hidden pixel is a constant 0 on the tape
        x_bar = backward.finish(np.where(backward.hidden(t), 0, bar), h, t)
        grad = np.zeros(logits.size, s.dtype)
        np.add.at(grad, backward.gradient_layout(logits.shape, t.o["axis"]), x_bar)
        return grad.reshape(logits.shape).astype(logits.dtype)

    return value, gradient


def _bound(form: Textbook, stage: str, g: Groups, s: Scene) -> Callable[[Traced], Traced]:
    return lambda v: getattr(form, stage)(v, g, s)


def _read(form: Textbook, logits: Array, labels: Array, options: Mapping[str, Any]) -> tuple[Scene, Groups]:
    o = form.options({**ARGUMENTS, **options})
    axis = o["axis"]
    at = np.indices(labels.shape).reshape(labels.ndim, -1).T
    s = Scene(o, form.precision(logits.dtype), labels.shape, logits.shape[axis], labels, at)
    s.y = form.labels(labels, s)
    x = logits.reshape(-1).astype(s.dtype)[form.layout(logits.shape, axis)]
    s.x = np.where(form.hidden(s), 0, x).astype(s.dtype)
    return s, form.groups(s)


def _on_map(windows: Array, g_out: Array, g: Groups, s: Scene) -> tuple[Array, Array]:
    """The map on the stride grid, and its upstream gradient back on all pixels."""
    stride = s.per_axis("stride")
    grid = np.zeros((s.shape[0], *(-(-s.size // stride))), s.dtype)
    taken = np.flatnonzero(g.valid)
    index = tuple((s.at[taken] // np.array([1, *stride])).T)
    grid[index] = windows[taken]
    upstream = np.zeros(len(s.y), s.dtype)
    upstream[taken] = np.broadcast_to(g_out, grid.shape)[index]
    return grid, upstream
