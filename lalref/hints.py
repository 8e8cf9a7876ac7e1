"""What a refused call most likely meant: the one more sentence of an error, or nothing.

Only shapes and names may come in. Nothing here lets a call through, and no array is changed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

Shape = tuple[int, ...]
TRACED = {"Tracer", "SymbolicTensor"}  # what JAX and TensorFlow pass in place of a number while they trace
ELSEWHERE = {"from_logits": "the loss takes logits: leave the softmax out of the last layer"}


def shape_hint(logits: Shape, labels: Shape, axis: int) -> str:
    """Return how to mend labels whose shape isn't that of logits without their class axis; "" if unknown."""
    c = axis % len(logits)
    want = logits[:c] + logits[c + 1 :]
    for k in range(len(labels)):
        if labels[k] == 1 and labels[:k] + labels[k + 1 :] == want:
            index = ":, " * k + "0"
            return f". Labels have an axis of length 1 too many: pass labels[{index}]"
    if labels == logits:
        return f". Labels look one-hot: pass class indices, as labels.argmax({axis}) gives"
    for k in range(len(logits) - 1, 0, -1):
        if k != c and labels == logits[:k] + logits[k + 1 :]:
            if k == len(logits) - 1:
                return ". Logits look channels-last: pass axis=-1"
            return f". Logits look as if axis {k} were that of their classes: pass axis={k}"
    if labels == logits[1:]:
        return ". The batch axis looks missing: pass logits[None] and labels[None]"
    if labels == (1, *logits[1:]):
        return ". The batch axis of logits looks missing: pass logits[None]"
    if (1, *labels) == want:
        return ". The batch axis of labels looks missing: pass labels[None]"
    return ""


def option_hint(unknown: str, known: Iterable[str]) -> str:
    """Return which option `unknown` most likely is misspelt from, or else all there are."""
    if unknown in ELSEWHERE:
        return ELSEWHERE[unknown]
    near = nearest(unknown, known)
    return f"did you mean {near}=?" if near else f"allowed are {', '.join(sorted(known))}"


def traced_hint(value: object) -> str:
    """Return how to give an option whose value, or one of whose values, is being traced; "" where none is."""
    each = value if isinstance(value, tuple | list) else (value,)
    if TRACED.isdisjoint(kind.__name__ for v in each for kind in type(v).__mro__):
        return ""
    return (
        ". It is being traced, and options are fixed while tracing: bind them before by functools.partial, or "
        "name them in jax.jit's static_argnames, or make the loss outside of the traced function"
    )


def nearest(unknown: str, known: Iterable[str]) -> str:
    """Return the name in `known` that `unknown` most likely is misspelt from; "" where none is near."""
    names = sorted(known)
    if unknown == "weight" and "class_weight" in names:  # torch's name for it; pixel_weight is as near
        return "class_weight"
    near = (
        difflib.get_close_matches(unknown, names, n=1)
        or [n for n in names if n.startswith(unknown)]
        or [n for n in names if difflib.get_close_matches(unknown, [n.split("_")[0]])]
    )
    return near[0] if near else ""


def refuse_unknown(caller: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError for the first name in `given` that is not in `known`, as Python would, but with a hint."""
    names = set(known)
    for name in given:
        if name not in names:
            raise TypeError(
                f"{caller}() got an unexpected keyword argument {name!r}: {option_hint(name, names)}"
            )
