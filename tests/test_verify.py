"""The verdict: right for what is right, wrong for every deliberate mistake, and clear about the rest."""

import numpy as np
import pytest

import lalref
from lalref import oracle
from lalref.oracle.case import OPTIONS
from lalref.oracle.cases import CASES
from lalref.oracle.mistakes import Textbook

textbook = Textbook()
BOTH = pytest.mark.parametrize("dtype", ["float32", "float64"])


# ---- right and wrong


def test_the_textbook_is_right_within_one_unit():
    report = oracle.verify(textbook)
    assert (report.verdict, report.exit_code) == ("right", 0)
    assert report.units <= 1
    assert not report.skipped


def test_lalref_itself_is_right_in_every_extended_feature_too():
    report = oracle.verify(lalref.lal_value_and_grad, strict=True)
    assert report.verdict == "right", str(report)
    assert set(report.extended().values()) == {"holds"}


@BOTH
def test_nan_and_wrong_signs_are_wrong(dtype):
    def nan(logits, labels, **options):
        return np.nan, textbook(logits, labels, **options)[1]

    def negated(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return value, -grad

    def zero(logits, labels, **options):
        return textbook(logits, labels, **options)[0], np.zeros_like(logits)

    for f in (nan, negated, zero):
        assert oracle.verify(f, dtype=dtype, quick=True).verdict == "wrong"


def test_float32_inside_a_float64_answer_is_wrong():
    def narrow(logits, labels, **options):
        value, grad = textbook(logits.astype(np.float32), labels, **options)
        return value, grad.astype(logits.dtype)

    assert oracle.verify(narrow, dtype="float32").verdict == "right"
    assert oracle.verify(narrow, dtype="float64").verdict == "wrong"


# ---- what decides


def raising_on(feature_or_name):
    """A subject that raises on one feature, or one case."""
    marked = [c for c in CASES if feature_or_name in (c.feature, c.name)]

    def f(logits, labels, **options):
        for case in marked:
            if np.array_equal(case.given_logits, logits) and np.array_equal(case.labels, labels):
                raise NotImplementedError("no such thing\nand more lines")
        return textbook(logits, labels, **options)

    return f


def test_raising_on_a_core_case_is_wrong():
    report = oracle.verify(raising_on("void-borders"))
    failed = [r for r in report.results if r.outcome == "differs" and not r.feature]
    assert report.verdict == "wrong"
    assert {r.name for r in failed} == {"void-borders"}
    assert failed[0].note == "raised NotImplementedError: no such thing"
    assert report.reason == "1 of 62 core cases is wrong; it raised"


def test_a_subject_that_always_raises_is_asked_about_its_framework():
    def f(logits, labels):
        return labels.long()

    report = oracle.verify(f)
    assert report.verdict == "wrong"
    assert report.reason == (
        "every case raised; first: AttributeError: 'numpy.ndarray' object has no attribute 'long'; "
        "is --framework numpy what it was written for?"
    )
    assert "written for?\n" in str(report)

    def g(logits, labels, **options):
        return f(logits, labels, **options)

    assert "; it accepts **options, so all of them were passed; " in oracle.verify(g, quick=True).reason


def test_raising_on_an_extended_feature_is_reported_and_decides_only_under_strict():
    f = raising_on("1 spatial axis")
    report = oracle.verify(f)
    assert report.verdict == "right"
    assert report.extended()["1 spatial axis"] == "unsupported"
    assert report.extended()["3 spatial axes"] == "holds"
    assert oracle.verify(f, strict=True).verdict == "wrong"


def test_what_lies_beyond_the_textbook_is_told_apart():
    extended = oracle.verify(textbook).extended()
    assert extended["tiny losses"] == "differs"
    assert extended["float16"] == extended["uint8 labels"] == extended["p=inf"] == "holds"


def test_a_dtype_asked_for_decides_alone():
    report = oracle.verify(textbook, dtype="bfloat16")
    assert report.verdict == "right"
    assert {r.dtype for r in report.results} == {"bfloat16"}


def test_accumulating_in_16_bit_differs():
    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return value.astype(logits.dtype) if logits.dtype == np.float16 else value, grad

    assert oracle.verify(f).extended()["float16"] == "differs"


def test_a_quick_run_is_a_selection_of_the_core():
    report = oracle.verify(textbook, quick=True)
    assert report.verdict == "right"
    assert {r.name for r in report.results} == {c.name for c in CASES if c.quick}
    assert not report.extended()
    assert oracle.verify(textbook, quick=True, strict=True).extended()["tiny losses"] == "differs"


@pytest.mark.parametrize("option", OPTIONS)
def test_a_quick_run_refuses_what_takes_an_option_and_ignores_it(option):
    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options | {option: OPTIONS[option]})
        return value, grad

    report = oracle.verify(f, quick=True, dtype="float64")
    assert report.verdict == "wrong"
    assert not report.not_varied


def test_a_quick_report_says_that_it_is_one_and_what_it_did_not_vary(monkeypatch):
    import sys

    from lalref.oracle.cases import BY_NAME

    def f(logits, labels, *, kernel_size=5, stride=1, p=5.0):
        return textbook(logits, labels, kernel_size=kernel_size, stride=stride, p=p)

    report = oracle.verify(f, quick=True, dtype="float64")
    assert str(report).startswith("f: right, as far as --quick asks\n")
    assert "Not varied" not in str(report)
    assert (report.to_dict()["quick"], report.to_dict()["not_varied"]) == (True, [])
    few = [c for c in CASES if c.quick and not c.asks_for()]
    monkeypatch.setattr(sys.modules["lalref.oracle.verify"], "CASES", [*few, BY_NAME["p-2"]])
    report = oracle.verify(f, quick=True, dtype="float64")
    assert "Not varied, though it takes them: kernel_size, stride." in str(report)
    assert report.to_dict()["not_varied"] == ["kernel_size", "stride"]
    assert str(oracle.verify(f, dtype="float64")).startswith("f: right\n")  # a full run of the same cases


def test_a_subject_that_raises_on_void_labels_alone_is_asked_which_label_it_ignores():
    def f(logits, labels, *, extra=0.0):
        if labels.max() >= logits.shape[1]:
            raise IndexError(f"Target {labels.max()} is out of bounds")
        value, grad = textbook(logits, labels)
        return value, grad + extra

    text = " ".join(str(oracle.verify(f, quick=True, dtype="float64")).split())
    assert "What the mistake is It raises only where labels are 255, which is to be ignored. " in text
    assert "--fixed ignore_index=-100" in text
    found = oracle.verify(lambda x, y: f(x, y, extra=1.0), quick=True, dtype="float64").diagnosis.summary
    assert found.startswith("It raises only where labels are 255")
    assert len(found) > 200  # and what is wrong beside it


def test_there_is_no_heading_without_a_word_under_it():
    def f(logits, labels):
        if labels[0, 0, 0] == 1:
            raise ValueError("not this one")
        return textbook(logits, labels)

    report = oracle.verify(f, quick=True, dtype="float64")
    assert (report.verdict, report.diagnosis) == ("wrong", None)
    assert "What the mistake is" not in str(report)
