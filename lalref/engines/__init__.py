"""Which engine serves which array, said once. An engine is a module of pure functions:

    window_losses(logits, labels, valid, options) -> ell            (N, *grid)
    window_losses_vjp(logits, labels, valid, options, g) -> grad    (N, C, *S)

over the canonical arrays of `lalref.inputs.Problem`. Nothing falls back silently: an engine asked for by
name serves the call or says why it can't.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Literal

from lalref.arrays import library

if TYPE_CHECKING:
    from lalref.inputs import Problem

Call = Literal["loss", "gradient", "jvp", "hvp", "inspect"]


def choose(problem: Problem, call: Call) -> ModuleType:
    """Return the engine module that serves `call`.

    Raises
    ------
    ValueError
        The engine that ``problem.options`` names can't serve it.
    """
    name = problem.options.engine
    if name == "auto" and library(problem.xp) == "cupy":
        name = "array" if _not_for_kernels(problem, call) else "cuda"
    elif name == "auto":
        name = "array" if _not_for_loops(problem, call) else "numba"
    if name == "array":
        from lalref.engines import array

        return array
    if name == "numba":
        if reason := _not_for_loops(problem, call):
            raise ValueError(f'engine="numba" {reason}: use engine="array"')
        from lalref.engines import loops

        return loops
    if name == "cuda":
        if reason := _not_for_kernels(problem, call):
            raise ValueError(f'engine="cuda" {reason}')
        from lalref.engines import kernels

        return kernels
    what = "parts" if call == "loss" else call  # the loss itself is not asked for here
    raise ValueError(f'engine="definition" works out the loss alone, no {what}: use engine="array"')


def _not_for_loops(problem: Problem, call: Call) -> str:
    """Why the numba engine can't serve the call; empty if it can."""
    if library(problem.xp) != "numpy":  # asked of array_api_compat, it would break torch.compile's graph
        return f"takes NumPy arrays, got {problem.xp.__name__}"
    if call not in ("loss", "gradient"):
        return f"works out values and gradients, no {call}"
    if problem.labels.ndim > 4:
        return f"takes up to 3 spatial axes, got {problem.labels.ndim - 1}"
    return ""


def _not_for_kernels(problem: Problem, call: Call) -> str:
    """Why the cuda engine can't serve the call, and what to do; empty if it can."""
    from lalref.engines import kernels

    if call not in ("loss", "gradient"):
        return f'works out values and gradients, no {call}: use engine="array"'
    return kernels.why_not(problem.logits, problem.options)
