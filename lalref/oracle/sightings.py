"""Mistakes that answers show by themselves, in whatever form they were made.

A gradient that holds an earlier one, a gradient in pixels that are to have none, NaN for a batch without a
window, an input that was written to: no prediction is needed to see them. What needs one is `suspects`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lalref.oracle.inputs import FloatArray
from lalref.oracle.mistakes import CATALOGUE
from lalref.oracle.suspects import AGREES, Observed, apart, working

Seen = tuple[str, float]  # id, units
SEVERAL = 2  # answers that hold an earlier gradient: one may be an accident


def written_to(seen: Sequence[Observed]) -> Iterator[Seen]:
    """Inputs that came back changed; units are those of answers that are right besides, NaN where none is."""
    for name in ("logits", "labels"):
        by = [each for each in seen if name in each.answer.changed]
        if by:
            right = (max(each.value_off, each.grad_off) for each in by if not each.wrong)
            yield f"overwrites-the-{name}", max(right, default=math.nan)


def sighted(core: Sequence[Observed], seen: Sequence[Observed]) -> Iterator[Seen]:
    """What explains every wrong answer of `core`; `seen` are all of them in the order of the calls."""
    wrong = [each for each in core if each.wrong]
    yield from _without_a_window(wrong)
    if any(each.value_wrong for each in wrong):
        yield from _replayed(seen)
        return
    yield from _in_ignored_pixels(wrong)
    yield from _accumulated(core, seen)
    yield from _replayed(seen)


def _ignored(each: Observed) -> FloatArray:
    """True in ignored pixels, shaped to go with the logits."""
    o = each.case.all_options
    mask = np.isin(each.case.labels, () if o["ignore_index"] is None else o["ignore_index"])
    return np.expand_dims(mask, o["axis"] % each.case.logits.ndim)


def _without_a_window(wrong: Sequence[Observed]) -> Iterator[Seen]:
    """Value NaN, and gradient NaN or 0, where nothing is valid and 0 is asked for."""
    off = 0.0
    for each in wrong:
        right = each.right
        nothing = right.value.shape == (2,) and not right.value.any() and not right.grad.any()
        if not (nothing and _ignored(each).all() and np.isnan(each.answer.value).all()):
            return
        off = max(off, each.value_apart(math.nan))
    yield "nan-for-no-window", off


def _in_ignored_pixels(wrong: Sequence[Observed]) -> Iterator[Seen]:
    """All is right but for ignored pixels, which have a gradient."""
    off = 0.0
    for each in wrong:
        if each.answer.grad.shape != each.right.grad.shape[1:]:
            return
        masked = np.where(_ignored(each), 0.0, each.answer.grad)
        off = max(
            off,
            each.value_off,
            apart(masked, each.right.grad[0], each.right.grad[0], each.unit.grad, each.dtype),
        )
    if off <= AGREES:
        yield "ignored-pixels-receive", off


def _accumulated(core: Sequence[Observed], seen: Sequence[Observed]) -> Iterator[Seen]:
    """Each wrong gradient is the right one and an earlier answer, whichever the buffer kept."""
    off, several, before = 0.0, 0, dict[tuple[int, ...], list[FloatArray]]()
    kept = {id(each) for each in core}
    for each in seen:
        grad = each.answer.grad
        if grad.shape != each.right.grad.shape[1:]:
            return
        axis = each.case.all_options["axis"]
        rows = np.moveaxis(grad, axis, -1).reshape(-1, grad.shape[axis])
        if id(each) in kept and each.wrong:
            right = np.moveaxis(each.right.grad[0], axis, -1).reshape(rows.shape)
            shape = np.moveaxis(grad, axis, -1).shape
            nearest = min(
                (
                    each.grad_apart(np.moveaxis((right + old).reshape(shape), -1, axis))
                    for old in before.get(rows.shape, ())
                    if np.isfinite(old).all()
                ),
                default=math.inf,
            )
            off, several = max(off, nearest), several + each.telling
            if off > AGREES:
                return
        before.setdefault(rows.shape, []).append(rows)
    if several >= SEVERAL:
        yield "gradient-accumulates", off


def _replayed(seen: Sequence[Observed]) -> Iterator[Seen]:
    """All calls again, in their order, by a form that remembers."""
    for mistake in CATALOGUE:
        if mistake.stage != "state" or mistake.id.startswith("overwrites"):
            continue
        for kind in mistake.forms:
            off = _replay(kind(), seen)
            if off <= AGREES:
                yield mistake.id, off
                break


def _replay(form: Any, seen: Sequence[Observed]) -> float:
    off = 0.0
    for each in seen:
        given = each.case.given_logits.astype(working(each.dtype)), each.case.labels.copy()
        try:
            with np.errstate(all="ignore"):
                value, grad = form(*given, **each.case.arguments)
        except (ValueError, IndexError):  # labels of another call, perhaps
            return math.inf
        if each.case.core:
            off = max(off, each.value_apart(value), each.grad_apart(grad))
        if off > AGREES:
            break
    return off
