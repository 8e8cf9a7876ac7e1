"""The options of the loss: their names, defaults, meanings and checks, here and nowhere else.

No array may come in: what depends on the arrays' shapes is checked in `lalref.inputs`.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import operator
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, Self, TypedDict

from lalref.hints import refuse_unknown, traced_hint

ENGINES = ("auto", "definition", "array", "numba", "cuda")
CHOICES = {
    "space": ("logits", "probabilities"),
    "normalize": ("weights", "count"),
    "reduction": ("none", "mean", "sum"),
    "empty": ("zero", "nan", "raise"),
    "engine": ENGINES,
}


class DefaultIgnoreIndex(enum.IntEnum):
    """255 that nobody asked for: a valid class once there are more than 255, so then it must be said."""

    VOID = 255

    def __repr__(self) -> str:
        return "255"


class OptionsDict(TypedDict, total=False):
    """The options by name, for type checkers; `lalref.LocallyAdaptiveLoss` says what each means."""

    kernel_size: int | tuple[int, ...]
    sigma: float | None
    stride: int | tuple[int, ...]
    space: Literal["logits", "probabilities"]
    normalize: Literal["weights", "count"]
    p: float
    label_smoothing: float
    ignore_index: int | Sequence[int] | None
    class_weight: Sequence[float] | None
    reduction: Literal["none", "mean", "sum"]
    axis: int
    empty: Literal["zero", "nan", "raise"]
    check: bool
    engine: Literal["auto", "definition", "array", "numba", "cuda"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Options:
    """The options of `lalref.LocallyAdaptiveLoss`, checked; all that an engine knows of it.

    Equal are options that do the same with every input: 255 ignored by default is not 255 ignored because
    it was asked for, since only the latter serves more than 255 classes.
    """

    kernel_size: int | tuple[int, ...] = 5
    sigma: float | None = 1.0
    stride: int | tuple[int, ...] = 1
    space: str = "logits"
    normalize: str = "weights"
    p: float = 5.0
    label_smoothing: float = 0.0
    ignore_index: int | Sequence[int] | None = DefaultIgnoreIndex.VOID
    class_weight: Sequence[float] | None = None
    reduction: str = "mean"
    axis: int = 1
    empty: str = "zero"
    check: bool = True
    engine: str = "auto"

    def __new__(cls, *positional: Any, **options: Any) -> Self:
        """Refuse an option that there is not, naming the one that was probably meant."""
        refuse_unknown(cls.__name__, options, NAMES)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        def fix(name: str, value: object) -> None:
            object.__setattr__(self, name, value)  # the dataclass is frozen

        fix("kernel_size", _lengths("kernel_size", self.kernel_size, "an odd int >= 1", lambda k: k % 2 == 1))
        fix("stride", _lengths("stride", self.stride, "an int >= 1", lambda s: True))
        if self.sigma is not None:
            fix(
                "sigma",
                _real("sigma", self.sigma, "a number > 0, or None for equal weights", lambda v: v > 0),
            )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                _refuse(name, getattr(self, name), "one of " + ", ".join(map(repr, allowed)))
        fix("p", _real("p", self.p, "a number >= 1, or math.inf for the maximum", lambda v: v >= 1))
        fix(
            "label_smoothing",
            _real("label_smoothing", self.label_smoothing, "a number in [0, 1]", lambda v: 0 <= v <= 1),
        )
        if self.space == "probabilities" and self.label_smoothing > 0:
            _refuse(
                "label_smoothing",
                self.label_smoothing,
                'only 0 with space="probabilities", which pools the true class alone',
            )
        if not isinstance(self.ignore_index, DefaultIgnoreIndex):
            fix("ignore_index", _indices(self.ignore_index))
        if self.class_weight is not None:
            fix("class_weight", _class_weights(self.class_weight))
        if (axis := _int(self.axis)) is None:
            _refuse("axis", self.axis, "an int, 1 or -1 for channels-last as a rule")
        fix("axis", axis)
        if not isinstance(self.check, bool):
            _refuse("check", self.check, "True or False")

    def _said(self) -> dict[str, Any]:
        """Every option but an ignore_index that nobody asked for."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: v for n, v in fields.items() if not isinstance(v, DefaultIgnoreIndex)}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Options) or other.__class__ is not self.__class__:
            return NotImplemented
        return self._said() == other._said()

    def __hash__(self) -> int:
        return hash(tuple(self._said().items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in self._said().items())})"

    def radii(self, ndim: int) -> tuple[int, ...]:
        """Return r_a for each of `ndim` spatial axes; a kernel is 2 r_a + 1 long."""
        return tuple(k // 2 for k in self._per_axis("kernel_size", ndim))

    def strides(self, ndim: int) -> tuple[int, ...]:
        """Return the stride for each of `ndim` spatial axes."""
        return self._per_axis("stride", ndim)

    @property
    def ignored_labels(self) -> tuple[int, ...]:
        """Every label that is ignored."""
        if self.ignore_index is None:
            return ()
        return (int(self.ignore_index),) if isinstance(self.ignore_index, int) else tuple(self.ignore_index)

    def _per_axis(self, name: str, ndim: int) -> tuple[int, ...]:
        lengths: int | tuple[int, ...] = getattr(self, name)
        if isinstance(lengths, int):
            return (lengths,) * ndim
        if len(lengths) != ndim:
            raise ValueError(
                f"{name}={lengths} names {len(lengths)} axes, but the logits have {ndim} spatial axes: "
                "give one int, or one for each spatial axis"
            )
        return lengths


# once: torch.compile can't trace dataclasses.fields
NAMES = tuple(f.name for f in dataclasses.fields(Options))


def differing(first: Options, second: Options) -> tuple[str, str]:
    """Return those options of each by name that are not alike: ``("p=5.0", "p=2.0")``."""
    one, other = first._said(), second._said()
    names = [n for n in NAMES if one.get(n, ...) != other.get(n, ...)]

    def told(said: dict[str, Any]) -> str:
        return ", ".join(f"{n}={said[n]!r}" if n in said else f"{n}=255 by default" for n in names)

    return told(one), told(other)


def _refuse(name: str, value: object, allowed: str) -> None:
    raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}{traced_hint(value)}")


