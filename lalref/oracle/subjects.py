"""How to ask other people's code: what it takes, how it is called, and its answer as plain float64.

A subject is ``f(logits, labels, **options)``. For framework="numpy" it returns (value, gradient); for torch,
jax and tensorflow it returns the value, and the framework differentiates it. It is passed, by keyword, every
option that its signature names (all of them if it has ``**options``). Arrays (logits, labels, pixel_weight,
an array grad_output) are fresh arrays of the framework; class_weight is a tuple of floats or None, and
pixel_weight is of the dtype that the loss is worked out in (float64 for float64 logits, else float32).

No right answer may come in here, and no judgement but one: whether the subject can be asked at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from lalref.loss import LocallyAdaptiveLoss
from lalref.oracle.case import ARGUMENTS, OPTIONS, Case
from lalref.oracle.inputs import FloatArray

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")


class UsageError(ValueError):
    """The subject can't be asked: the message says what came and what is expected."""


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a subject returned, and whether it wrote to what it was given."""

    value: FloatArray
    grad: FloatArray
    changed: tuple[str, ...] = ()  # names of the inputs that were written to


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """One case in one dtype, as NumPy arrays that the framework makes its own from."""

    function: Callable[..., Any]
    logits: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    options: dict[str, Any]
    grad_output: Any  # a float, or an array
    takes_grad_output: bool
    compile_whole: bool  # by frameworks that compile; else operation by operation

    def given(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays by name."""
        arrays = {"logits": self.logits, "labels": self.labels}
        return arrays | {k: v for k, v in self.options.items() if isinstance(v, np.ndarray)}


class Subject:
    """A function to be judged, with what its signature says.

    Parameters
    ----------
    function : callable
    framework : {"numpy", "torch", "jax", "tensorflow"}
    fixed : mapping, optional
        Values of options that the function has built in; without it they are taken to be the defaults.

    Raises
    ------
    UsageError
        It can't be called as f(logits, labels, **options), the framework is unknown or not installed, or
        `fixed` names something that is no option or that the function takes itself.
    """

    def __init__(
        self, function: Callable[..., Any], framework: str = "numpy", fixed: Mapping[str, Any] | None = None
    ) -> None:
        if framework not in FRAMEWORKS:
            raise UsageError(f"framework={framework!r} is not known: it is one of {', '.join(FRAMEWORKS)}")
        try:
            self.version = importlib.import_module(framework).__version__
        except ImportError as error:
            raise UsageError(f"{framework} can't be imported ({error}): pip install {framework}") from error
        self.function, self.framework, self.fixed = function, framework, dict(fixed or {})
        self.name = getattr(function, "__name__", type(function).__name__)
        self.takes = _arguments_taken(function, self.name)
        for name in self.fixed:
            if name not in ARGUMENTS:
                raise UsageError(f"fixed names {name!r}, which is no option: {', '.join(ARGUMENTS)}")
            if name in self.takes:
                raise UsageError(
                    f"{self.name} takes {name} as an argument, so it is varied and can't be fixed; "
                    "fixed is for what a function has built in"
                )

        try:
            LocallyAdaptiveLoss(**{k: v for k, v in self.fixed.items() if k in OPTIONS})
        except ValueError as error:
            raise UsageError(f"fixed: {error}") from None

    def lacks(self, case: Case) -> list[str]:
        """Name the options that `case` needs at another value than the subject has built in."""
        built_in = {**ARGUMENTS, **self.fixed}
        needed = [k for k in ARGUMENTS if k not in self.takes and self._by_framework(k) is False]
        return [k for k in needed if not _equal(case.arguments[k], built_in[k])]

    def __call__(self, case: Case, dtype: str) -> Answer:
        """Ask for one case; whatever the subject raises comes through, warnings do not."""
        working = np.float64 if dtype == "float64" else np.float32
        arguments = case.arguments
        options = {
            k: v.astype(working) if isinstance(v, np.ndarray) else v
            for k, v in arguments.items()
            if k in self.takes
        }
        number = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        upstream = options.pop("grad_output", arguments["grad_output"])
        logits, labels = case.given_logits.astype(number), case.labels.copy()
        takes = "grad_output" in self.takes
        call = _Call(self.function, logits, labels, options, upstream, takes, compile_whole=not case.quick)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                return _ASK[self.framework](call, dtype)
            except UsageError as error:
                raise UsageError(f"{self.name}, asked for the case {case.name!r}, {error}") from None

    def _by_framework(self, name: str) -> bool:
        return name == "grad_output" and self.framework != "numpy"


