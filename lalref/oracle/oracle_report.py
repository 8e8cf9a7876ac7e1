"""The published kill matrix: which mistake is seen in which case, and by whom else.

Writes docs/oracle-report.md and its picture from a live run. Gradient checkers of other libraries are run
beside, at their defaults, where they are installed. No number is written here that was not measured here.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lalref.oracle.case import Case
from lalref.oracle.cases import BY_NAME
from lalref.oracle.judge import LIMIT
from lalref.oracle.matrix import CORE, units_by_case
from lalref.oracle.mistakes import CATALOGUE, EQUIVALENT, Mistake
from lalref.oracle.mistakes.entry import STAGE_OF
from lalref.oracle.peers import PEERS, Peer
from lalref.oracle.verify import verify

WEAKEST = 30.0  # units that every mistake is to reach in its best case
DTYPES = ("float32", "float64")
Row = Mapping[str, Mapping[str, float]]  # dtype -> case -> units


@dataclasses.dataclass(frozen=True)
class Written:
    """Where the page is, and what the oracle let pass: ``missed`` is empty as long as it holds its promise."""

    page: Path
    missed: list[str]


def write(folder: Path, progress: Callable[[Iterable[Any]], Iterable[Any]] = iter) -> Written:
    """Run everything; write ``oracle-report.md``, the same as ``.json``, and a picture in ``images`` into `folder`.

    Parameters
    ----------
    folder : path
    progress : callable, optional
        Wraps the mistakes on their way, as `rich.progress.track` does.

    Returns
    -------
    Written
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    peers = [peer for peer in PEERS if peer.installed()]
    rows: dict[str, Row] = {}
    refused: set[str] = set()
    seen: dict[str, dict[str, bool]] = {}
    for mistake in progress(CATALOGUE):
        rows[mistake.id] = {dtype: units_by_case(mistake.subject(), dtype) for dtype in DTYPES}
        by_cases = best(rows[mistake.id]["float64"]) > LIMIT
        if by_cases or verify(mistake.subject(), dtype="float64").verdict == "wrong":
            refused.add(mistake.id)
        case = BY_NAME["plain"] if mistake.stage == "state" else telling(rows[mistake.id]["float64"])
        if case is not None:
            seen[mistake.id] = {peer.name: peer.finds(mistake.subject(), case) for peer in peers}
    picture(rows, folder / "images" / "oracle-report.png")
    page = folder / "oracle-report.md"
    page.write_text(text(rows, refused, seen, peers), encoding="utf-8")
    page.with_suffix(".json").write_text(_lines(numbers(rows, refused, seen, peers)), encoding="utf-8")
    return Written(page, missed(rows, refused))


def missed(rows: Mapping[str, Row], refused: set[str]) -> list[str]:
    """Mistakes that are not refused, or by fewer than `WEAKEST` units in the case that shows them best."""
    found = [f"{m.id}: not refused" for m in CATALOGUE if m.id not in refused]
    for m in (m for m in CATALOGUE if m.stage != "state"):
        for dtype in (d for d in DTYPES if d in m.dtypes):
            if not (most := best(rows[m.id][dtype])) >= WEAKEST:
                found.append(f"{m.id}: {shown(most)} units in {dtype}, at least {WEAKEST:g} are promised")
    return found


def numbers(
    rows: Mapping[str, Row], refused: set[str], seen: Mapping[str, Mapping[str, bool]], peers: Sequence[Peer]
) -> dict[str, Any]:
    """The page and all cells of the matrix for machines; units that are not finite are None."""

    def finite(units: float, digits: int = 4) -> float | None:
        return float(f"{units:.{digits}g}") if math.isfinite(units) else None

    return {
        "limit": LIMIT,
        "core_cases": [case.name for case in CORE],
        "versions": {peer.name: peer.version() for peer in peers},
        "mistakes": {
            m.id: {
                "stage": m.stage,
                "forms": 1 + len(m.variants),
                "refused": m.id in refused,
                "best": {
                    dtype: finite(best(rows[m.id][dtype]))
                    for dtype in (() if m.stage == "state" else DTYPES)
                    if dtype in m.dtypes
                },
                "units": {
                    dtype: {case: finite(round(units, 2), 3) for case, units in row.items()}
                    for dtype, row in rows[m.id].items()
                },
                "seen_by": seen.get(m.id),
            }
            for m in CATALOGUE
        },
    }


