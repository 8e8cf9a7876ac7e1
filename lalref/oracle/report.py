"""What a verdict looks like: for people a table and a picture of the worst numbers, for machines a dict.

Nothing is decided or measured here.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import io
import math
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lalref.oracle import golden
from lalref.oracle.case import Case
from lalref.oracle.inputs import FloatArray

SCHEMA = 1
EXIT_CODES = {"right": 0, "wrong": 1, "inconclusive": 3}
SHOWN = 8  # rows of failing cases in the table
REACH = (2, 1)  # how many rows and columns the picture reaches from the worst entry


@dataclasses.dataclass(frozen=True)
class Result:
    """One case in one dtype.

    Attributes
    ----------
    name, reason, dtype : str
        Of the case.
    feature : str
        The extended feature that it probes; empty for a core case.
    outcome : {"holds", "differs", "unsupported"}
    value_units, grad_units : float
        The largest error; inf where there is no number to compare.
    note : str
        What it raised, or what else is wrong.
    """

    name: str
    reason: str
    dtype: str
    feature: str
    outcome: str
    value_units: float
    grad_units: float
    note: str = ""

    @property
    def units(self) -> float:
        """The larger of the two."""
        return max(self.value_units, self.grad_units)

    def decides(self, strict: bool) -> bool:
        """Whether the verdict depends on it."""
        return strict or not self.feature


@dataclasses.dataclass(frozen=True, eq=False)
class Worst:
    """All numbers of the worst answer."""

    case: Case
    dtype: str
    what: str  # "value" or "gradient"
    expected: FloatArray
    got: FloatArray
    units: FloatArray

    @property
    def most(self) -> float:
        """Units of the worst entry."""
        return float(self.units.max(initial=0))

    @property
    def index(self) -> tuple[int, ...]:
        """Where the worst entry is."""
        return tuple(int(i) for i in np.unravel_index(int(self.units.argmax()), self.units.shape))

    def window(self) -> tuple[slice | int, ...]:
        """The neighbourhood of the worst entry in its image (and class)."""
        index: list[slice | int] = list(self.index)
        if self.what == "value":
            spatial = list(range(1, len(index)))
        else:
            axis = self.case.all_options["axis"] % max(len(index), 1)
            spatial = [a for a in range(1, len(index)) if a != axis]
        for a, reach in zip(reversed(spatial), reversed(REACH), strict=False):
            i = self.index[a]
            index[a] = slice(max(0, i - reach), i + reach + 1)
        return tuple(index)


@dataclasses.dataclass(frozen=True)
class Report:
    """A verdict with everything that led to it; print it, or take `to_dict`.

    Attributes
    ----------
    verdict : {"right", "wrong", "inconclusive"}
    reason : str
        One sentence.
    results : tuple of Result
    skipped : mapping
        Option that the subject lacks -> names of the cases that need it.
    worst : Worst or None
        The worst of the deciding answers.
    """

    verdict: str
    reason: str
    results: tuple[Result, ...]
    skipped: Mapping[str, list[str]]
    worst: Worst | None
    subject: str
    framework: str
    framework_version: str
    dtypes: tuple[str, ...]
    fixed: Mapping[str, Any]
    quick: bool
    strict: bool
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 right, 1 wrong, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    @property
    def units(self) -> float:
        """The largest error of a deciding answer; inf where one raised."""
        return max((r.units for r in self.results if r.decides(self.strict)), default=0.0)

    def extended(self) -> dict[str, str]:
        """Each extended feature: "holds", "differs" or "unsupported", the worst of its cases."""
        found: dict[str, str] = {}
        rank = ("holds", "unsupported", "differs")
        for result in self.results:
            if result.feature:
                before = found.get(result.feature, "holds")
                found[result.feature] = max(before, result.outcome, key=rank.index)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything that JSON can hold; units that are not finite are None."""

        def row(result: Result) -> dict[str, Any]:
            fields = dataclasses.asdict(result)
            for key in ("value_units", "grad_units"):
                fields[key] = fields[key] if math.isfinite(fields[key]) else None
            return fields

        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "reason": self.reason,
            "diagnosis": [],
            "subject": self.subject,
            "framework": self.framework,
            "dtypes": list(self.dtypes),
            "fixed": {k: v if _in_json(v) else repr(v) for k, v in self.fixed.items()},
            "quick": self.quick,
            "strict": self.strict,
            "cases": [row(r) for r in self.results if not r.feature],
            "extended": {
                feature: {"outcome": outcome, "cases": [row(r) for r in self.results if r.feature == feature]}
                for feature, outcome in self.extended().items()
            },
            "skipped": dict(self.skipped),
            "versions": self.versions(),
            "seconds": round(self.seconds, 3),
        }

    def versions(self) -> dict[str, str]:
        """Of everything that could matter to who reads the report later."""
        try:
            own = importlib.metadata.version("lalref")
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            own = "unknown"
        return {
            "lalref": own,
            "golden": str(golden.VERSION),
            "python": platform.python_version(),
            "numpy": np.__version__,
            self.framework: self.framework_version,
        }

    def __str__(self) -> str:
        """The report as plain text."""
        console = Console(file=io.StringIO(), width=110, color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]

    def __rich__(self) -> RenderableType:
        """The report for a terminal."""
        colour = {"right": "green", "wrong": "red", "inconclusive": "yellow"}[self.verdict]
        parts: list[RenderableType] = [Text(f"{self.subject}: {self.verdict}", style=f"bold {colour}")]
        parts.append(Text(self.reason if self.reason.endswith("?") else self.reason + "."))
        failed = [r for r in self.results if r.decides(self.strict) and r.outcome != "holds"]
        if failed:
            parts += ["", _failures(failed)]
        if self.worst is not None and failed and self.worst.most > 0:
            parts += ["", *_picture(self.worst)]
        extended = self.extended()
        for outcome in ("holds", "differs", "unsupported"):
            features = [name for name, found in extended.items() if found == outcome]
            if features:
                parts.append(Text(f"\nExtended features, {outcome}: {', '.join(features)}."))
        if self.skipped:
            parts.append(Text("\nCases not put to it, by the option that it does not take:"))
        for option, names in self.skipped.items():
            parts.append(Text(f"  {option}: {_listed(names)}"))
        asked = len({r.name for r in self.results})
        largest = f"; the largest error is {_number(self.units)} units" if self.verdict == "right" else ""
        parts.append(Text(f"\n{asked} cases in {self.seconds:.1f} s, {', '.join(self.dtypes)}{largest}."))
        return Group(*parts)


