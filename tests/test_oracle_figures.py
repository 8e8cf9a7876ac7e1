"""docs/oracle-figures.md says what the catalogue, the cases, the files and the kill matrix say; its commands exist.

How many blind ports are named is what their commands found and wrote into docs/oracle-scores.json, which they fail
without; here the pages are held to that file, and the file to this catalogue and these ports.
"""

import json
import re
import shlex
from pathlib import Path

import oracle_figures
import pytest
from blind_ports import record, score
from blind_ports.described.expected import EXPECTED as DESCRIBED

from lalref.cli import main
from lalref.oracle import golden, oracle_report
from lalref.oracle.cases import CASES
from lalref.oracle.honest import variants
from lalref.oracle.judge import LIMIT
from lalref.oracle.mistakes import CATALOGUE, EQUIVALENT
from lalref.oracle.verify import ENOUGH

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "oracle-figures.md").read_text(encoding="utf-8")
ROWS = [line.strip("|").split(" | ") for line in PAGE.splitlines() if re.match(r"\| (?!promise)", line)]
COMMANDS = sorted(
    {c for c in re.findall(r"`([^`]+)`", PAGE) if re.search(r"^(LALREF\S+ )?(python |lalref \w)", c)}
)
REPORT = json.loads((ROOT / "docs" / "oracle-report.json").read_text(encoding="utf-8"))
SCORES = json.loads((ROOT / "docs" / "oracle-scores.json").read_text(encoding="utf-8"))


def killed(dtype):
    """Mistakes of a dtype that the published matrix has beyond the limit, and how many there are."""
    best = [m["best"][dtype] for m in REPORT["mistakes"].values() if dtype in m["best"]]
    return f"{sum(b is None or b > LIMIT for b in best)} of {len(best)}"


def weakest():
    return min(
        (most, name, dtype)
        for name, m in REPORT["mistakes"].items()
        for dtype, most in m["best"].items()
        if most is not None
    )


def peers():
    asked = [m["seen_by"] for m in REPORT["mistakes"].values() if m["seen_by"]]
    seen = ", ".join(f"{peer} {sum(each[peer] for each in asked)}" for peer in REPORT["versions"])
    return f"the {len(asked)} mistakes that can be put to them", seen.replace(
        "torch fast mode", "its fast mode"
    )


def sizes():
    return sum(file.stat().st_size for file in golden.FOLDER.iterdir())


FIGURES = {
    "catalogue": [
        f"{len(CATALOGUE)}, with {sum(len(m.variants) for m in CATALOGUE)} more forms",
        f"{sum(bool(m.source) for m in CATALOGUE)} cited, with the public bug",
        f"the other {sum(not m.source for m in CATALOGUE)} are not",
        f"{len(EQUIVALENT)} changes that change nothing",
    ],
    "kill rate": [f"{dtype}: {killed(dtype)}" for dtype in ("float32", "float64")],
    "state": [
        "{0} of {0}".format(
            sum(m.stage == "state" and REPORT["mistakes"][m.id]["refused"] for m in CATALOGUE)
        )
    ],
    "weakest": [f"{weakest()[0]:.0f} (*{weakest()[1]}* in {weakest()[2]})", f"≥ {oracle_report.WEAKEST:.0f}"],
    "peers": list(peers()),
    "cases": [
        f"in the worst of {len(CASES)} cases",
        f"{sum(case.core for case in CASES)} core cases",
        f"{sum(not case.core for case in CASES)} cases of {len({c.feature for c in CASES if not c.core})} features",
        f"fewer than {ENOUGH} core cases",
        f"wrong beyond {LIMIT:g}",
    ],
    "false alarms": [f"of {len(list(variants())):,} variants"],
    "files": [f"{sizes():,} bytes", f"{len(CASES) + 1} files"],
    "reader": [f"{len((ROOT / 'examples/read_golden.cpp').read_text().splitlines())} lines"],
}


@pytest.mark.parametrize("what", FIGURES)
def test_a_figure_is_what_the_project_says_now(what):
    missing = [figure for figure in FIGURES[what] if figure not in PAGE]
    assert not missing, f"docs/oracle-figures.md lacks {missing}"


def test_every_row_has_a_promise_a_figure_asked_one_measured_and_a_command():
    assert len(ROWS) >= 35
    assert [row for row in ROWS if len(row) < 3 or not all(cell.strip() for cell in row)] == []


def told(score, kind, ports=None):
    """Of the ports of a kind, how many were as they should be: "35 of 35"."""
    found = SCORES[score][kind] if ports is None else SCORES[score][kind]["ports"][ports]
    return f"{found['good']} of {found['of']}"