def _lines(found: Mapping[str, Any]) -> str:
    """As JSON, with a line for each mistake: a change of one is a change of one line."""
    whole = json.dumps({**found, "mistakes": {}}, indent=1)
    rows = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(m, separators=(',', ':'))}"
        for name, m in found["mistakes"].items()
    )
    return whole.replace('"mistakes": {}', f'"mistakes": {{\n{rows}\n }}') + "\n"


def telling(units: Mapping[str, float]) -> Case | None:
    """The smallest core case of a scalar value on which lalref refuses: a mean hides least there. None if none."""
    fit = [BY_NAME[name] for name, u in units.items() if WEAKEST <= u < math.inf]
    fit = [c for c in fit if c.all_options["reduction"] != "none" and abs(c.logits).max() < 100]
    return min(fit, key=lambda case: case.logits.size, default=None)


def best(row: Mapping[str, float]) -> float:
    """Units in the case that shows it best."""
    return max(row.values())


def text(
    rows: Mapping[str, Row], refused: set[str], seen: Mapping[str, Mapping[str, bool]], peers: Sequence[Peer]
) -> str:
    """The page."""
    counted = [m for m in CATALOGUE if m.stage != "state"]
    weakest = min(
        (best(rows[m.id][dtype]), m.id, dtype) for m in counted for dtype in DTYPES if dtype in m.dtypes
    )
    killed = {
        dtype: sum(best(rows[m.id][dtype]) > LIMIT for m in counted if dtype in m.dtypes) for dtype in DTYPES
    }
    of = {dtype: sum(dtype in m.dtypes for m in counted) for dtype in DTYPES}
    heads = ["mistake", "float32", "float64", "cases", *(peer.name for peer in peers)]
    lines = [
        "# The kill matrix",
        "",
        "Which mistakes the oracle sees, in which cases, and which of them gradient checkers see. Written by",
        "`lalref oracle report`, which runs everything anew and fails where a mistake is let pass. The numbers, with",
        "the units of every mistake in every case, are in `oracle-report.json`, too.",
        "",
        f"- The catalogue has **{len(CATALOGUE)}** single mistakes, each a small change of one piece of a textbook",
        f"  implementation, and {len(EQUIVALENT)} changes that provably change nothing. Of the mistakes",
        f"  {sum(len(m.variants) for m in CATALOGUE)} more forms are known, for people differ.",
        *(
            f"- {dtype}: **{killed[dtype]} of {of[dtype]}** are refused by the {len(CORE)} core cases "
            f"(an error beyond {LIMIT:g} units)."
            for dtype in DTYPES
        ),
        f"- The weakest is *{weakest[1]}* in {weakest[2]}: {shown(weakest[0])} units in the case that shows it best.",
        f"- The {len(CATALOGUE) - len(counted)} mistakes of memory (state) are not in these figures: they are seen by "
        "the checks of how a",
        "  subject behaves from call to call, or by what it writes to.",
        "",
        "![Mistakes by cases, in float32 and float64: units of error on a logarithmic scale](images/oracle-report.png)",
        "",
        "## Beside gradient checkers",
        "",
        "A gradient checker compares a gradient with differences of the same program's loss. A wrong loss with",
        "the gradient that belongs to it passes. Each checker is run at its defaults, in float64, on the smallest",
        "core case on which lalref refuses the mistake by finite numbers; its upstream gradient is the program's own",
        "business. Mistakes that show in no such case with a single number (only in a map, or by overflow) are not put",
        "to the checkers; those of memory (state) are put to them on the case *plain*.",
        "",
        *_table(
            ["stage", "lalref", *(f"{peer.name} {peer.version()}" for peer in peers)],
            [
                [
                    f"{stage} ({len(group)})",
                    str(sum(m.id in refused for m in group)),
                    *(_seen_by(peer, group, seen) for peer in peers),
                ]
                for stage, group in _by_stage().items()
            ],
        ),
        "",
        "What no core case shows is put to a whole `lalref verify`, with its checks of behaviour.",
        "",
        *(f"- {peer.name} {peer.version()}: {peer.how}" for peer in peers),
        "",
        "## The catalogue",
        "",
        "Units in the case that shows a mistake best (∞: not a number, or not finite), how many of the core cases",
        "show it in float64, and whether a checker sees it.",
    ]
    for stage, group in _by_stage().items():
        lines += ["", f"### {stage}", ""]
        lines += _table(heads, [_row(m, rows[m.id], seen.get(m.id), peers) for m in group])
    lines += ["", "## What they are", ""]
    for mistake in CATALOGUE:
        source = f" Seen in [{mistake.source}]({_link(mistake.source)})." if mistake.source else ""
        also = "; ".join(f"`{variant.formula}`" for variant in mistake.variants)
        also = f" Also known: {also}." if also else ""
        lines.append(
            f"- **{mistake.id}** (`{mistake.formula}`): {mistake.sentence} {mistake.why}{source}{also}"
        )
    lines += ["", "## What changes nothing", ""]
    lines += [f"- **{e.id}**: {e.change} {e.proof}" for e in EQUIVALENT]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "scipy"))
    return "\n".join([*lines, "", f"Measured with {versions}.", ""])