def _failures(failed: list[Result]) -> Table:
    """The failing cases, the plainest first as the table of cases has them."""
    table = Table(title="Cases that differ", title_justify="left")
    for header in ("case", "dtype", "value", "gradient", "what the case is for, or what happened"):
        table.add_column(header, justify="right" if header in ("value", "gradient") else "left")
    told: set[str] = set()
    for result in failed[:SHOWN]:
        text = result.note or ("" if result.name in told else result.reason)
        told.add(result.name)
        numbers = [
            _number(u) if u <= 8 else f"[red]{_number(u)}[/red]"
            for u in (result.value_units, result.grad_units)
        ]
        table.add_row(result.name, result.dtype, *numbers, Text(text))
    if len(failed) > SHOWN:
        table.add_row(f"and {len(failed) - SHOWN} more")
    table.caption = "errors in units: a right implementation stays below 1, beyond 8 is wrong"
    table.caption_justify = "left"
    return table


def _picture(worst: Worst) -> list[RenderableType]:
    """The worst entry and the numbers around it: expected, got, units."""
    window = worst.window()
    entry = f" at {worst.index}" if worst.index else ""
    head = f"Worst: {worst.what}{entry} of the case {worst.case.name} in {worst.dtype}"
    rows = "".join(f", {k}={v!r}" for k, v in worst.case.options.items())
    parts: list[RenderableType] = [Text(head + (f" ({rows[2:]})" if rows else ""))]
    if worst.index and any(isinstance(i, slice) for i in window):
        shown = ", ".join(
            f"{i.start}:{min(i.stop, n)}" if isinstance(i, slice) else str(i)
            for i, n in zip(window, worst.units.shape, strict=True)
        )
        parts.append(Text(f"entries [{shown}]"))
    table = Table(box=None, padding=(0, 4, 0, 0))
    for name in ("expected", "got", "units"):
        table.add_column(name, no_wrap=True)
    highlight = worst.units[window] == worst.most
    table.add_row(*(_grid(getattr(worst, n)[window], highlight) for n in ("expected", "got", "units")))
    return [*parts, table]


def _grid(values: FloatArray, highlight: npt.NDArray[np.bool_]) -> Text:
    """A small array as lines of aligned numbers, the worst one marked."""
    text = Text()
    rows = np.atleast_2d(values)
    marks = np.atleast_2d(highlight)
    cells = [[_number(v) for v in row] for row in rows]
    width = max((len(c) for row in cells for c in row), default=0)
    for row, mark in zip(cells, marks, strict=True):
        for cell, marked in zip(row, mark, strict=True):
            text.append(cell.rjust(width), style="bold red" if marked else "")
            text.append("* " if marked else "  ")
        text.append("\n")
    text.rstrip()
    return text


def _in_json(v: Any) -> bool:
    return isinstance(v, int | str | None) or (isinstance(v, float) and math.isfinite(v))


def _number(v: float) -> str:
    return f"{v:.3g}"


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} case{'s' * (len(names) > 1)} ({', '.join(names[:most])}{rest})"
