"""A report as JUnit XML, which CI servers show as a table of tests.

One testcase for each case in each dtype, each way of calling, and the verdict, so that a run with too little to
judge by is no green run. What does not decide is "skipped" with the reason, never a failure.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from lalref.oracle import render
from lalref.oracle.report import Report
from lalref.oracle.result import Result

NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(report: Report) -> str:
    """The XML of one testsuite, with declaration.

    Parameters
    ----------
    report : Report

    Returns
    -------
    str
        As Jenkins, GitLab and GitHub's test reporters read it.
    """
    suite = ET.Element("testsuite", name=f"lalref verify {_text(report.subject)}")
    properties = ET.SubElement(suite, "properties")
    for name, version in report.versions().items():
        ET.SubElement(properties, "property", name=name, value=_text(version))
    _verdict(suite, report)
    for result in report.results:
        _case(suite, report, result)
    without: dict[str, list[str]] = {}
    for option, names in report.skipped.items():
        for name in names:
            without.setdefault(name, []).append(option)
    for name, options in without.items():
        case = ET.SubElement(suite, "testcase", classname="lalref.skipped", name=name)
        ET.SubElement(case, "skipped", message=f"it does not take {', '.join(options)}")
    for row in report.protocol:
        case = ET.SubElement(suite, "testcase", classname="lalref.protocol", name=row.name)
        if row.outcome == "differs" and row.decides(report.strict):
            ET.SubElement(case, "failure", message=_text(row.note))
        elif row.outcome not in ("ok", "holds"):
            ET.SubElement(case, "skipped", message=_text(f"{row.outcome}: {row.note}"))
    if report.unchecked:
        case = ET.SubElement(suite, "testcase", classname="lalref.protocol", name="ways to call it")
        ET.SubElement(case, "skipped", message=_text(report.unchecked))
    for kind, plural in (
        ("testcase", "tests"),
        ("failure", "failures"),
        ("error", "errors"),
        ("skipped", "skipped"),
    ):
        suite.set(plural, str(len(list(suite.iter(kind)))))
    suite.set("time", f"{report.seconds:.3f}")
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def _verdict(suite: ET.Element, report: Report) -> None:
    """The testcase that fails unless the verdict is "right", with the report as people read it."""
    case = ET.SubElement(suite, "testcase", classname="lalref", name="verdict")
    if report.verdict == "wrong":
        ET.SubElement(case, "failure", message=_text(report.reason)).text = _text(render.plain(report))
    elif report.verdict == "inconclusive":
        ET.SubElement(case, "error", message=_text(report.reason)).text = _text(render.plain(report))


def _case(suite: ET.Element, report: Report, result: Result) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=f"lalref.{'extended' if result.feature else 'core'}",
        name=f"{result.name}[{result.dtype}]",
    )
    if result.outcome == "holds":
        return
    found = result.note or f"value off by {result.value_units:.3g} units, gradient by {result.grad_units:.3g}"
    if result.decides(report.strict):
        ET.SubElement(case, "failure", message=_text(found)).text = _text(f"{result.reason}\n{found}")
    else:
        told = f"{result.feature} {result.outcome}: {found}; does not decide without --strict"
        ET.SubElement(case, "skipped", message=_text(told))


def _text(text: str) -> str:
    """Without the characters that no XML may hold, as terminals' colours."""
    return NOT_IN_XML.sub("", text)