def named(score, kind):
    """Of the ports that are to get no name, how many got one: "0 for 16"."""
    return f"{SCORES[score][kind]['of'] - SCORES[score][kind]['good']} for {SCORES[score][kind]['of']}"


MEASURED = {
    "Single mistakes named first, described ports": f"{told('described', 'single')} with three that",
    "No name for a mistake that is not in the catalogue": named("described", "unlisted"),
    "No name for a right port": named("described", "right"),
    "Pairs, both named": f"{told('described', 'pair')};",
    "Single mistakes named first, the first set": f"{told('first', 'single')} with these ports in view",
    "No name for those outside the catalogue": f"{named('first', 'unlisted')}, {named('first', 'right')}",
    "Pairs of the first set, both named": told("first", "pair"),
}


@pytest.mark.parametrize("promise", MEASURED)
def test_how_many_blind_ports_are_named_is_what_the_scores_found(promise):
    (row,) = [row for row in ROWS if row[0].strip().startswith(promise)]
    assert re.search(rf"(?<!\d){re.escape(MEASURED[promise])}", row[2])


@pytest.mark.parametrize("which", SCORES)
def test_a_score_is_of_this_catalogue_and_found_no_false_name(which):
    found = SCORES[which]
    assert found["catalogue"] == len(CATALOGUE), "run it again with --write"
    assert found["false_names"] == []
    for kind in ("right", "single", "pair", "unlisted"):
        assert found[kind]["good"] + len(found[kind]["otherwise"]) == found[kind]["of"]
        assert sum(port["of"] for port in found[kind]["ports"].values()) == found[kind]["of"]


def test_a_run_that_is_not_as_it_was_kept_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FILE", tmp_path / "scores.json")
    monkeypatch.setattr(record, "versions", dict)
    rows = [("single", "numpy", True, "no root"), ("pair", "cpp", False, "sign + no root | no name")]
    before, after = record.counts(rows, []), record.counts(rows[:1], ["tanh: no-root"])
    assert "single: " in record.compared("first", before, write=False)  # nothing is kept yet
    assert record.compared("first", before, write=True) == ""
    assert record.compared("first", before, write=False) == ""
    assert json.loads(record.FILE.read_text(encoding="utf-8"))["first"]["pair"]["otherwise"] == [rows[1][3]]
    assert re.search(
        r"pair: .*false_names: \['tanh: no-root'\]", record.compared("first", after, write=False)
    )
    assert "single: " not in record.compared("first", after, write=False)


def test_a_score_is_of_all_ports():
    kinds = [
        ("unlisted" if m.ids is None else ("right", "single", "pair")[len(m.ids)]) for m in DESCRIBED.values()
    ]
    assert {kind: SCORES["described"][kind]["of"] for kind in kinds} == {k: kinds.count(k) for k in kinds}
    for port, mistakes in score.EXPECTED.items():
        assert SCORES["first"]["single"]["ports"][port]["of"] == len(mistakes)
        assert SCORES["first"]["right"]["ports"][port]["of"] == 1


def test_the_table_of_the_second_score_is_what_the_score_found():
    page = (ROOT / "tests" / "blind_ports" / "README.md").read_text(encoding="utf-8")
    second = page[page.index("## The second score") :]
    for kind, row in {
        "single": "single mistakes of the catalogue",
        "pair": "pairs",
        "unlisted": "outside of the catalogue, without a name",
    }.items():
        cells = " | ".join(told("first", kind, port) for port in score.PORTS)
        assert f"| {row} | {cells} |" in second


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_exists(command):
    words = [word for word in shlex.split(command) if not word.startswith("LALREF_")]
    if words[0] == "lalref":
        found = main
        while hasattr(found, "commands") and len(words) > 1:
            found = found.commands[words.pop(1)]
        assert {o for o in words if o.startswith("--")} <= {o for p in found.params for o in p.opts}
    elif words[2] == "pytest":
        for file in (ROOT / word for word in words if word.endswith(".py")):
            assert file.is_file(), file
            names = re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
            wanted = words[words.index("-k") + 1].split(" or ") if "-k" in words else [""]
            assert all(any(want in name for name in names) for want in wanted), (file, wanted)
    elif words[2] == "oracle_figures":
        assert all(callable(getattr(oracle_figures, word)) for word in words[3:])
    else:
        assert (ROOT / "tests" / (words[2].replace(".", "/") + ".py")).is_file()


def test_nightly_runs_what_takes_minutes():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    nightly = makefile[makefile.index("\nnightly:") : makefile.index("\nbench:")]
    for part in ("golden check", "false-alarms --runs 10000", "oracle report", "test_diagnose.py", "blind_ports.score",
                 "blind_ports.described.score", "oracle_figures"):  # fmt: skip
        assert part in nightly
