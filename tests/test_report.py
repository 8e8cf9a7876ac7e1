"""A report is read at 80 columns by people, and by machines: both find what was found."""

import dataclasses
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from lalref import oracle
from lalref.oracle.judge import LIMIT
from lalref.oracle.junit import junit
from lalref.oracle.mistakes import BY_ID, Textbook
from lalref.oracle.protocol import Row

textbook = Textbook()
centre_only = BY_ID["centre-only"].subject()

FOUND = SimpleNamespace(
    summary="Your backward reads the centre pixel only.",
    consistent=False,
    findings=[
        SimpleNamespace(
            mistake="centre-only", sentence="Only the centre gets gradient", agreement_units=0.75, share=1.0
        ),
        SimpleNamespace(mistake="not-quite", sentence="Nobody knows", agreement_units=math.inf, share=0.6),
    ],
)
PROTOCOL = [
    Row(*row)
    for row in [
        ("called twice", "ok", ""),
        ("reversed view", "differs", "value 3.5 off"),
        ("float16", "unsupported", ""),
    ]
]


@pytest.fixture(scope="module")
def wrong():
    """The report of a backward that reads the centre only."""
    return oracle.verify(centre_only, dtype="float64")


def at(width, report):
    """What a terminal of this width shows."""
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(report)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 132])
def test_no_header_and_no_number_is_cut_off(wrong, width):
    text = at(width, wrong)
    assert "…" not in text
    (header,) = [line for line in text.splitlines() if "dtype" in line]
    assert {"case", "dtype", "value", "gradient", "purpose,"} <= set(header.split())
    assert max(map(len, text.splitlines())) <= width


def test_the_picture_shows_what_was_given_expected_and_got_with_the_wrong_entries_marked(wrong):
    worst = wrong.worst
    text = str(wrong)
    picture = text[text.index("Worst:") :].split("\n\n")[0]
    assert [word for word in ("labels", "logits", "expected", "got") if word in picture] == [
        "labels",
        "logits",
        "expected",
        "got",
    ]
    n, c, i, j = worst.index
    window = (n, c, slice(max(0, i - 2), i + 3), slice(max(0, j - 1), j + 2))
    assert picture.count("* ") + picture.count("*\n") + picture.endswith("*") - 1 == 2 * np.sum(
        worst.units[window] > LIMIT
    )
    for array in (worst.case.logits[window], worst.expected[window], worst.got[window]):
        assert all(f"{v:.3g}" in picture for v in array.flat)


def test_one_wrong_case_is_one_and_several_are_several():
    def off(case_p):
        def f(logits, labels, **options):
            value, grad = textbook(logits, labels, **options)
            return value * (1.01 if options["p"] in case_p and options["stride"] == 1 else 1), grad

        return f

    one, several = (oracle.verify(off(p), dtype="float64", quick=True).reason for p in ([2.5], [2.5, 20.0]))
    assert re.fullmatch(r"1 of \d+ core cases is wrong", one)
    assert re.fullmatch(r"[2-9] of \d+ core cases are wrong", several)


def test_what_was_diagnosed_shrunk_and_tried_is_told_to_people_and_to_machines(wrong):
    full = dataclasses.replace(
        wrong, diagnosis=FOUND, shrunk=SimpleNamespace(code="import numpy as np\nx = 1"), protocol=PROTOCOL
    )
    text = at(80, full)
    for said in (
        "Your backward reads the centre pixel only.",
        "centre-only: Only the centre gets gradient. Its numbers and yours agree to",
        "\nimport numpy as np\nx = 1",
        "Ways to call it that hold: called twice.",
        "reversed view: differs, value 3.5 off.",
        "float16: unsupported.",
    ):
        assert said in text
    assert text.index("centre pixel only") < text.index("Cases that differ") < text.index("import numpy")
    found = json.loads(json.dumps(full.to_dict(), allow_nan=False))
    assert found["diagnosis"] == [
        {
            "mistake": "centre-only",
            "sentence": "Only the centre gets gradient",
            "agreement_units": 0.75,
            "share": 1.0,
        },
        {"mistake": "not-quite", "sentence": "Nobody knows", "agreement_units": None, "share": 0.6},
    ]
    assert found["summary"] == FOUND.summary
    assert found["consistent"] is False
    assert found["protocol"][1] == {"name": "reversed view", "outcome": "differs", "note": "value 3.5 off"}
    assert found["shrunk"] == "import numpy as np\nx = 1"
    assert {"verdict", "cases", "extended", "skipped", "versions"} <= set(found)


