"""The loss inside TensorFlow and Keras: a function for tf.GradientTape and tf.function, and a keras.losses.Loss.

Both take Keras's order, labels first, and class axis, the last one. The work is done on the host, with NumPy
arrays and as a rule the numba engine, in an operation that tf.function leaves whole and XLA can't compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np

try:
    import keras
    import tensorflow as tf
except ImportError as error:
    raise ImportError(
        "lalref.adapters.tensorflow needs TensorFlow and Keras; in a clone of lalref: "
        "pip install -c constraints.txt -e '.[tensorflow]'"
    ) from error

import lalref
from lalref.adapters import calls
from lalref.adapters.tensorflow_arrays import at_the_door, on_host, wide_of
from lalref.functions import loss_for
from lalref.options import OptionsDict

Tensor = Any


def locally_adaptive_loss(
    y_true: Tensor,
    y_pred: Tensor,
    sample_weight: Tensor | None = None,
    **options: Unpack[OptionsDict],
) -> Tensor:
    """Return the loss of logits `y_pred` and labels `y_true`, which TensorFlow differentiates, twice too.

    Parameters
    ----------
    y_true : integer tensor (N, *S), or (N, *S, 1) as Keras takes it too
    y_pred : tensor (N, *S, C), float16, bfloat16, float32 or float64
        Logits; with axis=1 (N, C, *S).
    sample_weight : tensor (N, *S), (N, *S, 1) or (N,), optional
        A weight for each window or each image, `pixel_weight` elsewhere in lalref; integers are cast, as Keras
        does. It gets no gradient.
    **options
        As for `lalref.LocallyAdaptiveLoss`, but that axis is -1 by default.

    Returns
    -------
    0-d tensor, or (N, *grid) for reduction="none"
        float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        As `lalref.lal_loss`. Inside tf.function dtypes, and shapes as far as they are known, are looked at while
        tracing; what is wrong with values TensorFlow wraps in an error of its own.
    NotImplementedError
        A third derivative, and forward mode over a gradient.

    Examples
    --------
    >>> import tensorflow as tf
    >>> from lalref.adapters.tensorflow import locally_adaptive_loss
    >>> logits = tf.Variable(tf.zeros((1, 3, 3, 2)))
    >>> with tf.GradientTape() as tape:
    ...     value = locally_adaptive_loss(tf.zeros((1, 3, 3), tf.int32), logits)
    >>> grad = tape.gradient(value, logits)
    >>> round(float(tf.reduce_sum(grad[..., 0])), 6)
    -0.5
    """
    loss = _channels_last(locally_adaptive_loss, options)
    if loss.engine == "cuda":
        raise ValueError('engine="cuda" takes CuPy arrays, and TensorFlow hands over NumPy arrays here')
    return _value(loss, *at_the_door(loss, y_true, y_pred, sample_weight))


@keras.saving.register_keras_serializable(package="lalref")
class LocallyAdaptiveLoss(keras.losses.Loss):  # type: ignore[misc]
    """`locally_adaptive_loss` with its options fixed, for ``model.compile(loss=...)``.

    Parameters
    ----------
    name : str
    dtype : str or keras.DTypePolicy, optional
        What the logits are cast to first; by default they are taken as they are.
    **options
        As for `lalref.LocallyAdaptiveLoss`, which checks them here, but that axis is -1 by default. `reduction`
        is lalref's: "mean" divides by the windows' sum of weights, and the batch is one whole, not a mean of images.

    Notes
    -----
    XLA can't call the host: compile the model with ``jit_compile=False``, since Keras's default, "auto", may mean True
    where there is a GPU. TensorFlow then ends the first step with an error that names PyFuncStateless.

    Examples
    --------
    >>> import numpy as np
    >>> from lalref.adapters.tensorflow import LocallyAdaptiveLoss
    >>> loss = LocallyAdaptiveLoss(kernel_size=3)
    >>> round(float(loss(np.zeros((1, 3, 3, 1), np.uint8), np.zeros((1, 3, 3, 2), np.float32))), 6)
    0.693147
    """

    def __init__(
        self, name: str = "locally_adaptive_loss", dtype: Any = None, **options: Unpack[OptionsDict]
    ) -> None:
        self.options = _channels_last(LocallyAdaptiveLoss, options)
        self._said = {**calls.said(self.options), "axis": self.options.axis}  # whose default is another here
        if keras.backend.backend() != "tensorflow":
            raise ValueError(
                f"this loss needs Keras on TensorFlow, and it runs on {keras.backend.backend()}: set "
                "KERAS_BACKEND=tensorflow, or take lalref.adapters.jax or .torch"
            )
        super().__init__(name=name, reduction=None, dtype=dtype)  # Keras would reduce a second time
        self._cast = {} if dtype is None else {"dtype": self.dtype}

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss; Keras's own call would make numbers of another type of the labels."""
        logits = tf.cast(y_pred, self.dtype) if self._cast else y_pred
        return locally_adaptive_loss(y_true, logits, sample_weight, **self._said)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss."""
        return self(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        """The name and what else was said, for saving."""
        return {"name": self.name, **self._cast, **self._said}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"


def _channels_last(caller: Callable[..., Any], options: OptionsDict) -> lalref.LocallyAdaptiveLoss:
    return loss_for(caller, {"axis": -1, **options})


# --- On the host ------------------------------------------------------------------------------------------------


def _no_more(*_: Any) -> Any:
    raise NotImplementedError("in TensorFlow this loss is differentiated twice, backwards, and no further")


def _value(loss: lalref.LocallyAdaptiveLoss, x: Tensor, y: Tensor, w: Tensor | None) -> Tensor:
    wide = wide_of(x)
    weights = [] if w is None else [w]

    def call(function: Callable[..., Any], shapes: Sequence[Any], x: Tensor, *more: Tensor) -> list[Tensor]:
        """function(loss, x, y, w, *more) of `lalref.adapters.calls` in the working dtype; results of `shapes`."""

        @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
        def host(y: Any, x: Any, *rest: Any) -> list[Any]:
            w = rest[-1] if weights else None
            found = on_host(function, loss, x, y, w, *rest[: len(more)])
            return [np.asarray(a, wide.as_numpy_dtype) for a in found]

        given = [y, *(tf.cast(t, wide) for t in (x, *more)), *weights]
        results = tf.nest.flatten(tf.numpy_function(host, given, [wide] * len(shapes), stateful=False))
        for result, shape in zip(results, shapes, strict=True):
            result.set_shape(shape)
        return results  # type: ignore[no-any-return]

    grid = tf.TensorShape(
        () if loss.reduction != "none" else [None] * (x.shape.rank - 1) if x.shape.rank else None
    )

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def value(x: Tensor) -> Any:
        if loss.reduction == "none":  # its gradient waits for what comes from above
            return call(calls.value, [grid], x)[0], lambda upstream: gradient(x, upstream)
        L, grad = call(calls.value_and_grad, [grid, x.shape], x)
        return L, lambda upstream: times(x, upstream, grad)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def gradient(x: Tensor, upstream: Tensor) -> Any:
        """The gradient times upstream, in the dtype of x."""
        (grad,) = call(calls.gradient, [x.shape], x, upstream)
        return tf.cast(grad, x.dtype), lambda tangent: again(x, upstream, tangent)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def times(x: Tensor, upstream: Tensor, grad: Tensor) -> Any:
        """`gradient` where the gradient of upstream 1 is there already."""
        return tf.cast(grad * upstream, x.dtype), lambda tangent: (*again(x, upstream, tangent), None)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def again(x: Tensor, upstream: Tensor, tangent: Tensor) -> Any:
        """The derivatives of <gradient, tangent> with respect to x and upstream."""
        x_bar, upstream_bar = call(calls.hvp, [x.shape, upstream.shape], x, upstream, tangent)
        return (tf.cast(x_bar, x.dtype), upstream_bar), _no_more

    return value(x)
