"""What is wrong with a subject that is right in every case and fails a check of its behaviour.

It is asked again as the failed checks ask, and its answers join those to the cases: the mistakes of memory in the
catalogue are looked for among all of them. Where none of them is found, what was seen is told. The checks
themselves are `protocol`'s, and names are given by `diagnose`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lalref.oracle import protocol
from lalref.oracle.call import LAYOUTS
from lalref.oracle.case import Case
from lalref.oracle.diagnose import Diagnosis, Observed, diagnose, finding
from lalref.oracle.golden import Golden
from lalref.oracle.judge import RAISED
from lalref.oracle.mistakes import BY_ID
from lalref.oracle.protocol import IN_MEMORY, Row
from lalref.oracle.shrink import Shrunk, shrink
from lalref.oracle.subjects import Subject
from lalref.oracle.suspects import AGREES, working

ROUNDS = 3  # in which two cases are asked in turn: what is kept shows from the second on
UPSTREAM = "upstream gradient "

SEEN: Mapping[str, str] = {
    "called twice": "the same call again, or another one between, gives other numbers: something is kept from call "
    "to call",
    "inputs unchanged": "it writes to the arrays that it is given",
    UPSTREAM: "its gradient is not the same one times the upstream gradient",
    IN_MEMORY: "it does not read views of other arrays as it reads fresh ones",
    "an image of": "it fails as images grow: a count or a sum does not hold so many pixels",
    "same bits again": "the last digits change from call to call",
    "nearly perfect": "its digits are lost where losses are tiny",
    "jax.": "it is another function once JAX transforms it",
    "tf.function": "it is another function once TensorFlow traces it",
}
"""What a failed check says, by how its name begins."""


def explained(
    rows: Sequence[Row],
    subject: Subject,
    dtype: str,
    asked: protocol.Asked,
    told: Sequence[Observed],
    strict: bool = False,
) -> Diagnosis:
    """Name the mistake behind failed checks, or say what they have in common.

    Parameters
    ----------
    rows : sequence of Row
        What the checks gave.
    subject : Subject
    dtype : str
        The one in which it was checked.
    asked : mapping
        Name in the table -> the case as it was put to the subject, and its right answer.
    told : sequence of Observed
        Its answers to the cases, in the order in which it was asked.
    strict : bool
        Whether every check decides.
    """
    failed = [row for row in rows if row.outcome == "differs" and row.decides(strict)]
    if protocol.BASE in asked:
        try:
            if all(row.name.startswith(IN_MEMORY) and not row.note.startswith(RAISED) for row in failed):
                units = _as_contiguous([row.name for row in failed], subject, dtype, asked)
                found = [finding("assumes-contiguous-memory", units)]
                return Diagnosis(found, found[0].sentence)
            named = diagnose([*told, *_asked_again(failed, subject, dtype, asked)], subject)
        except Exception:  # a subject's own, which has no numbers then
            named = Diagnosis([], "")
        if named.findings:
            return named
    seen = "; ".join(dict.fromkeys(_seen(row) for row in failed))
    which = ", ".join(row.name for row in failed)
    return Diagnosis([], f"Each case by itself is right. {seen[:1].upper()}{seen[1:]} ({which}).")


def smallest(
    rows: Sequence[Row], subject: Subject, dtype: str, asked: protocol.Asked, *, seconds: float
) -> Shrunk | None:
    """The smallest input on which a check fails that is a single call; None where there is none."""
    for row in rows:
        if row.outcome == "differs" and row.name.startswith(UPSTREAM) and protocol.BASE in asked:
            case, _ = _upstreamed(row, *asked[protocol.BASE], dtype)
            return shrink(subject, case, dtype, seconds=seconds)
    return None


def _seen(row: Row) -> str:
    return next((said for name, said in SEEN.items() if row.name.startswith(name)), f"{row.name} differs")


def _asked_again(
    failed: Sequence[Row], subject: Subject, dtype: str, asked: protocol.Asked
) -> Iterator[Observed]:
    """The answers behind failed checks that a mistake of the catalogue could explain."""
    base = asked[protocol.BASE]
    for row in failed:
        if row.name.startswith(UPSTREAM):
            case, right = _upstreamed(row, *base, dtype)
            yield Observed(case, dtype, subject(case, dtype), right)
    if any(row.name in ("called twice", "inputs unchanged") for row in failed):
        other = asked.get(protocol.OTHER, base)
        calls = [(pair, subject.prepare(pair[0], dtype)) for pair in (base, other)]
        for _ in range(ROUNDS):
            for (case, right), call in calls:
                yield Observed(case, dtype, subject.ask(call), right)


def _upstreamed(row: Row, case: Case, right: Golden, dtype: str) -> tuple[Case, Golden]:
    """The case that a check of upstream gradients was: with a name of its own, for it is another case."""
    (g,) = (g for g in protocol.UPSTREAM if protocol.upstream_name(g) == row.name)
    case, _, _, right = protocol.upstreamed(case, right, g, dtype)
    return dataclasses.replace(case, name=f"{case.name}, {row.name}"), right


def _as_contiguous(names: Sequence[str], subject: Subject, dtype: str, asked: protocol.Asked) -> float:
    """How far the misread answers are from those of one who reads on from the first number; NaN if far off."""
    case, right = asked[protocol.BASE]
    form: Callable[..., tuple[object, object]] = BY_ID["assumes-contiguous-memory"].form()
    off = 0.0
    for name in names:
        layout = name.removeprefix(f"{IN_MEMORY}: ")
        seen = Observed(case, dtype, subject(case, dtype, layout), right)
        lay = LAYOUTS[layout]
        given = lay(case.given_logits.astype(working(dtype))), lay(case.labels.copy())
        with np.errstate(all="ignore"):
            value, grad = form(*given, **case.arguments)
        off = max(off, seen.value_apart(value), seen.grad_apart(grad))
    return off if off <= AGREES else math.nan
