"""Mistakes made apart from the catalogue are named; what the catalogue has not gets no name.

A part of `blind_ports.score`, which the nightly run goes through as a whole.
"""

import pytest
from blind_ports import score

NAMED = ["euclidean", "whole kernel", "no root", "sign", "centre only", "binary log"]
UNLISTED = ["tanh", "absolute third"]
TRIALS = [score.Trial("numpy", (made,)) for made in NAMED + UNLISTED]
TRIALS += [score.Trial("numpy", ()), score.Trial("torch", ("losses of softmax",)), score.Trial("torch", ())]


@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: " ".join((trial.port, *trial.made)))
def test_what_the_oracle_says_of_a_mistake_made_apart(trial: score.Trial) -> None:
    pytest.importorskip(trial.port)
    outcome = score.outcome(trial)
    assert outcome.good, outcome.row


def test_a_false_name_does_not_score() -> None:
    """The score itself can fail: a wrong name, one where none should be, half of a pair."""

    def good(made: tuple[str, ...], *named: str) -> bool:
        return score.Outcome(score.Trial("numpy", made), "wrong", named, 0.0, 0.0).good

    assert good(("euclidean",), "euclidean-distance")
    assert not good(("euclidean",), "city-block-distance")
    assert not good(("euclidean",), "euclidean-distance", "wrong-sign")
    assert not good(("tanh",), "euclidean-distance")
    assert not good(("euclidean", "no root"), "no-root")


def test_a_false_name_behind_the_first_is_one_too() -> None:
    def false(made: tuple[str, ...], *others: str) -> list[str]:
        return score.Outcome(score.Trial("numpy", made), "wrong", ("no-root",), 0.0, 0.0, others).false

    assert false(("no root",)) == []
    assert false(("no root",), "wrong-sign") == ["wrong-sign"]
    assert false(("tanh",)) == ["no-root"]
