"""Does the oracle accuse the innocent? Honest implementations of many kinds, each put to the core cases.

A run is one honest variant of the loss, one case, one dtype; an alarm is a run whose answer is found to differ.
Runs are drawn by hash, so that any number of them is a fair sample of all, and the same one every time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from lalref.oracle import golden
from lalref.oracle.case import Case
from lalref.oracle.cases import CASES
from lalref.oracle.honest import Honest, variants
from lalref.oracle.inputs import mix
from lalref.oracle.judge import judge
from lalref.oracle.result import Result
from lalref.oracle.subjects import Subject

Run = tuple[Honest, Case, str]

DTYPES = ("float32", "float64")
SALT = 1802


@dataclasses.dataclass(frozen=True)
class FalseAlarms:
    """What came of the runs.

    Attributes
    ----------
    runs, variants : int
        How many, and of how many different implementations.
    alarms : tuple of (Honest, Result)
        The honest runs that were found to differ; none is the promise.
    worst : Result
        The answer that was furthest off, in units.
    by : Honest
        What gave it.
    """

    runs: int
    variants: int
    alarms: tuple[tuple[Honest, Result], ...]
    worst: Result
    by: Honest

    def __str__(self) -> str:
        told = [
            f"{len(self.alarms)} false alarms in {self.runs} runs of {self.variants} honest implementations.",
            f"The furthest off: {self.worst.units:.3g} units, in the case {self.worst.name} in {self.worst.dtype}",
            f"({self.by}).",
        ]
        told += [f"ALARM: {r.name} in {r.dtype}, {r.units:.3g} units {r.note} ({f})" for f, r in self.alarms]
        return "\n".join(told)


def draw(runs: int) -> list[Run]:
    """The first `runs` runs: no two are the same.

    Raises
    ------
    ValueError
        There are not that many.
    """
    every = list(variants())
    core = [case for case in CASES if case.core]
    most = len(every) * len(core)  # half of all: the hash must not look long for the last ones
    if not 0 < runs <= most:
        raise ValueError(f"runs={runs} is not allowed: it is a number from 1 to {most}")
    found: dict[tuple[int, int, int], None] = {}
    salt = SALT
    while len(found) < runs:
        for h in mix((2 * runs,), salt).tolist():
            rest, variant = divmod(h, len(every))
            found.setdefault((variant, rest % len(core), rest // len(core) % len(DTYPES)))
            if len(found) == runs:
                break
        salt += 1
    return [(every[v], core[c], DTYPES[d]) for v, c, d in found]


def false_alarms(runs: int, progress: Callable[[Iterable[Run]], Iterable[Run]] = iter) -> FalseAlarms:
    """Make honest runs and count those that the oracle finds to differ.

    Parameters
    ----------
    runs : int
    progress : callable, optional
        Wraps the runs on their way, as `rich.progress.track` does.

    Returns
    -------
    FalseAlarms

    Examples
    --------
    >>> from lalref.oracle.false_alarms import false_alarms
    >>> found = false_alarms(20)
    >>> len(found.alarms), found.worst.units < 1
    (0, True)
    """
    answers = golden.load()
    drawn = draw(runs)
    results = []
    for variant, case, dtype in progress(drawn):
        result, _ = judge(Subject(variant), case, dtype, "", answers[case.name])
        results.append((variant, result))
    by, worst = max(results, key=lambda each: each[1].units)
    alarms = tuple(each for each in results if each[1].outcome != "holds")
    return FalseAlarms(len(results), len({variant for variant, *_ in drawn}), alarms, worst, by)
