"""Which mistake was made: the one of the catalogue that reproduces a subject's wrong numbers.

A name is given only where the answers to all core cases are what that mistake gives; where several do, all
are told, and where none does, it is said what is known: whether the gradient belongs to the loss, in which
stage the first difference is, and on which input it is plain to see. No verdict is given here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lalref.oracle.call import Answer
from lalref.oracle.case import Case
from lalref.oracle.constants import fitted
from lalref.oracle.mistakes import BY_ID, CATALOGUE, Mistake, Textbook
from lalref.oracle.suspects import (
    AGREES,
    Observed,
    Suspect,
    scope_of,
    suspects_of,
    telling_first,
    working,
)
from lalref.oracle.whereabouts import consistency, whereabouts

__all__ = ["Diagnosis", "Finding", "Observed", "diagnose"]

WIDE = ("float32", "float64")
SCREENS = 3  # wrong answers that a suspect meets before it is held against all
PARTNERS = 6  # half-right suspects that are tried in pairs
PROBED = 8  # wrong answers on which suspects may be half right


@dataclasses.dataclass(frozen=True)
class Finding:
    """A known mistake that has the subject's numbers.

    Attributes
    ----------
    mistake : str
        Its id; two ids joined by "+" for a pair, a name with its value for a fitted constant.
    sentence : str
        What to tell who made it.
    agreement_units : float
        The largest difference of any answer from what this mistake gives, in error units.
    """

    mistake: str
    sentence: str
    agreement_units: float


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found out about a wrong subject: `findings`, likeliest first, and a paragraph for people."""

    findings: list[Finding]
    summary: str


def diagnose(
    seen: Sequence[Observed], ask: Callable[[Case, str], Answer] | None = None, *, thorough: bool = False
) -> Diagnosis:
    """Name the mistake that reproduces wrong answers.

    Parameters
    ----------
    seen : sequence of Observed
        Every answer of the subject, right or wrong, in the order in which it was asked.
    ask : callable, optional
        ``ask(case, dtype) -> Answer``: the subject itself, to hold its gradient against differences of its
        own loss where no mistake is found.
    thorough : bool
        Also try all pairs of mistakes where none is suggested by partial agreement (up to a minute).

    Returns
    -------
    Diagnosis
    """
    core = [each for each in seen if each.case.core]
    # 16-bit answers are rounded too coarsely to tell mistakes apart; alone they are all there is
    core = [each for each in core if each.dtype in WIDE] or core
    found = list(_written_to(core))
    wrong = telling_first(core)
    if wrong:
        found += _named(core, wrong, seen, thorough)
    if found:
        return Diagnosis(found, _told(found))
    if not wrong:
        return Diagnosis([], "")
    parts = [whereabouts(core)]
    if ask is not None:
        parts.insert(0, consistency(core, ask))
    unknown = "No mistake of the catalogue, and no pair of them, has these numbers."
    return Diagnosis([], " ".join(part for part in (unknown, *parts) if part))


def _told(found: list[Finding]) -> str:
    if len(found) == 1:
        return found[0].sentence
    return (
        f"{len(found)} mistakes have these numbers, and nothing that was asked tells them apart: "
        + " ".join(f"({i}) {each.sentence}" for i, each in enumerate(found, 1))
    )


def _written_to(seen: Sequence[Observed]) -> Iterator[Finding]:
    changed = {name for each in seen for name in each.answer.changed}
    for name in ("logits", "labels"):
        if name in changed:
            mistake = BY_ID[f"overwrites-the-{name}"]
            yield Finding(mistake.id, mistake.sentence, 0.0)


def _named(
    core: Sequence[Observed], wrong: list[Observed], seen: Sequence[Observed], thorough: bool
) -> list[Finding]:
    """The first of these searches that finds something; a simpler explanation goes before."""
    return (
        _singles(core, wrong)
        or _narrow(core)
        or _of_memory(seen)
        or _fitted(core, wrong)
        or _mixed(core, wrong)
        or _pairs(core, wrong, thorough)
    )


def _suspects(wrong: Sequence[Observed]) -> Iterator[Suspect]:
    values, grads = any(each.value_wrong for each in wrong), any(each.grad_wrong for each in wrong)
    for mistake in CATALOGUE:
        if mistake.stage != "state":
            yield from suspects_of(mistake, values, grads)


def _screened(suspect: Suspect, wrong: Sequence[Observed]) -> bool:
    """Whether it survives the first few wrong answers."""
    return all(each.dtype in suspect.dtypes and suspect.apart(each) <= AGREES for each in wrong[:SCREENS])


def _held(suspects: Iterator[Suspect], core: Sequence[Observed], wrong: Sequence[Observed]) -> list[Finding]:
    """Those that all answers agree with: of these only the simplest, the nearest first.

    A mistake everywhere is simpler than one with some options alone, and one that the catalogue has as it is
    simpler than a part of one.
    """
    found: dict[str, tuple[tuple[bool, bool], Finding]] = {}
    for suspect in suspects:
        if _screened(suspect, wrong) and (scope := scope_of(suspect, core)) is not None:
            name, units = scope
            where = f" This is so {name} only." if name else ""
            finding = Finding("+".join(suspect.ids), suspect.sentence + where, round(units, 3))
            effort = (bool(name), suspect.forward is not suspect.backward)
            if finding.mistake not in found or effort < found[finding.mistake][0]:
                found[finding.mistake] = (effort, finding)
    least = min((effort for effort, _ in found.values()), default=None)
    simplest = [finding for effort, finding in found.values() if effort == least]
    return sorted(simplest, key=lambda finding: finding.agreement_units)


