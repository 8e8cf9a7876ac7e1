"""How to ask other people's code: what it takes, and how it is called.

A subject is ``f(logits, labels, **options)``. For framework="numpy" it returns (value, gradient); for torch,
jax and tensorflow it returns the value, and the framework differentiates it. It is passed, by keyword, every
option that its signature names (all of them if it has ``**options``). Arrays (logits, labels, pixel_weight,
an array grad_output) are fresh arrays of the framework; class_weight is a tuple of floats or None, and
pixel_weight is of the dtype that the loss is worked out in (float64 for float64 logits, else float32).
A class is called with the options of its ``__init__``, then its instance with those of its call; a
torch.autograd.Function through ``apply``, its options by position. Programs are in `command`.

No right answer may come in here, and no judgement but one: whether the subject can be asked at all.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lalref.hints import nearest, option_hint
from lalref.loss import LocallyAdaptiveLoss
from lalref.oracle import frameworks
from lalref.oracle.call import LAYOUTS, Answer, Call, UsageError, as_float64, came, same
from lalref.oracle.case import ARGUMENTS, OPTIONS, Case

__all__ = ["FRAMEWORKS", "Answer", "Subject", "UsageError"]

FRAMEWORKS = ("numpy", "torch", "jax", "tensorflow")
DTYPES = ("float16", "bfloat16", "float32", "float64")


class Subject:
    """A function to be judged, with what its signature says.

    Parameters
    ----------
    function : callable
    framework : {"numpy", "torch", "jax", "tensorflow"}
    fixed : mapping, optional
        Values of options that the function has built in; without it they are taken to be the defaults.

    Attributes
    ----------
    name, framework, version : str
    fixed : dict
    takes : frozenset of str
        The arguments that it is passed.
    left : dict
        Parameters that are no option of the loss and keep their defaults, each with the option that its name
        is near to, or "".
    layouts : tuple of str
        The ways its arrays can lie in memory, names of `LAYOUTS`.
    dtypes : tuple of str
        Those that it can be given.

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
        self.framework, self.fixed = framework, dict(fixed or {})
        self.name = getattr(function, "__name__", type(function).__name__)
        self.original: Any = function  # as it was given, for reports
        self.function, named = _callable_with_options(function, self.name)
        self.takes = named & set(ARGUMENTS)
        untaken = set(ARGUMENTS) - self.takes
        self.left = {k: nearest(k, untaken) for k in sorted(named - self.takes)}
        self.layouts = {"numpy": tuple(LAYOUTS), "torch": tuple(LAYOUTS)[::2]}.get(framework, ())
        self.memo: dict[Any, Any] = {}
        self.dtypes: tuple[str, ...] = DTYPES
        self.check_fixed()

    def check_fixed(self) -> None:
        """Refuse what `fixed` can't mean."""
        for name in self.fixed:
            if name not in OPTIONS:
                why = (
                    "which belongs to a call and not to the loss"
                    if name in ARGUMENTS
                    else "which is no option"
                )
                raise UsageError(f"fixed names {name!r}, {why}: {option_hint(name, OPTIONS)}")
            if name in self.takes:
                raise UsageError(
                    f"{self.name} takes {name} as an argument, so it is varied and can't be fixed; "
                    "fixed is for what a function has built in"
                )
        try:
            LocallyAdaptiveLoss(**self.fixed)
        except ValueError as error:
            raise UsageError(f"fixed: {error}") from None

    @property
    def takes_upstream(self) -> bool:
        """Whether another upstream gradient than 1 can be put to it."""
        return "grad_output" in self.takes or self._by_framework("grad_output")

    def lacks(self, case: Case) -> list[str]:
        """Name the options that `case` needs at another value than the subject has built in."""
        built_in = {**ARGUMENTS, **self.fixed}
        needed = [k for k in ARGUMENTS if k not in self.takes and self._by_framework(k) is False]
        return [k for k in needed if not _equal(case.arguments[k], built_in[k])]

    def prepare(self, case: Case, dtype: str, layout: str = "") -> Call:
        """Fresh arrays for one case in one dtype, lying in memory as `layout` says."""
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
        if layout and self.framework == "numpy":
            lay = LAYOUTS[layout]
            logits, labels = lay(logits), lay(labels)
            upstream = lay(upstream) if isinstance(upstream, np.ndarray) else upstream
            options = {k: lay(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        takes = "grad_output" in self.takes
        return Call(self.function, logits, labels, options, upstream, takes, layout, self.memo)

    def ask(self, call: Call) -> Answer:
        """Put the call; whatever the subject raises comes through, warnings do not."""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return _ASK[self.framework](call)

    def __call__(self, case: Case, dtype: str, layout: str = "") -> Answer:
        """Ask for one case."""
        try:
            return self.ask(self.prepare(case, dtype, layout))
        except UsageError as error:
            raise UsageError(f"{self.name}, asked for the case {case.name!r}, {error}") from None

    def transformed(self) -> dict[str, Subject]:
        """The subject under what its framework's users put around a loss: jit, vmap, tf.function."""
        found: dict[str, Subject] = {}
        for name, transform in frameworks.transforms(self.framework).items():
            found[name] = copy.copy(self)
            found[name].function = transform(self.function)
            found[name].memo = {"way": frameworks.AS_IT_IS}
        return found

    def _by_framework(self, name: str) -> bool:
        return name == "grad_output" and self.framework in ("torch", "jax", "tensorflow")


def _callable_with_options(
    function: Callable[..., Any], name: str
) -> tuple[Callable[..., Any], frozenset[str]]:
    """The function to call with keyword options, and the names of its parameters beside logits and labels."""
    torch = sys.modules.get("torch")
    if torch is not None and inspect.isclass(function) and issubclass(function, torch.autograd.Function):
        return _autograd_function(function, name)
    if inspect.isclass(function):
        return _class(function, name, torch)
    if torch is not None and isinstance(function, torch.nn.Module):
        # __call__ itself is (*args, **kwargs) and tells no options
        return function, _arguments_taken(function.forward, name)
    return function, _arguments_taken(function, name)


def _class(cls: type, name: str, torch: Any) -> tuple[Callable[..., Any], frozenset[str]]:
    """A class whose instances are the loss: options of __init__ and of the call."""
    call = cls.forward if torch is not None and issubclass(cls, torch.nn.Module) else cls.__call__  # type: ignore[attr-defined]
    own = _arguments_taken(call, name, skip=1)
    at_birth = _arguments_taken(cls, name, arrays=0) - own

    def made_and_called(logits: Any, labels: Any, **options: Any) -> Any:
        instance = cls(**{k: v for k, v in options.items() if k in at_birth})
        return instance(logits, labels, **{k: v for k, v in options.items() if k in own})

    return made_and_called, own | at_birth


def _autograd_function(cls: Any, name: str) -> tuple[Callable[..., Any], frozenset[str]]:
    """A torch.autograd.Function: apply takes positions only, so all up to the last option are passed."""
    import torch

    with_ctx = cls.setup_context is torch.autograd.Function.setup_context
    parameters = list(inspect.signature(cls.forward).parameters.values())[with_ctx:]
    takes = _arguments_taken(cls.forward, name, skip=int(with_ctx))
    rest = [(p.name, ARGUMENTS.get(p.name, p.default)) for p in parameters[2:] if p.kind is not p.VAR_KEYWORD]

    def applied(logits: Any, labels: Any, **options: Any) -> Any:
        return cls.apply(logits, labels, *(options.get(k, default) for k, default in rest))

    return applied, takes


def _arguments_taken(
    function: Callable[..., Any], name: str, *, skip: int = 0, arrays: int = 2
) -> frozenset[str]:
    """Names in the signature, of options or not, after `skip` parameters and `arrays` arrays."""
    expected = "expected a function f(logits, labels, **options)"
    if not callable(function):
        raise UsageError(f"{expected}, got {type(function).__name__}: {function!r}")
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} has no signature to read options from ({error}): wrap it in one") from error
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) < arrays and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise UsageError(f"{expected}, but {name} takes {len(positional)} positional arguments")
    rest = [p for p in parameters if p not in positional[:arrays]]
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
    named = frozenset(p.name for p in rest if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    if any(p.kind is p.VAR_KEYWORD for p in rest) and arrays:
        return named | set(ARGUMENTS)
    return named


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return tuple(a) == tuple(b)
    return bool(a == b)


def _ask_numpy(call: Call) -> Answer:
    given = call.given()
    before = {k: v.copy() for k, v in given.items()}
    extra: dict[str, Any] = {}
    if call.takes_grad_output:
        extra["grad_output"] = call.grad_output
    found = call.function(call.logits, call.labels, **call.options, **extra)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise UsageError(f"returned {came(found)}; a numpy subject returns a tuple (value, gradient)")
    changed = tuple(k for k, v in given.items() if not same(v, before[k]))
    return Answer(as_float64(found[0], "value"), as_float64(found[1], "gradient"), changed)


_ASK: Mapping[str, Callable[[Call], Answer]] = {
    "numpy": _ask_numpy,
    "torch": frameworks.ask_torch,
    "jax": frameworks.ask_jax,
    "tensorflow": frameworks.ask_tensorflow,
}
