"""The verdict: put every case to a subject, measure its errors in units, and decide.

Core cases decide; extended features are probed one by one, reported, and decide only under strict. A case
that needs an option which the subject lacks is counted and named, never passed over in silence. Right
answers come from `golden`, units from `units`, calls from `subjects`; here they are only put together.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lalref.oracle import golden, protocol
from lalref.oracle import shrink as smallest
from lalref.oracle.call import Answer
from lalref.oracle.case import ARGUMENTS, OPTIONS, STAGES, Case
from lalref.oracle.cases import CASES
from lalref.oracle.judge import LIMIT, RAISED, in_units, judge
from lalref.oracle.report import Report
from lalref.oracle.result import Result, Worst
from lalref.oracle.subjects import Subject, UsageError

__all__ = ["LIMIT", "in_units", "verify"]

DECIDING_DTYPES = ("float32", "float64")
PROBED_DTYPES = ("float16", "bfloat16")
PROBES = ("plain", "scattered-void", "wide-range", "p-2.5", "probabilities", "sum")  # in the probed dtypes
PLAIN, PLAIN_LOGITS = (1e-6, 1e6), 100.0  # numbers that are read at a glance
ENOUGH = 12  # core cases without which there is no verdict "right"


def verify(
    f: Callable[..., Any] | Subject,
    *,
    framework: str = "numpy",
    dtype: str | None = None,
    fixed: Mapping[str, Any] | None = None,
    quick: bool = False,
    strict: bool = False,
    shrink: bool = False,
    progress: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Report:
    """Tell whether `f` computes the locally adaptive learning loss and its gradient.

    Parameters
    ----------
    f : callable or Command
        ``f(logits, labels, **options)``. A numpy subject returns ``(value, gradient)``; a subject of another
        framework returns the value, and the framework differentiates it. It is passed every option that its
        signature names, class_weight as a tuple of floats, arrays as arrays of its framework. A program in
        any language is a `lalref.oracle.Command`, with which `framework` and `fixed` are not given here.
    framework : {"numpy", "torch", "jax", "tensorflow"}
    dtype : {"float16", "bfloat16", "float32", "float64"}, optional
        Judge in this dtype alone; by default float32 and float64 decide, and 16-bit ones are probed.
    fixed : mapping, optional
        Values of options that `f` has built in, such as ``{"sigma": 1.5}``: core cases are refitted to them,
        with right answers that truth works out on the spot (some seconds). An option that `f` lacks and that
        is not named here is taken to be at its default.
    quick : bool
        A selection of the core cases, in which each option is varied (for JAX, which compiles each set of
        options anew, those with every option at its default); extended features only under `strict`. The
        report names what was not varied.
    strict : bool
        Let the extended features decide too.
    shrink : bool
        Where a case differs, cut it down to the smallest that still does, as code to paste (some seconds).
    progress : callable, optional
        Wraps the list of runs on its way, as `rich.progress.track` does.

    Returns
    -------
    Report
        With ``verdict`` "right", "wrong" or "inconclusive", ``exit_code`` 0, 1 or 3; print it, or see
        ``to_dict``.

    Raises
    ------
    UsageError
        A ValueError: `f` can't be called this way or returns something else, an unknown framework, dtype or
        fixed option.

    Examples
    --------
    >>> import lalref
    >>> from lalref import oracle
    >>> oracle.verify(lalref.lal_value_and_grad, quick=True).verdict
    'right'
    """
    began = time.perf_counter()
    if dtype is not None and dtype not in DECIDING_DTYPES + PROBED_DTYPES:
        known = ", ".join(DECIDING_DTYPES + PROBED_DTYPES)
        raise UsageError(f"dtype={dtype!r} is not known: it is one of {known}, or None")
    subject = f if isinstance(f, Subject) else Subject(f, framework, fixed)
    if dtype is not None and dtype not in subject.dtypes:
        raise UsageError(f"dtype={dtype!r} can't be put to {subject.name}: {', '.join(subject.dtypes)} can")
    answers = dict(golden.load())
    dtypes = (dtype,) if dtype else DECIDING_DTYPES

    skipped: dict[str, list[str]] = {}
    runs: list[tuple[Case, str, str]] = []
    taken: dict[str, Case] = {}  # by the name in the table, as they are put to the subject
    seen: set[str] = set()  # inputs, for cases that differed only in what is fixed become one
    for case in CASES:
        if quick and not (case.quick or (strict and not case.core)):
            continue
        if quick and subject.framework == "jax" and case.core and not case.asks_for() <= {"grad_output"}:
            continue  # XLA compiles every set of options anew
        lacking, name = subject.lacks(case), case.name
        own = set() if case.core else case.asks_for()  # what makes an extended feature is not taken from it
        if lacking and set(lacking) <= set(subject.fixed) - own:
            refitted = case.refitted({option: subject.fixed[option] for option in lacking})
            if refitted is not None:
                case, lacking = refitted, []
        # what is built in is to blame only where nothing else is lacking
        for option in [each for each in lacking if each not in subject.fixed] or lacking:
            skipped.setdefault(option, []).append(case.name)
        if lacking or (inputs := golden.digest(case)) in seen:
            continue
        seen.add(inputs)
        taken[name] = case
        runs += [(case, each, case.feature) for each in dtypes]
        if dtype is None and case.name in PROBES and (strict or not quick):
            runs += [(case, each, each) for each in PROBED_DTYPES if each in subject.dtypes]

    results: list[Result] = []
    worst: Worst | None = None
    kept: list[tuple[Case, str, Answer]] = []

    def ask(case: Case, dtype: str) -> Answer:
        answer = subject(case, dtype)
        kept.append((case, dtype, answer))
        return answer

    for case, each, feature in runs if progress is None else progress(runs):
        if case.name not in answers:  # not in the table: truth is asked on the spot
            answers[case.name] = golden.make(case)
        result, picture = judge(ask, case, each, feature, answers[case.name])
        results.append(result)
        if picture and result.decides(strict) and (worst is None or _telling(picture) > _telling(worst)):
            worst = picture
    verdict, reason = _decide(results, {case.name: case for case in taken.values()}, strict)
    always = bool(results) and all(r.note.startswith(RAISED) for r in results if r.decides(strict))
    if verdict == "wrong" and always:
        reason = _always_raised(subject, results[0].note.removeprefix(RAISED))
    varied = {name for case, _, _ in runs if case.core or strict for name in case.asks_for()}
    rows: list[protocol.Row] = []
    asked = {name: (case, answers[case.name]) for name, case in taken.items()}
    unchecked = "" if dtypes[0] in DECIDING_DTYPES else f"they are asked in {' or '.join(DECIDING_DTYPES)}"
    if verdict == "wrong":
        unchecked = "cases are wrong already"
    if not unchecked:
        rows = protocol.check(subject, dtypes[0], asked, results, quick=quick)
        if failed := [row.name for row in rows if row.outcome == "differs" and row.decides(strict)]:
            verdict, reason = "wrong", f"{reason}, but these checks differ: {', '.join(failed)}"
    if (
        verdict == "wrong"
        and not always  # then its options are not the question
        and not subject.fixed
        and (built_in := [k for k in OPTIONS if k not in subject.takes])
    ):
        reason += (
            f". What it does not take ({', '.join(built_in)}) was expected at its default: "
            "name other values that it has built in with --fixed name=value,... (fixed= in Python)"
        )
    diagnosis = None
    if verdict == "wrong":
        from lalref.oracle import behaviour  # needed by the wrong alone
        from lalref.oracle.diagnose import Observed, diagnose

        told = [Observed(case, each, answer, answers[case.name]) for case, each, answer in kept]
        if any(row.outcome == "differs" and row.decides(strict) for row in rows):
            diagnosis = behaviour.explained(rows, subject, dtypes[0], asked, told, strict)
        elif told and any(r.outcome == "differs" and not r.feature for r in results):
            diagnosis = diagnose(told, subject)
            summary = " ".join(
                part for part in (_raised_for_void(results, taken, subject), diagnosis.summary) if part
            )
            diagnosis = dataclasses.replace(diagnosis, summary=summary) if summary else None
    shrunk = None
    failing = [r for r in results if r.decides(strict) and r.outcome != "holds"]
    by_name = {case.name: case for case in taken.values()}
    if shrink and failing and (first := smallest.start(failing, by_name)):
        shrunk = smallest.shrink(subject, *first)
    elif shrink and verdict == "wrong" and rows:
        shrunk = behaviour.smallest(rows, subject, dtypes[0], asked, seconds=smallest.SECONDS)
    return Report(
        verdict=verdict,
        reason=reason,
        results=tuple(results),
        skipped=skipped,
        worst=worst,
        subject=subject.name,
        framework=subject.framework,
        framework_version=subject.version,
        dtypes=dtypes,
        fixed=subject.fixed,
        quick=quick,
        strict=strict,
        seconds=time.perf_counter() - began,
        protocol=rows,
        unchecked=unchecked,
        left=subject.left,
        not_varied=[name for name in ARGUMENTS if name in subject.takes - varied],
        shrunk=shrunk,
        diagnosis=diagnosis,
    )


def _telling(picture: Worst) -> tuple[float, ...]:
    """What says most comes first: finite wrong numbers, for inf is often an accident, of the plainest case."""
    if picture.most <= LIMIT:
        return 0, picture.most
    case, largest = picture.case, float(np.max(abs(picture.expected), initial=0))
    ordinary = PLAIN[0] <= largest <= PLAIN[1] and float(np.max(abs(case.logits), initial=0)) <= PLAIN_LOGITS
    finite = picture.most < math.inf
    return 2 if finite else 1, ordinary, -len(case.asks_for()), -case.logits.size


def _always_raised(subject: Subject, first: str) -> str:
    """What is told of a subject that answered no case."""
    told = f"every case raised; first: {first.rstrip('.')}; "
    if subject.framework == "command":
        return told + "does it read {case} and write {out} as it has to?"
    if any(p.kind is p.VAR_KEYWORD for p in _parameters(subject.original)):
        told += "it accepts **options, so all of them were passed; "
    return told + f"is --framework {subject.framework} what it was written for?"


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def _raised_for_void(results: list[Result], taken: Mapping[str, Case], subject: Subject) -> str:
    """What to ask who wrote a subject that raises where pixels are ignored, and nowhere else."""
    raised = {r.name for r in results if not r.feature and r.note.startswith(RAISED)}
    cases = [case for case in taken.values() if case.name in raised]
    if not cases or "ignore_index" in {*subject.takes, *subject.fixed}:
        return ""
    label = OPTIONS["ignore_index"]
    if not all((case.labels == label).any() for case in cases):
        return ""
    return (
        f"It raises only where labels are {label}, which is to be ignored. Does it ignore another label? "
        "Then say so: --fixed ignore_index=-100, if that is the one."
    )


def _decide(results: list[Result], cases: Mapping[str, Case], strict: bool) -> tuple[str, str]:
    """The verdict and one sentence why."""
    deciding = [r for r in results if r.decides(strict)]
    failed = [r for r in deciding if r.outcome != "holds"]
    kinds = "core and extended cases" if strict else "core cases"
    if failed:
        told = (
            f"{_names(failed)} of {_names(deciding)} {kinds} {'is' if _names(failed) == 1 else 'are'} wrong"
        )
        if raised := [r for r in failed if r.note.startswith(RAISED)]:
            told += "; it raised" if _names(failed) == 1 else f"; in {_names(raised)} of them it raised"
        return "wrong", told
    core = {r.name for r in results if not r.feature}
    if len(core) < ENOUGH:
        return "inconclusive", f"only {len(core)} core cases could be put to it; a verdict takes {ENOUGH}"
    exercised = {stage for name in core for stage in cases[name].stages}
    if missing := [stage for stage in STAGES if stage not in exercised]:
        return "inconclusive", f"no case that could be put to it exercises {' or '.join(missing)}"
    return "right", f"all {_names(deciding)} {kinds} that could be put to it are within {LIMIT:g} units"


def _names(results: list[Result]) -> int:
    return len({r.name for r in results})