def _singles(core: Sequence[Observed], wrong: Sequence[Observed]) -> list[Finding]:
    return _held(_suspects(wrong), core, wrong)


def _narrow(core: Sequence[Observed]) -> list[Finding]:
    """Right in float32, and right to float32 in float64."""
    mistake = BY_ID["single-precision-inside"]
    wide = [each for each in core if each.dtype == "float64"]
    if not any(each.wrong for each in wide) or any(each.wrong for each in core if each.dtype == "float32"):
        return []
    narrow = [dataclasses.replace(each, dtype="float32") for each in wide]
    if any(each.wrong for each in narrow):
        return []
    off = max(max(e.value_apart(e.right.value[0]), e.grad_apart(e.right.grad[0])) for e in narrow)
    return [Finding(mistake.id, mistake.sentence, round(off, 3))]


def _fitted(core: Sequence[Observed], wrong: list[Observed]) -> list[Finding]:
    """One constant that is off, with its value."""
    found = fitted(core, wrong)
    return [] if found is None else [Finding(found[0], found[1], round(found[2], 3))]


def _of_memory(seen: Sequence[Observed]) -> list[Finding]:
    """Replay all calls in their order."""
    found = []
    for mistake in CATALOGUE:
        if mistake.stage != "state":
            continue
        form, off = mistake.form(), 0.0
        for each in seen:
            given = each.case.given_logits.astype(working(each.dtype)), each.case.labels.copy()
            with np.errstate(all="ignore"):
                value, grad = form(*given, **each.case.arguments)
            if each.case.core:
                off = max(off, each.value_apart(value), each.grad_apart(grad))
            if off > AGREES:
                break
        else:
            found.append(Finding(mistake.id, mistake.sentence, round(off, 3)))
    return found


def _mixed(core: Sequence[Observed], wrong: list[Observed]) -> list[Finding]:
    """One mistake in the loss and another in the formulas of the gradient."""
    value_wrong = [each for each in wrong if each.value_wrong]
    if not value_wrong:
        return []
    losses = []
    for mistake in CATALOGUE:
        if mistake.forward:
            form = mistake.form()
            suspect = Suspect((mistake.id,), mistake.sentence, form, form, mistake.dtypes)
            if all(suspect.apart(each, "value") <= AGREES for each in (*value_wrong[:SCREENS], *core)):
                losses.append((mistake, form))

    def suspects() -> Iterator[Suspect]:
        for loss, forward in losses:
            for other in CATALOGUE:
                if other.stage == "state" or other is loss:
                    continue
                if not other.forward:
                    both = type("Both", (other.form, loss.form), {})()
                    yield _pair(loss, other, forward, both)
                    yield _pair(loss, other, forward, other.form())
                else:
                    yield _pair(loss, other, forward, other.form())

    return _held(suspects(), core, wrong)


def _pair(one: Mistake, two: Mistake, forward: Textbook, backward: Textbook) -> Suspect:
    return Suspect((one.id, two.id), f"{one.sentence} And: {two.sentence}", forward, backward)


def _pieces(mistake: Mistake) -> set[str]:
    return {name for name in vars(mistake.form) if not name.startswith("__")}


def _pairs(core: Sequence[Observed], wrong: list[Observed], thorough: bool) -> list[Finding]:
    """Two mistakes at once, both in the loss or both in the gradient."""
    values_right = not any(each.value_wrong for each in wrong)
    eligible = [m for m in CATALOGUE if m.stage != "state" and m.forward != values_right]
    # spread over the cases: where only one of two mistakes acts, that one is seen alone
    probes = wrong[:: max(1, len(wrong) // PROBED)][:PROBED]
    what = "both" if values_right else "value"
    half_right = []
    for mistake in eligible:
        form = mistake.form()
        suspect = Suspect((mistake.id,), "", form, form)
        agree = sum(suspect.apart(each, what) <= AGREES for each in probes)
        if agree:
            half_right.append((agree, mistake))
    half_right.sort(key=lambda pair: -pair[0])
    firsts = [mistake for _, mistake in half_right[:PARTNERS]]
    if not firsts and thorough:
        firsts = eligible

    def suspects() -> Iterator[Suspect]:
        tried = set()
        for one in firsts:
            for two in eligible:
                for first, second in ((one, two), (two, one)):
                    key = (first.id, second.id)
                    if one is two or key in tried or issubclass(first.form, second.form):
                        continue
                    if issubclass(second.form, first.form):
                        continue
                    if (second.id, first.id) in tried and not (_pieces(first) & _pieces(second)):
                        continue  # the order is no matter
                    tried.add(key)
                    form = type("Pair", (first.form, second.form), {})()
                    yield _pair(first, second, form, form)

    found = _held(suspects(), core, wrong)
    once = {frozenset(each.mistake.split("+")): each for each in reversed(found)}
    return sorted(once.values(), key=lambda each: each.agreement_units)
