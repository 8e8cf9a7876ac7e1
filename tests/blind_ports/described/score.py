"""Puts every port of this folder to the oracle, and counts which mistakes are named first.

    PYTHONPATH=.:tests python -m blind_ports.described.score [numpy] [torch] [jax] [cpp] [--write]

A single mistake counts as named where the first finding is the one whose sentence the port was made from. Of a pair
both are to be found. A mistake of the author's own, and a right port, must get no finding: any is a false name. So is,
in every finding of every port, a mistake that was not made. Exit code: 1 with a false name, with fewer than 95 % of
the single mistakes named first, or where all ports were run and docs/oracle-scores.json has other counts, which
`--write` writes there. Where there is no g++, C++ is not run, which is said at the end.
"""

import functools
import importlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blind_ports import record
from blind_ports.described.expected import EXPECTED, TAKES, TAKES_TOO
from blind_ports.score import runnable, say_what_was_left
from lalref import oracle

HERE = Path(__file__).parent
FRAMEWORKS = ("numpy", "torch", "jax", "cpp")


@functools.cache
def program() -> Path:
    """The C++ ports, compiled."""
    path = Path(tempfile.mkdtemp()) / "cpp_ports"
    subprocess.run(["g++", "-O2", "-std=c++17", "-o", path, HERE / "cpp_ports.cpp"], check=True)
    return path


def report_on(framework: str, file: str, name: str) -> oracle.Report:
    """What the oracle says of one port."""
    if framework == "cpp":
        takes = [*TAKES.split(","), *TAKES_TOO["cpp"].split(",")]
        return oracle.verify(oracle.Command(f"{program()} {{case}} {{out}} {name}", takes=takes))
    module = importlib.import_module(f"blind_ports.described.{file.removesuffix('.py')}")
    dtype = "float64" if framework == "jax" else None  # half the compiling
    return oracle.verify(getattr(module, name), framework=framework, dtype=dtype)


def main(arguments: list[str]) -> None:
    """Print the table and the totals."""
    rows: list[tuple[str, str, bool, str]] = []
    false_names: list[str] = []
    asked = [each for each in arguments if each != "--write"] or list(FRAMEWORKS)
    run = runnable(asked)
    for (framework, file, name), mistake in EXPECTED.items():
        if framework not in run:
            continue
        begin = time.perf_counter()
        report = report_on(framework, file, name)
        findings = report.diagnosis.findings if report.diagnosis else []
        named = [{each.split("=")[0] for each in found.mistake.split("+")} for found in findings]
        kind = "unlisted" if mistake.ids is None else ("right", "single", "pair")[len(mistake.ids)]
        verdict = "right" if kind == "right" else "wrong"
        made, everyone = set(mistake.ids or ()), set().union(*named)
        good = report.verdict == verdict and (named[0] == made if named else not made)
        if false := sorted(everyone - made):
            false_names.append(f"{framework} {name}: {', '.join(false)}")
        made_it = " + ".join(mistake.ids or ()) or "no name"
        said = ", then ".join(" + ".join(sorted(each)) for each in named) or "no name"
        told = f"{framework:5} {kind:8} {report.verdict:12} {name}: {made_it} | {said}"
        rows.append((kind, framework, good, told))
        print(f"{' ' if good else 'X'} {told} | {time.perf_counter() - begin:.0f} s", flush=True)
    found = record.counts(rows, false_names)
    for kind in record.KINDS:
        print(f"{kind}: {found[kind]['good']} of {found[kind]['of']} as they should be")
    print(f"false names, in all findings: {len(false_names)}", *false_names, sep="\n  ")
    say_what_was_left(asked, run)
    if any(found[kind]["good"] < found[kind]["of"] for kind in ("right", "unlisted")) or false_names:
        sys.exit("a false name")
    if found["single"]["good"] < 0.95 * found["single"]["of"]:
        sys.exit("fewer than 95 % of the single mistakes named first")
    if set(run) == set(FRAMEWORKS):
        sys.exit(record.compared("described", found, "--write" in arguments) or None)


if __name__ == "__main__":
    main(sys.argv[1:])
