"""What the front door's calls keep and give back, and the steps that several of them take.

A step takes a checked call; here it is between an engine's map of window losses and the caller. Which engine and
in which order is said in `lalref.loss`; no option or array may be checked here.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lalref import minkowski
from lalref.arrays import Array, as_scalar, wide_dtype, working_dtype
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


def ell_bar(problem: Problem, cache: Cache, grad_output: float | Array) -> Array:
    """The derivative of the result with respect to each ell, times grad_output; float64 (N, *grid)."""
    xp, upstream = problem.xp, problem.upstream(grad_output)
    none = problem.options.reduction == "none"
    g = problem.omega if none else minkowski.shares(cache.ell, problem.omega, cache.total)
    return xp.where(problem.valid, g * upstream, 0.0)


def value_dot(problem: Problem, cache: Cache, ell_dot: Array) -> Array:
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
