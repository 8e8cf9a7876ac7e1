"""What an entry of the catalogue is, and how one is written down. No mistake is made here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, TypeVar

from lalref.oracle.mistakes.textbook import Textbook

STAGE_OF = {
    "window": "pooling",
    "distance": "pooling",
    "membership": "pooling",
    "divisor": "pooling",
    "stride": "pooling",
    "space": "cross-entropy",
    "entropy": "cross-entropy",
    "target": "cross-entropy",
    "minkowski": "minkowski",
    "weights": "minkowski",
    "layout": "input",
    "dtype": "input",
    "option": "input",
    "backward": "backward",
    "state": "state",
}
"""Each group of mistakes, and the stage of the loss that it is in."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """Another form of the same mistake: what its sentence describes just as well."""

    formula: str  # where it differs from the entry's own
    form: type[Textbook]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """One single mistake.

    Attributes
    ----------
    id : str
        In kebab-case; never changes once released.
    group : str
        A key of `STAGE_OF`.
    formula : str
        What is computed in place of the right thing.
    sentence : str
        What is told to the person who made it; begins with "Your".
    why : str
        Why people make it.
    source : str
        A public thread, "owner/repository#number", in which somebody made it in a loss or a pooling of their
        own, if one is known. Otherwise `why` is all there is.
    form : type
        The textbook with this mistake in it: make one for a fresh subject.
    dtypes : tuple of str
        Those of the logits in which it is a mistake.
    variants : tuple of Variant
        Other forms of it, for people differ in what becomes of a lonely pixel, a kernel of 1, a stride.
    """

    id: str
    group: str
    formula: str
    sentence: str
    why: str
    source: str
    form: type[Textbook]
    dtypes: tuple[str, ...] = ("float32", "float64")
    variants: tuple[Variant, ...] = ()

    @property
    def forms(self) -> tuple[type[Textbook], ...]:
        """All of its forms, its own first."""
        return (self.form, *(variant.form for variant in self.variants))

    @property
    def stage(self) -> str:
        """Where it is: pooling, cross-entropy, minkowski, input, backward or state."""
        return STAGE_OF[self.group]

    @property
    def forward(self) -> bool:
        """Whether the loss itself is wrong, and so has a gradient of its own."""
        return self.stage not in ("backward", "state")

    def subject(self) -> Callable[..., Any]:
        """Return a fresh ``f(logits, labels, **options) -> (value, grad)`` that makes this mistake."""
        return self.form()


_Form = TypeVar("_Form", bound=type[Textbook])


def collector(into: list[Mistake]) -> Callable[..., Callable[[_Form], _Form]]:
    """Return a decorator that writes a class down in `into`: its name is the id, its docstring the sentence."""

    def mistake(
        group: str, formula: str, why: str, source: str = "", **rest: Any
    ) -> Callable[[_Form], _Form]:
        def collect(form: _Form) -> _Form:
            name = re.sub(r"(?<!^)(?=[A-Z])", "-", form.__name__).lower()
            sentence = " ".join((form.__doc__ or "").split())
            into.append(Mistake(name, group, formula, sentence, why, source, form, **rest))
            return form

        return collect

    return mistake


def variants_into(into: dict[str, tuple[Variant, ...]]) -> Callable[[str, str], Callable[[_Form], _Form]]:
    """Return a decorator that writes a class down in `into`, under the id of the mistake that it is a form of."""

    def also(mistake: str, formula: str) -> Callable[[_Form], _Form]:
        def collect(form: _Form) -> _Form:
            into[mistake] = (*into.get(mistake, ()), Variant(formula, form))
            return form

        return collect

    return also