def _seen_by(peer: Peer, group: Sequence[Mistake], seen: Mapping[str, Mapping[str, bool]]) -> str:
    """How many a checker sees of those it was asked about."""
    asked = [seen[m.id][peer.name] for m in group if m.id in seen]
    return f"{sum(asked)} of {len(asked)}"


def _by_stage() -> dict[str, list[Mistake]]:
    return {stage: [m for m in CATALOGUE if m.stage == stage] for stage in dict.fromkeys(STAGE_OF.values())}


def _row(mistake: Mistake, row: Row, seen: Mapping[str, bool] | None, peers: Sequence[Peer]) -> list[str]:
    units = [shown(best(row[d])) if d in mistake.dtypes else "no mistake" for d in DTYPES]
    cases = sum(u > LIMIT for u in row["float64"].values())
    return [
        mistake.id,
        *units,
        str(cases),
        *("not asked" if seen is None else "yes" if seen[peer.name] else "no" for peer in peers),
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows)]


def _link(source: str) -> str:
    repository, number = source.split("#")
    return f"https://github.com/{repository}/issues/{number}"


def shown(units: float) -> str:
    """A number of units in a table."""
    return "∞" if math.isinf(units) else f"{units:.3g}" if units < 1e6 else f"{units:.0e}"


def picture(rows: Mapping[str, Row], file: Path) -> None:
    """Mistakes by cases, coloured by units, once for each dtype."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    mistakes = [m for m in CATALOGUE if m.stage != "state"]
    stages = [m.stage for m in mistakes]
    figure, sides = plt.subplots(1, len(DTYPES), figsize=(23, 24), sharey=True, layout="constrained")
    for axes, dtype in zip(sides, DTYPES, strict=True):
        units = np.array([[rows[m.id][dtype][case.name] for case in CORE] for m in mistakes])
        shades = np.clip(np.nan_to_num(units, posinf=1e16), 1e-1, 1e16)
        image = axes.imshow(
            shades, norm=LogNorm(1e-1, 1e16), cmap="magma", aspect="auto", interpolation="nearest"
        )
        axes.set_title(dtype)
        axes.set_xticks(range(len(CORE)), [case.name for case in CORE], rotation=90, fontsize=7)
        axes.set_yticks(range(len(mistakes)), [m.id for m in mistakes], fontsize=7)
        for row in (i for i in range(1, len(stages)) if stages[i] != stages[i - 1]):
            axes.axhline(row - 0.5, color="white", linewidth=1)
    bar = figure.colorbar(image, ax=sides, location="top", shrink=0.6, aspect=50, pad=0.005)
    bar.set_label(f"error in units (beyond {LIMIT:g} is wrong)")
    bar.ax.axvline(LIMIT, color="white")
    figure.savefig(file, dpi=80, metadata={"Software": None})
    plt.close(figure)
