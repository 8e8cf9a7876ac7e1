"""A right port in JAX, by a person who thinks in convolutions: an image for each class, convolved all at once.

`port` puts a loss together from its steps, plain functions of arrays; a mistake is a step done otherwise.
Nothing of lalref may be imported here.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax


def read(logits, axis, labels):
    x = jnp.moveaxis(logits, axis, 1)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def distances(r, stride):
    steps = jnp.abs(jnp.arange(-r, r + 1))
    return jnp.maximum(steps[:, None], steps)


def weight_of(d, sigma):
    return jnp.exp(-0.5 * (d / sigma) ** 2)


def reach(x, onehot):
    """The logits as the backward reaches them."""
    return x


def sources(masks, grid):
    """Which pixels are read, of each class: masks (N, K, H, W)."""
    return masks


def padded(u, r):
    return jnp.pad(u, [(0, 0)] * (u.ndim - 2) + [(r, r)] * 2)


def convolve(u, kernel, pad):
    """u (..., H, W) under the kernel (k, k), each image by itself."""
    r = kernel.shape[0] // 2
    *lead, H, W = u.shape
    flat = pad(u, r).reshape(-1, 1, H + 2 * r, W + 2 * r)
    out = lax.conv_general_dilated(
        flat, kernel[None, None].astype(u.dtype), (1, 1), "VALID", precision=lax.Precision.HIGHEST
    )
    return out.reshape(*lead, H, W)


def of_class(per_class, index):
    """per_class (N, K, ..., H, W) at the class of each pixel, index (N, H, W)."""
    index = index.reshape(index.shape[0], 1, *(1,) * (per_class.ndim - 4), *index.shape[1:])
    return jnp.take_along_axis(per_class, index, axis=1)[:, 0]


def average(x, masks, index, kernel, D, pad):
    """Average over the groups: (N, C, H, W)."""
    of_each = jnp.where(masks[:, :, None], x[:, None], 0)  # (N, K, C, H, W)
    return of_class(convolve(of_each, kernel, pad), index) / D[:, None]


def target(onehot, alpha, masks, kernel, pad):
    return (1 - alpha) * onehot + alpha / onehot.shape[1]


def window_weights(y, not_void, class_weight, pixel_weight, masks, kernel, index, pad):
    omega = jnp.ones(y.shape) if class_weight is None else class_weight[jnp.maximum(y, 0)]
    return omega if pixel_weight is None else omega * pixel_weight


def hold(ell):
    return ell


def window_grid(shape, stride, r):
    rows, columns = jnp.arange(shape[-2])[:, None], jnp.arange(shape[-1])
    return (rows % stride == 0) & (columns % stride == 0)


def labels_for_pooling(y):
    return y


def power_mean(ell, omega, p, reduction):
    top = lax.stop_gradient(ell.max())
    safe = jnp.where(top > 0, top, 1)
    if math.isinf(p):
        eps = jnp.finfo(ell.dtype).eps
        tied = lax.stop_gradient(jnp.where(ell >= (1 - 16 * eps) * top, omega, 0))
        return (tied * ell).sum() / jnp.where(tied.sum() > 0, tied.sum(), 1)
    S = (omega * jnp.where(top > 0, ell / safe, 1) ** p).sum()
    B = omega.sum() if reduction == "mean" else 1.0
    return top * jnp.where(top > 0, S / jnp.where(omega.sum() > 0, B, 1), 1) ** (1 / p)


def port(**steps):
    """The loss as f(logits, labels, **options), with some of the steps above done otherwise."""
    do = {**globals(), **steps}

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
        reduction="mean",
        axis=1,
        pixel_weight=None,
    ):
        """Loss of logits (N, C, H, W), or with the classes elsewhere, and labels (N, H, W)."""
        x = do["read"](logits, axis, labels)
        if x.size == 0:
            return x.sum()
        C, r, pad = x.shape[1], kernel_size // 2, do["padded"]
        y = jnp.where(labels == ignore_index, -1, labels.astype(int))  # (N, H, W)
        not_void = y != -1
        grid = do["window_grid"](y.shape, stride, r)
        y_pool = do["labels_for_pooling"](y)
        masks = do["sources"](y_pool[:, None] == jnp.arange(C)[:, None, None], grid)  # (N, K, H, W)
        index = jnp.maximum(y, 0)
        onehot = (y[:, None] == jnp.arange(C)[:, None, None]).astype(x.dtype)

        d = do["distances"](r, stride)
        kernel = (jnp.ones(d.shape) if sigma is None else do["weight_of"](d, sigma)).astype(x.dtype)
        counted = kernel if normalize == "weights" else jnp.ones_like(kernel)
        D = of_class(convolve(masks.astype(x.dtype), counted, pad), index)  # (N, H, W)
        D = jnp.where(D > 0, D, 1)

        tables = [
            None if each is None else jnp.asarray(each).astype(x.dtype)
            for each in (class_weight, pixel_weight)
        ]
        omega = do["window_weights"](y, not_void, *tables, masks, kernel, index, pad)
        valid = grid & not_void & (omega > 0)
        omega = jnp.where(valid, omega, 0).astype(x.dtype)

        if space == "logits":
            z = do["average"](do["reach"](x, onehot), masks, index, kernel, D, pad)
            t = do["target"](onehot, label_smoothing, masks, kernel, pad)
            ell = -(t * jax.nn.log_softmax(z, axis=1)).sum(1)
        else:
            u = jax.nn.softmax(do["reach"](x, onehot), axis=1)
            merged = (do["average"](u, masks, index, kernel, D, pad) * onehot).sum(1)
            ell = -jnp.log(jnp.where(valid & (merged > 0), merged, 1))
        ell = do["hold"](jnp.where(valid, ell, 0))  # (N, H, W)
        if reduction == "none":
            return (omega * ell)[:, ::stride, ::stride]
        return do["power_mean"](ell, omega, p, reduction)

    return loss


right = port()
