"""The front door: `LocallyAdaptiveLoss`, from checked arrays through an engine to stage 3.

Options are checked in `lalref.options`, arrays in `lalref.inputs`; they are worked on in `lalref.engines` and
pooled in `lalref.minkowski`, step by step in `lalref.steps`. This room only says what a call takes and gives, and in
which order: no arithmetic of the loss may come in.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lalref import steps
from lalref.arrays import Array, at_home, dtype_name, namespace
from lalref.engines import choose
from lalref.inputs import Problem, prepare
from lalref.minkowski import Parts
from lalref.options import Options, differing
from lalref.steps import Cache, Inspection


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LocallyAdaptiveLoss(Options):
    """The locally adaptive learning loss with its options fixed: equations (1) to (10).

    Frozen, comparable, hashable; every option is checked when the object is made.

    Parameters
    ----------
    kernel_size : int or tuple of int, default 5
        Odd size of the window, for all spatial axes or one for each.
    sigma : float or None, default 1.0
        Width of the Gaussian of the chessboard distance, in pixels (1); None weighs all alike.
    stride : int or tuple of int, default 1
        Windows stand at every stride-th pixel of each axis.
    space : {"logits", "probabilities"}
        Merge logits (4) or the true class's probability (6).
    normalize : {"weights", "count"}
        Divide by the group's sum of weights or by its size (7).
    p : float, default 5.0
        Exponent of Minkowski pooling (8), from 1 (the mean) to ``math.inf`` (the maximum).
    label_smoothing : float, default 0.0
        alpha in [0, 1] of the target (1 - alpha) onehot + alpha / C; only with space="logits".
    ignore_index : int, sequence of int or None, default 255
        Labels that take no part.
    class_weight : sequence of C floats, optional
        Finite and not negative; a class of weight 0 has no windows of its own.
    reduction : {"mean", "sum", "none"}
        Divide by the sum of the weights or by nothing, equation (8), or return the map omega ell, (10).
    axis : int, default 1
        Where the logits have their class axis; -1 for channels-last.
    empty : {"zero", "nan", "raise"}
        The value where no window is valid; the gradient is 0.
    check : bool, default True
        Check labels and weights; False is needed while tracing under jit, and then a label out of
        range makes its windows NaN.
    engine : {"auto", "definition", "array", "numba", "cuda"}
        Which engine; docs/specification.md says which serves what.

    Raises
    ------
    ValueError
        An option has a value that isn't allowed.

    Examples
    --------
    >>> import numpy as np
    >>> from lalref import LocallyAdaptiveLoss
    >>> logits = np.zeros((1, 2, 4, 4), np.float32)
    >>> labels = np.tile(np.array([0, 0, 1, 255], np.uint8), (1, 4, 1))
    >>> loss = LocallyAdaptiveLoss(kernel_size=3)
    >>> value, grad = loss.value_and_grad(logits, labels)
    >>> float(value)  # every merged vector is (0, 0), so every window's loss is log 2
    0.6931471824645996
    >>> grad.shape, bool((grad[..., 3] == 0).all())
    ((1, 2, 4, 4), True)
    """

    def __call__(self, logits: Array, labels: Array, *, pixel_weight: Array | None = None) -> Array:
        """Return the loss: equations (1) to (10).

        Parameters
        ----------
        logits, labels, pixel_weight
            As for `lalref.lal_loss`.

        Returns
        -------
        0-d array, or for reduction="none" a map (N, *grid)
            As `lalref.lal_loss` returns it.

        Raises
        ------
        TypeError, ValueError
            As `lalref.lal_loss`.
        """
        problem = prepare(logits, labels, pixel_weight, self)
        with at_home(problem.xp, problem.logits):
            if self.engine == "definition":
                return steps.by_definition(problem, logits, labels, pixel_weight)
            ell = steps.window_losses(problem, "loss")
            if self.reduction == "none":
                return problem.xp.astype(problem.omega * ell, ell.dtype)
            return steps.parts_of(problem, ell).value

    def value_and_grad(
        self,
        logits: Array,
        labels: Array,
        *,
        pixel_weight: Array | None = None,
        grad_output: float | Array = 1.0,
        total: Parts | None = None,
    ) -> tuple[Array, Array]:
        """Return the loss and its gradient: equations (11) to (14).

        Parameters
        ----------
        logits, labels, pixel_weight, grad_output
            As for `lalref.lal_value_and_grad`.
        total : Parts, optional
            The `combine`-d parts of a whole: the value is then the whole's, and the gradient that of the whole's
            value with respect to these logits.

        Returns
        -------
        value, grad
            As `lalref.lal_value_and_grad` returns them.

        Raises
        ------
        TypeError, ValueError
            As `lalref.lal_loss`, and where `total` belongs to another loss, library or dtype.

        Examples
        --------
        >>> import numpy as np
        >>> from lalref import LocallyAdaptiveLoss, combine
        >>> loss, x, y = LocallyAdaptiveLoss(), np.array([[[1.0], [0.0]], [[0.0], [1.0]]]), np.array([[0], [0]])
        >>> whole = combine(loss.parts(x[:1], y[:1]), loss.parts(x[1:], y[1:]))
        >>> loss.value_and_grad(x[1:], y[1:], total=whole)[0] == loss(x, y)
        np.True_
        """
        problem = self._prepare_with(total, logits, labels, pixel_weight)
        engine = choose(problem, "gradient")
        if self.reduction != "none" and hasattr(engine, "value_and_grad"):
            with at_home(problem.xp, problem.logits):
                upstream = problem.upstream(grad_output)
                if isinstance(upstream, np.ndarray):
                    upstream = float(upstream)  # elsewhere it would wait for the device
                total, grad = engine.value_and_grad(
                    problem.logits, problem.labels, problem.valid, problem.weights, self, upstream, total
                )
                return total.value, problem.caller_gradient(grad)
        value, cache = self._forward(problem, total)
        return value, self.backward(cache, grad_output)

    def forward(
        self, logits: Array, labels: Array, *, pixel_weight: Array | None = None, total: Parts | None = None
    ) -> tuple[Array, Cache]:
        """Return the loss, equations (1) to (10), and what `backward` needs.

        Parameters
        ----------
        logits, labels, pixel_weight, total
            As for `value_and_grad`; the arrays must stay as they are until `backward` has been called.

        Returns
        -------
        value : 0-d array, or for reduction="none" a map (N, *grid)
        cache : Cache
            Of no interest but to `backward`, which takes it as often as wanted.

        Raises
        ------
        TypeError, ValueError
            As `value_and_grad`.
        """
        return self._forward(self._prepare_with(total, logits, labels, pixel_weight), total)

    def _prepare_with(
        self, total: Parts | None, logits: Array, labels: Array, pixel_weight: Array | None
    ) -> Problem:
        problem = prepare(logits, labels, pixel_weight, self)
        if total is None:
            return problem
        if not isinstance(total, Parts):
            raise TypeError(f"total= takes the Parts that combine() returns; got {type(total).__name__}")
        if self.reduction == "none" or total.options != self:
            here, there = differing(self, total.options)
            raise ValueError(
                f"total= takes the combined parts of this loss, which has {here}; got those of one with {there}"
            )
        if (xp := namespace(total.maximum)) is not problem.xp:
            raise TypeError(f"total= is of {xp.__name__}, the logits are of {problem.xp.__name__}")
        dtype = "float64" if dtype_name(problem.logits.dtype) == "float64" else "float32"
        if total.dtype != dtype:
            raise ValueError(f"total= is of parts in {total.dtype}, these logits are worked out in {dtype}")
        return problem

    def _forward(self, problem: Problem, total: Parts | None) -> tuple[Array, Cache]:
        with at_home(problem.xp, problem.logits):
            ell = steps.window_losses(problem, "gradient")
            total = total or steps.parts_of(problem, ell)
            value = (
                problem.xp.astype(problem.omega * ell, ell.dtype) if self.reduction == "none" else total.value
            )
        return value, Cache(problem, ell, total)

    def backward(self, cache: Cache, grad_output: float | Array = 1.0) -> Array:
        """Return the gradient with respect to the logits, times `grad_output`: equations (11) to (14).

        Parameters
        ----------
        cache : Cache
            What `forward` of this loss returned.
        grad_output : float, 0-d array, or for reduction="none" an array like the map

        Returns
        -------
        array (N, C, *S)
            In the dtype of the logits, exactly 0 where no valid window reads.

        Raises
        ------
        TypeError, ValueError
            `grad_output` is of a dtype or shape that isn't allowed.

        Examples
        --------
        >>> import numpy as np
        >>> from lalref import LocallyAdaptiveLoss
        >>> loss = LocallyAdaptiveLoss()
        >>> value, cache = loss.forward(np.zeros((1, 2, 1)), np.array([[0]]))
        >>> loss.backward(cache, grad_output=2.0)[0, :, 0]
        array([-1.,  1.])
        """
        return steps.gradient(cache, steps.ell_bar(cache, grad_output))

    def jvp(
        self, logits: Array, labels: Array, tangent: Array, *, pixel_weight: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the loss and its derivative along `tangent`: equation (15).

        Parameters
        ----------
        logits, labels, tangent, pixel_weight
            As for `lalref.lal_jvp`.

        Returns
        -------
        value, value_dot
            As `lalref.lal_jvp` returns them.

        Raises
        ------
        TypeError, ValueError
            As `lalref.lal_jvp`.
        """
        value, value_dot, *_ = steps.forward_mode("jvp", prepare(logits, labels, pixel_weight, self), tangent)
        return value, value_dot

    def hvp(
        self,
        logits: Array,
        labels: Array,
        tangent: Array,
        *,
        pixel_weight: Array | None = None,
        grad_output: float | Array = 1.0,
    ) -> tuple[Array, Array]:
        """Return the gradient and its derivative along `tangent`: equation (16).

        Parameters
        ----------
        logits, labels, tangent, pixel_weight, grad_output
            As for `lalref.lal_hvp`.

        Returns
        -------
        grad, grad_dot
            As `lalref.lal_hvp` returns them.

        Raises
        ------
        TypeError, ValueError
            As `lalref.lal_hvp`.
        """
        problem = prepare(logits, labels, pixel_weight, self)
        _, _, cache, ell_dot, x_dot = steps.forward_mode("hvp", problem, tangent)
        return steps.second_order(cache, ell_dot, x_dot, grad_output)

    def inspect(self, logits: Array, labels: Array, *, pixel_weight: Array | None = None) -> Inspection:
        """Return the maps behind the value: equations (2), (4) or (6), (5), (7) and (11).

        Parameters
        ----------
        logits, labels, pixel_weight
            As for `lalref.lal_loss`.

        Returns
        -------
        Inspection
            Group sizes, divisors, merged vectors, losses and shares, on the stride grid.

        Raises
        ------
        TypeError, ValueError
            As `lalref.lal_loss`, and for an engine other than "auto" and "array", which alone keep maps.

        Examples
        --------
        >>> import numpy as np
        >>> from lalref import LocallyAdaptiveLoss
        >>> labels = np.array([[[0, 0, 1], [0, 1, 1]]])
        >>> LocallyAdaptiveLoss(kernel_size=3).inspect(np.zeros((1, 2, 2, 3)), labels).group_size
        array([[[3, 3, 3],
                [3, 3, 3]]], dtype=int32)
        """
        return steps.maps(prepare(logits, labels, pixel_weight, self))

    def parts(self, logits: Array, labels: Array, *, pixel_weight: Array | None = None) -> Parts:
        """Return what these arrays contribute to the loss of a larger batch, for `combine`: equation (19).

        Parameters
        ----------
        logits, labels, pixel_weight
            As for `lalref.lal_loss`.

        Returns
        -------
        Parts

        Raises
        ------
        TypeError, ValueError
            As `lalref.lal_loss`, and with reduction="none", whose map needs no combining.
        """
        if self.reduction == "none":
            raise ValueError(
                'reduction="none" has no parts to combine: the map of the whole is the maps put together'
            )
        problem = prepare(logits, labels, pixel_weight, self)
        with at_home(problem.xp, problem.logits):
            return steps.parts_of(problem, steps.window_losses(problem, "loss"))