def test_what_was_not_looked_for_is_not_told(wrong):
    bare = dataclasses.replace(wrong, diagnosis=None, shrunk=None, protocol=(), unchecked="")
    text = at(80, bare)
    assert "What the mistake is" not in text
    assert "Ways to call it" not in text
    assert bare.to_dict()["diagnosis"] == []
    assert bare.to_dict()["shrunk"] is None


# ---- JUnit


def outcomes(suite):
    """The kind of each testcase by (class, name): what is in it, or "passed"."""
    found = {}
    for case in suite.iter("testcase"):
        children = [child.tag for child in case]
        assert len(children) <= 1
        assert set(children) <= {"failure", "error", "skipped"}
        assert all("message" in child.attrib for child in case)
        found[case.get("classname"), case.get("name")] = children[0] if children else "passed"
    return found


def parsed(report):
    suite = ET.fromstring(junit(report))
    assert [child.tag for child in suite][:2] == ["properties", "testcase"]
    found = outcomes(suite)
    assert int(suite.get("tests")) == len(found) == len(suite.findall("testcase")), "each name once"
    for kind, plural in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        assert int(suite.get(plural)) == sum(each == kind for each in found.values())
    assert float(suite.get("time")) > 0
    return suite, found


def test_junit_has_one_testcase_a_case_and_fails_what_decides(wrong):
    _, found = parsed(dataclasses.replace(wrong, protocol=PROTOCOL))
    for result in wrong.results:
        kind = "extended" if result.feature else "core"
        expected = "passed" if result.outcome == "holds" else "skipped" if result.feature else "failure"
        assert found[f"lalref.{kind}", f"{result.name}[float64]"] == expected
    assert found["lalref", "verdict"] == "failure"
    assert found["lalref.protocol", "called twice"] == "passed"
    assert found["lalref.protocol", "reversed view"] == "failure"
    assert found["lalref.protocol", "float16"] == "skipped"


def test_junit_of_a_right_port_that_lacks_options_names_what_was_not_asked():
    def f(logits, labels, *, sigma=1.0):
        return textbook(logits, labels, sigma=sigma)

    suite, found = parsed(oracle.verify(f))
    assert "failure" not in found.values()
    assert found["lalref", "verdict"] == "passed"
    assert found["lalref.skipped", "stride-2"] == "skipped"
    (both,) = [c for c in suite.iter("testcase") if c.get("name") == "weights-and-sum"]
    assert "pixel_weight" in both[0].get("message")
    assert "class_weight" in both[0].get("message")


def test_too_little_to_judge_by_is_an_error_in_junit_and_strange_characters_are_no_harm():
    def f(logits, labels):
        raise ValueError("\x1b[31m<&> \x00 é \ud800")

    report = oracle.verify(f, fixed={"class_weight": (2.0,) * 99})
    suite, found = parsed(report)
    assert report.verdict == "inconclusive"
    assert found["lalref", "verdict"] == "error"
    assert "only" in suite.find("testcase/error").get("message")
    suite, found = parsed(oracle.verify(f, quick=True))
    assert found["lalref", "verdict"] == "failure"
    assert "raised ValueError: [31m<&>  é" in suite.findall("testcase/failure")[1].get("message")


def test_a_sentence_is_told_once_and_code_is_never_cut_off(wrong):
    code = f"x = [{', '.join(['0.125'] * 60)}]"
    same = FOUND.findings[0]
    told = SimpleNamespace(summary=f"{same.sentence}.", findings=[same])
    text = str(dataclasses.replace(wrong, diagnosis=told, shrunk=SimpleNamespace(code=code)))
    assert text.count(same.sentence) == 1
    assert "centre-only: Its numbers and yours agree to 0.75 units." in text
    assert f"\n{code}\n" in text


def test_a_real_mistake_is_named_with_code_that_shows_it():
    report = oracle.verify(centre_only, dtype="float64", shrink=True)
    (found,) = report.to_dict()["diagnosis"]
    text = str(report)
    assert found["mistake"] == "centre-only"
    assert found["agreement_units"] <= 1
    assert text.count(found["sentence"].rstrip(".")) == 1
    assert report.shrunk.code.rstrip() in text
