"""Rung 1 of the ladder of trust: the definition of the loss, as plain loops, forward only.

Each function is one equation of docs/specification.md, over *any number type*: Python and NumPy floats,
complex, mpmath's mpf, python-flint's balls (arb) and power series (arb_series), or a type of your own
(dual numbers, intervals) that has + - * / with itself and with floats, the methods exp() and log(), and
``real``, a plain number to be ordered by. Whatever the type carries (a derivative, a proven radius) comes
out at the other end, so this file needs no backward.

What may not come in: anything of the engines or the front door, a backward formula, a shortcut for speed.
With floats this is the *textbook* algorithm (log-sum-exp with the maximum taken out, power mean scaled by
the maximum): right to rounding, except that a tiny loss loses its relative accuracy; equations (17) and
(18) are the engines' remedy. Numbers are compared by `anynumber.order` alone, and except for p = inf a
comparison changes no value: it picks a shift or a scale that cancels again.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, cast

import numpy as np

from .anynumber import Number, exp, largest, leading, log, order, power, root, total

Position = tuple[int, ...]
Image = Mapping[Position, Sequence[Number]]  # x: pixel q -> its C logits; x[q][c] reads as in the text


# ---- positions, groups and weights ---------------------------------------------------------------


def per_axis(value: Integral | int | Sequence[int], ndim: int) -> Position:
    """An option as a tuple: an int stands for all of them."""
    return (int(value),) * ndim if isinstance(value, Integral) else tuple(cast(Sequence[int], value))


def grid(shape: Position, strides: Position) -> list[Position]:
    """The window positions p: 0, s, 2s, … along each axis; with stride 1, every pixel."""
    return list(itertools.product(*(range(0, n, s) for n, s in zip(shape, strides, strict=True))))


def distance(p: Position, q: Position) -> int:
    """The chessboard distance d(p, q)."""
    return max((abs(pa - qa) for pa, qa in zip(p, q, strict=True)), default=0)


def weight(d: int, sigma: float | None, one: Number) -> Number:
    """Equation (1): w(d) = exp(-(d/sigma)²/2) in the number type of `one`; 1 where sigma is None."""
    if sigma is None or math.isinf(sigma):
        return one
    t = one * d / sigma
    return exp(-(t * t) / 2)


def reads(d: int, sigma: float | None) -> bool:
    """Whether a member at distance d is read at all: not if w(d) rounds to 0 in double precision."""
    return bool(weight(d, sigma, 1.0) > 0)


def group(p: Position, y: Mapping[Position, int], shape: Position, radii: Position) -> list[Position]:
    """Equation (2): G_p, the pixels of the box around p, inside the image, that have p's label."""
    box = [range(max(0, pa - r), min(n, pa + r + 1)) for pa, r, n in zip(p, radii, shape, strict=True)]
    return [q for q in itertools.product(*box) if y[q] == y[p]]


def window_weight(
    label: int, ignored: Sequence[int], class_weight: Sequence[Number] | None, pixel_weight: Number
) -> Number:
    """Equation (3): omega_p, and 0 where the label is ignored; the window is valid if that is > 0."""
    if label in ignored:
        return 0
    if class_weight is None or not 0 <= label < len(class_weight):
        return pixel_weight
    return class_weight[label] * pixel_weight


class Window(NamedTuple):
    """What is fixed about the window at p before any logit is looked at."""

    p: Position
    label: int
    members: list[Position]  # G_p
    read: list[tuple[Position, Number]]  # (q, w(d(p, q))) of the members whose weight does not round to 0
    D: Number


def window(
    p: Position, label: int, members: list[Position], sigma: float | None, normalize: str, one: Number
) -> Window:
    """Equations (1) and (7) for one p and its group: weights, and D_p, their sum or the count |G_p|."""
    read = [(q, weight(distance(p, q), sigma, one)) for q in members if reads(distance(p, q), sigma)]
    D = one * len(members) if normalize == "count" else total(w for _, w in read)
    return Window(p, label, members, read, D)


