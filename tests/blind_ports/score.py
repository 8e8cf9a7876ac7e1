"""How often a mistake that was made apart from the catalogue is named: every mistake of the ports, one by one.

    PYTHONPATH=.:tests python -m blind_ports.score [numpy] [torch] [jax] [cpp] [--write]

A single mistake counts as named where the first finding is one of `EXPECTED`. A mistake that the catalogue
has not, or a right port, must get no finding: any is a false name. Of a pair, both are to be found. In every finding
of every port a mistake that was not made is a false name. Exit code: 1 with a false name, with fewer than 95 % of
the single mistakes named first, or where all ports were run and docs/oracle-scores.json has other counts, which
`--write` writes there. Where there is no g++, C++ is not run, which is said at the end.
"""

import functools
import importlib
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from blind_ports import record
from lalref import oracle

HERE = Path(__file__).parent
PORTS = ("numpy", "torch", "jax", "cpp")
TAKES = ["kernel_size", "sigma", "stride", "space", "normalize", "p", "label_smoothing"]
TAKES += ["ignore_index", "class_weight", "reduction", "grad_output"]

# What the catalogue calls each mistake. Matched by hand, from the sentences, after the ports were written;
# those that are not here are not in it.
EXPECTED = {
    "numpy": {
        "euclidean": "euclidean-distance",
        "manhattan": "city-block-distance",
        "no half": "gaussian-without-half",
        "variance": "sigma-not-squared",
        "wraps": "wraps-around",
        "diameter": "kernel-size-as-radius",
        "no centre": "leaves-out-the-centre",
        "any class": "reads-every-class-but-void",
        "whole kernel": "divides-by-the-window-area",
        "all pixels": "ignored-pixels-count both-factor",
        "no root": "no-root",
        "neighbour's divisor": "neighbours-divisor",
        "centre only": "centre-only",
        "no outer derivative": "root-not-differentiated",
        "upstream ignored": "upstream-ignored",
        "labels from one": "labels-count-from-one",
        "smoothing C - 1": "smooths-only-the-others",
        "mean by count": "counts-instead-of-weights",
        "weight inside power": "weights-raised-to-the-power",
        "window count": "counts-other-classes",
        "stride centred": "grid-starts-half-a-stride-in",
        "channels last": "view-without-permute",
        "accumulates": "gradient-accumulates",
        "overwrites": "overwrites-the-logits",
        "epsilon": "log-of-softmax-plus-epsilon",
        "binary log": "logarithm-to-base-two",
        "sign": "wrong-sign",
        "edges repeated": "repeats-the-border",
        "void is background": "void-is-class-zero",
        "divided by N": "divided-by-the-batch-size",
    },
    "torch": {
        "log-probabilities pooled": "pools-the-losses average-of-logarithms",
        "neighbours detached": "centre-only",
        "losses of softmax": "softmax-twice",
        "softmax over width": "softmax-over-pixels",
        "per image": "per-image-then-mean-of-all per-image-then-sum",
        "sum for mean": "never-divides",
        "void pooled": "void-joins-every-group",
        "smoothing ignored": "ignores-smoothing",
        "p ignored": "ignores-p",
        "upstream squared": "upstream-twice",
        "maximum detached": "maximum-detached-outside",
        "weights ignored": "ignores-class-weight",
        "border dropped": "no-windows-at-the-border",
        "void gets gradient": "ignored-pixels-receive",
        "other space": "always-probabilities",
        "gradient twice": "gradient-factor",
        "sigma short": "sigma-factor",
        "factor": "both-factor",
    },
    "jax": {
        "last row left out": "window-too-short",
        "one axis": "one-axis-only",
        "maximum": "only-the-maximum",
        "reciprocal sigma": "multiplies-by-sigma",
        "flat": "flat-weights",
        "sum of losses": "no-divisor",
        "root detached": "factor-one-over-p-forgotten",
        "softmax detached": "normaliser-forgotten",
        "smoothing detached": "only-the-labels-entry",
        "void counts": "ignored-pixels-count",
        "smoothing twice": "keeps-too-much-of-the-label",
        "cross term": "reads-other-classes",
    },
    "cpp": {
        "labels transposed": "labels-transposed",
        "stride ignored": "ignores-stride",
        "not divided back": "divisor-forgotten no-divisor",
        "omega forgotten": "weights-missing-in-the-shares",
        "pooled probability forgotten": "logarithm-not-differentiated",
        "power p": "exponent-not-lowered",
        "batch summed": "both-factor",
    },
}
PAIRS_OF_CPP = [("power p", "stride ignored"), ("omega forgotten", "labels transposed")]


@dataclass(frozen=True)
class Trial:
    """One port with mistakes made in it, and what the oracle should say."""

    port: str
    made: tuple[str, ...]

    @property
    def kind(self) -> str:
        """right, single, pair or unlisted"""
        if not self.made:
            return "right"
        if not all(one in EXPECTED[self.port] for one in self.made):
            return "unlisted"
        return "single" if len(self.made) == 1 else "pair"

    @property
    def expected(self) -> list[set[str]]:
        """For each mistake the names that are right."""
        return [set(EXPECTED[self.port][one].split()) for one in self.made if one in EXPECTED[self.port]]


