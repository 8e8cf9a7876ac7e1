"""The smallest input on which a subject still fails, as code to paste.

Starting from a failing case, one change after another is tried, and kept where the subject still fails: one
image instead of several, rows and columns left out, options at their defaults, fewer classes, labels made
alike, logits rounded and zeroed. Each try is judged as any case is, by truth worked out on the spot. The
code needs nothing of lalref: it holds the input, the right answer, and how far off it may be.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lalref.loss import LocallyAdaptiveLoss
from lalref.oracle import golden
from lalref.oracle.case import Case
from lalref.oracle.golden import Golden
from lalref.oracle.inputs import FloatArray
from lalref.oracle.judge import judge
from lalref.oracle.paste import code
from lalref.oracle.result import Result
from lalref.oracle.subjects import Subject

SECONDS = 5.0  # after which the smallest so far has to do


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk:
    """A small failing case, and the code that shows it.

    Attributes
    ----------
    case : Case
    right : Golden
        Its right answer, as `lalref golden` keeps them: `value`, `grad`, and what each is off by at most.
    dtype : str
        That in which the subject fails.
    code : str
        A program of NumPy and the subject's framework that makes the case, asks the subject and compares.
    """

    case: Case
    right: Golden
    dtype: str
    code: str


def shrink(subject: Subject, case: Case, dtype: str, *, seconds: float = SECONDS) -> Shrunk | None:
    """Cut a failing case down; None where it does not fail when asked again.

    Parameters
    ----------
    subject : Subject
    case : Case
        One that `subject` answers wrongly in `dtype`, or raises on.
    dtype : str
    seconds : float
        Time for trying.

    Examples
    --------
    >>> import numpy as np, lalref
    >>> from lalref.oracle.cases import BY_NAME
    >>> def twice(logits, labels):
    ...     value, grad = lalref.lal_value_and_grad(logits, labels, engine="array")
    ...     return value, 2 * grad
    >>> shrink(Subject(twice), BY_NAME["plain"], "float64").case.logits.shape
    (1, 2, 1, 1)
    """
    until = time.perf_counter() + seconds
    if case.logits.size == 0 or not case.stages:
        return None  # nothing to cut, and mostly a convention
    right = _if_failing(subject, case, dtype)
    if right is None:
        return None
    changed = True
    while changed and time.perf_counter() < until:
        changed = False
        for smaller in _smaller(case):
            if time.perf_counter() > until:
                break
            found = _if_failing(subject, smaller, dtype)
            if found is not None:
                case, right, changed = smaller, found, True
                break  # and start again from the largest cut
    return Shrunk(case, right, dtype, code(subject, case, right, dtype))


def start(failed: list[Result], taken: Mapping[str, Case]) -> tuple[Case, str] | None:
    """The failing case and dtype to begin with: one with numbers, few options and little in it."""

    def size(result: Result) -> tuple[bool, int, int]:
        case = taken[result.name]
        return not math.isfinite(result.units), len(case.asks_for()), case.logits.size

    possible = [r for r in failed if taken[r.name].stages]
    if not possible:
        return None
    first = min(possible, key=size)
    return taken[first.name], first.dtype


def _if_failing(subject: Subject, case: Case, dtype: str) -> Golden | None:
    """The right answer where the subject's is wrong."""
    if subject.lacks(case):
        return None
    try:
        right = golden.make(case)
    except (ValueError, ArithmeticError):  # no ball holds it
        return None
    return None if judge(subject, case, dtype, "", right)[0].outcome == "holds" else right


