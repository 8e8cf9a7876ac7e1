"""docs/oracle-figures.md says what the catalogue, the cases, the files and the kill matrix say; its commands exist.

How many blind ports are named is measured by their commands alone, which fail below what the page promises.
"""

import json
import re
import shlex
from pathlib import Path

import oracle_figures
import pytest

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
