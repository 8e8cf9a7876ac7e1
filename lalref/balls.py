"""One problem of truth's at one precision: the inputs as exact numbers, the definition run on balls.

`Problem` holds the inputs as doubles, which they all are exactly. `Run` holds its windows and their losses
as balls of the present precision, or as power series in t where there is a tangent, and works out what a
single moved logit changes: the windows that read its pixel, and stage 3. Each number comes from a function
of the definition; what is left out is only what a moved logit does not touch, and what is exactly 0.

What may not come in: a derivative written by hand, anything of the engines or the front door, a float sum.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flint import arb, arb_series

from . import definition
from .anynumber import Number, largest, leading, total
from .definition import Position, Window

Key = tuple[Any, ...]


def exact(name: str, values: Any) -> Any:
    """float64 array of the values, which it holds exactly; other types raise."""
    array = np.asarray(values)
    if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} are {array.dtype}; truth takes float16, bfloat16, float32 and float64")
    if array.dtype.itemsize > 8:
        raise TypeError(f"{name} are {array.dtype}; truth takes nothing wider than float64")
    return array.astype(np.float64)


@dataclass(frozen=True, kw_only=True)
class Options:
    kernel_size: int | Sequence[int] = 5
    sigma: float | None = 1.0
    stride: int | Sequence[int] = 1
    space: str = "logits"
    normalize: str = "weights"
    p: float = 5.0
    label_smoothing: float = 0.0
    ignore_index: int | Sequence[int] | None = 255
    class_weight: Sequence[float] | None = None
    reduction: str = "mean"
    axis: int = 1
    empty: str = "zero"
    pixel_weight: Any = None


class TooCoarse(Exception):
    """The precision does not decide a question of order; a higher one will."""


class Problem:
    """The inputs, as exact doubles, in canonical shape."""

    def __init__(self, logits: Any, labels: Any, options: dict[str, Any], tangent: Any = None) -> None:
        self.options = o = Options(**options)
        given = np.asarray(logits)
        self.x = np.moveaxis(exact("logits", given), o.axis, 1)  # (N, C, *S)
        self.eps = np.finfo(np.float64 if given.dtype == np.float64 else np.float32).eps
        self.y = np.asarray(labels)  # (N, *S)
        self.N, self.C, *S = self.x.shape
        self.S = tuple(S)
        if self.y.shape != (self.N, *S):
            raise ValueError(f"labels of shape {self.y.shape}; logits {self.x.shape} need {(self.N, *S)}")
        self.weight = np.ones(self.y.shape) if o.pixel_weight is None else exact("weights", o.pixel_weight)
        self.tangent = None
        if tangent is not None:
            self.tangent = np.moveaxis(exact("tangent", tangent), o.axis, 1)  # (N, C, *S)
        self.grid = tuple(
            len(range(0, n, s)) for n, s in zip(S, definition.per_axis(o.stride, len(S)), strict=True)
        )
        self.strides = definition.per_axis(o.stride, len(S))
        # the same at every precision, written down by each run
        self.windows: list[Position] = []  # (n, *grid) of each valid window
        self.group_sizes: list[int] = []
        self.tied: tuple[Position, ...] = ()  # p = inf: the windows (n, *p) that share the maximum

    def on_grid(self, n: int, p: Position) -> Position:
        """Index in a map of shape (N, *grid) of the window at pixel p."""
        return (n, *(a // s for a, s in zip(p, self.strides, strict=True)))

    def map(self, entries: dict[Position, Any]) -> Any:
        """Object array (N, *grid), exact zeros where there is no entry."""
        out = np.full((self.N, *self.grid), arb(0), dtype=object)
        for index, entry in entries.items():
            out[index] = entry
        return out

    def like_logits(self, found: dict[Key, arb]) -> Any:
        """Object array in the logits' shape, exact zeros where nothing was found."""
        out = np.full(self.x.shape, arb(0), dtype=object)  # (N, C, *S)
        for (n, q, c), ball in found.items():
            out[n, c, *q] = ball
        return np.moveaxis(out, 1, self.options.axis)


