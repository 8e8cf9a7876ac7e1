"""The smallest input on which a subject still fails, as code to paste.

Starting from a failing case, one change after another is tried, and kept where the subject still fails: one
image instead of several, rows and columns left out, options at their defaults, fewer classes, labels made
alike, logits rounded and zeroed. Each try is judged as any case is, by truth worked out on the spot. The
code needs nothing of lalref: it holds the input, the right answer, and how far off it may be.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.loss import LocallyAdaptiveLoss
from lalref.oracle import golden
from lalref.oracle.case import ARGUMENTS, Case
from lalref.oracle.command import Command
from lalref.oracle.golden import Golden
from lalref.oracle.inputs import FloatArray
from lalref.oracle.judge import LIMIT, judge
from lalref.oracle.report import Result
from lalref.oracle.subjects import Subject
from lalref.oracle.units import error_unit

SECONDS = 5.0  # after which the smallest so far has to do


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk:
    """A small failing case, and the code that shows it."""

    case: Case
    right: Golden
    dtype: str
    code: str


def shrink(subject: Subject, case: Case, dtype: str, *, seconds: float = SECONDS) -> Shrunk | None:
    """Cut a failing case down; None where it does not fail when asked again.

    Parameters
    ----------
    subject : Subject
    case : Case
        One that `subject` answers wrongly in `dtype`, or raises on.
    dtype : str
    seconds : float
        Time for trying.

    Examples
    --------
    >>> import numpy as np, lalref
    >>> from lalref.oracle.cases import BY_NAME
    >>> def twice(logits, labels):
    ...     value, grad = lalref.lal_value_and_grad(logits, labels, engine="array")
    ...     return value, 2 * grad
    >>> shrink(Subject(twice), BY_NAME["plain"], "float64").case.logits.shape
    (1, 2, 1, 1)
    """
    until = time.perf_counter() + seconds
    if case.logits.size == 0 or not case.stages:
        return None  # nothing to cut, and mostly a convention
    right = _if_failing(subject, case, dtype)
    if right is None:
        return None
    changed = True
    while changed and time.perf_counter() < until:
        changed = False
        for smaller in _smaller(case):
            if time.perf_counter() > until:
                break
            found = _if_failing(subject, smaller, dtype)
            if found is not None:
                case, right, changed = smaller, found, True
                break  # and start again from the largest cut
    return Shrunk(case, right, dtype, code(subject, case, right, dtype))


def start(failed: list[Result], taken: Mapping[str, Case]) -> tuple[Case, str] | None:
    """The failing case and dtype to begin with: one with numbers, few options and little in it."""

    def size(result: Result) -> tuple[bool, int, int]:
        case = taken[result.name]
        return not math.isfinite(result.units), len(case.asks_for()), case.logits.size

    possible = [r for r in failed if taken[r.name].stages]
    if not possible:
        return None
    first = min(possible, key=size)
    return taken[first.name], first.dtype


def _if_failing(subject: Subject, case: Case, dtype: str) -> Golden | None:
    """The right answer where the subject's is wrong."""
    if subject.lacks(case):
        return None
    try:
        right = golden.make(case)
    except (ValueError, ArithmeticError):  # no ball holds it
        return None
    return None if judge(subject, case, dtype, "", right)[0].outcome == "holds" else right