def _arguments_taken(function: Callable[..., Any], name: str) -> frozenset[str]:
    """Names of the options in the signature."""
    expected = "expected a function f(logits, labels, **options)"
    if not callable(function):
        raise UsageError(f"{expected}, got {type(function).__name__}: {function!r}")
    try:
        parameters = list(inspect.signature(_own_call(function)).parameters.values())
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} has no signature to read options from ({error}): wrap it in one") from error
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise UsageError(f"{expected}, but {name} takes {len(positional)} positional arguments")
    rest = [p for p in parameters if p not in positional[:2]]
    strange = [
        p.name
        for p in rest
        if p.default is p.empty
        and p.name not in ARGUMENTS
        and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if strange:
        raise UsageError(
            f"{name} needs {', '.join(strange)}, which is no option of the loss; the options are "
            f"{', '.join(ARGUMENTS)}"
        )
    if any(p.kind is p.VAR_KEYWORD for p in rest):
        return frozenset(ARGUMENTS)
    return frozenset(p.name for p in rest if p.name in ARGUMENTS and p.kind is not p.POSITIONAL_ONLY)


def _own_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a torch module is called through: __call__ itself is (*args, **kwargs) and tells no options."""
    torch = sys.modules.get("torch")
    return function.forward if torch is not None and isinstance(function, torch.nn.Module) else function


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return tuple(a) == tuple(b)
    return bool(a == b)


def _came(thing: Any) -> str:
    return f"a {type(thing).__name__}" + (f" of {len(thing)}" if isinstance(thing, list | tuple) else "")


def _float64(array: Any, what: str) -> FloatArray:
    try:
        numbers = np.asarray(array)
        if numbers.dtype.kind in "cSU":  # astype would drop imaginary parts, and read words as numbers
            raise TypeError(f"dtype {numbers.dtype}")
        return numbers.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"returned {_came(array)} as the {what} ({error}); expected an array of real numbers"
        ) from error


def _ask_numpy(call: _Call, dtype: str) -> Answer:
    given = call.given()
    before = {k: v.copy() for k, v in given.items()}
    extra: dict[str, Any] = {}
    if call.takes_grad_output:
        extra["grad_output"] = call.grad_output
    found = call.function(call.logits, call.labels, **call.options, **extra)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise UsageError(f"returned {_came(found)}; a numpy subject returns a tuple (value, gradient)")
    changed = tuple(k for k, v in given.items() if not _same(v, before[k]))
    return Answer(_float64(found[0], "value"), _float64(found[1], "gradient"), changed)


def _ask_torch(call: _Call, dtype: str) -> Answer:
    import torch

    def tensor(array: Any) -> Any:
        # torch does not know ml_dtypes' bfloat16; float64 holds every 16-bit number
        if array.dtype.kind in "iu":
            return torch.tensor(array)
        return torch.tensor(array.astype(np.float64)).to(getattr(torch, str(array.dtype)))

    def plain(t: Any) -> FloatArray:
        return _float64(t.detach().to(torch.float64).cpu().numpy(), "value")

    x, given, options = _in_framework(call, tensor)
    x.requires_grad_(True)
    value = call.function(x, given["labels"], **options)
    if not isinstance(value, torch.Tensor):
        raise UsageError(f"returned {_came(value)}; a torch subject returns the value, a torch.Tensor")
    grad = None
    if value.requires_grad:  # a constant, as for a batch with nothing in it, has gradient 0
        upstream = torch.as_tensor(_upstream(call), dtype=value.dtype).expand(value.shape)
        (grad,) = torch.autograd.grad(value, x, upstream, allow_unused=True)
    changed = _changed(call, {k: v.detach().to(torch.float64).numpy() for k, v in given.items()})
    return Answer(plain(value), plain(torch.zeros_like(x) if grad is None else grad), changed)


def _ask_jax(call: _Call, dtype: str) -> Answer:
    import jax
    import jax.numpy as jnp

    with _jax_64_bit(jax) if dtype == "float64" else contextlib.nullcontext():
        x, given, options = _in_framework(call, jnp.asarray)

        def f(x: Any) -> Any:
            value = call.function(x, given["labels"], **options)
            if not isinstance(value, jax.Array):
                raise UsageError(f"returned {_came(value)}; a jax subject returns the value, a jax.Array")
            return value

        def value_and_grad(x: Any) -> tuple[Any, Any]:
            value, vjp = jax.vjp(f, x)
            (grad,) = vjp(jnp.broadcast_to(jnp.asarray(_upstream(call), value.dtype), value.shape))
            return value, grad

        # the quick cases share their operations' compilations; for the others one of the whole is quicker
        ask = jax.jit(value_and_grad) if call.compile_whole else value_and_grad
        try:
            value, grad = ask(x)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # it can't be traced, and need not be
            value, grad = value_and_grad(x)
        return Answer(_float64(value, "value"), _float64(grad, "gradient"))


def _ask_tensorflow(call: _Call, dtype: str) -> Answer:
    import tensorflow as tf

    x, given, options = _in_framework(call, tf.constant)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = call.function(x, given["labels"], **options)
    if not isinstance(value, tf.Tensor):
        raise UsageError(f"returned {_came(value)}; a tensorflow subject returns the value, a tf.Tensor")
    upstream = tf.broadcast_to(tf.cast(_upstream(call), value.dtype), tf.shape(value))
    grad = tape.gradient(value, x, output_gradients=upstream)
    grad = tf.zeros_like(x) if grad is None else tf.convert_to_tensor(grad)
    return Answer(_float64(value.numpy(), "value"), _float64(grad.numpy(), "gradient"))


_ASK: Mapping[str, Callable[[_Call, str], Answer]] = {
    "numpy": _ask_numpy,
    "torch": _ask_torch,
    "jax": _ask_jax,
    "tensorflow": _ask_tensorflow,
}


def _in_framework(
    call: _Call, make: Callable[[npt.NDArray[Any]], Any]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The logits, all arrays by name, and the options, with arrays of the framework."""
    given = {k: make(v) for k, v in call.given().items()}
    options = {k: given.get(k, v) for k, v in call.options.items()}
    return given["logits"], given, options


def _upstream(call: _Call) -> Any:
    g = call.grad_output
    return g if isinstance(g, np.ndarray) else float(g)


def _changed(call: _Call, after: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    before = call.given()
    return tuple(k for k, v in after.items() if not _same(v, before[k].astype(np.float64)))


def _same(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


@contextlib.contextmanager
def _jax_64_bit(jax: Any) -> Iterator[None]:
    """64-bit types for a while: under another name before JAX 0.8."""
    if hasattr(jax, "enable_x64"):
        with jax.enable_x64(True):
            yield
    else:
        from jax.experimental import enable_x64

        with enable_x64():
            yield
