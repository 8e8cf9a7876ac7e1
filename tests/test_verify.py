"""The verdict: right for what is right, wrong for every deliberate mistake, and clear about the rest."""

import json
import math
import warnings

import numpy as np
import pytest

import lalref
from lalref import oracle
from lalref.oracle import golden
from lalref.oracle.case import ARGUMENTS
from lalref.oracle.cases import BY_NAME, CASES
from lalref.oracle.mistakes import BY_ID, Textbook

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
    assert report.reason.endswith("it raised: is it a subject of this framework?")
    assert "this framework?\n" in str(report)


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


# ---- options that a subject lacks


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


def test_core_cases_are_refitted_to_what_a_subject_has_built_in():
    def f(logits, labels, *, normalize="weights", reduction="mean"):
        built_in = {"sigma": 1.4, "kernel_size": 3, "ignore_index": -100, "axis": -1}
        return textbook(logits, labels, normalize=normalize, reduction=reduction, **built_in)

    fixed = {"sigma": 1.4, "kernel_size": 3, "ignore_index": -100, "axis": -1}
    report = oracle.verify(f, fixed=fixed, quick=True)
    assert (report.verdict, report.units <= 1) == ("right", True), str(report)
    for wrong in (
        {"sigma": 1.5},
        {"kernel_size": 5},
        {"ignore_index": 255},
    ):  # what is said is what is judged
        assert oracle.verify(f, fixed=fixed | wrong, quick=True).verdict == "wrong"
    assert oracle.verify(f, quick=True).verdict == "wrong"  # without being told, the defaults are expected


def test_cases_that_come_to_the_same_when_refitted_are_asked_once():
    asked = []

    def f(logits, labels):
        asked.append((logits.tobytes(), labels.tobytes()))
        return textbook(logits, labels, p=2.0)

    assert oracle.verify(f, fixed={"p": 2.0}, dtype="float64").verdict == "right"
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


# ---- what a subject is given and may do


def test_inputs_are_fresh_and_writing_to_them_is_wrong():
    def f(logits, labels, *, pixel_weight=None, **options):
        answer = textbook(logits, labels, pixel_weight=pixel_weight, **options)
        labels[:] = 0
        if pixel_weight is not None:
            pixel_weight[:] = 1
        return answer

    report = oracle.verify(f)
    notes = {r.name: r.note for r in report.results}
    assert report.verdict == "wrong"
    assert notes["plain"] == "wrote to its input labels"
    assert notes["pixel-weight"] == "wrote to its input labels and pixel_weight"
    assert report.units <= 1  # the next call was given fresh arrays
    assert oracle.verify(textbook).verdict == "right"


def test_warnings_are_no_verdict():
    def f(logits, labels, **options):
        warnings.warn("by the way", UserWarning, stacklevel=1)
        np.log(np.zeros(1))
        return textbook(logits, labels, **options)

    assert oracle.verify(f, quick=True).verdict == "right"


def test_a_shape_that_does_not_fit_is_told():
    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return np.reshape(value, (1, *np.shape(value))), grad

    report = oracle.verify(f, quick=True)
    assert report.verdict == "wrong"
    assert report.results[0].note == "value of shape (1,), expected ()"


def test_values_may_be_python_floats_and_lists():
    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        return [float(value) if np.ndim(value) == 0 else value.tolist(), grad.tolist()]

    assert oracle.verify(f, dtype="float64").verdict == "right"


def test_progress_sees_every_run():
    seen = []

    def progress(runs):
        for run in runs:
            seen.append(run)
            yield run

    report = oracle.verify(textbook, quick=True, progress=progress)
    assert len(seen) == len(report.results) > 0


# ---- usage


def takes_one(logits):
    """Not enough."""


def needs_more(logits, labels, temperature):
    """An argument that is no option."""


USAGE = {
    "not callable": ((3,), {}, "expected a function f.logits, labels, ..options., got int: 3"),
    "one argument": ((takes_one,), {}, "takes_one takes 1 positional"),
    "strange argument": ((needs_more,), {}, "needs_more needs temperature, which is no option"),
    "framework": (
        (textbook,),
        {"framework": "theano"},
        "framework='theano' is not known: it is one of numpy",
    ),
    "dtype": ((textbook,), {"dtype": "float8"}, "dtype='float8' is not known: it is one of float32"),
    "fixed unknown": ((textbook,), {"fixed": {"gamma": 2}}, "fixed names 'gamma', which is no option"),
    "fixed not allowed": (
        (lambda x, y: (0.0, x),),
        {"fixed": {"kernel_size": 4}},
        "kernel_size=4 is not allowed",
    ),
    "fixed taken": ((textbook,), {"fixed": {"sigma": 2}}, "takes sigma as an argument"),
    "returns value": ((lambda x, y: 1.0,), {}, "'plain', returned a float; a numpy subject returns a tuple"),
    "returns three": ((lambda x, y: (1, 2, 3),), {}, "returned a tuple of 3"),
    "returns words": (
        (lambda x, y: ("1.5", x),),
        {},
        "returned a str as the value .dtype <U3.; expected an array of real numbers",
    ),
    "returns complex": ((lambda x, y: (1.0, x + 1j),), {}, "as the gradient .dtype complex"),
}


@pytest.mark.parametrize("key", USAGE)
def test_a_subject_that_cannot_be_asked_is_told_what_is_expected(key):
    arguments, options, message = USAGE[key]
    with pytest.raises(oracle.UsageError, match=message):
        oracle.verify(*arguments, **options)
    assert issubclass(oracle.UsageError, ValueError)


# ---- the report


def test_the_report_as_json_is_whole():
    mistake = BY_ID["centre-only"].form
    found = json.loads(
        json.dumps(oracle.verify(mistake(), quick=True, strict=True).to_dict(), allow_nan=False)
    )
    assert found["verdict"] == "wrong"
    assert found["diagnosis"] == []
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
    assert f"{worst.most:.3g} units off" in text
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
    report = oracle.verify(raising_on("plain"), dtype="float64")
    assert math.isinf(report.units)
    row = next(c for c in report.to_dict()["cases"] if c["name"] == "plain")
    assert row["value_units"] is None
    assert row["note"].startswith("raised NotImplementedError")
    assert row["reason"] == BY_NAME["plain"].reason
