"""Right in every case and wrong from call to call: the mistake of memory is named, or it is told what was seen."""

import json

import numpy as np
import pytest

from lalref import oracle
from lalref.oracle.junit import junit
from lalref.oracle.mistakes import BY_ID, Textbook

textbook = Textbook()


def judged(f, **rest):
    report = oracle.verify(f, dtype="float64", quick=True, **rest)
    assert report.verdict == "wrong"
    assert all(r.outcome == "holds" for r in report.results if not r.feature)  # the cases are right
    return report


def adds_to_what_the_last_call_left(arrays):
    """A buffer that belongs to the caller's array, as a .grad does: fresh arrays never show it."""

    def f(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        before = next((old for key, old in arrays if key is logits), 0.0)
        arrays.append((logits, grad + before))
        arrays.reverse()
        return value, grad + before

    return f


def test_a_gradient_that_accumulates_on_the_same_array_is_named():
    report = judged(adds_to_what_the_last_call_left([]))
    (found,) = report.diagnosis.findings
    assert found.mistake == "gradient-accumulates"
    assert 0 <= found.agreement_units <= 1


def writes_on_the_second_call(name):
    calls = []

    def f(logits, labels, **options):
        answer = textbook(logits, labels, **options)
        if any(array is logits for array in calls):
            {"logits": logits, "labels": labels}[name][...] = 1
        calls.append(logits)
        return answer

    return f


@pytest.mark.parametrize("name", ["logits", "labels"])
def test_writing_to_an_input_once_it_is_known_is_named(name):
    found = judged(writes_on_the_second_call(name)).diagnosis.findings
    assert f"overwrites-the-{name}" in [each.mistake for each in found]


def test_memory_taken_for_contiguous_is_named_with_the_agreement_that_was_measured():
    report = judged(BY_ID["assumes-contiguous-memory"].subject())
    (found,) = report.diagnosis.findings
    assert found.mistake == "assumes-contiguous-memory"
    assert 0 <= found.agreement_units <= 1

    def misread_otherwise(x, y, **o):
        return textbook(x if x.flags.c_contiguous else np.flip(x), y, **o)

    (found,) = judged(misread_otherwise).diagnosis.findings
    assert found.mistake == "assumes-contiguous-memory"
    assert np.isnan(found.agreement_units)  # views alone are misread, but not as the catalogue's form does
    told = judged(misread_otherwise)
    assert "nan units" not in str(told)
    assert told.to_dict()["diagnosis"][0]["agreement_units"] is None


def test_an_upstream_gradient_that_is_clipped_gets_no_name_but_the_smallest_input():
    def clipped(logits, labels, *, grad_output=1.0, **options):
        return textbook(logits, labels, grad_output=np.minimum(grad_output, 1000.0), **options)

    report = judged(clipped, shrink=True)
    assert report.diagnosis.findings == []
    assert (
        "not the same one times the upstream gradient (upstream gradient 65504)" in report.diagnosis.summary
    )
    assert report.shrunk.case.logits.size <= 8
    assert report.shrunk.case.grad_output == 65504
    with pytest.raises(AssertionError, match="gradient"):
        exec(report.shrunk.code, {"f": clipped})
    exec(report.shrunk.code, {"f": textbook})


def test_what_has_no_name_is_told_as_it_was_seen():
    calls = []

    def tires(logits, labels, **options):
        value, grad = textbook(logits, labels, **options)
        seen = any(array is logits for array in calls)
        calls.append(logits)
        return value, grad * (0.9 if seen else 1.0)

    report = judged(tires)
    assert report.diagnosis.findings == []
    assert "kept from call to call (called twice)" in report.diagnosis.summary

    def raises_on_views(x, y, **o):
        assert x.flags.c_contiguous
        return textbook(x, y, **o)

    report = judged(raises_on_views)
    assert report.diagnosis.findings == []
    assert "views of other arrays" in report.diagnosis.summary


def test_checks_that_were_not_made_are_said():
    report = oracle.verify(BY_ID["no-root"].subject(), dtype="float64", quick=True)
    assert report.protocol == []
    told = json.loads(json.dumps(report.to_dict()))
    assert told["skipped"]["protocol"] == ["cases are wrong already"]
    assert "Ways to call it were not tried: cases are wrong already." in str(report)
    assert '<skipped message="cases are wrong already"' in junit(report)
    assert oracle.verify(textbook, dtype="float64", quick=True).unchecked == ""
    assert "float32 or float64" in oracle.verify(textbook, dtype="float16", quick=True).unchecked


def test_a_partial_name_has_its_share_in_json():
    def mostly(logits, labels, **options):
        form = textbook if options["stride"] != 1 else BY_ID["no-root"].subject()
        return form(logits, labels, **options)

    for f, whole in ((mostly, False), (BY_ID["no-root"].subject(), True)):
        (found, *_) = oracle.verify(f, dtype="float64").to_dict()["diagnosis"]
        assert found["mistake"] == "no-root"
        assert (found["share"] == 1) == whole
        assert 0.5 <= found["share"] <= 1


def test_an_input_that_is_written_to_has_the_agreement_of_the_right_answers():
    (found,) = oracle.verify(BY_ID["overwrites-the-logits"].subject(), quick=True).diagnosis.findings
    assert 0 < found.agreement_units <= 1
