"""What a verdict's report holds and shows, from `verify` itself."""

import json
import math

import numpy as np

from lalref import oracle
from lalref.oracle import golden
from lalref.oracle.cases import BY_NAME
from lalref.oracle.mistakes import BY_ID, Textbook

textbook = Textbook()


def test_the_report_as_json_is_whole():
    mistake = BY_ID["centre-only"].form
    found = json.loads(
        json.dumps(oracle.verify(mistake(), quick=True, strict=True).to_dict(), allow_nan=False)
    )
    assert found["verdict"] == "wrong"
    assert isinstance(found["diagnosis"], list)
    assert {"cases", "extended", "skipped", "versions"} <= set(found)
    assert {"lalref", "golden", "python", "numpy"} <= set(found["versions"])
    case = next(c for c in found["cases"] if c["name"] == "plain")
    assert case["outcome"] == "differs"
    assert case["value_units"] <= 1
    assert case["grad_units"] >= 30
    assert found["extended"]["tiny losses"]["cases"]


def test_the_report_as_json_holds_what_was_fixed():
    report = oracle.verify(textbook_of_two, fixed={"sigma": 1.5, "p": math.inf, "kernel_size": 3}, quick=True)
    assert json.loads(json.dumps(report.to_dict()))["fixed"] == {"sigma": 1.5, "p": "inf", "kernel_size": 3}


def textbook_of_two(logits, labels):
    """It takes no option."""
    return textbook(logits, labels)


def test_the_report_shows_the_verdict_the_worst_case_and_its_numbers():
    mistake = BY_ID["centre-only"].form
    report = oracle.verify(mistake(), quick=True)
    text = str(report)
    worst = report.worst
    assert text.startswith("CentreOnly: wrong")
    assert f"gradient at {worst.index} of the case {worst.case.name} in {worst.dtype}" in text
    right = golden.load()[worst.case.name]
    assert f"{right.grad[0][worst.index]:.3g}*" in text
    assert f"{worst.got[worst.index]:.3g}*" in text
    assert (f"{worst.most:.3g} units off" if worst.most <= 1e6 else "> 1e6 units off") in text
    assert max(len(line) for line in text.splitlines()) <= 110


def test_the_worst_value_of_a_map_and_of_channels_last_are_shown_too():
    def wrong_map(logits, labels, *, reduction="mean", **options):
        value, grad = textbook(logits, labels, reduction=reduction, **options)
        return value + (reduction == "none"), grad

    assert "Worst: value at (" in str(oracle.verify(wrong_map, dtype="float64"))

    def wrong_last(logits, labels, *, axis=1, **options):
        value, grad = textbook(logits, labels, axis=axis, **options)
        return value, grad * (1.5 if axis == -1 else 1)

    text = str(oracle.verify(wrong_last, dtype="float64"))
    assert "of the case channels-last" in text or "of the case probabilities-weights" in text


def test_the_report_names_skipped_cases():
    def f(logits, labels, *, sigma=1.0, p=5.0, kernel_size=5):
        return textbook(logits, labels, sigma=sigma, p=p, kernel_size=kernel_size)

    text = str(oracle.verify(f))
    assert "empty: 2 cases (all-weightless, empty-nan)" in text
    assert "right" in text.splitlines()[0]


def test_an_error_that_is_no_number_is_null_in_json():
    def f(logits, labels, **options):
        if np.array_equal(logits, BY_NAME["plain"].logits):
            raise NotImplementedError("not this one")
        return textbook(logits, labels, **options)

    report = oracle.verify(f, dtype="float64")
    assert math.isinf(report.units)
    row = next(c for c in report.to_dict()["cases"] if c["name"] == "plain")
    assert row["value_units"] is None
    assert row["note"].startswith("raised NotImplementedError")
    assert row["reason"] == BY_NAME["plain"].reason


def test_the_picture_is_of_the_plainest_wrong_case_and_large_units_are_rounded():
    def twice(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return value, 2 * grad

    report = oracle.verify(twice, quick=True)
    case = report.worst.case
    assert not case.asks_for()
    assert abs(case.logits).max() <= 100
    assert 1e-6 <= abs(report.worst.expected).max() <= 1e6
    report = oracle.verify(twice, dtype="float64", quick=True)
    assert report.worst.most > 1e6
    assert " > 1e6 units off" in str(report)
    assert "e+" not in str(report).split("Worst")[0]


def test_a_right_port_that_loses_tiny_losses_is_told_why():
    text = " ".join(str(oracle.verify(textbook, dtype="float64")).split())
    assert (
        "(it decides under --strict only: a textbook log-softmax loses tiny losses, see docs/numerics.md)"
        in text
    )
