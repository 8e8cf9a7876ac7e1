"""Options that a subject has, lacks, or has built in: which cases are put to it, and how."""

import math
import sys

import numpy as np
import pytest

from lalref import oracle
from lalref.oracle import protocol
from lalref.oracle.case import ARGUMENTS
from lalref.oracle.cases import BY_NAME, CASES
from lalref.oracle.mistakes import BY_ID, Textbook

textbook = Textbook()


def test_a_subject_without_options_gets_the_cases_at_their_defaults():
    def f(logits, labels):
        return textbook(logits, labels)

    report = oracle.verify(f)
    assert report.verdict == "right"
    assert {r.name for r in report.results if not r.feature} == {
        c.name for c in CASES if c.core and not c.asks_for()
    }
    assert set(report.skipped) == set(ARGUMENTS)
    assert report.skipped["empty"] == ["all-weightless", "empty-nan"]
    assert "stride-2" in report.skipped["stride"]


def test_options_are_read_from_the_signature_and_passed_explicitly():
    seen = []

    def f(logits, labels, *, sigma, p=7.0):
        seen.append((sigma, p))
        return textbook(logits, labels, sigma=sigma, p=p)

    report = oracle.verify(f, quick=True)
    assert report.verdict == "right"
    assert {p for _, p in seen} == {1.0, 2.0, 2.5, 5.0, 20.0, 100.0}
    assert {sigma for sigma, _ in seen} == {0.5, 1.0, 3.0}
    assert not {"sigma", "p"} & set(report.skipped)


def test_core_cases_are_refitted_to_what_a_subject_has_built_in(monkeypatch):
    def f(logits, labels, *, normalize="weights", reduction="mean"):
        built_in = {"sigma": 1.4, "kernel_size": 3, "ignore_index": -100, "axis": -1}
        return textbook(logits, labels, normalize=normalize, reduction=reduction, **built_in)

    plain = [c for c in CASES if c.quick and not c.asks_for()]
    few = [*plain, BY_NAME["count"], BY_NAME["ignore-class-0"]]  # truth works each of them out anew
    monkeypatch.setattr(sys.modules["lalref.oracle.verify"], "CASES", few)
    fixed = {"sigma": 1.4, "kernel_size": 3, "ignore_index": -100, "axis": -1}
    report = oracle.verify(f, fixed=fixed, quick=True)
    assert (report.verdict, report.units <= 1) == ("right", True), str(report)
    for wrong in ({"sigma": 1.5}, {"ignore_index": 255}):  # what is said is what is judged
        assert oracle.verify(f, fixed=fixed | wrong, quick=True, dtype="float64").verdict == "wrong"
    assert oracle.verify(f, quick=True).verdict == "wrong"  # without being told, the defaults are expected


def test_cases_that_come_to_the_same_when_refitted_are_asked_once(monkeypatch):
    monkeypatch.setattr(protocol, "check", lambda *given, **options: [])
    asked = []

    def f(logits, labels):
        asked.append((logits.tobytes(), labels.tobytes()))
        return textbook(logits, labels, p=2.0)

    assert oracle.verify(f, fixed={"p": 2.0}, dtype="float64", quick=True).verdict == "right"
    assert len(set(asked)) == len(asked)


def test_a_built_in_kernel_of_one_pixel_never_exercises_pooling():
    def f(logits, labels):
        return textbook(logits, labels, kernel_size=1)

    report = oracle.verify(f, fixed={"kernel_size": 1}, dtype="float64")
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    assert "exercises pooling" in report.reason


@pytest.mark.parametrize("fixed", [{"p": 1.0}, {"reduction": "none"}])
def test_what_is_built_in_may_leave_minkowski_pooling_out(fixed):
    def f(logits, labels):
        return textbook(logits, labels, **fixed)

    report = oracle.verify(f, fixed=fixed, dtype="float64")
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    assert "exercises minkowski" in report.reason


def test_a_wrong_subject_with_options_built_in_is_told_of_fixed():
    def f(logits, labels, *, p=5.0):
        return textbook(logits, labels, p=p, sigma=2.0)

    report = oracle.verify(f, quick=True)
    assert report.verdict == "wrong"
    assert "sigma" in report.reason
    assert "--fixed" in report.reason
    assert (
        "--fixed" not in oracle.verify(BY_ID["euclidean-distance"].subject(), quick=True).reason
    )  # it takes every option


