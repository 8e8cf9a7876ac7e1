"""The three stages as small dense matrices, windows by pixels, in the widest float at hand.

This is what the error unit is worked out from, and nothing else: a picture of every intermediate number of
one case, right to far more digits than a unit needs (a test compares it with golden values). No engine,
no truth and no rounding model may come in. P counts windows, Q pixels, both over the whole batch; windows
that are not valid have no row.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.oracle.case import Case

Wide = npt.NDArray[Any]  # np.longdouble; NumPy's type stubs lose track of it

EXCLUDED = -1e6  # stands for a logit of -inf: exp of it is 0, and 0 times it stays 0


@dataclasses.dataclass(frozen=True)
class Pooling:
    """Stage 1's matrices, equations (1) to (3) and (7), and the weights of stage 3."""

    x: Wide  # (Q, C)
    y: npt.NDArray[np.int64]  # (Q,)
    at: npt.NDArray[np.intp]  # (P,), the pixel of each window
    member: npt.NDArray[np.bool_]  # (P, Q), q in G_p
    argument: Wide  # (P, Q), (d/sigma)²/2, 0 outside the group
    w: Wide  # (P, Q), 0 outside the group
    D: Wide  # (P,)
    omega: Wide  # (P,)

    @property
    def target(self) -> npt.NDArray[np.int64]:
        """The label of each window, (P,)."""
        return self.y[self.at]


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Log-sum-exp of the rows of z, as the textbook takes it: shifted by the maximum."""

    z: Wide  # (R, C)
    a: Wide  # (R, C), z - max z
    log_s: Wide  # (R,), log sum exp a
    lse: Wide  # (R,), max z + log s
    P: Wide  # (R, C)
    h: Wide  # (R, C), -log P
    off: Wide  # (R, C), 1 - P without cancellation


def pooling(case: Case) -> Pooling:
    """Lay out the windows and pixels of `case`."""
    options = case.all_options
    x = np.moveaxis(case.logits, options["axis"], -1)  # (N, *S, C)
    N, *S, C = x.shape
    y = case.labels.astype(np.int64).reshape(-1)
    position = np.indices((N, *S)).reshape(1 + len(S), -1).T  # (Q, 1 + axes)
    ignored = options["ignore_index"]
    taken = ~np.isin(y, np.atleast_1d([] if ignored is None else ignored))  # (Q,)
    omega = np.ones(y.shape, np.longdouble)
    if case.pixel_weight is not None:
        omega = omega * case.pixel_weight.reshape(-1)
    if options["class_weight"] is not None:
        omega = omega * np.asarray(options["class_weight"], np.longdouble)[np.clip(y, 0, C - 1)]
    on_grid = (position[:, 1:] % per_axis(options["stride"], len(S)) == 0).all(1)
    at = np.flatnonzero(taken & on_grid & (omega > 0))
    radius = (np.array(per_axis(options["kernel_size"], len(S)), int) - 1) // 2
    apart = abs(position[at, None, 1:] - position[None, :, 1:])  # (P, Q, axes)
    member = (
        (position[at, None, 0] == position[None, :, 0])
        & (apart <= radius).all(-1)
        & (y[at, None] == y[None, :])
    )
    sigma = options["sigma"]
    d = apart.max(-1, initial=0).astype(np.longdouble)
    argument = np.zeros_like(d) if sigma is None else np.where(member, (d / sigma) ** 2 / 2, 0)
    w = np.where(member, np.exp(-argument), 0)
    D = member.sum(1).astype(np.longdouble) if options["normalize"] == "count" else w.sum(1)
    values = np.where(np.isneginf(x), EXCLUDED, x).astype(np.longdouble).reshape(-1, C)
    return Pooling(values, y, at, member, argument, w, D, omega[at])


def softmax(z: Wide) -> Softmax:
    """Log-sum-exp, probabilities and their logarithms of every row."""
    top = z.max(1, keepdims=True, initial=-math.inf)
    a = z - top
    exps = np.exp(a)
    C = z.shape[1]
    others = exps @ (1 - np.eye(C, dtype=np.longdouble))  # (R, C), sum over the other classes
    s = exps.sum(1)
    h = np.where(a == 0, np.log1p(others), np.log(s)[:, None] - a)
    return Softmax(z, a, np.log(s), top[:, 0] + np.log(s), exps / s[:, None], h, others / s[:, None])


def onehot(y: npt.NDArray[np.int64], C: int) -> Wide:
    """(R,) labels to (R, C); a label that is no class gives zeros."""
    found: Wide = (y[:, None] == np.arange(C)).astype(np.longdouble)
    return found


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """An int or a tuple as one int an axis."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


def powers(r: Wide, exponent: float) -> Wide:
    """r^exponent, 1 for exponent 0 even at r = 0."""
    found: Wide = np.ones_like(r) if exponent == 0 else r**exponent
    return found
