"""The kill matrix as a page: what it says is what was measured."""

import numpy as np
import pytest

from lalref.oracle import oracle_report, peers
from lalref.oracle.cases import BY_NAME
from lalref.oracle.mistakes import BY_ID, CATALOGUE, Textbook

FEW = tuple(
    BY_ID[name] for name in ("no-root", "centre-only", "single-precision-inside", "gradient-accumulates")
)
SCIPY = next(peer for peer in peers.PEERS if peer.package == "scipy")


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(oracle_report, "CATALOGUE", FEW)
    monkeypatch.setattr(oracle_report, "PEERS", (SCIPY,))
    written = oracle_report.write(tmp_path)
    assert (tmp_path / "images" / "oracle-report.png").stat().st_size > 1000
    return written.read_text(encoding="utf-8")


def test_the_page_counts_what_was_measured(page):
    assert "float32: **2 of 2** are refused by the 62 core cases" in page
    assert "float64: **3 of 3** are refused by the 62 core cases" in page
    cells = {
        line.split(" | ")[0]: line.split(" | ")[1:] for line in page.splitlines() if line.startswith("| ")
    }
    assert cells["| no-root"][-1] == "no |"  # its gradient is that of its own loss
    assert cells["| centre-only"][-1] == "yes |"
    assert cells["| single-precision-inside"][0] == "no mistake"
    for mistake in FEW:
        assert mistake.sentence in page


def test_peers_are_given_the_smallest_case_that_shows_a_mistake():
    units = {"plain": 1e5, "small-image": 40.0, "one-pixel": 2.0, "none": 1e9, "thousands": 1e9}
    assert oracle_report.telling(units).name == "small-image"
    assert oracle_report.telling({"plain": 0.0, "none": 1e9}) is None


def test_peers_meet_the_subject_s_own_upstream_gradient_and_memory():
    case = BY_NAME["small-image"]
    f = peers._value_and_grad(BY_ID["upstream-twice"].subject(), case)
    once, doubled = (f(case.logits.copy(), upstream)[1] for upstream in (1.0, 2.0))
    np.testing.assert_allclose(doubled, 4 * once)
    x = case.logits.copy()
    peers._value_and_grad(BY_ID["overwrites-the-logits"].subject(), case)(x)
    assert (x != case.logits).any()


def test_scipy_lets_pass_what_is_right_and_a_wrong_loss_with_its_own_gradient():
    case = BY_NAME["small-image"]
    assert not SCIPY.finds(Textbook(), case)
    assert not SCIPY.finds(BY_ID["euclidean-distance"].subject(), case)
    assert SCIPY.finds(BY_ID["wrong-sign"].subject(), case)


def test_every_entry_has_a_stage_on_the_page():
    assert sum(len(group) for group in oracle_report._by_stage().values()) == len(CATALOGUE)
