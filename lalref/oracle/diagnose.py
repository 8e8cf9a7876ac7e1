"""Which mistake was made: the one of the catalogue that reproduces a subject's wrong numbers.

A name is given where the answers to all core cases are what that mistake gives; where several do, all are
told. Where none does, a mistake that has most of the numbers is told with what it leaves unexplained, or it is
said what is known: whether the gradient belongs to the loss, in which stage the first difference is, and on
which input it is plain to see. No verdict is given here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from lalref.oracle.call import Answer
from lalref.oracle.case import Case
from lalref.oracle.constants import fitted
from lalref.oracle.mistakes import BY_ID
from lalref.oracle.pairs import in_the_gradient, joint, mixed
from lalref.oracle.partly import parts, ranked
from lalref.oracle.sightings import sighted, written_to
from lalref.oracle.suspects import AGREES, Observed, Suspect, all_suspects, scope_of, telling_first
from lalref.oracle.whereabouts import consistency, whereabouts, whose

__all__ = ["Diagnosis", "Finding", "Observed", "diagnose", "finding"]

WIDE = ("float32", "float64")
FEW = 2  # cases that a mistake may leave to go before a pair that leaves none
LOSSES = 2  # mistakes that have most of the values, to which one in the gradient is sought
LOUD = 800.0  # added to logits: no loss changes, and exp of them overflows
HIGH = 5000.0  # an exponent p that no loss but 1 can be raised to


@dataclasses.dataclass(frozen=True)
class Finding:
    """A known mistake that has the subject's numbers, all of them unless the sentence says how many.

    Attributes
    ----------
    mistake : str
        Its id; two ids joined by "+" for a pair, a name with its value for a fitted constant.
    sentence : str
        What to tell who made it.
    agreement_units : float
        The largest difference of an answer that it explains from what this mistake gives, in error units; NaN
        where it was seen in what the subject did and explains no number.
    share : float
        Of the cases that are wrong, or that this mistake would make wrong, those whose numbers it explains: 1
        unless the sentence says how many.
    """

    mistake: str
    sentence: str
    agreement_units: float
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found out about a wrong subject.

    Attributes
    ----------
    findings : list of Finding
        The likeliest first; empty where no known mistake has the numbers.
    summary : str
        A paragraph for people.
    consistent : bool or None
        Where no known mistake has the numbers: whether the gradient is at least that of the subject's own loss. None
        where that was not asked, or can't be told.
    """

    findings: list[Finding]
    summary: str
    consistent: bool | None = None


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
        own loss where no mistake is found, and to tell overflows apart.
    thorough : bool
        Also try all pairs of mistakes where none is suggested by partial agreement (up to a minute).

    Returns
    -------
    Diagnosis
    """
    core = [each for each in seen if each.case.core]
    # 16-bit answers are rounded too coarsely to tell mistakes apart; alone they are all there is
    core = [each for each in core if each.dtype in WIDE] or core
    found = [finding(*each) for each in written_to(core)]
    wrong = telling_first(core)
    if wrong:
        found += _named(core, wrong, seen, ask, thorough)
    if found:
        return Diagnosis(found, _told(found))
    if not wrong:
        return Diagnosis([], "")
    consistent = None if ask is None else consistency(core, ask)
    parts = [whose(core, consistent), whereabouts(core, ask)]
    unknown = "No mistake of the catalogue, and no pair of them, has these numbers."
    return Diagnosis([], " ".join(part for part in (unknown, *parts) if part), consistent)


def _told(found: list[Finding]) -> str:
    if len(found) == 1:
        return found[0].sentence
    if "+" in found[1].mistake and "+" not in found[0].mistake:
        return f"{found[0].sentence} A pair of mistakes has all of your numbers: {found[1].sentence}"
    return (
        f"{len(found)} mistakes have these numbers, and nothing that was asked tells them apart: "
        + " ".join(f"({i}) {each.sentence}" for i, each in enumerate(found, 1))
    )


def finding(mistake: str, units: float, sentence: str = "", share: float = 1.0) -> Finding:
    """A finding, with the catalogue's own sentence where there is no better one."""
    return Finding(mistake, sentence or BY_ID[mistake].sentence, round(units, 3), round(share, 3))


def _named(
    core: Sequence[Observed],
    wrong: list[Observed],
    seen: Sequence[Observed],
    ask: Callable[[Case, str], Answer] | None,
    thorough: bool,
) -> list[Finding]:
    """The first of these searches that finds something; a simpler explanation goes before."""
    found = (
        _held(all_suspects(wrong), core, wrong, ask)
        or _narrow(core)
        or [finding(name, off) for name, off in dict(sighted(core, seen)).items()]
        or _fitted(core, wrong)
    )
    # zeros come about in too many ways to be evidence of two mistakes
    if found or not any(each.answer.value.any() or each.answer.grad.any() for each in wrong):
        return found
    values_wrong = any(each.value_wrong for each in wrong)
    pairs = _held(mixed(core, wrong), core, wrong, ask)
    order = ranked(core, what="value" if values_wrong else "both")
    if not pairs:
        firsts = [suspect for _, suspect in order]
        pairs = _held(joint(firsts, not values_wrong, thorough), core, wrong, ask)
        if not pairs:
            return _partly(core, order, values_wrong)
        order = _whole(core, order) if values_wrong else order
    # a mistake that leaves a case or two is likelier than two, which are told next
    nearly = [part for part in parts(core, order, "both") if len(part.left) <= FEW]
    return [
        finding(part.suspect.ids[0], part.units, part.sentence(), part.share) for part in nearly[:1]
    ] + pairs


