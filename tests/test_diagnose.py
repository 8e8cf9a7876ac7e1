"""Diagnosis: a planted mistake is named, with the part of the numbers that it explains, and no other."""

import contextlib
import functools
import math
import os
import random
import re

import numpy as np
import pytest
from diagnosing import names, observed, textbook

from lalref.oracle import verify
from lalref.oracle.diagnose import diagnose
from lalref.oracle.mistakes import BY_ID, CATALOGUE
from lalref.oracle.partly import MOST
from lalref.oracle.suspects import apart

NAMED = functools.partial(pytest.mark.parametrize, ids=lambda entry: entry.id)
# seen by the checks of behaviour, on memory that no case is in
IN_CASES = [m for m in CATALOGUE if m.id != "assumes-contiguous-memory"]
FORMS = [pytest.param(m.id, v.form, id=f"{m.id}: {v.formula}") for m in CATALOGUE for v in m.variants]
if "LALREF_NIGHTLY" not in os.environ:  # all of them take minutes
    IN_CASES, FORMS = IN_CASES[::8], FORMS[::8]


def with_options(**new):
    """The textbook with options replaced: by a value, or by a function of what is asked for."""

    def f(logits, labels, **options):
        changed = {k: v(options[k]) if callable(v) else v for k, v in new.items()}
        return textbook(logits, labels, **{**options, **changed})

    return f


def scaled(value=1.0, grad=1.0):
    def f(logits, labels, **options):
        found = textbook(logits, labels, **options)
        return tuple(
            number * (factor(options, labels) if callable(factor) else factor)
            for number, factor in zip(found, (value, grad), strict=True)
        )

    return f


# ---- single mistakes


@NAMED("mistake", IN_CASES)
def test_every_mistake_is_named_when_it_is_planted(mistake):
    assert names(mistake.subject()) == [mistake.id]


@pytest.mark.parametrize(("mistake", "form"), FORMS)
def test_every_other_form_of_a_mistake_has_its_name_and_no_other(mistake, form):
    assert names(form(), dtypes=["float64"]) == [mistake]


