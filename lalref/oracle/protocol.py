"""How a subject behaves from call to call: what no single answer to a single case can show.

Called twice, in another order, with other upstream gradients, on views of other arrays, under what its
framework's users put around it, on large images. Each check gives a row (name, outcome, note). Right answers
are golden ones, exactly rescaled where the upstream gradient is another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from lalref.oracle import large
from lalref.oracle.call import Answer
from lalref.oracle.case import Case
from lalref.oracle.golden import Golden
from lalref.oracle.inputs import FloatArray
from lalref.oracle.judge import judge, measure, told
from lalref.oracle.result import Result
from lalref.oracle.subjects import Subject, UsageError

UPSTREAM = (0.0, -0.5, 1.703125, 65504.0)  # besides 1; the last is float16's largest number
BASE = "scattered-void"
OTHER = "scattered"  # asked between two calls of the base
WITH_ARRAYS = ("pixel-weight", "none-upstream")  # for subjects that take them
CASES_THAT_SHOW = {
    "an all-ignored image in the batch": "one-image-ignored",
    "a 1 by 1 image": "one-pixel",
    "tied logits": "tied-logits",
    "logits of -1000 and 1000": "thousands",
}
IN_MEMORY = "arrays in memory"
NEARLY_PERFECT = "nearly perfect predictions"
NOT_CORE = ("same bits again", NEARLY_PERFECT, "jax.jit", "jax.vmap", "tf.function")

Asked = Mapping[str, tuple[Case, Golden]]


class Row(NamedTuple):
    """One check; outcome is "holds", "differs" or "unsupported"."""

    name: str
    outcome: str
    note: str

    def decides(self, strict: bool) -> bool:
        """Whether the verdict depends on it."""
        return strict or not self.name.startswith(NOT_CORE)


def check(
    subject: Subject, dtype: str, asked: Asked, results: list[Result], *, quick: bool = False
) -> list[Row]:
    """Make every check that applies to `subject`.

    Parameters
    ----------
    subject : Subject
    dtype : str
        The one that it is asked in.
    asked : mapping
        Name in the table -> the case as it was put to the subject (perhaps refitted), and its right answer.
    results : list of Result
        What the cases gave: some checks are cases of the table, and are not asked again.
    quick : bool
        Leave out large images and what has to be compiled anew.

    Returns
    -------
    list of Row

    Raises
    ------
    UsageError
        As the subject does.
    """
    rows = [_shown(name, case, asked, results) for name, case in CASES_THAT_SHOW.items() if case in asked]
    if any(r.feature == "tiny losses" for r in results):
        rows.append(_of(NEARLY_PERFECT, [r for r in results if r.feature == "tiny losses"]))
    if BASE not in asked:
        return rows
    case, right = asked[BASE]
    with_arrays = [asked[name] for name in WITH_ARRAYS if name in asked]
    rows += _again(subject, (case, right), asked.get(OTHER, (case, right)), dtype)
    if subject.takes_upstream:
        for g in UPSTREAM:
            row = _of(upstream_name(g), [judge(subject, *upstreamed(case, right, g, dtype))[0]])
            rows.append(row)
    else:
        rows.append(Row("upstream gradients", "unsupported", "it takes no grad_output"))
    for layout in subject.layouts:
        rows.append(_laid_out(subject, layout, [(case, right), *with_arrays], dtype))
    if not quick:
        for name, transformed in subject.transformed().items():
            rows.append(_of(name, [judge(transformed, case, dtype, name, right)[0]]))
        rows += [Row(*row) for row in large.check(subject, case, right, dtype)]
    return rows


def _of(name: str, results: list[Result]) -> Row:
    """A row that says what the worst of the results says."""
    rank = ("holds", "unsupported", "differs")
    worst = max(results, key=lambda r: (rank.index(r.outcome), r.units))
    return Row(name, worst.outcome, worst.note or f"{worst.units:.2g} units")


def _shown(name: str, case: str, asked: Asked, results: list[Result]) -> Row:
    return _of(name, [r for r in results if r.name == asked[case][0].name])


def _again(subject: Subject, base: tuple[Case, Golden], other: tuple[Case, Golden], dtype: str) -> list[Row]:
    """The same call twice on the same arrays, with another one between: right every time, and the same bits."""
    call = subject.prepare(base[0], dtype)
    try:
        first = subject.ask(call)
        between = subject(other[0], dtype)
        second = subject.ask(call)
    except UsageError:
        raise
    except Exception as error:
        return [Row("called twice", "differs", told(error))]
    answers = ((first, base), (second, base), (between, other))
    twice = [measure(answer, case, dtype, "", right)[0] for answer, (case, right) in answers]
    rows = [_of("called twice", twice)]
    unchanged = not (first.changed or second.changed)
    rows.append(Row("inputs unchanged", "holds" if unchanged else "differs", twice[0].note or twice[1].note))
    same = _bits(first) == _bits(second)
    rows.append(
        Row("same bits again", "holds" if same else "differs", "" if same else "the second call gave others")
    )
    return rows


def _bits(answer: Answer) -> tuple[bytes, bytes]:
    return answer.value.tobytes(), answer.grad.tobytes()


def upstream_name(g: float) -> str:
    """What the check under that upstream gradient is called."""
    return f"upstream gradient {g:g}"


def upstreamed(case: Case, right: Golden, g: float, dtype: str) -> tuple[Case, str, str, Golden]:
    """The case under another upstream gradient, as `judge` takes it: its gradient times g, exactly rescaled."""

    def times(parts: FloatArray) -> FloatArray:
        exact = [Fraction(a) * Fraction(g) + Fraction(b) * Fraction(g) for a, b in parts.reshape(2, -1).T]
        high = [float(v) for v in exact]
        low = [float(v - Fraction(h)) for v, h in zip(exact, high, strict=True)]
        return np.array([high, low]).reshape(parts.shape)

    rescaled = dataclasses.replace(case, grad_output=g)
    return rescaled, dtype, "", dataclasses.replace(right, grad=times(right.grad))


def _laid_out(subject: Subject, layout: str, asked: list[tuple[Case, Golden]], dtype: str) -> Row:
    """Arrays that are views: every second element, from the end, class axis innermost."""
    results = []
    for case, right in asked:
        try:
            answer = subject(case, dtype, layout)
        except UsageError:
            raise
        except Exception as error:
            return Row(f"{IN_MEMORY}: {layout}", "differs", told(error))
        results.append(measure(answer, case, dtype, "", right)[0])
    return _of(f"{IN_MEMORY}: {layout}", results)
