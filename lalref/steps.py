"""What the front door's calls keep and give back, and the steps that they take, through an engine and stage 3.

A step takes a checked call, a `Problem`. In which order they are taken is said in `lalref.loss`; no option or array may
be checked here.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np

from lalref import minkowski
from lalref.arrays import Array, as_scalar, at_home, wide_dtype, working_dtype
from lalref.engines import choose
from lalref.inputs import Problem
from lalref.minkowski import Parts


@dataclasses.dataclass(frozen=True, eq=False)
class Cache:
    """What `LocallyAdaptiveLoss.forward` keeps for `backward`: the checked call and stage 3's small maps."""

    problem: Problem
    ell: Array
    total: Parts


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """The maps behind one value, each on the stride grid and 0 where no window is valid.

    Attributes
    ----------
    group_size : (N, *grid) int32
        abs(G_p), how many pixels the window reads.
    divisor : (N, *grid)
        D_p of equation (7).
    merged : (N, C, *grid)
        The merged vectors z_p of equation (4); with space="probabilities" the merged distributions.
    window_loss : (N, *grid)
        ell_p.
    share : (N, *grid) float64
        The derivative of the value with respect to each ell_p, equation (11).

    Examples
    --------
    >>> import numpy as np
    >>> from lalref import LocallyAdaptiveLoss
    >>> x, y = np.array([[[2.0, 0.0], [0.0, 0.0]]]), np.array([[0, 0]])  # two pixels of one class
    >>> maps = LocallyAdaptiveLoss(kernel_size=3, sigma=None).inspect(x, y)
    >>> maps.divisor, maps.merged[0, :, 0], maps.share
    (array([[2., 2.]]), array([1., 0.]), array([[0.5, 0.5]]))
    """

    group_size: Array
    divisor: Array
    merged: Array
    window_loss: Array
    share: Array


def window_losses(problem: Problem, call: Literal["loss", "gradient"]) -> Array:
    """The map of window losses, equation (5) or (6), from the engine that serves the call; (N, *grid)."""
    engine = choose(problem, call)
    return engine.window_losses(
        _engine_logits(problem, engine), problem.labels, problem.valid, problem.options
    )


def parts_of(problem: Problem, ell: Array) -> Parts:
    """What the window losses come to: equation (19)."""
    engine = choose(problem, "loss")
    if hasattr(engine, "parts_of"):
        found: Parts = engine.parts_of(ell, problem.weights, problem.valid, problem.options)
        return found
    return minkowski.parts(ell, problem.omega, problem.valid, problem.options)


def _engine_logits(problem: Problem, engine: Any) -> Array:
    return problem.logits if getattr(engine, "TAKES_16_BIT", False) else problem.working_logits


def ell_bar(cache: Cache, grad_output: float | Array) -> Array:
    """The derivative of the result with respect to each ell, (11), times grad_output; float64 (N, *grid)."""
    problem = cache.problem
    xp = problem.xp
    with at_home(xp, problem.logits):
        upstream = problem.upstream(grad_output)
        none = problem.options.reduction == "none"
        g = problem.omega if none else minkowski.shares(cache.ell, problem.omega, cache.total)
        return xp.where(problem.valid, g * upstream, 0.0)


def gradient(cache: Cache, g: Array) -> Array:
    """Equations (12) to (14): the gradient that the derivatives g of the window losses send back."""
    problem = cache.problem
    engine = choose(problem, "gradient")
    with at_home(problem.xp, problem.logits):
        grad = engine.window_losses_vjp(
            _engine_logits(problem, engine),
            problem.labels,
            problem.valid,
            problem.options,
            problem.xp.astype(g, cache.ell.dtype),
        )
        return problem.caller_gradient(grad)


def forward_mode(
    call: Literal["jvp", "hvp"], problem: Problem, tangent: Array
) -> tuple[Array, Array, Cache, Array, Array]:
    """Equation (15): value, value_dot, and what a Hessian-vector product goes on with."""
    xp, options = problem.xp, problem.options
    with at_home(xp, problem.logits):
        x_dot = problem.like_logits(tangent, "tangent")
        ell, ell_dot = choose(problem, call).window_losses_jvp(
            problem.working_logits, problem.labels, problem.valid, options, x_dot
        )
        cache = Cache(problem, ell, minkowski.parts(ell, problem.omega, problem.valid, options))
        if options.reduction == "none":
            value, value_dot = problem.omega * ell, problem.omega * ell_dot
        else:
            value, value_dot = cache.total.value, _value_dot(problem, cache, ell_dot)
        value, value_dot = (as_scalar(xp.astype(xp.asarray(a), ell.dtype)) for a in (value, value_dot))
    return value, value_dot, cache, ell_dot, x_dot


def second_order(
    cache: Cache, ell_dot: Array, x_dot: Array, grad_output: float | Array
) -> tuple[Array, Array]:
    """Equation (16): the gradient and its derivative along the tangent x_dot."""
    problem, ell = cache.problem, cache.ell
    xp, options = problem.xp, problem.options
    with at_home(xp, problem.logits):
        g = ell_bar(cache, grad_output)
        if options.reduction == "none":
            g_dot = xp.zeros_like(g)
        else:
            L, L_dot = minkowski.power_mean(cache.total), _value_dot(problem, cache, ell_dot)
            g_dot = minkowski.shares_dot(g, ell, ell_dot, L, L_dot, options)
        g, g_dot = (xp.astype(a, ell.dtype) for a in (g, g_dot))
        grads = choose(problem, "hvp").window_losses_hvp(
            problem.working_logits, problem.labels, problem.valid, options, x_dot, g, g_dot
        )
        grad, grad_dot = (problem.caller_gradient(a) for a in grads)
    return grad, grad_dot


def maps(problem: Problem) -> Inspection:
    """The maps of stages 1 and 2, and the shares of stage 3."""
    with at_home(problem.xp, problem.logits):
        size, D, merged, ell = choose(problem, "inspect").window_maps(
            problem.working_logits, problem.labels, problem.valid, problem.options
        )
        total = minkowski.parts(ell, problem.omega, problem.valid, problem.options)
        share = ell_bar(Cache(problem, ell, total), 1.0)
    return Inspection(size, D, merged, ell, share)


def _value_dot(problem: Problem, cache: Cache, ell_dot: Array) -> Array:
    """Equation (15), stage 3: sum of share times ell_dot, of windows that have a share; 0-d float64."""
    xp = problem.xp
    share = minkowski.shares(cache.ell, problem.omega, cache.total)
    return xp.sum(xp.where(share != 0, share * xp.astype(ell_dot, wide_dtype(xp)), 0.0))


def by_definition(problem: Problem, logits: Array, labels: Array, pixel_weight: Array | None) -> Array:
    """The loss by plain loops in float64, in the dtype and shape that every engine gives it in."""
    from lalref import definition

    xp, options = problem.xp, problem.options
    if not isinstance(logits, np.ndarray):
        raise ValueError(f'engine="definition" takes NumPy arrays; got {xp.__name__}: use engine="array"')
    dtype = working_dtype(xp, logits.dtype)
    value = definition.loss(
        np.moveaxis(logits, options.axis, 1).astype(np.float64),
        labels,
        pixel_weight=pixel_weight,
        **{
            f.name: getattr(options, f.name)
            for f in dataclasses.fields(options)
            if f.name not in ("axis", "check", "engine")
        },
    )
    shape = problem.omega.shape if options.reduction == "none" else ()  # an empty list has lost its axes
    return as_scalar(np.asarray(value, dtype=np.float64).astype(dtype).reshape(shape))
