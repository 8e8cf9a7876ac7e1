"""Suspects: what a subject would have answered if it made a certain mistake, and how near its answers are.

A suspect is a pair of forms of the textbook, one for the loss and one for the formulas of its gradient.
Agreement is measured in error units of the whole array: a wrong loss has no unit of its own, so the right
answer's unit is scaled to the size of the predicted numbers. What is said to whom is `diagnose`'s affair.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from lalref.oracle.call import Answer
from lalref.oracle.case import Case
from lalref.oracle.golden import Golden
from lalref.oracle.inputs import FloatArray
from lalref.oracle.judge import unit_of
from lalref.oracle.mistakes import CATALOGUE, Mistake, Textbook, evaluated
from lalref.oracle.units import Units

AGREES = 16.0  # units: within this an answer is what a suspect would have given
EXPLAINS = 8.0  # by which factor a suspect has to be nearer than the right answer
ROUNDING = 64.0  # eps of the predicted size are granted besides
RIGHT = Textbook()


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """One answer of the subject, beside the right one."""

    case: Case
    dtype: str
    answer: Answer
    right: Golden

    @functools.cached_property
    def unit(self) -> Units:
        """Of the right answer."""
        return unit_of(self.case, self.dtype, self.right)

    @functools.cached_property
    def value_off(self) -> float:
        """How many units the value is off the right one."""
        return self.value_apart(self.right.value[0])

    @functools.cached_property
    def grad_off(self) -> float:
        """How many units the gradient is off the right one."""
        return self.grad_apart(self.right.grad[0])

    @property
    def value_wrong(self) -> bool:
        """Whether the value is not the right one."""
        return self.value_off > AGREES

    @property
    def grad_wrong(self) -> bool:
        """Whether the gradient is not the right one."""
        return self.grad_off > AGREES

    @property
    def wrong(self) -> bool:
        """Whether either is wrong."""
        return self.value_wrong or self.grad_wrong

    @functools.cached_property
    def telling(self) -> bool:
        """Whether a wrong number of it is finite: NaN and infinity come about in too many ways to be evidence."""
        return (self.value_wrong and bool(np.isfinite(self.answer.value).all())) or (
            self.grad_wrong and bool(np.isfinite(self.answer.grad).all())
        )

    def value_apart(self, predicted: Any) -> float:
        """How many units the value is off a predicted one."""
        return apart(self.answer.value, predicted, self.right.value[0], self.unit.value, self.dtype)

    def grad_apart(self, predicted: Any) -> float:
        """How many units the gradient is off a predicted one."""
        return apart(self.answer.grad, predicted, self.right.grad[0], self.unit.grad, self.dtype)


def working(dtype: str) -> Any:
    """The NumPy dtype that a form of the textbook is given."""
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


def apart(got: FloatArray, predicted: Any, right: FloatArray, unit: FloatArray, dtype: str) -> float:
    """Largest difference of two arrays in units of the whole array; inf where only one is finite.

    Where an overflow makes NaN and where infinity depends on the order of operations, so two arrays that
    both have one agree.
    """
    predicted = np.asarray(predicted, np.float64)
    if predicted.shape != got.shape:
        return math.inf
    if not got.size:
        return 0.0
    finite = np.isfinite(got).all(), np.isfinite(predicted).all()
    if not all(finite):
        return math.inf if any(finite) else 0.0
    with np.errstate(all="ignore"):
        size, right_size = abs(predicted).max(), float(np.nan_to_num(abs(right)).max())
        scale = max(1.0, size / right_size) if right_size > 0 else 1.0
        allowed = (
            float(np.nan_to_num(unit, posinf=0).max()) * scale
            + ROUNDING * float(ml_dtypes.finfo(dtype).eps) * size
        )
        return float(abs(got - predicted).max() / allowed) if allowed > 0 else math.inf


@dataclasses.dataclass(frozen=True, eq=False)
class Suspect:
    """A way to have gone wrong: the form of the loss, and that of the gradient's formulas."""

    ids: tuple[str, ...]
    sentence: str
    forward: Textbook | None  # None: the value is the right one, the gradient that of the other loss
    backward: Textbook | None  # None: the gradient is the right one
    dtypes: tuple[str, ...] = ("float32", "float64")
    values: dict[Any, Any] = dataclasses.field(default_factory=dict)  # shared by suspects of one forward
    started: dict[Any, Any] = dataclasses.field(default_factory=dict)
    grads: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def value(self, seen: Observed) -> Any:
        """The value that it would have given."""
        if self.forward is None:
            return seen.right.value[0]
        key = (seen.case.name, seen.dtype)
        if key not in self.values:
            self.values[key] = self._start(seen)[0]
        return self.values[key]

    def grad(self, seen: Observed) -> Any:
        """The gradient that it would have given."""
        if self.backward is None:
            return seen.right.grad[0]
        key = (seen.case.name, seen.dtype)
        if key not in self.grads:
            with np.errstate(all="ignore"):
                self.grads[key] = self._start(seen)[1]()
            self.started.clear()
        return self.grads[key]

    def _start(self, seen: Observed) -> tuple[Any, Callable[[], Any]]:
        key = (seen.case.name, seen.dtype)
        if key not in self.started:
            case, logits = seen.case, seen.case.given_logits.astype(working(seen.dtype))
            forward, backward = self.forward or self.backward, self.backward or self.forward
            assert forward is not None
            assert backward is not None
            with np.errstate(all="ignore"):
                try:
                    found = evaluated(forward, backward, logits, case.labels.copy(), case.arguments)
                except (ValueError, IndexError):  # shapes that this mistake can't serve
                    nothing = np.full(1, math.nan)
                    found = nothing, lambda: nothing
            self.started.clear()  # one at a time: each holds the matrices of its case
            self.started[key] = found
        return self.started[key]  # type: ignore[no-any-return]

    def apart(self, seen: Observed, what: str = "both") -> float:
        """How many units an answer is off its prediction, of the value, the gradient or both.

        Infinite where the prediction is not much nearer than the right answer: it explains nothing then. The
        gradient is not looked at where the value is off.
        """
        most = 0.0
        if what != "grad":
            most = _explained(seen.value_apart(self.value(seen)), seen.value_off)
        if what != "value" and most <= AGREES:
            most = max(most, _explained(seen.grad_apart(self.grad(seen)), seen.grad_off))
        return most