def _smaller(case: Case) -> Iterator[Case]:
    """Cases with less in them, the largest cuts first."""
    axis = case.all_options["axis"] % case.logits.ndim
    axes = [a for a in range(case.logits.ndim) if a != axis]  # of the logits: N, *S
    for k, a in enumerate(axes):  # one image; halves of rows and columns; then without one of them
        n = case.labels.shape[k]
        halves = [range(n // 2), range(n // 2, n)] if n > 1 else []
        for kept in [*halves, *([j for j in range(n) if j != i] for i in range(n) if n > 2)]:
            yield from _cut(case, a, k, list(kept))
    for name in case.options:  # options at their defaults
        if name != "axis":
            options = {k: v for k, v in case.options.items() if k != name}
            if not _forbidden(options, case):
                yield dataclasses.replace(case, options=options)
    if case.pixel_weight is not None:
        yield dataclasses.replace(case, pixel_weight=None)
    if np.ndim(case.grad_output) == 0 and case.grad_output != 1:
        yield dataclasses.replace(case, grad_output=1.0)
    yield from _fewer_classes(case, axis)
    taken = np.unique(case.labels)
    for label in taken[1:]:  # labels made alike
        for at in np.argwhere(case.labels == label):
            labels = case.labels.copy()
            labels[tuple(at)] = taken[0]
            yield dataclasses.replace(case, labels=labels)
    finite: FloatArray = np.where(np.isfinite(case.logits), case.logits, 0.0)
    simpler: tuple[FloatArray, ...] = (np.zeros_like(finite), np.sign(finite), np.round(finite))
    for rounded in simpler:
        if not np.array_equal(rounded, case.logits):
            yield dataclasses.replace(case, logits=rounded, unread=None)
    if np.count_nonzero(case.logits) <= 24:  # entry by entry, once little is left
        for at in np.argwhere(case.logits):
            x = case.logits.copy()
            x[tuple(at)] = 0
            yield dataclasses.replace(case, logits=x)


def _cut(case: Case, axis: int, k: int, kept: list[int]) -> Iterator[Case]:
    """The rows `kept` of a spatial axis (or images), `axis` of the logits and `k` of the labels."""
    g = case.grad_output
    if np.ndim(g):
        stride = case.all_options["stride"]
        strides = [1, *([stride] * (case.labels.ndim - 1) if isinstance(stride, int) else stride)]
        if strides[k] != 1:
            return
        g = np.take(g, kept, k)
    yield dataclasses.replace(
        case,
        logits=np.take(case.logits, kept, axis),
        labels=np.take(case.labels, kept, k),
        pixel_weight=None if case.pixel_weight is None else np.take(case.pixel_weight, kept, k),
        unread=None if case.unread is None else np.take(case.unread, kept, axis),
        grad_output=g,
    )


def _fewer_classes(case: Case, axis: int) -> Iterator[Case]:
    """Without one class: its logits go, and its pixels join the class before it."""
    C = case.logits.shape[axis]
    ignored = case.all_options["ignore_index"]
    weights = case.options.get("class_weight")
    if C <= 2 or any(0 <= i < C for i in np.atleast_1d([] if ignored is None else ignored)):
        return
    for c in reversed(range(C)):
        is_class = (case.labels >= 0) & (case.labels < C)
        moved = is_class & (case.labels >= max(c, 1))
        options = dict(case.options)
        if weights is not None:
            options["class_weight"] = tuple(w for k, w in enumerate(weights) if k != c)
        yield dataclasses.replace(
            case,
            logits=np.delete(case.logits, c, axis),
            unread=None if case.unread is None else np.delete(case.unread, c, axis),
            labels=np.where(moved, case.labels - 1, case.labels).astype(case.labels.dtype),
            options=options,
        )


def _forbidden(options: dict[str, Any], case: Case) -> bool:
    """Whether the loss takes no such options, or the labels and upstream gradient don't go with them."""
    own = case.all_options["ignore_index"]
    if np.ndim(case.grad_output) and "reduction" not in options:
        return True
    if options.get("ignore_index", 255) != own and np.isin(case.labels, [] if own is None else own).any():
        return True
    try:
        LocallyAdaptiveLoss(**options)
    except ValueError:
        return True
    return False


# ---- code to paste


def code(subject: Subject, case: Case, right: Golden, dtype: str) -> str:
    """A program that fails as long as the subject is wrong on this case."""
    unit = error_unit(case, dtype, right.value[0], right.grad[0])
    given = {k: v for k, v in case.arguments.items() if k in subject.takes and not _default(k, v)}
    if isinstance(subject, Command):
        call = _of_program(subject, case)
    else:
        call = _IMPORT[subject.framework] + _named(subject) + _CALL[subject.framework]
    options = "".join(f", {k}={_literal(v)}" for k, v in given.items() if k != "grad_output")
    if "grad_output" in given and subject.framework == "numpy":
        options += f", grad_output={_literal(given['grad_output'])}"
    numbers = {
        "expected_value": right.value[0],
        "expected_grad": right.grad[0],
        "value_may_be_off": np.vectorize(_up)(LIMIT * unit.value),
        "grad_may_be_off": np.vectorize(_up, otypes=[float])(LIMIT * unit.grad),
    }
    return (
        "import numpy as np\n"
        + call.format(
            logits=_numbers(case.given_logits),
            labels=_literal(case.labels),
            dtype=dtype,
            labels_dtype=case.labels.dtype.name,
            options=options,
            upstream=_literal(case.grad_output),
        )
        + "".join(f"{k} = {_literal(v)}\n" for k, v in numbers.items())
        + "np.testing.assert_array_less(abs(grad - expected_grad), grad_may_be_off, 'gradient')\n"
        + "np.testing.assert_array_less(abs(value - expected_value), value_may_be_off, 'value')\n"
    )


def _default(name: str, value: Any) -> bool:
    return not isinstance(value, np.ndarray) and value == ARGUMENTS[name]


def _up(v: float) -> float:
    """Two digits, rounded up: still far from what is wrong, and short."""
    if v == 0 or not math.isfinite(v):
        return v
    scale = 10.0 ** (math.floor(math.log10(v)) - 1) if v > 1e-290 else v
    return float(f"{math.ceil(v / scale) * scale:.2g}")


def _literal(value: Any) -> str:
    """Python that gives the value back, arrays as calls of np.array."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"np.array({_numbers(value)}, {value.dtype.name!r})"
    value = float(value) if isinstance(value, np.ndarray | np.floating) else value
    return (
        repr(value).replace("nan", "np.nan").replace("inf", "np.inf")
        if isinstance(value, float)
        else repr(value)
    )


def _numbers(array: npt.NDArray[Any]) -> str:
    """Nested lists."""
    return repr(array.tolist()).replace("nan", "np.nan").replace("inf", "np.inf")


def _named(subject: Subject) -> str:
    """How the subject is imported, where that can be told."""
    function = subject.original
    name, module = getattr(function, "__qualname__", ""), inspect.getmodule(function)
    if module is None or not name.isidentifier() or getattr(module, name, None) is not function:
        return "# f = the function under test\n"
    file = getattr(module, "__file__", None)
    if module.__name__.startswith("subject_") and file:  # loaded from a path by the command line
        path = Path(file).resolve()
        return f"import sys; sys.path.insert(0, {str(path.parent)!r})\nfrom {path.stem} import {name} as f\n".replace(
            "{", "{{"
        ).replace("}", "}}")
    return (
        f"from {module.__name__} import {name} as f\n" if module.__name__ != "__main__" else f"f = {name}\n"
    )


_IMPORT = {
    "numpy": "",
    "torch": "import torch\n",
    "jax": "import jax\n",
    "tensorflow": "import tensorflow as tf\n",
}
_CALL = {
    "numpy": """x = np.array({logits}, {dtype!r})
y = {labels}
value, grad = f(x, y{options})
""",
    "torch": """x = torch.tensor({logits}, dtype=torch.{dtype}, requires_grad=True)
y = torch.tensor({labels})
value = f(x, y{options})
(grad,) = torch.autograd.grad(value, x, torch.as_tensor({upstream}, dtype=value.dtype).expand(value.shape))
value, grad = (t.detach().double().numpy() for t in (value, grad))
""",
    "jax": """jax.config.update("jax_enable_x64", "{dtype}" == "float64")
x = jax.numpy.array({logits}, {dtype!r})
y = jax.numpy.asarray({labels})
value, vjp = jax.vjp(lambda x: f(x, y{options}), x)
(grad,) = vjp(jax.numpy.broadcast_to(jax.numpy.asarray({upstream}, value.dtype), value.shape))
value, grad = np.asarray(value, float), np.asarray(grad, float)
""",
    "tensorflow": """x = tf.Variable({logits}, dtype={dtype!r})
y = tf.constant({labels})
with tf.GradientTape() as tape:
    value = f(x, y{options})
grad = tape.gradient(value, x, tf.broadcast_to(tf.cast({upstream}, value.dtype), tf.shape(value)))
value, grad = value.numpy().astype(float), tf.convert_to_tensor(grad).numpy().astype(float)
""",
}


def _of_program(subject: Command, case: Case) -> str:
    """Files as the command reads them, and the command itself."""
    from lalref.oracle.command import json_value

    options = {k: json_value(v) for k, v in case.all_options.items() if k in subject.takes}
    arrays: dict[str, npt.NDArray[Any]] = {"grad_output": np.asarray(case.grad_output, np.float64)}
    if case.pixel_weight is not None:
        arrays["pixel_weight"] = case.pixel_weight
    lines = [
        "import json, pathlib, subprocess, tempfile",
        "folder = pathlib.Path(tempfile.mkdtemp())",
        "[(folder / name).mkdir() for name in ('case', 'out')]",
        "np.save(folder / 'case/logits.npy', np.array({logits}, {dtype!r}))",
        "np.save(folder / 'case/labels.npy', {labels})",
        *(f"np.save(folder / 'case/{name}.npy', {_literal(array)})" for name, array in arrays.items()),
        f"(folder / 'case/options.json').write_text(json.dumps({options!r}))".replace("{", "{{").replace(
            "}", "}}"
        ),
        f"words = {subject.words!r}".replace("{", "{{").replace("}", "}}"),
        "words = [w.replace('{{case}}', str(folder / 'case')).replace('{{out}}', str(folder / 'out')) for w in words]",
        "subprocess.run(words, check=True, cwd=folder)",
        "value, grad = (np.load(folder / 'out' / name) for name in ('value.npy', 'grad.npy'))",
    ]
    return "\n".join(lines) + "\n"
