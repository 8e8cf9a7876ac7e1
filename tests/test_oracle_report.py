"""The kill matrix as a page: what it says is what was measured."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from lalref.cli import main
from lalref.oracle import oracle_report, peers
from lalref.oracle.cases import BY_NAME
from lalref.oracle.matrix import CORE, units_by_case
from lalref.oracle.mistakes import BY_ID, CATALOGUE, EQUIVALENT, Textbook

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
    assert written.missed == []
    return written.page.read_text(encoding="utf-8")


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


def test_the_same_numbers_are_there_for_machines(page, tmp_path):
    found = json.loads((tmp_path / "oracle-report.json").read_text(encoding="utf-8"))
    assert list(found["mistakes"]) == [m.id for m in FEW]
    assert found["mistakes"]["single-precision-inside"]["best"].keys() == {"float64"}
    assert found["mistakes"]["no-root"]["seen_by"] == {SCIPY.name: False}
    assert found["mistakes"]["gradient-accumulates"]["refused"]


def test_every_cell_of_the_matrix_is_there_for_machines(page, tmp_path):
    found = json.loads((tmp_path / "oracle-report.json").read_text(encoding="utf-8"))["mistakes"]
    for dtype in oracle_report.DTYPES:
        measured = units_by_case(BY_ID["no-root"].subject(), dtype)
        cells = found["no-root"]["units"][dtype]
        assert list(cells) == [case.name for case in CORE]
        assert any(math.isinf(units) for units in measured.values())
        for name, units in measured.items():
            assert (
                cells[name] is None
                if math.isinf(units)
                else cells[name] == pytest.approx(units, rel=6e-3, abs=6e-3)
            )


def test_a_mistake_that_is_let_pass_fails_the_command(tmp_path, monkeypatch):
    few = (BY_ID["centre-only"],)
    monkeypatch.setattr(oracle_report, "CATALOGUE", few)
    monkeypatch.setattr(oracle_report, "PEERS", ())
    monkeypatch.setattr(oracle_report, "WEAKEST", 1e300)
    result = CliRunner().invoke(main, ["oracle", "report", "--folder", str(tmp_path)])
    assert result.exit_code == 1
    assert re.search("lets pass:\ncentre-only: .* units in float32, at least 1e.300", result.output)
    monkeypatch.setattr(oracle_report, "LIMIT", np.inf)
    monkeypatch.setattr(oracle_report, "verify", lambda *_, **__: SimpleNamespace(verdict="right"))
    assert "centre-only: not refused" in oracle_report.write(tmp_path).missed


# ---- the page as it is published

DOCS = Path(__file__).parents[1] / "docs"


def test_the_published_page_is_of_this_catalogue_and_of_these_cases():
    published = (DOCS / "oracle-report.md").read_text(encoding="utf-8")
    found = json.loads((DOCS / "oracle-report.json").read_text(encoding="utf-8"))
    assert f"The catalogue has **{len(CATALOGUE)}** single mistakes" in published
    assert f"refused by the {len(CORE)} core cases" in published
    assert found["core_cases"] == [case.name for case in CORE]
    own = [(m.id, m.stage, 1 + len(m.variants)) for m in CATALOGUE]
    assert [(name, m["stage"], m["forms"]) for name, m in found["mistakes"].items()] == own
    told = published[published.index("## What they are") :]
    for mistake in CATALOGUE:
        assert f"- **{mistake.id}** (`{mistake.formula}`): {mistake.sentence} {mistake.why}" in told
        assert (mistake.source or "") in told
    assert re.findall(r"^- \*\*([\w-]+)\*\*: ", told, flags=re.MULTILINE) == [e.id for e in EQUIVALENT]


def test_the_published_page_lets_nothing_pass():
    found = json.loads((DOCS / "oracle-report.json").read_text(encoding="utf-8"))
    assert all(m["refused"] for m in found["mistakes"].values())
    for name, m in found["mistakes"].items():
        assert all(best is None or best >= oracle_report.WEAKEST for best in m["best"].values()), name
        assert tuple(m["best"]) == (() if m["stage"] == "state" else BY_ID[name].dtypes)


def test_the_published_cells_are_of_every_mistake_in_every_case():
    file = DOCS / "oracle-report.json"
    assert file.stat().st_size < 500_000
    for name, m in json.loads(file.read_text(encoding="utf-8"))["mistakes"].items():
        assert list(m["units"]) == list(oracle_report.DTYPES)
        for dtype, cells in m["units"].items():
            assert list(cells) == [case.name for case in CORE], name
            most = max(math.inf if units is None else units for units in cells.values())
            if dtype in m["best"]:
                best = math.inf if m["best"][dtype] is None else m["best"][dtype]
                assert most == pytest.approx(best, rel=6e-3), name


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
