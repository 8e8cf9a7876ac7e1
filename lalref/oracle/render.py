"""A report in words, tables and a picture of the worst numbers, for people.

Nothing is decided or measured here; what is told is in the `Report`. Every line must read well at 80 columns.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lalref.oracle.judge import LIMIT
from lalref.oracle.protocol import NEARLY_PERFECT
from lalref.oracle.result import Result, Worst

if TYPE_CHECKING:
    from lalref.oracle.diagnose import Diagnosis
    from lalref.oracle.report import Report

WIDTH = 100  # of plain text
SHOWN = 8  # rows of failing cases in the table
MANY = 1e6  # units
REACH = (2, 1)  # how many rows and columns the picture reaches from the worst entry
COLOURS = {"right": "green", "wrong": "red", "inconclusive": "yellow"}


def plain(told: Report | Worst) -> str:
    """`report` or `picture` as plain text, the lines without blanks at their end."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, highlight=False)
    console.print(picture(told) if isinstance(told, Worst) else report(told), crop=False)  # code stays whole
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()


def report(told: Report) -> RenderableType:
    """The verdict first, then what is known of the mistake, then the numbers, then what was left out."""
    ending = "" if told.reason.endswith("?") else "."
    selection = ", as far as --quick asks" if told.quick and told.verdict == "right" else ""
    parts: list[RenderableType] = [
        Text(f"{told.subject}: {told.verdict}{selection}", style=f"bold {COLOURS[told.verdict]}"),
        Text(told.reason + ending),
    ]
    if told.not_varied and told.verdict != "wrong":
        parts.append(Text(f"Not varied, though it takes them: {', '.join(told.not_varied)}."))
    if told.left:
        names = [f"{name} (did you mean {near}?)" if near else name for name, near in told.left.items()]
        parts.append(
            Text(f"Parameters that are no option of the loss, left at their defaults: {', '.join(names)}.")
        )
    failed = [r for r in told.results if r.decides(told.strict) and r.outcome != "holds"]
    if told.diagnosis is not None:
        parts += ["", *_diagnosis(told.diagnosis)]
    if failed:
        parts += ["", _failures(failed)]
    if told.worst is not None and failed and told.worst.most > LIMIT:
        parts += ["", picture(told.worst)]
    if told.shrunk is not None:
        parts.append(Text("\nThe smallest input found that still fails, to paste and run:\n"))
        parts.append(Text(told.shrunk.code.rstrip(), no_wrap=True, overflow="ignore"))
    parts += [Text(f"\n{line}") for line in _protocol(told)]
    extended = told.extended()
    for outcome in ("holds", "differs", "unsupported"):
        features = [name for name, found in extended.items() if found == outcome]
        if features:
            idle = "" if told.strict or outcome == "holds" else " (they decide under --strict only)"
            parts.append(Text(f"\nExtended features, {outcome}: {', '.join(features)}{idle}."))
    if told.skipped:
        parts.append(Text("\nCases not put to it, by the option that it does not take:"))
        for option, names in told.skipped.items():
            built_in = f", fixed at {told.fixed[option]!r}" if option in told.fixed else ""
            parts.append(Text(f"  {option}{built_in}: {_listed(names)}"))
    asked = len({r.name for r in told.results})
    largest = f"; the largest error is {number(told.units)} units" if told.verdict == "right" else ""
    parts.append(Text(f"\n{asked} cases in {told.seconds:.1f} s, {', '.join(told.dtypes)}{largest}."))
    return Group(*parts)


def picture(worst: Worst) -> RenderableType:
    """The worst entry and what lies around it: labels, logits, expected, got and units, all marked where off."""
    window = _around(worst)
    entry = f" at {worst.index}" if worst.index else ""
    options = ", ".join(f"{k}={v!r}" for k, v in worst.case.options.items())
    head = f"Worst: {worst.what}{entry} of the case {worst.case.name} in {worst.dtype}"
    head += f" ({options})" if options else ""
    parts: list[RenderableType] = [Text(f"{head}, {units(worst.most)} units off")]
    if worst.index and any(isinstance(i, slice) for i in window):
        shown = ", ".join(
            f"{i.start}:{min(i.stop, n)}" if isinstance(i, slice) else str(i)
            for i, n in zip(window, worst.units.shape, strict=True)
        )
        parts.append(
            Text(f"Entries [{shown}] of what it was given and gave; * is off by more than {LIMIT:g} units:")
        )
        if worst.what == "gradient":
            axis = worst.case.all_options["axis"] % len(window)
            labels = worst.case.labels[tuple(i for a, i in enumerate(window) if a != axis)]
            parts.append(
                _side_by_side({"labels": _grid(labels), "logits": _grid(worst.case.given_logits[window])})
            )
    off, most = worst.units[window] > LIMIT, worst.units[window] == worst.most
    answers = {name: _grid(getattr(worst, name)[window], off, most) for name in ("expected", "got")}
    return Group(*parts, _side_by_side(answers))