def test_the_worst_case_shown_is_a_finite_one_where_there_is_one():
    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return (float("nan") if options["p"] == 2.5 else value), grad * 1.01

    report = oracle.verify(f, quick=True)
    assert 8 < report.worst.most < math.inf


def test_void_labels_and_class_weights_decide_what_can_be_refitted():
    case = BY_NAME["scattered-void"]
    moved = case.refitted({"ignore_index": -1})
    np.testing.assert_array_equal(moved.labels == -1, case.labels == 255)
    assert case.refitted({"ignore_index": None}) is None  # void pixels would have no label left
    assert case.refitted({"class_weight": (1.0,)}) is None
    assert case.refitted({"stride": (1, 2, 3)}) is None
    assert case.refitted({"axis": 0}) is case.refitted({"axis": 4}) is case.refitted({"axis": -4}) is None
    assert case.refitted({"ignore_index": (254, 255)}) is None
    nothing_void = BY_NAME["plain"].refitted({"ignore_index": (254, 255)})
    np.testing.assert_array_equal(nothing_void.labels, BY_NAME["plain"].labels)


def test_enough_cases_that_leave_a_stage_out_are_inconclusive(monkeypatch):
    import importlib

    module = importlib.import_module("lalref.oracle.verify")
    few = [c for c in CASES if c.core and "pooling" not in c.stages]
    monkeypatch.setattr(module, "CASES", few)
    monkeypatch.setattr(module, "ENOUGH", len(few))
    report = module.verify(textbook)
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    assert "exercises pooling" in report.reason


def test_extended_cases_are_refitted_too_where_that_leaves_their_feature(monkeypatch):
    def f(logits, labels, *, ignore_index=255):
        return textbook(logits, labels, ignore_index=ignore_index, sigma=1.4)

    few = [c for c in CASES if c.quick and not c.asks_for()]
    few += [BY_NAME[name] for name in ("line", "uint8", "flat-weights", "ignore-several")]
    monkeypatch.setattr(sys.modules["lalref.oracle.verify"], "CASES", few)
    report = oracle.verify(f, fixed={"sigma": 1.4}, dtype="float64")
    assert report.verdict == "right", str(report)
    assert report.extended() == dict.fromkeys(
        ("1 spatial axis", "uint8 labels", "several ignored labels"), "holds"
    )
    assert report.skipped == {"sigma": ["flat-weights"]}
    assert "sigma, fixed at 1.4: 1 case (flat-weights)" in str(report)


def test_what_is_fixed_is_not_blamed_for_cases_that_lack_another_option(monkeypatch):
    def f(logits, labels):
        return textbook(logits, labels, sigma=1.4)

    few = [*(c for c in CASES if c.quick and not c.asks_for()), BY_NAME["p-2"], BY_NAME["probabilities-void"]]
    monkeypatch.setattr(sys.modules["lalref.oracle.verify"], "CASES", few)
    report = oracle.verify(f, fixed={"sigma": 1.4}, dtype="float64", quick=True)
    assert report.skipped == {"p": ["p-2"], "space": ["probabilities-void"]}


def test_parameters_that_are_no_option_of_the_loss_are_named():
    def f(logits, labels, ksize=5, exponent=5.0, *, ignore_label=255, sigma=1.0):
        return textbook(logits, labels, sigma=sigma)

    report = oracle.verify(f, quick=True, dtype="float64")
    told = {"exponent": "", "ignore_label": "ignore_index", "ksize": "kernel_size"}
    assert report.to_dict()["left_at_default"] == told
    said = (
        "Parameters that are no option of the loss, left at their defaults: exponent, ignore_label (did you "
        "mean ignore_index?), ksize (did you mean kernel_size?)."
    )
    assert said in " ".join(str(report).split())


def test_a_class_s_parameters_that_are_no_option_are_named_and_those_of_a_right_one_are_not():
    class Loss:
        def __init__(self, smoothing=0.0, p=5.0):
            self.p = p

        def __call__(self, logits, labels, **options):
            return textbook(logits, labels, **options)

    assert oracle.verify(Loss, quick=True, dtype="float64").left == {"smoothing": ""}
    assert "no option of the loss" not in str(oracle.verify(textbook, quick=True, dtype="float64"))