class Run:
    """One problem at the present precision: its windows and their losses, as balls or as series in t."""

    def __init__(self, problem: Problem) -> None:
        o = problem.options
        self.problem = problem
        self.windows: list[tuple[int, Window, arb]] = []
        self.x: list[dict[Position, list[Number]]] = [{} for _ in range(problem.N)]
        self.reach: dict[Key, list[int]] = defaultdict(list)  # (n, q) -> the windows that read pixel q
        weights = None if o.class_weight is None else [arb(float(w)) for w in o.class_weight]
        for n in range(problem.N):
            pixels = definition.grid(problem.S, (1,) * len(problem.S))
            y = {q: int(problem.y[n, *q]) for q in pixels}
            own = {q: arb(float(problem.weight[n, *q])) for q in pixels}
            sigma = None if o.sigma is None else float(o.sigma)
            for win, omega in definition.valid_windows(
                y,
                own,
                problem.S,
                o.kernel_size,
                o.stride,
                sigma,
                o.normalize,
                o.ignore_index,
                weights,
                arb(1),
            ):
                for q, _ in win.read:
                    self.reach[n, q].append(len(self.windows))
                    if q not in self.x[n]:
                        self.x[n][q] = [self.number(n, q, c) for c in range(problem.C)]
                self.windows.append((n, win, omega))
                self.refuse(n, win, omega)
        problem.windows = [problem.on_grid(n, win.p) for n, win, _ in self.windows]
        problem.group_sizes = [len(win.members) for _, win, _ in self.windows]
        self.alpha = float(o.label_smoothing)
        self.omegas = [omega for _, _, omega in self.windows]
        if o.space == "logits":
            pairs = [(i, self.x[n]) for i, (n, _, _) in enumerate(self.windows)]
            self.z = [[self.merged(i, x, c) for c in range(problem.C)] for i, x in pairs]
        else:
            self.log_u = {(n, q): self.log_probability(n, q) for n, q in self.reach}
        self.constant = [self.is_constant(i) for i in range(len(self.windows))]
        self.ells = [self.ell(i) for i in range(len(self.windows))]
        if not all(zero or leading(ell) > 0 for zero, ell in zip(self.constant, self.ells, strict=True)):
            raise TooCoarse  # these losses are > 0; a ball that does not show it is of no use to stage 3
        if o.p == math.inf and o.reduction != "none" and self.windows:
            self.share = self.ties()

    # ---- inputs as numbers, and those that have no ball

    def number(self, n: int, q: Position, c: int, move: int = 0) -> Number:
        """x_q[c]; with a tangent v (or a move along the logit itself) the series x + t (v + move)."""
        value, tangent = self.problem.x[n, c, *q], self.problem.tangent
        if value == -math.inf:
            return arb.neg_inf()  # an excluded class: P = 0 whatever the tangent
        if not math.isfinite(value):
            raise ValueError(f"the logit {value} at {(n, c, *q)} is read; truth has no ball for NaN or +inf")
        if tangent is None:
            return arb_series([arb(value), move]) if move else arb(value)
        v = tangent[n, c, *q]
        if not math.isfinite(v):
            raise ValueError(f"the tangent {v} at {(n, c, *q)} is read; truth has no ball for it")
        return arb_series([arb(value), arb(v) + move])

    def excluded(self, n: int, q: Position, c: int) -> bool:
        return bool(self.problem.x[n, c, *q] == -math.inf)

    def refuse(self, n: int, win: Window, omega: arb) -> None:
        """ValueError where the loss of a window is infinite or NaN."""
        C, o = self.problem.C, self.problem.options
        where = f"the window at {(n, *win.p)}"
        if not 0 <= win.label < C:
            raise ValueError(f"{where} has the label {win.label}, no class of {C}: its loss is NaN, no ball")
        if not omega.is_finite():
            raise ValueError(f"{where} has the weight {omega}: truth has no ball for it")
        out = [[self.excluded(n, q, c) for c in range(C)] for q, _ in win.read]  # (read, C)
        if o.space == "logits":
            lost = any(row[win.label] for row in out) or (o.label_smoothing > 0 and any(map(any, out)))
        else:
            lost = any(map(all, out)) or all(row[win.label] for row in out)
        if lost:
            raise ValueError(f"{where} reads -inf where its target is not 0: its loss is inf or NaN, no ball")

    # ---- stages 1 and 2, by the definition, with what a moved logit does not touch left alone

    def merged(self, i: int, x: definition.Image, c: int) -> Number:
        n, win, _ = self.windows[i]
        if any(self.excluded(n, q, c) for q, _ in win.read):
            return arb.neg_inf()
        return definition.merged(win, x, c)

    def log_probability(self, n: int, q: Position, vector: Sequence[Number] | None = None) -> Number:
        """log u_q[y_q]."""
        return definition.log_softmax(vector or self.x[n][q])[int(self.problem.y[n, *q])]

    def is_constant(self, i: int) -> bool:
        """Whether ell is exactly 0 for all logits: no other class is left, and D is the weights' own sum."""
        n, win, _ = self.windows[i]
        others = [c for c in range(self.problem.C) if c != win.label]
        if self.problem.options.space == "logits":
            return all(any(self.excluded(n, q, c) for q, _ in win.read) for c in others)
        alone = all(self.excluded(n, q, c) for c in others for q, _ in win.read)
        ones = len(win.read) == len(win.members) and all(w == 1 for _, w in win.read)
        return alone and (self.problem.options.normalize == "weights" or ones)

    def is_still(self, n: int, q: Position, c: int) -> bool:
        """Whether the logit moves nothing: it is -inf, or in probability space u_q[y] is 0 or 1 for good."""
        y = int(self.problem.y[n, *q])
        others = (self.excluded(n, q, k) for k in range(self.problem.C) if k != y)
        settled = self.problem.options.space == "probabilities" and (self.excluded(n, q, y) or all(others))
        return settled or self.excluded(n, q, c)

    def ell(self, i: int, moved: dict[Any, Number] | None = None) -> Number:
        """ell of window i; moved: the z[c] (by c), or the log u (by pixel), that differ from the base's."""
        n, win, _ = self.windows[i]
        moved = moved or {}
        if self.constant[i]:
            return arb(0)
        if self.problem.options.space == "logits":
            z = [moved.get(c, zc) for c, zc in enumerate(self.z[i])]
            return definition.loss_of_vector(z, win.label, self.alpha, arb(1))
        log_u = [moved.get(q, self.log_u[n, q]) for q, _ in win.read]
        return definition.loss_of_probabilities(win, log_u)

    def moved(self, n: int, q: Position, c: int, move: int) -> list[Number]:
        """All window losses as series in t, with x_q[c] + t move in place of x_q[c]."""
        vector = list(self.x[n][q])
        vector[c] = self.number(n, q, c, move)
        x = {**self.x[n], q: vector}
        ells = list(self.ells)
        if self.problem.options.space == "logits":
            for i in self.reach[n, q]:
                ells[i] = self.ell(i, {c: self.merged(i, x, c)})
        else:
            log_u = self.log_probability(n, q, vector)
            for i in self.reach[n, q]:
                ells[i] = self.ell(i, {q: log_u})
        return ells

    # ---- stage 3

    def ties(self) -> list[int]:
        """Equation (9): the windows with ell >= (1 - 16 eps) max ell, decided by proof."""
        balls = [leading(ell) for ell in self.ells]
        bound = largest(balls) * (1 - 16 * arb(float(self.problem.eps)))
        if not all(b >= bound or b < bound for b in balls):
            raise TooCoarse
        tied = [i for i, b in enumerate(balls) if b >= bound]
        where = [(self.windows[i][0], *self.windows[i][1].p) for i in tied]
        self.problem.tied = tuple(where) if len(where) > 1 else ()
        return tied

    def scalar(
        self, ells: list[Number], grad_output: Any = 1.0, touched: Iterable[int] | None = None
    ) -> Number:
        """What is differentiated: grad_output L, or Σ grad_output_p omega_p ell_p if nothing is reduced.

        touched: the windows in which ells differ from the base's; where stage 3 is a plain sum the others
        would only cancel from a difference, and are left out.
        """
        o, at = self.problem.options, self.problem.windows
        terms = range(len(ells)) if touched is None else touched
        if o.reduction == "none":
            g = np.broadcast_to(np.asarray(grad_output, np.float64), (self.problem.N, *self.problem.grid))
            return total(ells[i] * self.omegas[i] * arb(float(g[at[i]])) for i in terms)
        if o.p == math.inf:
            sum_omega = total(self.omegas[i] for i in self.share)
            shared = [ells[i] * (self.omegas[i] / sum_omega) for i in terms if i in self.share]
            L = total(shared) if shared else arb(0)
        else:
            L = definition.minkowski(ells, self.omegas, p=float(o.p), reduction=o.reduction)
        return L * arb(float(grad_output))

    def value(self) -> arb:
        """L itself."""
        o = self.problem.options
        if o.p == math.inf:  # the largest midpoint need not belong to the largest number; this ball holds it
            return functools.reduce(arb.max, map(leading, self.ells))
        return leading(definition.minkowski(self.ells, self.omegas, p=float(o.p), reduction=o.reduction))