@pytest.mark.parametrize("mistake", ["no-root", "euclidean-distance", "neighbours-divisor", "softmax-twice"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_dtype_is_enough(mistake, dtype):
    assert names(BY_ID[mistake].subject(), dtypes=[dtype]) == [mistake]


def test_a_port_that_sums_in_another_order_and_rounds_in_other_places_is_named():
    """Float32 arithmetic that shares no rounding with the catalogue."""
    wrong = BY_ID["city-block-distance"].subject()

    def f(logits, labels, **options):
        flipped = wrong(np.ascontiguousarray(logits[::-1]), labels[::-1].copy(), **turned(options))
        value, grad = flipped
        return (value[::-1] if np.ndim(value) else np.nextafter(value, value.dtype.type(9e9))), grad[::-1]

    def turned(options):
        return {k: v[::-1].copy() if isinstance(v, np.ndarray) else v for k, v in options.items()}

    assert names(f) == ["city-block-distance"]


def test_the_loss_alone_and_the_gradient_alone_are_told_apart():
    wrong = BY_ID["euclidean-distance"].subject()

    def loss_alone(x, y, **o):
        return wrong(x, y, **o)[0], textbook(x, y, **o)[1]

    def gradient_alone(x, y, **o):
        return textbook(x, y, **o)[0], wrong(x, y, **o)[1]

    for f, said in ((loss_alone, "In the loss alone"), (gradient_alone, "In the gradient alone")):
        (finding,) = diagnose(observed(f)).findings
        assert finding.mistake == "euclidean-distance"
        if f is loss_alone:
            assert finding.sentence.startswith(said)


def test_a_mistake_confined_to_an_option_is_told_so():
    wrong = BY_ID["neighbours-divisor"].subject()

    def f(x, y, **o):
        return (wrong if o["space"] == "logits" else textbook)(x, y, **o)

    (finding,) = diagnose(observed(f)).findings
    assert finding.mistake == "neighbours-divisor"
    assert finding.sentence.endswith('This is so with space="logits" only.')


def test_mistakes_that_no_case_tells_apart_are_all_told():
    sigma_1 = observed(BY_ID["sigma-not-squared"].subject(), keep=lambda case: "sigma" not in case.options)
    assert diagnose(sigma_1).findings == []  # at sigma = 1 it is no mistake
    plain = observed(BY_ID["wrong-sign"].subject(), keep=lambda case: case.name == "upstream-negative")
    found = diagnose(plain)
    assert {f.mistake for f in found.findings} == {"wrong-sign", "upstream-without-its-sign"}
    assert found.summary.startswith("2 mistakes have these numbers")


# ---- one constant


@pytest.mark.parametrize(
    ("f", "name", "sentence"),
    [
        (with_options(sigma=0.707), "sigma=0.707", "Your sigma is 0.707."),
        (
            with_options(sigma=lambda s: s * 0.6),
            "sigma-factor=0.6",
            "Your sigma is 0.6 times what is asked for.",
        ),
        (with_options(p=3.0), "p=3", "Your p is 3."),
        (with_options(p=lambda p: p + 1), "p-plus=1", "Your p is off by 1."),
        (with_options(label_smoothing=0.1), "label-smoothing=0.1", "Your label_smoothing is 0.1."),
        (scaled(value=2.0), "value-factor=2", "Your value is off by the factor 2."),
        (scaled(grad=-3.0), "gradient-factor=-3", "Your gradient is off by the factor -3."),
        (
            scaled(grad=lambda o, y: 1 / y.size),
            "gradient-factor=1 / the number of pixels",
            "Your gradient is off by the factor 1 / the number of pixels.",
        ),
        (
            scaled(value=lambda o, y: np.mean(y != o["ignore_index"])),
            "value-factor=(the number of labelled pixels / the number of pixels)",
            "Your value is off by the factor (the number of labelled pixels / the number of pixels).",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) and "=" in v else "",
)
def test_an_unknown_constant_is_fitted(f, name, sentence):
    (finding,) = diagnose(observed(f, dtypes=["float64"]), thorough=False).findings
    assert (finding.mistake, finding.sentence) == (name, sentence)
    assert finding.agreement_units <= 1


# ---- pairs


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("euclidean-distance", "no-root"),
        ("gaussian-without-half", "centre-only"),
        ("upstream-ignored", "neighbours-divisor"),
        ("void-joins-every-group", "ignored-pixels-count"),
    ],
)
def test_pairs_are_found(one, two):
    both = type("Both", (BY_ID[one].form, BY_ID[two].form), {})()
    (finding,) = diagnose(observed(both, dtypes=["float64"])).findings
    assert set(finding.mistake.split("+")) == {one, two}


# ---- three at once


def threes(count):
    """Sets of three mistakes, drawn by chance but always the same ones."""
    draw = random.Random(11)
    answering = [mistake for mistake in CATALOGUE if mistake.stage != "state"]
    while count:
        three = draw.sample(answering, 3)
        with contextlib.suppress(TypeError):  # no order in which all could be asked
            form = type("Three", tuple(mistake.form for mistake in three), {})
            yield pytest.param(form, {mistake.id for mistake in three}, id="+".join(m.id for m in three))
            count -= 1


@pytest.mark.parametrize(("form", "made"), list(threes(25 if "LALREF_NIGHTLY" in os.environ else 2)))
def test_of_three_mistakes_none_is_named_that_was_not_made(form, made):
    named = names(form(), dtypes=["float64"])
    assert {each for name in named for each in name.split("+")} <= made


# ---- a part of the numbers


def elsewhere(f, where):
    """`f`, and something that is no mistake of the catalogue where the options say so."""

    def g(x, y, **o):
        value, grad = f(x, y, **o)
        return (value * (1.001 + 0.01 * o["p"]), grad) if where(o) else (value, grad)

    return g


def test_a_name_without_every_case_says_how_many_and_which_are_left():
    wrong = BY_ID["euclidean-distance"].subject()
    found = diagnose(observed(elsewhere(wrong, lambda o: o["p"] == 2.5), dtypes=["float64"]))
    (finding,) = found.findings
    assert finding.mistake == "euclidean-distance"
    its, of = map(int, re.search(r"So it is in (\d+) of (\d+) cases", finding.sentence).groups())
    assert its < of
    assert its / of >= MOST
    assert finding.sentence.endswith("something else is in: p-2.5, weights-and-sum.")
    assert found.summary == finding.sentence


def test_the_count_of_a_partial_name_is_of_cases_that_were_wrong_and_not_of_all():
    """Where the mistake plays no part, nothing speaks for it."""
    small = observed(BY_ID["weights-twice"].subject(), dtypes=["float64"])
    seen = observed(
        elsewhere(BY_ID["weights-twice"].subject(), lambda o: o["stride"] == 3), dtypes=["float64"]
    )
    (finding,) = diagnose(seen).findings
    its, of = map(int, re.search(r"in (\d+) of (\d+) cases", finding.sentence).groups())
    assert its <= sum(each.wrong for each in small)
    assert of == sum(each.wrong for each in seen)


def test_a_mistake_in_less_than_most_of_the_wrong_cases_has_no_name():
    wrong = BY_ID["euclidean-distance"].subject()
    f = elsewhere(wrong, lambda o: o["sigma"] == 1 and o["kernel_size"] == 5)
    found = diagnose(observed(f, dtypes=["float64"]))
    assert found.findings == []
    assert found.summary.startswith("No mistake of the catalogue")


def test_a_mistake_that_leaves_a_case_or_two_goes_before_the_pair_that_has_all():
    both = type("Both", (BY_ID["euclidean-distance"].form, BY_ID["ignores-empty"].form), {})()
    found = diagnose(observed(both, dtypes=["float64"]))
    assert [set(f.mistake.split("+")) for f in found.findings] == [
        {"euclidean-distance"},
        {"euclidean-distance", "ignores-empty"},
    ]
    assert "something else is in: " in found.findings[0].sentence
    assert "A pair of mistakes has all of your numbers" in found.summary


def test_half_of_a_pair_in_two_halves_is_told_with_what_is_left():
    """The loss of one mistake, the gradient of two, and something else with a stride."""
    both = type("Both", (BY_ID["wrong-sign"].form, BY_ID["city-block-distance"].form), {})()
    f = elsewhere(both, lambda o: o["stride"] == 2)
    (finding,) = diagnose(observed(f, dtypes=["float64"])).findings
    assert set(finding.mistake.split("+")) == {"wrong-sign", "city-block-distance"}
    assert "So it is in " in finding.sentence


def test_a_loss_is_named_whose_gradient_is_another_matter():
    wrong = BY_ID["city-block-distance"].subject()

    def f(x, y, **o):
        value, grad = wrong(x, y, **o)
        return value, grad * np.where(np.arange(grad.size).reshape(grad.shape) % 3, 1, 0.9)

    (finding,) = diagnose(observed(f, dtypes=["float64"])).findings
    assert finding.mistake == "city-block-distance"
    assert "your value is this mistake's" in finding.sentence
    assert "your gradient is not always this loss's" in finding.sentence


# ---- what answers show by themselves


def test_a_gradient_in_ignored_pixels_is_seen_whatever_it_is():
    def f(x, y, **o):
        value, grad = textbook(x, y, **o)
        void = np.expand_dims(np.isin(y, o["ignore_index"]), o["axis"])
        return value, np.where(void, np.sin(x), grad).astype(x.dtype)

    assert names(f) == ["ignored-pixels-receive"]


def test_a_gradient_that_holds_an_earlier_one_is_seen_whatever_the_buffer_is_for():
    buffers = {}

    def f(x, y, **o):
        value, grad = textbook(x, y, **o)
        key = (x.shape, o["p"], o["sigma"])
        buffers[key] = buffers.get(key, 0) + grad.astype(float)
        return value, buffers[key].astype(x.dtype)

    assert names(f, dtypes=["float64"]) == ["gradient-accumulates"]


def test_agreement_is_measured_against_the_size_of_the_predicted_numbers():
    unit = np.array([1e-6])
    assert apart(np.array([1e6 + 1.0]), [1e6], np.array([1.0]), unit, "float32") < 2
    assert apart(np.array([1e6 + 1.0]), [1e6], np.array([1.0]), unit * 1e-9, "float64") > 1e3
    assert apart(np.array([math.nan]), [math.inf], np.array([1.0]), unit, "float32") == 0
    assert apart(np.array([1.0]), [math.nan], np.array([1.0]), unit, "float32") == math.inf
    assert apart(np.zeros(2), np.zeros(3), np.zeros(2), unit, "float32") == math.inf


# ---- in a verdict


def test_a_verdict_brings_its_diagnosis():
    report = verify(BY_ID["neighbours-divisor"].subject())
    (finding,) = report.diagnosis.findings
    assert finding.mistake == "neighbours-divisor"
    assert finding.sentence in str(report).replace("\n", " ")
    assert report.to_dict()["diagnosis"][0]["mistake"] == "neighbours-divisor"
    assert verify(textbook, quick=True).diagnosis is None


def test_views_that_are_misread_are_named():
    report = verify(BY_ID["assumes-contiguous-memory"].subject(), dtype="float64", quick=True)
    assert [finding.mistake for finding in report.diagnosis.findings] == ["assumes-contiguous-memory"]

    def refuses_views(x, y, **o):
        assert x.flags.c_contiguous
        return textbook(x, y, **o)

    report = verify(refuses_views, dtype="float64", quick=True)
    assert report.verdict == "wrong"
    assert report.diagnosis.findings == []  # it is told, and not misread


def test_a_port_with_few_options_is_diagnosed_on_what_it_takes():
    def f(logits, labels, *, p=5.0):
        return textbook(logits, labels, p=p, sigma=0.5)

    report = verify(f, dtype="float64")
    assert report.diagnosis.findings[0].mistake in ("sigma=0.5", "sigma-factor=0.5")
