"""Honest implementations of the loss: the same formulas by many roads, each with a rounding of its own.

A verdict must not fall over how somebody adds up. Here are the choices that people really make: how a window is
walked and its sum ordered, multiplications fused with additions or not, weights from a table or from exp, a
division before or after a sum, ways to write log-softmax and the power mean. Every combination of them is right.
Images only (2-D), working in the dtype that it is given. Nothing of the engines, of the dense matrices that the
error unit is made from, or of the catalogue's textbook may come in.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Array = Any  # np.ndarray of the working dtype, or of bool or int

CHOICES: dict[str, tuple[str, ...]] = {
    "walk": ("matrix", "einsum", "windows", "shifts", "scatter"),
    "order": ("pairwise", "forwards", "backwards", "lanes", "halves", "small first"),
    "fused": ("no", "yes"),
    "weights": ("exp of a quotient", "exp of a product", "table in float64"),
    "division": ("after the sum", "before the sum", "by the reciprocal"),
    "softmax": ("shifted quotient", "shifted logarithm", "logaddexp"),
    "entropy": ("log-probability", "log-sum minus logit"),
    "mean": ("scaled powers", "exp of p log", "logarithms throughout"),
    "share": ("from the scaled sum", "from the value"),
}


@dataclasses.dataclass(frozen=True)
class Honest:
    """``f(logits, labels, **options) -> (value, grad)``, by one choice of each kind; see `CHOICES`."""

    walk: str = "matrix"
    order: str = "pairwise"
    fused: str = "no"
    weights: str = "exp of a quotient"
    division: str = "after the sum"
    softmax: str = "shifted quotient"
    entropy: str = "log-probability"
    mean: str = "scaled powers"
    share: str = "from the scaled sum"

    def __str__(self) -> str:
        return ", ".join(f"{k}: {v}" for k, v in dataclasses.asdict(self).items())

    def __call__(
        self, logits: Array, labels: Array, *, pixel_weight: Array = None, grad_output: Any = 1.0, **o: Any
    ) -> tuple[Array, Array]:
        """The loss and its gradient in the dtype of `logits`."""
        kind = logits.dtype.type
        moved = np.moveaxis(logits, o["axis"], -1)  # (N, H, W, C)
        N, H, W, C = moved.shape
        x, y = moved.reshape(-1, C), labels.reshape(-1)  # (Q, C), (Q,)
        stride = o["stride"]
        omega = np.ones(y.size, kind)
        if o["class_weight"] is not None:
            omega = np.asarray(o["class_weight"], kind)[np.where((y >= 0) & (y < C), y, 0)]
        if pixel_weight is not None:
            omega = omega * pixel_weight.reshape(-1)
        _, i, j = (each.reshape(-1) for each in np.indices((N, H, W)))
        valid = (i % stride == 0) & (j % stride == 0) & (y != o["ignore_index"]) & (omega > 0)
        at = np.flatnonzero(valid)  # (P,)
        omega, target = omega[at], y[at]
        pairs = self.pairs(at, y, (N, H, W), o["kernel_size"] // 2)
        w = self.gaussian(pairs.d, o["sigma"], kind)  # one a pair
        each = np.bincount(pairs.p, minlength=at.size).astype(kind)
        D = each if o["normalize"] == "count" else self.onto(pairs.p, w, np.ones_like(w), at.size)
        onehot = (target[:, None] == np.arange(C)).astype(kind)

        if o["space"] == "logits":
            z = self.pool(pairs, w, D, x, at.size)
            P, log_P, lse = self.log_softmax(z)
            alpha = kind(o["label_smoothing"])
            t = (1 - alpha) * onehot + alpha / C
            if self.entropy == "log-probability":
                ell = -self.total(np.where(t > 0, t * log_P, 0).T)
            else:
                ell = lse - self.total(np.where(t > 0, t * z, 0).T)
            ell = np.maximum(ell, 0)
        else:
            u, *_ = self.log_softmax(x)
            own = np.where(y == o["ignore_index"], 0, y)
            taken = u[np.arange(y.size), own]  # (Q,)
            v = self.pool(pairs, w, D, taken[:, None], at.size)[:, 0]
            ell = -np.log(v) if v.size else v

        L, slope = self.stage_3(ell, omega, o)
        if o["reduction"] == "none":
            L = np.zeros((N, -(-H // stride), -(-W // stride)), kind)
            place = tuple(
                k // s for k, s in zip(np.unravel_index(at, (N, H, W)), (1, stride, stride), strict=True)
            )
            L[place] = omega * ell
            slope = omega * np.broadcast_to(np.asarray(grad_output, kind), L.shape)[place]
        else:
            slope = kind(grad_output) * slope
            if not at.size:
                L = kind(math.nan if o["empty"] == "nan" else 0)
        if o["space"] == "logits":
            x_bar = self.send_back(pairs, w, D, slope[:, None] * (P - t), y.size)
        else:
            R = self.send_back(pairs, w, D, -(slope / v)[:, None], y.size)[:, 0] * taken  # (Q,)
            x_bar = R[:, None] * ((own[:, None] == np.arange(C)) - u)
        return L, np.moveaxis(x_bar.reshape(N, H, W, C), -1, o["axis"]).astype(kind)

    # sums

    def total(self, terms: Array) -> Array:
        """Sum over the first axis, in this order."""
        n = len(terms)
        if self.order == "small first":
            terms = np.take_along_axis(terms, np.argsort(abs(terms), axis=0), axis=0)
        if self.order == "pairwise" or n == 0:
            return np.ascontiguousarray(np.moveaxis(terms, 0, -1)).sum(-1)
        if self.order == "lanes":  # as vector units do: eight sums side by side
            lanes = np.zeros((8, *terms.shape[1:]), terms.dtype)
            for start in range(0, n, 8):
                lanes[: len(terms[start : start + 8])] += terms[start : start + 8]
            return lanes[0] + lanes[4] + (lanes[1] + lanes[5]) + (lanes[2] + lanes[6] + (lanes[3] + lanes[7]))
        if self.order == "halves":
            while len(terms) > 1:
                half = len(terms) // 2
                terms = np.concatenate([terms[:half] + terms[half : 2 * half], terms[2 * half :]])
            return terms[0]
        return np.cumsum(terms[::-1] if self.order == "backwards" else terms, axis=0)[-1]

    def weighted(self, w: Array, x: Array) -> Array:
        """Sum of w x over the first axis; fused: each product is added before it is rounded."""
        w = w.reshape(-1, *[1] * (x.ndim - 1))
        if self.fused == "no":
            return self.total(w * x)
        sum_ = np.zeros(x.shape[1:], x.dtype)
        for a, b in (
            zip(w[::-1], x[::-1], strict=True) if self.order == "backwards" else zip(w, x, strict=True)
        ):
            sum_ = fused_multiply_add(a, b, sum_)
        return sum_

    # stage 1

    def pairs(self, at: Array, y: Array, shape: tuple[int, int, int], r: int) -> Pairs:
        """Every window with every member of its group, by rows of the window, or offset by offset."""
        _, H, W = shape
        p: list[Array] = []
        q: list[Array] = []
        d: list[Array] = []
        offsets = list(itertools.product(range(-r, r + 1), repeat=2))
        if self.order == "backwards":
            offsets.reverse()
        n, i, j = (np.asarray(k) for k in np.unravel_index(at, shape))
        for a, b in offsets:
            inside = (i + a >= 0) & (i + a < H) & (j + b >= 0) & (j + b < W)
            (k,) = np.nonzero(inside)
            to = np.ravel_multi_index((n[k], i[k] + a, j[k] + b), shape)
            same = y[to] == y[at[k]]
            p.append(k[same])
            q.append(to[same])
            d.append(np.full(same.sum(), max(abs(a), abs(b))))
        return Pairs(np.concatenate(p), np.concatenate(q), np.concatenate(d), [len(each) for each in p])

    def gaussian(self, d: Array, sigma: float, kind: type) -> Array:
        """Weights of the distances."""
        if self.weights == "table in float64":
            table = np.array([math.exp(-0.5 * (k / sigma) ** 2) for k in range(int(d.max(initial=0)) + 1)])
            return table.astype(kind)[d]
        d = d.astype(kind)
        if self.weights == "exp of a product":
            return np.exp(-(d * d) * (kind(0.5) / (kind(sigma) * kind(sigma))))
        return np.exp(-((d / kind(sigma)) ** 2) / 2)

    def onto(self, index: Array, w: Array, x: Array, size: int) -> Array:
        """Sum the w x of all pairs with the same index, (size, ...)."""
        out = np.zeros((size, *x.shape[1:]), w.dtype)
        order = np.argsort(index, kind="stable")
        starts = np.searchsorted(index[order], np.arange(size + 1))
        for k in range(size):
            mine = order[starts[k] : starts[k + 1]]
            if mine.size:
                out[k] = self.weighted(w[mine], x[mine])
        return out

    def gather(self, to: Array, of: Array, counts: list[int], w: Array, x: Array, size: int) -> Array:
        """Sum w x[of] onto `to`, by this walk: (size, C)."""
        if self.walk in ("matrix", "einsum"):
            matrix = np.zeros((size, len(x)), w.dtype)
            matrix[to, of] = w
            if self.order in ("backwards", "halves"):
                matrix, x = matrix[:, ::-1], x[::-1]
            return matrix @ x if self.walk == "matrix" else np.einsum("pq,qc->pc", matrix, x)
        if self.walk == "windows":
            return self.onto(to, w, x[of], size)
        out = np.zeros((size, x.shape[1]), w.dtype)
        if self.walk == "scatter":  # every second pixel gives its share first, as two threads in turn would
            turns = np.argsort(of % 2, kind="stable")
            np.add.at(out, to[turns], w[turns, None] * x[of[turns]])
            return out
        stops = np.cumsum(counts)
        for start, stop in zip(stops - counts, stops, strict=True):  # one offset: no two pairs share a target
            k = slice(start, stop)
            if self.fused == "yes":
                out[to[k]] = fused_multiply_add(w[k, None], x[of[k]], out[to[k]])
            else:
                out[to[k]] += w[k, None] * x[of[k]]
        return out

    def pool(self, pairs: Pairs, w: Array, D: Array, x: Array, size: int) -> Array:
        """The averages of the groups, (P, C)."""
        if self.division == "before the sum":
            return self.gather(pairs.p, pairs.q, pairs.counts, w / D[pairs.p], x, size)
        pooled = self.gather(pairs.p, pairs.q, pairs.counts, w, x, size)
        return pooled * (1 / D)[:, None] if self.division == "by the reciprocal" else pooled / D[:, None]

    def send_back(self, pairs: Pairs, w: Array, D: Array, z_bar: Array, size: int) -> Array:
        """The transpose of `pool`, (Q, C)."""
        if self.division == "before the sum":
            return self.gather(pairs.q, pairs.p, pairs.counts, w / D[pairs.p], z_bar, size)
        z_bar = z_bar * (1 / D)[:, None] if self.division == "by the reciprocal" else z_bar / D[:, None]
        return self.gather(pairs.q, pairs.p, pairs.counts, w, z_bar, size)

    # stages 2 and 3

    def log_softmax(self, z: Array) -> tuple[Array, Array, Array]:
        """Probabilities, their logarithms, and the logarithm of the sum."""
        if self.softmax == "logaddexp":
            lse = np.logaddexp.reduce(z, axis=1)
            return np.exp(z - lse[:, None]), z - lse[:, None], lse
        top = z.max(1, initial=-math.inf)
        a = z - top[:, None]
        e = np.exp(a)
        s = self.total(e.T)
        log_P = a - np.log(s)[:, None]
        P = e / s[:, None] if self.softmax == "shifted quotient" else np.exp(log_P)
        return P, log_P, top + np.log(s)

    def stage_3(self, ell: Array, omega: Array, o: dict[str, Any]) -> tuple[Array, Array]:
        """The power mean, and each window's share of the gradient."""
        kind, p = ell.dtype.type, o["p"]
        B = self.total(omega) if o["reduction"] == "mean" else kind(1)
        top = ell.max(initial=0)
        if o["reduction"] == "none" or top == 0:
            return kind(0), np.zeros_like(ell)
        r = ell / top
        with np.errstate(divide="ignore"):
            powers = np.exp(p * np.log(r)) if self.mean == "exp of p log" else r**p
            if self.mean == "logarithms throughout":
                logs = p * np.log(ell) + np.log(omega)
                L = np.exp((np.log(self.total(np.exp(logs - logs.max()))) + logs.max() - np.log(B)) / p)
            else:
                L = top * (self.total(omega * powers) / B) ** kind(1 / p)
        if self.share == "from the value":
            return L, omega / B * (ell / L) ** kind(p - 1)
        S = self.total(omega * powers)
        return L, omega * r ** kind(p - 1) / S * (S / B) ** kind(1 / p)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Windows p and members q of their groups at distance d; how many pairs each offset has."""

    p: Array
    q: Array
    d: Array
    counts: list[int]


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """a b + c, its product not rounded: by float64 for float32, by exact products and sums for float64.

    Dekker's product and Knuth's sum leave one rounding more than the hardware's instruction has, of numbers that
    are far below the last digit.
    """
    if c.dtype == np.float32:
        return (a.astype(np.float64) * b + c).astype(np.float32)

    def halves(v: Array) -> tuple[Array, Array]:
        big = v * 134217729.0  # 2^27 + 1
        high = big - (big - v)
        return high, v - high

    product = a * b
    (a1, a2), (b1, b2) = halves(a), halves(b)
    lost = a2 * b2 - (((product - a1 * b1) - a2 * b1) - a1 * b2)
    sum_ = product + c
    moved = sum_ - product
    return sum_ + ((product - (sum_ - moved)) + (c - moved) + lost)


def variants() -> Iterator[Honest]:
    """Every combination of the choices."""
    for each in itertools.product(*CHOICES.values()):
        yield Honest(*each)
