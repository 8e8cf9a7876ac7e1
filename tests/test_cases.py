"""The table of cases: enough of everything, each with its reason, inputs the same for ever and exact."""

import inspect
import math
import re
from collections import Counter

import ml_dtypes
import numpy as np
import pytest

import lalref
from lalref.oracle import dense
from lalref.oracle.case import ARGUMENTS, OPTIONS, STAGES
from lalref.oracle.cases import BY_NAME, CASES
from lalref.oracle.inputs import mix

CORE = [case for case in CASES if case.core]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def ignored(case):
    """Labels that the case ignores."""
    value = case.all_options["ignore_index"]
    return [] if value is None else np.atleast_1d(value)


def test_there_are_enough_cases_and_each_has_its_own_name():
    assert len(CASES) >= 48
    assert len(CORE) >= 24
    assert len(BY_NAME) == len(CASES)


@every_case
def test_each_case_says_what_it_is_for_in_one_sentence(case):
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*", case.name)
    assert case.reason.endswith(".")
    assert case.reason.count(". ") == 0


def test_the_reasons_differ():
    assert max(Counter(case.reason for case in CASES).values()) == 1


@pytest.mark.parametrize("case", CORE, ids=lambda case: case.name)
def test_core_cases_are_what_core_means(case):
    options = case.all_options
    assert case.logits.ndim == 4
    assert case.labels.dtype == np.int64
    assert isinstance(options["kernel_size"], int)
    assert options["kernel_size"] % 2 == 1
    assert isinstance(options["stride"], int)
    assert math.isfinite(options["sigma"])
    assert math.isfinite(options["p"])
    assert isinstance(options["ignore_index"], int)
    assert np.isfinite(case.given_logits).all()
    assert not case.accurate


@every_case
def test_inputs_are_exact_in_every_dtype(case):
    inputs = [case.logits, np.asarray(case.grad_output)]
    inputs += [np.asarray(a) for a in (case.pixel_weight, case.options.get("class_weight")) if a is not None]
    for array in inputs:
        for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
            np.testing.assert_array_equal(array.astype(dtype).astype(np.float64), array)


@every_case
def test_labels_are_classes_or_ignored(case):
    C = case.logits.shape[case.all_options["axis"]]
    y = case.labels[~np.isin(case.labels, ignored(case))]
    assert ((y >= 0) & (y < C)).all()
    assert case.labels.shape == np.moveaxis(case.logits, case.all_options["axis"], -1).shape[:-1]


def test_options_and_defaults_are_those_of_the_loss():
    parameters = inspect.signature(lalref.lal_loss).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert defaults == {**OPTIONS, "check": True, "engine": "auto", "pixel_weight": None}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_is_varied_at_least_twice(name):
    assert sum(name in case.asks_for() for case in CASES) >= 2


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("space", ["logits", "probabilities"]),
        ("normalize", ["weights", "count"]),
        ("reduction", ["mean", "sum", "none"]),
        ("p", [1.0, 2.0, 2.5, 5.0, 20.0, math.inf]),
        ("sigma", [0.5, 1.0, 3.0, 100.0, None]),
    ],
)
def test_every_value_that_matters_is_there(name, values):
    assert {case.all_options[name] for case in CASES} >= set(values)


@every_case
def test_declared_stages_are_really_exercised(case):
    """A mistake in a declared stage must be able to change the answer."""
    pool, options = dense.pooling(case), case.all_options
    could = {"cross-entropy"} if pool.at.size and pool.x.shape[1] > 1 else set()
    apart = (pool.x[pool.at, None] != pool.x).any(-1) & pool.member  # (P, Q)
    if apart.any():
        could.add("pooling")
    ell = dense.softmax(pool.w @ pool.x / pool.D[:, None]).h[np.arange(pool.at.size), pool.target]
    if np.unique(ell).size > 1 and options["reduction"] != "none" and options["p"] > 1:
        could.add("minkowski")
    assert set(case.stages) <= could <= set(STAGES)


def test_a_subject_with_no_option_at_all_gets_enough_core_cases():
    assert sum(not case.asks_for() for case in CORE) >= 12
    assert sum(not case.asks_for() for case in CORE if case.quick) >= 12


def test_quick_cases_share_one_shape_vary_every_argument_and_exercise_every_stage():
    quick = [case for case in CASES if case.quick]
    assert {case.logits.shape for case in quick if case.name != "channels-last"} == {(2, 3, 6, 7)}
    assert {name for case in quick for name in case.asks_for()} == set(ARGUMENTS)
    assert {stage for case in quick for stage in case.stages} == set(STAGES)


@pytest.mark.parametrize("case", [c for c in CASES if c.feature == "tiny losses"], ids=lambda case: case.name)
def test_nearly_perfect_predictions_are_as_perfect_as_promised(case):
    pool = dense.pooling(case)
    if case.all_options["space"] == "logits":
        ell = dense.softmax(pool.w @ pool.x / pool.D[:, None]).h[np.arange(pool.at.size), pool.target]
    else:
        ell = -np.log1p(-pool.w @ dense.softmax(pool.x).off[np.arange(pool.y.size), pool.y] / pool.D)
    assert ell.min() >= 1e-30
    assert ell.max() <= 1e-6


def test_the_hash_is_what_it_was_when_the_golden_values_were_made():
    assert mix((4,), 1).tolist() == [1038928561, 4252478628, 3755162056, 1316252431]


def test_nan_stands_only_where_nothing_may_read():
    isolated = [case for case in CASES if case.unread is not None]
    assert len(isolated) >= 3
    for case in isolated:
        assert np.isnan(case.given_logits).any()
        read = (dense.pooling(case).w > 0).any(0).reshape(case.labels.shape)  # (N, *S)
        assert np.isfinite(np.moveaxis(case.given_logits, 1, -1)[read]).all()