def valid_windows(
    y: Mapping[Position, int],
    pixel_weight: Mapping[Position, Number],
    shape: Position,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    sigma: float | None,
    normalize: str,
    ignore_index: int | Sequence[int] | None,
    class_weight: Sequence[Number] | None,
    one: Number,
) -> Iterator[tuple[Window, Number]]:
    """Each valid window of one image, and its omega_p; equations (2) and (3)."""
    radii = tuple((k - 1) // 2 for k in per_axis(kernel_size, len(shape)))
    ignored = () if ignore_index is None else per_axis(ignore_index, 1)
    for p in grid(shape, per_axis(stride, len(shape))):
        omega = window_weight(y[p], ignored, class_weight, pixel_weight[p])
        if order(omega) > 0:
            yield window(p, y[p], group(p, y, shape, radii), sigma, normalize, one), omega


# ---- stages 1 and 2: the loss of one window ------------------------------------------------------


def merged(win: Window, x: Image, c: int) -> Number:
    """Equation (4), one entry: z_p[c] = (1/D_p) Σ_q w(d(p, q)) x_q[c] over the group."""
    return total(x[q][c] * w for q, w in win.read) / win.D


def merged_vector(win: Window, x: Image) -> list[Number]:
    """Equation (4): z_p, the group's average score vector."""
    return [merged(win, x, c) for c in range(len(x[win.p]))]


def log_softmax(z: Sequence[Number]) -> list[Number]:
    """log softmax(z), with the largest entry m taken out so that no exp overflows."""
    m = order(largest(z))
    log_sum = log(total(exp(zc - m) for zc in z))
    return [-(log_sum - (zc - m)) for zc in z]


def loss_of_vector(z: Sequence[Number], label: int, alpha: float, one: Number) -> Number:
    """Equation (5): ell_p = -Σ_c t_c log softmax(z_p)[c], t = (1 - alpha) onehot(y_p) + alpha/C."""
    C = len(z)
    if not 0 <= label < C:
        return one * math.nan
    t = [(one - alpha if c == label else one * 0) + one * alpha / C for c in range(C)]
    # a class whose target is 0 is left out, so that its logit may be -inf: an excluded class
    return total(-lp * tc for lp, tc in zip(log_softmax(z), t, strict=True) if leading(tc) != 0)


def loss_of_probabilities(win: Window, log_u: Sequence[Number]) -> Number:
    """Equation (6): ell_p = -log((1/D_p) Σ_q w u_q[y_p]), from log u of the members read, in their order."""
    m = order(largest(log_u))
    if m == -math.inf:
        m = 0.0  # every u is 0, nothing to shift by: the loss is inf
    P = total(exp(lu - m) * w for lu, (_, w) in zip(log_u, win.read, strict=True)) / win.D
    return -log(P) - m


def window_loss(win: Window, x: Image, space: str, alpha: float, one: Number) -> Number:
    """ell_p by equation (5) or (6); NaN for a label that is no class."""
    if space == "logits":
        return loss_of_vector(merged_vector(win, x), win.label, alpha, one)
    if not 0 <= win.label < len(x[win.p]):
        return one * math.nan
    return loss_of_probabilities(win, [log_softmax(x[q])[win.label] for q, _ in win.read])


# ---- stage 3 -------------------------------------------------------------------------------------


def minkowski(losses: Sequence[Number], weights: Sequence[Number], *, p: float, reduction: str) -> Number:
    """Equation (8), L = m (Σ omega (ell/m)^p / B)^(1/p) with m = max ell; (9), L = m, for p = inf.

    losses, weights: ell_p and omega_p of the valid windows, at least one; reduction: "mean" (B = Σ omega)
    or "sum" (B = 1). At a tie for p = inf a derivative that the numbers carry is that of the first of the
    largest: the convention of (9) for shared gradients is not a matter of the value.
    """
    top = largest(losses)
    m = order(top)
    if p == math.inf or m == math.inf or all(leading(ell) == 0 for ell in losses):
        return top
    S = total(power(ell / m, p) * omega for ell, omega in zip(losses, weights, strict=True))
    B = 1 if reduction == "sum" else total(weights)
    return root(S / B, p) * m


# ---- the whole -----------------------------------------------------------------------------------


def plain(values: Any) -> Any:
    """Nested lists of an array of any library; lists stay as they are."""
    return values.tolist() if hasattr(values, "tolist") else values


def shape_of(values: Any) -> Position:
    """Shape of an array or of nested lists."""
    if hasattr(values, "shape"):
        return tuple(values.shape)
    if not isinstance(values, list | tuple):
        return ()
    return (len(values), *(shape_of(values[0]) if values else ()))


def at(values: Any, index: Position) -> Any:
    """Element of nested lists."""
    for i in index:
        values = values[i]
    return values


def nested(f: Callable[[Position], Any], index: Position, axes: Sequence[range]) -> Any:
    """Nested lists of f(index) over all indices, the given ones continued by those of each axis in turn."""
    return f(index) if not axes else [nested(f, (*index, i), axes[1:]) for i in axes[0]]


@np.errstate(all="ignore")
def loss(
    logits: Any,
    labels: Any,
    *,
    kernel_size: int | Sequence[int] = 5,
    sigma: float | None = 1.0,
    stride: int | Sequence[int] = 1,
    space: str = "logits",
    normalize: str = "weights",
    p: float = 5.0,
    label_smoothing: float = 0.0,
    ignore_index: int | Sequence[int] | None = 255,
    class_weight: Sequence[Number] | None = None,
    reduction: str = "mean",
    pixel_weight: Any = None,
    empty: str = "zero",
) -> Any:
    """The locally adaptive learning loss by its definition, equations (1) to (10).

    Parameters
    ----------
    logits : array or nested lists, shape (N, C, *S), S of 0 to 5 axes
        Numbers of any type (see the module's text). Arrays of float16, bfloat16, float32 or float64 are
        worked out in Python floats.
    labels : array or nested lists of integers, shape (N, *S)
    pixel_weight : array or nested lists, shape (N, *S), optional
    kernel_size, sigma, stride, space, normalize, p, label_smoothing, and the others
        As in `lalref.lal_loss`, which checks them; here numbers are taken as right.

    Returns
    -------
    number, or for reduction="none" nested lists of shape (N, *grid)

    Raises
    ------
    ValueError
        The shapes do not fit; a word that is none of the option's; label smoothing in probability space;
        no valid window with empty="raise".

    Examples
    --------
    Two pixels of one class, averaged: the merged vector is (1, 0), the loss log(1 + 1/e).

    >>> round(loss([[[2.0, 0.0], [0.0, 0.0]]], [[0, 0]], kernel_size=3, sigma=None), 12)
    0.313261687518
    """
    N, C, *S = shape_of(logits)
    shape = tuple(S)
    if shape_of(labels) != (N, *shape):
        raise ValueError(f"labels of shape {shape_of(labels)}; logits {shape_of(logits)} need {(N, *shape)}")
    if space not in ("logits", "probabilities") or normalize not in ("weights", "count"):
        raise ValueError(f"space is {space!r} ('logits' or 'probabilities'), normalize {normalize!r} "
                         "('weights' or 'count')")  # fmt: skip
    if reduction not in ("mean", "sum", "none") or empty not in ("zero", "nan", "raise"):
        raise ValueError(f"reduction is {reduction!r} ('mean', 'sum' or 'none'), empty {empty!r} "
                         "('zero', 'nan' or 'raise')")  # fmt: skip
    if space == "probabilities" and label_smoothing > 0:
        raise ValueError("label_smoothing has no meaning in probability space: one class is pooled, set it 0")
    logits, labels, pixel_weight, class_weight = map(plain, (logits, labels, pixel_weight, class_weight))
    pixels = grid(shape, (1,) * len(shape))
    one = type(at(logits, (0, 0, *pixels[0])))(1) if N and C and pixels else 1.0  # 1 of the number type

    ells: dict[Position, Number] = {}  # (n, *p) of each valid window -> ell_p
    omegas: dict[Position, Number] = {}
    for n in range(N):
        x = {q: [at(logits[n][c], q) for c in range(C)] for q in pixels}
        y = {q: at(labels[n], q) for q in pixels}
        own = {q: one if pixel_weight is None else one * at(pixel_weight[n], q) for q in pixels}
        for win, omega in valid_windows(
            y, own, shape, kernel_size, stride, sigma, normalize, ignore_index, class_weight, one
        ):
            ells[n, *win.p] = window_loss(win, x, space, label_smoothing, one)
            omegas[n, *win.p] = omega

    if not ells and empty == "raise":
        raise ValueError("no valid window: every label is ignored or every weight is 0 (empty='raise')")
    if reduction == "none":  # equation (10)
        axes = [range(N), *(range(0, k, s) for k, s in zip(shape, per_axis(stride, len(S)), strict=True))]
        return nested(lambda at_p: ells[at_p] * omegas[at_p] if at_p in ells else one * 0, (), axes)
    if not ells:
        return one * math.nan if empty == "nan" else one * 0
    return minkowski(list(ells.values()), list(omegas.values()), p=p, reduction=reduction)
