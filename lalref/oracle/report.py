"""What a verdict is made of, and the same as a dict for machines.

Nothing is decided or measured here, and no word is chosen for people: that is `render`.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lalref.oracle import golden
from lalref.oracle.result import Result, Worst

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lalref.oracle.diagnose import Diagnosis
    from lalref.oracle.protocol import Row
    from lalref.oracle.shrink import Shrunk

SCHEMA = 1
EXIT_CODES = {"right": 0, "wrong": 1, "inconclusive": 3}


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
        The worst numbers of a deciding answer: where some are wrong, that of the plainest case.
    subject, framework, framework_version : str
        Who was judged.
    dtypes, fixed, quick, strict
        How: as `lalref.oracle.verify` was told.
    seconds : float
        That it took.
    diagnosis : Diagnosis or None
        Which known mistakes have these numbers: `findings`, each with `mistake`, `sentence` and
        `agreement_units`, `share`, a `summary`, and `consistent`: whether the gradient is that of the
        subject's own loss, where none of them has.
    shrunk : Shrunk or None
        The smallest input that still fails, as `code` to paste.
    protocol : sequence of Row, (name, outcome, note)
        Checks of how it behaves: called twice, on views, on large inputs. Outcome as in `Result`.
    unchecked : str
        Why these checks were not made; empty where they were.
    not_varied : sequence of str
        What the subject takes, and no case that decides had at another value than the default.
    left : mapping
        Parameter of the subject that is no option of the loss and was left at its default -> the option that
        its name is near to, or "".
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
    diagnosis: Diagnosis | None = None
    shrunk: Shrunk | None = None
    protocol: Sequence[Row] = ()
    unchecked: str = ""
    not_varied: Sequence[str] = ()
    left: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 right, 1 wrong, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    @property
    def units(self) -> float:
        """The largest error of a deciding answer; inf where one raised."""
        return max((r.units for r in self.results if r.decides(self.strict)), default=0.0)

    def extended(self) -> dict[str, str]:
        """What came of the extended features.

        Returns
        -------
        dict of str to {"holds", "differs", "unsupported"}
            For each feature the worst of its cases.
        """
        found: dict[str, str] = {}
        rank = ("holds", "unsupported", "differs")
        for result in self.results:
            if result.feature:
                before = found.get(result.feature, "holds")
                found[result.feature] = max(before, result.outcome, key=rank.index)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything that JSON can hold, as `lalref verify --json` writes it.

        Returns
        -------
        dict
            Of strings, numbers, lists and dicts; units that are not finite are None.

        Examples
        --------
        >>> import json
        >>> import lalref
        >>> from lalref.oracle import verify
        >>> report = verify(lalref.lal_value_and_grad, dtype="float64", quick=True)
        >>> json.loads(json.dumps(report.to_dict()))["verdict"]
        'right'
        """

        def row(result: Result) -> dict[str, Any]:
            fields = dataclasses.asdict(result)
            for key in ("value_units", "grad_units"):
                fields[key] = fields[key] if math.isfinite(fields[key]) else None
            return fields

        return {
            "schema": SCHEMA,
            "verdict": self.verdict,
            "reason": self.reason,
            "diagnosis": self.findings(),
            "summary": self.diagnosis.summary if self.diagnosis else "",
            "consistent": self.diagnosis.consistent if self.diagnosis else None,
            "subject": self.subject,
            "framework": self.framework,
            "dtypes": list(self.dtypes),
            "fixed": {k: v if _in_json(v) else repr(v) for k, v in self.fixed.items()},
            "quick": self.quick,
            "not_varied": list(self.not_varied),
            "left_at_default": dict(self.left),
            "strict": self.strict,
            "cases": [row(r) for r in self.results if not r.feature],
            "extended": {
                feature: {"outcome": outcome, "cases": [row(r) for r in self.results if r.feature == feature]}
                for feature, outcome in self.extended().items()
            },
            "skipped": {**self.skipped, **({"protocol": [self.unchecked]} if self.unchecked else {})},
            "protocol": [row._asdict() for row in self.protocol],
            "shrunk": self.shrunk.code if self.shrunk else None,
            "versions": self.versions(),
            "seconds": round(self.seconds, 3),
        }

    def findings(self) -> list[dict[str, Any]]:
        """The diagnosis for machines: known mistakes that have these numbers, the likeliest first.

        Returns
        -------
        list of dict
            Each with ``mistake``, ``sentence``, ``agreement_units`` and ``share``, as a `Finding` has them.
        """
        return [
            {
                "mistake": found.mistake,
                "sentence": found.sentence,
                "agreement_units": found.agreement_units if math.isfinite(found.agreement_units) else None,
                "share": found.share,
            }
            for found in (self.diagnosis.findings if self.diagnosis else ())
        ]

    def versions(self) -> dict[str, str]:
        """Of everything that could matter to who reads the report later.

        Returns
        -------
        dict of str to str
            Of lalref, the golden values, Python, NumPy and the subject's framework.
        """
        try:
            own = importlib.metadata.version("lalref")
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            own = "unknown"
        return {
            "lalref": own,
            "golden": str(golden.version()),
            "python": platform.python_version(),
            "numpy": np.__version__,
            self.framework: self.framework_version,
        }

    def __str__(self) -> str:
        """The report as plain text."""
        from lalref.oracle import render

        return render.plain(self)

    def __rich__(self) -> RenderableType:
        """The report for a terminal."""
        from lalref.oracle import render

        return render.report(self)


def _in_json(v: Any) -> bool:
    return isinstance(v, int | str | None) or (isinstance(v, float) and math.isfinite(v))