def _explained(off: float, far: float) -> float:
    """`off` where it is much nearer than the right answer, which is `far`."""
    return off if off <= far / EXPLAINS or far <= AGREES else math.inf


SCOPES: Mapping[str, Callable[[dict[str, Any]], bool]] = {
    "": lambda o: True,
    'with space="logits"': lambda o: o["space"] == "logits",
    'with space="probabilities"': lambda o: o["space"] == "probabilities",
    'with reduction="none"': lambda o: o["reduction"] == "none",
    'with reduction="mean" and "sum"': lambda o: o["reduction"] != "none",
    'with reduction="mean"': lambda o: o["reduction"] == "mean",
    'with reduction="sum"': lambda o: o["reduction"] == "sum",
    'with normalize="weights"': lambda o: o["normalize"] == "weights",
    'with normalize="count"': lambda o: o["normalize"] == "count",
    "with a stride": lambda o: o["stride"] != 1,
    "with class_weight": lambda o: o["class_weight"] is not None,
    "with label_smoothing": lambda o: o["label_smoothing"] > 0,
    "with axis=-1": lambda o: o["axis"] == -1,
}
"""Where a mistake may be confined to, by the options that a piece of code serves."""


def scope_of(suspect: Suspect, seen: Sequence[Observed]) -> tuple[str, float] | None:
    """Where the answers are the suspect's, all others being right; and how near, in units.

    Returns
    -------
    (scope, units) or None
        A key of `SCOPES`; None where no scope divides the answers so.
    """
    wrong = [each for each in seen if each.wrong]
    if not all(each.dtype in suspect.dtypes and suspect.apart(each) <= AGREES for each in wrong):
        return None
    scopes = [name for name, within in SCOPES.items() if all(within(e.case.all_options) for e in wrong)]
    for each in seen:
        if not each.wrong and each.dtype in suspect.dtypes and suspect.apart(each) > AGREES:
            scopes = [name for name in scopes if not SCOPES[name](each.case.all_options)]
            if not scopes:
                return None
    inside = [e for e in seen if e.dtype in suspect.dtypes and SCOPES[scopes[0]](e.case.all_options)]
    return scopes[0], max((suspect.apart(each) for each in inside), default=0.0)


def telling_first(seen: Iterable[Observed]) -> list[Observed]:
    """Wrong answers in the order in which they exclude most for least work."""

    def rank(each: Observed) -> tuple[bool, bool, int, int]:
        return not each.telling, each.dtype != "float64", each.case.logits.size, len(each.case.asks_for())

    return sorted((each for each in seen if each.wrong), key=rank)


def suspects_of(mistake: Mistake, values_wrong: bool, grads_wrong: bool) -> Iterator[Suspect]:
    """A mistake in all, in the loss alone or in the gradient's formulas alone: what can explain such answers."""
    its = mistake.sentence[0].lower() + mistake.sentence[1:-1]
    for kind in mistake.forms:
        form, values = kind(), dict[Any, Any]()

        def suspect(
            sentence: str, forward: Textbook | None, backward: Textbook | None, values: Any = values
        ) -> Suspect:
            return Suspect((mistake.id,), sentence, forward, backward, mistake.dtypes, values)

        if not mistake.forward:
            if grads_wrong and not values_wrong:
                yield suspect(mistake.sentence, form, form)
        elif not values_wrong:
            sentence = f"In the gradient alone, {its}; your loss is right."
            yield suspect(sentence, RIGHT, form)
            yield suspect(sentence, None, form)
        elif not grads_wrong:
            sentence = f"In the loss alone, {its}; your gradient is right."
            yield suspect(sentence, form, RIGHT)
            yield suspect(sentence, form, None)
        else:
            yield suspect(mistake.sentence, form, form)
            sentence = f"In the loss alone, {its}; the formulas of your gradient are right."
            yield suspect(sentence, form, RIGHT)


def all_suspects(wrong: Sequence[Observed]) -> Iterator[Suspect]:
    """Those of every mistake that is not one of memory."""
    values, grads = any(each.value_wrong for each in wrong), any(each.grad_wrong for each in wrong)
    for mistake in CATALOGUE:
        if mistake.stage != "state":
            yield from suspects_of(mistake, values, grads)