@dataclass(frozen=True)
class Outcome:
    """What the oracle said."""

    trial: Trial
    verdict: str
    named: tuple[str, ...]  # the first finding, a pair in its two names
    units: float
    seconds: float
    others: tuple[str, ...] = ()  # the names in the findings after it

    @property
    def false(self) -> list[str]:
        """Names, in all findings, of mistakes that were not made."""
        made = set().union(*self.trial.expected)
        return sorted({name.split("=")[0] for name in (*self.named, *self.others)} - made)

    @property
    def good(self) -> bool:
        """As it should be."""
        if self.trial.kind in ("right", "unlisted"):
            return not self.named and (self.verdict == "right") == (self.trial.kind == "right")
        names = {name.split("=")[0] for name in self.named}
        expected = self.trial.expected
        return (
            self.verdict == "wrong"
            and all(names & each for each in expected)
            and names <= set.union(*expected)
        )

    @property
    def row(self) -> str:
        """A line of the table, without what differs between machines."""
        right = " + ".join(" or ".join(sorted(each)) for each in self.trial.expected) or "no name"
        made, named = " + ".join(self.trial.made) or "right", " + ".join(self.named) or "no name"
        named += f", then {', '.join(self.others)}" if self.others else ""
        mark = " " if self.good else "X"
        head = f"{mark} {self.trial.port:5} {self.trial.kind:8} {self.verdict:12}"
        return f"{head} {made} | {right} | {named}"


@functools.cache
def program() -> tuple[Path, tuple[str, ...]]:
    """The C++ port, compiled, and the list of its mistakes."""
    path = Path(tempfile.mkdtemp()) / "cpp_blind"
    subprocess.run(["g++", "-O2", "-std=c++17", "-o", path, HERE / "cpp_blind.cpp"], check=True)
    lines = subprocess.run([path], check=True, capture_output=True, text=True).stdout.splitlines()
    return path, tuple(line.split(":")[0] for line in lines)


def trials(port: str) -> list[Trial]:
    """All of a port: right, each mistake alone, the pairs."""
    if port == "cpp":
        singles, pairs = list(program()[1]), PAIRS_OF_CPP
    else:
        module = importlib.import_module(f"blind_ports.{port}_blind")
        constants = getattr(module, "CONSTANTS", {})
        singles, pairs = [*module.MISTAKES, *constants, *module.ODD], module.PAIRS
    return [Trial(port, made) for made in [(), *((one,) for one in singles), *pairs]]


def outcome(trial: Trial) -> Outcome:
    """Put one to the oracle."""
    began = time.perf_counter()
    if trial.port == "cpp":
        path, names = program()
        numbers = " ".join(str(names.index(one)) for one in trial.made)
        report = oracle.verify(oracle.Command(f"{path} {{case}} {{out}} {numbers}", takes=TAKES))
    else:
        module = importlib.import_module(f"blind_ports.{trial.port}_blind")
        dtype = "float64" if trial.port == "jax" else None  # half the compiling
        report = oracle.verify(module.port(*trial.made), framework=trial.port, dtype=dtype)
    findings = report.diagnosis.findings if report.diagnosis else []
    named = tuple(findings[0].mistake.split("+")) if findings else ()
    units = findings[0].agreement_units if findings else float("nan")
    others = tuple(name for each in findings[1:] for name in each.mistake.split("+"))
    return Outcome(trial, report.verdict, named, units, time.perf_counter() - began, others)


def totals(outcomes: list[Outcome]) -> str:
    """Per kind, how many were as they should be."""
    lines = []
    for kind, text in {
        "right": "right ports judged right",
        "single": "single mistakes of the catalogue named first",
        "pair": "pairs named",
        "unlisted": "mistakes outside of the catalogue left without a name",
    }.items():
        of_kind = [each for each in outcomes if each.trial.kind == kind]
        if of_kind:
            good = sum(each.good for each in of_kind)
            lines.append(f"{text}: {good} of {len(of_kind)} ({good / len(of_kind):.1%})")
    return "\n".join(lines)


def runnable(ports: list[str]) -> list[str]:
    """Those of the ports that can be run here."""
    return [port for port in ports if port != "cpp" or shutil.which("g++")]


def say_what_was_left(asked: list[str], run: list[str]) -> None:
    """Say that the ports in C++ were asked for and not run."""
    if run != asked:
        print("NOT RUN: C++, for there is no g++ here. What is above is of the other ports.")


def main(arguments: list[str]) -> None:
    """Print the table."""
    outcomes = []
    ports = [each for each in arguments if each != "--write"]
    run = runnable(ports or list(PORTS))
    for port in run:
        for trial in trials(port):
            outcomes.append(outcome(trial))
            units = f"{outcomes[-1].units:.2g}" if outcomes[-1].named else "-"
            print(f"{outcomes[-1].row} | {units} | {outcomes[-1].seconds:.1f} s", flush=True)
    print(totals(outcomes))
    false = [f"{' + '.join(each.trial.made)}: {', '.join(each.false)}" for each in outcomes if each.false]
    print(f"false names, in all findings: {len(false)}", *false, sep="\n  ")
    say_what_was_left(ports or list(PORTS), run)
    single = [each.good for each in outcomes if each.trial.kind == "single"]
    if false or not all(each.good for each in outcomes if each.trial.kind in ("right", "unlisted")):
        sys.exit("a false name")
    if sum(single) < 0.95 * len(single):
        sys.exit("fewer than 95 % of the single mistakes named first")
    if set(run) == set(PORTS):
        rows = ((each.trial.kind, each.trial.port, each.good, each.row) for each in outcomes)
        sys.exit(record.compared("first", record.counts(rows, false), "--write" in arguments) or None)


if __name__ == "__main__":
    main(sys.argv[1:])
