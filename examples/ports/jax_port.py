"""The locally adaptive learning loss in JAX, compiled by jax.jit and differentiated by jax.grad.

A port to be judged, and a port to read: it imports nothing of lalref. 2-D images, textbook arithmetic.

    lalref verify examples/ports/jax_port.py:loss --framework jax
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

IGNORED, OUTSIDE = -1, -2  # labels of pixels without a class, and of pixels beyond the border


@functools.partial(jax.jit, static_argnames=("kernel_size", "stride", "space", "normalize", "reduction"))
def loss(
    logits,
    labels,
    *,
    kernel_size=5,
    sigma=1.0,
    stride=1,
    space="logits",
    normalize="weights",
    p=5.0,
    label_smoothing=0.0,
    ignore_index=255,
    class_weight=None,
    pixel_weight=None,
    reduction="mean",
):
    """Loss of logits (N, C, H, W) with integer labels (N, H, W)."""
    C = logits.shape[1]
    y = jnp.where(labels == ignore_index, IGNORED, labels.astype(jnp.int32))  # (N, H, W)
    x = jnp.where((y == IGNORED)[:, None], 0, logits)
    x = x.astype(jnp.promote_types(logits.dtype, jnp.float32))  # (N, C, H, W)

    # The weight of each window. Off the stride grid there is no window.
    omega = (jnp.ones(C) if class_weight is None else jnp.asarray(class_weight)).astype(x.dtype)[y]
    if pixel_weight is not None:
        omega = omega * pixel_weight
    grid = jnp.zeros(y.shape, bool).at[:, ::stride, ::stride].set(True)
    valid = grid & (y != IGNORED) & (omega > 0)  # (N, H, W)
    omega = jnp.where(valid, omega, 0)

    r = kernel_size // 2
    d = np.maximum(*np.abs(np.mgrid[-r : r + 1, -r : r + 1])).ravel()  # (cells,) chessboard distances
    w = jnp.ones(d.size, x.dtype) if sigma is None else jnp.exp(-0.5 * (d / sigma) ** 2).astype(x.dtype)
    same = seen_by_cells(y, r, OUTSIDE) == y[..., None]  # (N, H, W, cells)
    counted = w if normalize == "weights" else jnp.ones_like(w)
    D = (same * counted).sum(-1)  # (N, H, W)
    onehot = y[:, None] == jnp.arange(C)[:, None, None]  # (N, C, H, W)

    if space == "logits":
        z = jnp.where(same[:, None], seen_by_cells(x, r, 0) * w, 0).sum(-1) / D[:, None]
        t = (1 - label_smoothing) * onehot + label_smoothing / C
        ell = -(t * jax.nn.log_softmax(z, axis=1)).sum(1)  # (N, H, W)
    else:
        own = jnp.where(onehot, jax.nn.log_softmax(x, axis=1), 0).sum(1)  # (N, H, W)
        terms = jnp.where(same, seen_by_cells(own, r, 0), -jnp.inf)
        ell = jnp.log(D) - jax.nn.logsumexp(terms, b=w, axis=-1)
    ell = jnp.where(valid, ell, 0)

    if reduction == "none":
        return (omega * ell)[:, ::stride, ::stride]
    return power_mean(ell, omega, p, reduction)


def seen_by_cells(u, r, outside):
    """u (..., H, W) as each cell of the window sees it: (..., H, W, cells); `outside` beyond the border."""
    H, W = u.shape[-2:]
    padded = jnp.pad(u, [(0, 0)] * (u.ndim - 2) + [(r, r), (r, r)], constant_values=outside)
    i, j = np.divmod(np.arange((2 * r + 1) ** 2), 2 * r + 1)  # (cells,)
    return padded[..., np.arange(H)[:, None, None] + i, np.arange(W)[:, None] + j]


def power_mean(ell, omega, p, reduction):
    """Minkowski pooling of the window losses. The maximum only scales, so nothing flows through it."""
    top = jax.lax.stop_gradient(ell.max(initial=0))
    tied = jnp.where(ell >= top * (1 - 16 * jnp.finfo(ell.dtype).eps), omega, 0)
    tied_mean = (tied / jnp.where(top > 0, tied.sum(), 1) * ell).sum()

    # What a jnp.where leaves out must not give NaN either, for its gradient would: hence the 1s.
    finite_p = jnp.where(p == math.inf, 1, p)
    B = omega.sum() if reduction == "mean" else 1.0
    r = jnp.where(top > 0, ell / jnp.where(top > 0, top, 1), 1)
    S = jnp.where(top > 0, (omega * r**finite_p).sum() / jnp.where(top > 0, B, 1), 1)
    return jnp.where(p == math.inf, tied_mean, top * S ** (1 / finite_p))