def _int(value: object) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _lengths(name: str, value: Any, allowed: str, fits: Callable[[int], bool]) -> int | tuple[int, ...]:
    several = isinstance(value, tuple | list)
    lengths = [_int(v) for v in (value if several else (value,))]
    if any(v is None or v < 1 or not fits(v) for v in lengths):
        _refuse(name, value, f"{allowed}, or a tuple of them, one for each spatial axis")
    found = tuple(v for v in lengths if v is not None)
    return found if several else found[0]


def _real(name: str, value: Any, allowed: str, fits: Callable[[float], bool]) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not fits(number):
        _refuse(name, value, allowed)
    return number


def _indices(value: Any) -> int | tuple[int, ...] | None:
    if value is None or (single := _int(value)) is not None:
        return None if value is None else single
    try:
        found = [_int(v) for v in value]
    except TypeError:
        found = [None]
    if None in found or isinstance(value, str | Mapping):
        _refuse("ignore_index", value, "an int, a sequence of ints, or None")
    return tuple(v for v in found if v is not None)


def _class_weights(value: Any) -> tuple[float, ...]:
    allowed = "a sequence of one finite number >= 0 for each class"
    unordered = isinstance(value, str | Mapping | Set)  # Keras takes {class: weight}: its keys are no weights
    try:
        value = value.tolist() if hasattr(value, "tolist") else value  # at once, where a device is waited for
        weights = (math.nan,) if unordered else tuple(float(v) for v in value)
    except (TypeError, ValueError):
        weights = (math.nan,)
    if not all(0 <= w < math.inf for w in weights):
        _refuse("class_weight", value, allowed)
    return weights
