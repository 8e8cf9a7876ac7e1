"""Proof by precision: balls are worked out with more and more bits, until each is settled.

A ball is settled when its radius is <= 2^-120 of itself; or, where it still holds 0 (a true zero, or terms that
cancel), <= 2^-120 of the largest entry and also <= 2^-1194, which is 2^-120 of the smallest positive double.
What the balls are of is nobody's business here.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

from flint import arb, ctx

from .balls import Key, Problem, Run, TooCoarse

BITS = (256, 512, 1536, 3072, 6144, 12288)  # 1536 is enough for a true zero, the last for losses of e^-8000
RELATIVE = 120  # radius <= 2^-120 of the number
FLOOR = 1194  # 2^-1194 is 2^-120 of the smallest positive double
NOTHING = 4096  # where no entry at all can be told from zero, all are < 2^-4096

Balls = tuple[arb, ...]


@contextlib.contextmanager
def arithmetic(bits: int, terms: int) -> Iterator[None]:
    """Balls of so many bits and series of so many terms, the caller's settings put back afterwards."""
    before = ctx.prec, ctx.cap
    ctx.prec, ctx.cap = bits, terms
    try:
        yield
    finally:
        ctx.prec, ctx.cap = before


def settled(ball: arb, floor: arb) -> bool:
    """Whether the radius is small beside the number, or below the floor where the ball holds 0."""
    radius = ball.rad()
    return ball.is_finite() and bool(
        radius * 2**RELATIVE <= ball.abs_lower() or (ball.contains(0) and radius <= floor)
    )


def prove(
    problem: Problem, keys: Callable[[Run], Iterable[Key]], entries: Callable[[Run, Key], Balls], terms: int
) -> dict[Key, Balls]:
    """The entries (one or more balls a key) at the precision at which each is settled."""
    found: dict[Key, Balls] = {}
    pending: list[Key] | None = None
    for bits in BITS:
        with arithmetic(bits, terms):
            try:
                run = Run(problem)
            except TooCoarse:
                continue
            pending = list(keys(run)) if pending is None else pending
            found.update((key, entries(run, key)) for key in pending)
            floors: list[arb] = []
            known = False  # whether anything at all is told from zero, in this column or one before
            for column in zip(*found.values(), strict=True):  # the values, then their tangents
                most = max((b.abs_lower() for b in column if b.is_finite()), default=arb(0))
                known = known or bool(most > 0)
                floor = arb(2) ** -(FLOOR if known else NOTHING)
                floors.append(min(floor, most * arb(2) ** -RELATIVE) if most > 0 else floor)
            pending = [k for k in pending if not all(map(settled, found[k], floors))]
        if not pending:
            return found
    raise ArithmeticError(f"not proven with {BITS[-1]} bits: {pending}")