def _smaller(case: Case) -> Iterator[Case]:
    """Cases with less in them, the largest cuts first."""
    axis = case.all_options["axis"] % case.logits.ndim
    axes = [a for a in range(case.logits.ndim) if a != axis]  # of the logits: N, *S
    for k, a in enumerate(axes):  # one image; halves of rows and columns; then without one of them
        n = case.labels.shape[k]
        halves = [range(n // 2), range(n // 2, n)] if n > 1 else []
        for kept in [*halves, *([j for j in range(n) if j != i] for i in range(n) if n > 2)]:
            yield from _cut(case, a, k, list(kept))
    for name in case.options:  # options at their defaults
        if name != "axis":
            options = {k: v for k, v in case.options.items() if k != name}
            if not _forbidden(options, case):
                yield dataclasses.replace(case, options=options)
    if case.pixel_weight is not None:
        yield dataclasses.replace(case, pixel_weight=None)
    if np.ndim(case.grad_output) == 0 and case.grad_output != 1:
        yield dataclasses.replace(case, grad_output=1.0)
    yield from _fewer_classes(case, axis)
    taken = np.unique(case.labels)
    for label in taken[1:]:  # labels made alike
        for at in np.argwhere(case.labels == label):
            labels = case.labels.copy()
            labels[tuple(at)] = taken[0]
            yield dataclasses.replace(case, labels=labels)
    finite: FloatArray = np.where(np.isfinite(case.logits), case.logits, 0.0)
    simpler: tuple[FloatArray, ...] = (np.zeros_like(finite), np.sign(finite), np.round(finite))
    for rounded in simpler:
        if not np.array_equal(rounded, case.logits):
            yield dataclasses.replace(case, logits=rounded, unread=None)
    if np.count_nonzero(case.logits) <= 24:  # entry by entry, once little is left
        for at in np.argwhere(case.logits):
            x = case.logits.copy()
            x[tuple(at)] = 0
            yield dataclasses.replace(case, logits=x)


def _cut(case: Case, axis: int, k: int, kept: list[int]) -> Iterator[Case]:
    """The rows `kept` of a spatial axis (or images), `axis` of the logits and `k` of the labels."""
    g = case.grad_output
    if np.ndim(g):
        stride = case.all_options["stride"]
        strides = [1, *([stride] * (case.labels.ndim - 1) if isinstance(stride, int) else stride)]
        if strides[k] != 1:
            return
        g = np.take(g, kept, k)
    yield dataclasses.replace(
        case,
        logits=np.take(case.logits, kept, axis),
        labels=np.take(case.labels, kept, k),
        pixel_weight=None if case.pixel_weight is None else np.take(case.pixel_weight, kept, k),
        unread=None if case.unread is None else np.take(case.unread, kept, axis),
        grad_output=g,
    )


def _fewer_classes(case: Case, axis: int) -> Iterator[Case]:
    """Without one class: its logits go, and its pixels join the class before it."""
    C = case.logits.shape[axis]
    ignored = case.all_options["ignore_index"]
    weights = case.options.get("class_weight")
    if C <= 2 or any(0 <= i < C for i in np.atleast_1d([] if ignored is None else ignored)):
        return
    for c in reversed(range(C)):
        is_class = (case.labels >= 0) & (case.labels < C)
        moved = is_class & (case.labels >= max(c, 1))
        options = dict(case.options)
        if weights is not None:
            options["class_weight"] = tuple(w for k, w in enumerate(weights) if k != c)
        yield dataclasses.replace(
            case,
            logits=np.delete(case.logits, c, axis),
            unread=None if case.unread is None else np.delete(case.unread, c, axis),
            labels=np.where(moved, case.labels - 1, case.labels).astype(case.labels.dtype),
            options=options,
        )


def _forbidden(options: dict[str, Any], case: Case) -> bool:
    """Whether the loss takes no such options, or the labels and upstream gradient don't go with them."""
    own = case.all_options["ignore_index"]
    if np.ndim(case.grad_output) and "reduction" not in options:
        return True
    if options.get("ignore_index", 255) != own and np.isin(case.labels, [] if own is None else own).any():
        return True
    try:
        LocallyAdaptiveLoss(**options)
    except ValueError:
        return True
    return False
