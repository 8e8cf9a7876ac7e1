"""A case as a program to paste: it fails as long as the subject is wrong on it, and needs nothing of lalref.

Which case is worth pasting is `shrink`'s affair.
"""

from __future__ import annotations

import inspect
import math
import pprint
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lalref.oracle.case import ARGUMENTS, Case
from lalref.oracle.command import Command, json_value
from lalref.oracle.golden import Golden
from lalref.oracle.judge import LIMIT
from lalref.oracle.subjects import Subject
from lalref.oracle.units import error_unit


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
        + "grad_off, value_off = abs(grad - expected_grad), abs(value - expected_value)\n"
        + "np.testing.assert_array_less(grad_off, grad_may_be_off, 'gradient')\n"
        + "np.testing.assert_array_less(value_off, value_may_be_off, 'value')\n"
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
        return f"np.array(\n{_numbers(value)},\n{value.dtype.name!r})"
    value = float(value) if isinstance(value, np.ndarray | np.floating) else value
    return (
        repr(value).replace("nan", "np.nan").replace("inf", "np.inf")
        if isinstance(value, float)
        else repr(value)
    )


def _numbers(array: npt.NDArray[Any]) -> str:
    """Nested lists, in lines that a terminal shows whole."""
    text = pprint.pformat(array.tolist(), width=72, compact=True)
    return text.replace("nan", "np.nan").replace("inf", "np.inf")


def _named(subject: Subject) -> str:
    """How the subject is imported, where that can be told."""
    function = subject.original
    name, module = getattr(function, "__qualname__", ""), inspect.getmodule(function)
    if module is None or not name.isidentifier() or getattr(module, name, None) is not function:
        return "# f = the function under test\n"
    file = getattr(module, "__file__", None)
    if module.__name__.startswith("subject_") and file:  # loaded from a path by the command line
        path = Path(file).resolve()
        return f"import sys\nsys.path.insert(0, {str(path.parent)!r})\nfrom {path.stem} import {name} as f\n".replace(
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
    "numpy": """x = np.array(
{logits}, {dtype!r})
y = {labels}
value, grad = f(x, y{options})
""",
    "torch": """x = torch.tensor(
{logits}, dtype=torch.{dtype}, requires_grad=True)
y = torch.tensor({labels})
value = f(x, y{options})
(grad,) = torch.autograd.grad(value, x, torch.as_tensor({upstream}, dtype=value.dtype).expand(value.shape))
value, grad = (t.detach().double().numpy() for t in (value, grad))
""",
    "jax": """jax.config.update("jax_enable_x64", "{dtype}" == "float64")
x = jax.numpy.array(
{logits}, {dtype!r})
y = jax.numpy.asarray({labels})
value, vjp = jax.vjp(lambda x: f(x, y{options}), x)
(grad,) = vjp(jax.numpy.broadcast_to(jax.numpy.asarray({upstream}, value.dtype), value.shape))
value, grad = np.asarray(value, float), np.asarray(grad, float)
""",
    "tensorflow": """x = tf.Variable(
{logits}, dtype={dtype!r})
y = tf.constant({labels})
with tf.GradientTape() as tape:
    value = f(x, y{options})
grad = tape.gradient(value, x, tf.broadcast_to(tf.cast({upstream}, value.dtype), tf.shape(value)))
value, grad = value.numpy().astype(float), tf.convert_to_tensor(grad).numpy().astype(float)
""",
}


def _of_program(subject: Command, case: Case) -> str:
    """Files as the command reads them, and the command itself."""
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
