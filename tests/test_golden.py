"""Golden values: what truth says, stored whole, found out when they no longer belong."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from lalref.cli import main
from lalref.oracle import dense, golden
from lalref.oracle.cases import BY_NAME, CASES


@pytest.fixture
def copy(tmp_path):
    """The shipped files, to be tampered with."""
    for name in (*golden.FILES, "golden.json"):
        shutil.copy(golden.FOLDER / name, tmp_path / name)
    return tmp_path


def test_every_case_has_a_right_answer_of_its_shape():
    answers = golden.load()
    assert set(answers) == set(BY_NAME)
    for case in CASES:
        right = answers[case.name]
        assert right.grad.shape == (2, *case.logits.shape)
        assert right.value.ndim == (case.labels.ndim + 1 if case.all_options["reduction"] == "none" else 1)
        assert np.isfinite(right.grad).all()


def test_a_sample_made_again_is_the_same():
    found = golden.check(sample=9)
    assert (found.cases, found.different) == (len(CASES[::9]), [])
    assert 120 <= found.bits < 400  # proven, and measured: neither less than promised nor a number made up


def test_a_number_that_is_not_truth_is_noticed(monkeypatch):
    stored = golden.load()
    off = dataclasses.replace(stored["plain"], value=stored["plain"].value * (1 + 2.0**-52))
    monkeypatch.setattr(golden, "load", lambda: {**stored, "plain": off})
    assert golden.check(sample=len(CASES)).different == ["plain"]


def test_the_files_are_small_and_the_same_answers_give_the_same_bytes_and_version(copy):
    assert golden.save(golden.load(), golden.load_stages(), copy) == golden.version()
    sizes = []
    for name in (*golden.FILES, "golden.json"):
        shipped = (golden.FOLDER / name).read_bytes()
        assert (copy / name).read_bytes() == shipped
        sizes.append(len(shipped))
    assert sum(sizes) < 1_000_000


def test_other_answers_get_a_higher_version(copy):
    stages = {**golden.load_stages()}
    stages["plain"] = {**stages["plain"], "divisor": stages["plain"]["divisor"] * 2}
    assert golden.save(golden.load(), stages, copy) == golden.version() + 1
    assert golden.save(golden.load(), stages, copy) == golden.version() + 1
    assert golden.save(golden.load(), golden.load_stages(), copy) == golden.version() + 2


def test_files_that_do_not_belong_together_are_refused(copy):
    data = bytearray((copy / "golden.npz").read_bytes())
    data[-1000] ^= 1
    (copy / "golden.npz").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"golden.npz has sha256 .* do not belong together"):
        golden.load(copy)


def test_another_schema_is_refused(copy):
    index = json.loads((copy / "golden.json").read_text())
    (copy / "golden.json").write_text(json.dumps({**index, "schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        golden.load(copy)


def test_a_case_changed_since_is_named(copy):
    index = json.loads((copy / "golden.json").read_text())
    index["cases"]["plain"]["inputs"] = "0" * 64
    (copy / "golden.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="no golden values for plain "):
        golden.load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": np.zeros((2, 3, 6, 7))},
        {"labels": np.zeros((2, 6, 7), np.int64)},
        {"labels": BY_NAME["plain"].labels.astype(np.uint8)},
        {"options": {"p": 5.5}},
        {"pixel_weight": np.ones((2, 6, 7))},
        {"grad_output": 2.0},
        {"unread": np.ones((2, 3, 6, 7), bool)},
    ],
)
def test_the_digest_tells_any_change_of_a_case(change):
    plain = BY_NAME["plain"]
    assert golden.digest(dataclasses.replace(plain, **change)) != golden.digest(plain)


def test_only_ties_are_by_convention():
    answers = golden.load()
    assert {name for name, right in answers.items() if right.by_convention} == {
        "infinity-ties",
        "infinity-weights",
    }


def test_answers_that_are_known_without_any_machinery():
    answers = golden.load()
    assert answers["flat"].value[0] == math.log(3)
    assert answers["infinity-weights"].value[0] == math.log(3)
    for name in ("all-ignored", "one-channel", "no-image"):
        assert not answers[name].value.any()
        assert not answers[name].grad.any()
    assert np.isnan(answers["empty-nan"].value).all()


def test_softmax_cross_entropy_worked_out_by_hand():
    case, right = BY_NAME["softmax-cross-entropy"], golden.load()["softmax-cross-entropy"]
    x, y = np.moveaxis(case.logits, 1, -1).reshape(-1, 3), case.labels.ravel()
    x, y = x[y != 255], y[y != 255]
    exps = np.exp(x)
    u = exps / exps.sum(1, keepdims=True)
    assert right.value[0] == pytest.approx(-np.log(u[np.arange(len(y)), y]).mean(), rel=1e-14)
    grad = np.moveaxis(right.grad[0], 1, -1).reshape(-1, 3)[case.labels.ravel() != 255]
    np.testing.assert_allclose(grad, (u - np.eye(3)[y]) / len(y), rtol=1e-12, atol=1e-17)


def test_the_upstream_gradient_scales_the_gradient_alone():
    case = BY_NAME["upstream-negative"]
    scaled, plain = golden.load()[case.name], golden.make(dataclasses.replace(case, grad_output=1.0))
    np.testing.assert_array_equal(scaled.value, plain.value)
    np.testing.assert_array_equal(scaled.grad, -0.5 * plain.grad)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stages_agree_with_matrices_of_another_hand(case):
    """Those behind the error unit: they share no code with truth."""
    pool, stages = dense.pooling(case), golden.load_stages()[case.name]
    D = stages["divisor"][stages["group_size"] > 0]
    np.testing.assert_allclose(D, pool.D.astype(float), rtol=1e-15)
    sizes = stages["group_size"][stages["group_size"] > 0]
    counted = pool.member if case.all_options["normalize"] == "count" else pool.w > 0
    assert (sizes >= counted.sum(1)).all()
    assert stages["window_loss"].shape == stages["group_size"].shape
    assert (stages["window_loss"] >= 0).all()


def test_a_stage_that_is_not_truth_is_noticed(monkeypatch):
    stored = golden.load_stages()
    off = {**stored["plain"], "merged": stored["plain"]["merged"] * (1 + 2.0**-50)}
    monkeypatch.setattr(golden, "load_stages", lambda: {**stored, "plain": off})
    assert golden.check(sample=len(CASES)).different == ["plain"]


def test_the_command_reports_what_differs(monkeypatch):
    monkeypatch.setattr(
        golden, "check", lambda sample, progress: golden.Checked(9, ["plain", "batch"], 121.0)
    )
    result = CliRunner().invoke(main, ["golden", "check"])
    assert result.exit_code == 1
    assert "these differ from truth: plain, batch" in result.output
    monkeypatch.setattr(golden, "check", lambda sample, progress: golden.Checked(9, [], 121.0))
    result = CliRunner().invoke(main, ["golden", "check"])
    assert result.exit_code == 0
    assert "9 cases are as truth has them; the largest radius is 2^-121.0 of its number" in result.output