def _survives(suspect: Suspect, wrong: list[Observed]) -> bool:
    """Whether it has all wrong answers; the one that it has not is asked first the next time."""
    for i, each in enumerate(wrong):
        if each.dtype not in suspect.dtypes or suspect.apart(each) > AGREES:
            wrong.insert(0, wrong.pop(i))
            return False
    return True


def _held(
    suspects: Iterator[Suspect],
    core: Sequence[Observed],
    wrong: Sequence[Observed],
    ask: Callable[[Case, str], Answer] | None,
) -> list[Finding]:
    """Those that all answers agree with: of these only the simplest, the nearest first.

    A mistake everywhere is simpler than one with some options alone, and one that the catalogue has as it is
    simpler than a part of one.
    """
    found: dict[frozenset[str], tuple[tuple[bool, bool], Finding]] = {}
    finite, wrong = any(each.telling for each in wrong), list(wrong)
    for suspect in suspects:
        if _survives(suspect, wrong) and (scope := scope_of(suspect, core)) is not None:
            if not finite and not _overflows_alike(suspect, core, ask):
                continue
            name, units = scope
            where = f" This is so {name} only." if name else ""
            one = finding("+".join(suspect.ids), units, suspect.sentence + where)
            effort = (bool(name), suspect.forward is not suspect.backward)
            key = frozenset(suspect.ids)
            if key not in found or effort < found[key][0]:
                found[key] = (effort, one)
    least = min((effort for effort, _ in found.values()), default=None)
    simplest = [one for effort, one in found.values() if effort == least]
    return sorted(simplest, key=lambda one: one.agreement_units)


def _overflows_alike(
    suspect: Suspect, core: Sequence[Observed], ask: Callable[[Case, str], Answer] | None
) -> bool:
    """Where all wrong numbers are infinite or NaN: whether it also overflows where nothing else would.

    Larger logits, and a higher power: at least one makes the suspect overflow, and the subject does so there
    and nowhere else.
    """
    quiet = [e for e in core if not e.wrong and e.case.stages and np.ndim(e.case.grad_output) == 0]
    quiet = [e for e in quiet if e.case.all_options["reduction"] != "none" and e.right.value[0] > 0]
    if ask is None or not quiet:
        return False
    plain = min(quiet, key=lambda e: (-len(e.case.stages), len(e.case.asks_for())))
    louder = dataclasses.replace(plain.case, name="louder", logits=plain.case.logits + LOUD)
    higher = dataclasses.replace(plain.case, name="higher", options={**plain.case.options, "p": HIGH})
    told = []
    for case in (louder, higher):
        predicted = suspect.value(dataclasses.replace(plain, case=case))
        try:
            got = ask(case, plain.dtype).value
        except Exception:  # a subject's own
            return False
        told.append((bool(np.isfinite(predicted).all()), bool(np.isfinite(got).all())))
    return any(not predicted for predicted, _ in told) and all(a == b for a, b in told)


def _narrow(core: Sequence[Observed]) -> list[Finding]:
    """Right in float32, and right to float32 in float64."""
    wide = [each for each in core if each.dtype == "float64"]
    if not any(each.wrong for each in wide) or any(each.wrong for each in core if each.dtype == "float32"):
        return []
    narrow = [dataclasses.replace(each, dtype="float32") for each in wide]
    if any(each.wrong for each in narrow):
        return []
    off = max(max(e.value_apart(e.right.value[0]), e.grad_apart(e.right.grad[0])) for e in narrow)
    return [finding("single-precision-inside", off)]


def _fitted(core: Sequence[Observed], wrong: list[Observed]) -> list[Finding]:
    """One constant that is off, with its value."""
    found = fitted(core, wrong)
    return [] if found is None else [Finding(found[0], found[1], round(found[2], 3))]


def _whole(core: Sequence[Observed], order: Iterable[tuple[int, Suspect]]) -> list[tuple[int, Suspect]]:
    """Suspects that have some of the answers, gradients and all, among those ranked by their values."""
    known = {suspect.ids for _, suspect in order}
    wrong = [each for each in core if each.wrong]
    return ranked(core, (suspect for suspect in all_suspects(wrong) if suspect.ids in known))


def _partly(
    core: Sequence[Observed], order: Sequence[tuple[int, Suspect]], values_wrong: bool
) -> list[Finding]:
    """A mistake that has most of the numbers, or a pair that has; of several, those that have as many as any."""
    if not values_wrong:
        found = parts(core, order, "both")
    elif not (found := parts(core, _whole(core, order), "both")):
        losses = parts(core, order, "value")
        for loss in losses[:LOSSES]:
            (name,), form = loss.suspect.ids, loss.suspect.forward
            assert form is not None
            found += parts(
                core, ranked(core, in_the_gradient(BY_ID[name], form, loss.suspect.values)), "both"
            )
        found = sorted(found, key=lambda part: -part.share) or losses
    best = [part for part in found if part.share == found[0].share]
    named = {
        frozenset(part.suspect.ids): finding(
            "+".join(part.suspect.ids), part.units, part.sentence(), part.share
        )
        for part in best
    }
    return list(named.values())