def _side_by_side(grids: Mapping[str, Text]) -> RenderableType:
    columns = [Group(Text(name, style="bold"), grid) for name, grid in grids.items()]
    return Columns(columns, padding=(0, 4))


def _around(worst: Worst) -> tuple[slice | int, ...]:
    """The neighbourhood of the worst entry in its image (and class)."""
    index: list[slice | int] = list(worst.index)
    if worst.what == "value":
        spatial = list(range(1, len(index)))
    else:
        axis = worst.case.all_options["axis"] % max(len(index), 1)
        spatial = [a for a in range(1, len(index)) if a != axis]
    for a, reach in zip(reversed(spatial), reversed(REACH), strict=False):
        i = worst.index[a]
        index[a] = slice(max(0, i - reach), i + reach + 1)
    return tuple(index)


def _diagnosis(told: Diagnosis) -> list[RenderableType]:
    """What is known of the mistake: the summary, and every known mistake that has these numbers."""
    summary = told.summary
    parts: list[RenderableType] = [Text("What the mistake is", style="italic"), Text(summary)]
    for found in told.findings:
        known = "" if found.sentence.rstrip(".") in summary else f"{found.sentence.rstrip('.')}. "
        agreement = f"Its numbers and yours agree to {number(found.agreement_units)} units."
        if math.isnan(found.agreement_units):  # seen in what it did
            agreement = ""
        if known or agreement:
            parts.append(Text(f"  {found.mistake}: {known}{agreement}"))
    return parts


def _failures(failed: list[Result]) -> Table:
    """The failing cases, the plainest first as the table of cases has them."""
    table = Table(title="Cases that differ", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for header in ("case", "dtype", "value", "gradient"):
        table.add_column(header, justify="right" if header in ("value", "gradient") else "left", no_wrap=True)
    table.add_column("its purpose, or what happened")
    told: set[str] = set()
    for result in failed[:SHOWN]:
        text = result.note or ("" if result.name in told else result.reason)
        told.add(result.name)
        errors = [
            Text(units(u), style="red" if u > LIMIT else "") for u in (result.value_units, result.grad_units)
        ]
        table.add_row(result.name, result.dtype, *errors, Text(text))
    if len(failed) > SHOWN:
        table.add_row(f"and {len(failed) - SHOWN} more", "", "", "", "(a case has a row for each precision)")
    table.caption = f"errors in units: an honest implementation stays below 1, beyond {LIMIT:g} is wrong"
    table.caption_justify = "left"
    return table


def _protocol(told: Report) -> list[str]:
    """One line a check that does not hold, and one for all those that do."""
    names = [name for name, outcome, _ in told.protocol if outcome in ("ok", "holds")]
    lines = [f"Ways to call it that hold: {', '.join(names)}."] if names else []
    for row in told.protocol:
        if row.outcome not in ("ok", "holds"):
            idle = "" if row.decides(told.strict) else " (it decides under --strict only)"
            if idle and (row.name, row.outcome) == (NEARLY_PERFECT, "differs"):
                idle = f"{idle[:-1]}: a textbook log-softmax loses tiny losses, see docs/numerics.md)"
            lines.append(f"{row.name}: {row.outcome}" + (f", {row.note}" if row.note else "") + idle + ".")
    if told.unchecked:
        lines.append(f"Ways to call it were not tried: {told.unchecked}.")
    return lines


def _grid(
    values: npt.NDArray[np.generic],
    off: npt.NDArray[np.bool_] | None = None,
    most: npt.NDArray[np.bool_] | None = None,
) -> Text:
    """A small array as lines of aligned numbers, those that are off marked, the worst one in bold."""
    text = Text(no_wrap=True)
    cells = [[number(float(v)) for v in row] for row in np.atleast_2d(values)]
    width = max((len(c) for row in cells for c in row), default=0)
    for i, row in enumerate(cells):
        for j, cell in enumerate(row):
            wrong = off is not None and bool(np.atleast_2d(off)[i, j])
            worst = wrong and most is not None and bool(np.atleast_2d(most)[i, j])
            text.append(cell.rjust(width), style="bold red" if worst else "red" if wrong else "")
            text.append("* " if wrong else "  ")
        text.append("\n")
    text.rstrip()
    return text


def number(v: float) -> str:
    """Three digits."""
    return f"{v:.3g}"


def units(v: float) -> str:
    """An error in units; beyond a million how far says nothing more."""
    return f"> {MANY:.0e}".replace("e+0", "e") if MANY < v < math.inf else number(v)


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} case{'s' * (len(names) > 1)} ({', '.join(names[:most])}{rest})"
