"""The locally adaptive learning loss and its gradient in NumPy, as one might write it from the paper.

A port to be judged, and a port to read: it imports nothing of lalref. 2-D images, textbook arithmetic.

    lalref verify examples/ports/numpy_port.py:value_and_grad
"""

import math

import numpy as np

IGNORED, OUTSIDE = -1, -2  # labels of pixels without a class, and of pixels beyond the border


def value_and_grad(
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
    grad_output=1.0,
):
    """Loss of logits (N, C, H, W) with labels (N, H, W), and its gradient (N, C, H, W)."""
    C = logits.shape[1]
    dtype = np.promote_types(logits.dtype, np.float32)
    y = np.where(labels == ignore_index, IGNORED, labels.astype(np.int64))  # (N, H, W)
    x = np.where((y == IGNORED)[:, None], 0, logits).astype(dtype)  # (N, C, H, W)

    # The weight of each window. Off the stride grid there is no window.
    omega = (np.ones(C) if class_weight is None else np.asarray(class_weight, float))[y]  # (N, H, W)
    if pixel_weight is not None:
        omega = omega * pixel_weight
    grid = np.zeros(y.shape, bool)  # (N, H, W)
    grid[:, ::stride, ::stride] = True
    valid = grid & (y != IGNORED) & (omega > 0)
    omega = np.where(valid, omega, 0.0)

    w = window_weights(kernel_size, sigma)
    counted = w if normalize == "weights" else [1.0] * len(w)
    D = pool(np.ones_like(x[:, :1]), y, kernel_size, counted)  # (N, 1, H, W)

    window_losses = {"logits": logit_losses, "probabilities": probability_losses}[space]
    ell, backward = window_losses(x, y, D, kernel_size, w, label_smoothing)  # (N, H, W)
    ell = np.where(valid, ell, 0)

    if reduction == "none":
        upstream = np.zeros_like(omega)
        upstream[:, ::stride, ::stride] = grad_output
        value, ell_bar = (omega * ell)[:, ::stride, ::stride], np.where(valid, upstream * omega, 0)
    else:
        value, share = power_mean(ell.astype(np.float64), omega, p, reduction)
        ell_bar = grad_output * share  # (N, H, W)
    grad = backward(ell_bar.astype(dtype))  # (N, C, H, W)
    return value.astype(dtype), np.where((y == IGNORED)[:, None], 0, grad).astype(logits.dtype)


def window_weights(kernel_size, sigma):
    """Gaussian of the chessboard distance for each cell of the window, row by row."""
    r = kernel_size // 2
    d = [max(abs(i), abs(j)) for i in range(-r, r + 1) for j in range(-r, r + 1)]
    return [1.0 if sigma is None else math.exp(-0.5 * (each / sigma) ** 2) for each in d]


def seen_by_cells(u, kernel_size, outside):
    """u (..., H, W) as each cell of the window sees it, row by row; `outside` beyond the border."""
    r = kernel_size // 2
    H, W = u.shape[-2:]
    padded = np.pad(u, [(0, 0)] * (u.ndim - 2) + [(r, r), (r, r)], constant_values=outside)
    return [padded[..., i : i + H, j : j + W] for i in range(kernel_size) for j in range(kernel_size)]


def pool(u, y, kernel_size, w):
    """Weighted sum of u (N, C, H, W) over each pixel's group: the neighbours with the pixel's own label."""
    total = np.zeros_like(u)
    cells = zip(w, seen_by_cells(y, kernel_size, OUTSIDE), seen_by_cells(u, kernel_size, 0), strict=True)
    for w_d, y_q, u_q in cells:
        total += np.where((y_q == y)[:, None], w_d * u_q, 0)
    return total


def log_softmax(x):
    """Logarithm of the softmax over the class axis."""
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def target(x, y, smoothing):
    """One-hot labels (N, C, H, W), smoothed."""
    C = x.shape[1]
    onehot = y[:, None] == np.arange(C)[:, None, None]
    return ((1 - smoothing) * onehot + smoothing / C).astype(x.dtype)


def logit_losses(x, y, D, kernel_size, w, smoothing):
    """Pool the logits, then cross-entropy."""
    log_P = log_softmax(pool(x, y, kernel_size, w) / D)  # (N, C, H, W)
    t = target(x, y, smoothing)

    def backward(ell_bar):
        z_bar = ell_bar[:, None] * (np.exp(log_P) - t)
        return pool(z_bar / D, y, kernel_size, w)  # each window's own divisor, then the same pooling

    return -(t * log_P).sum(axis=1), backward


def probability_losses(x, y, D, kernel_size, w, smoothing):
    """Pool the probability of each pixel's own class, then its logarithm, worked out in logarithms."""
    log_u = log_softmax(x)  # (N, C, H, W)
    own = np.take_along_axis(log_u, np.maximum(y, 0)[:, None], axis=1)[:, 0]  # (N, H, W)
    groups = [y_q == y for y_q in seen_by_cells(y, kernel_size, OUTSIDE)]  # one (N, H, W) a cell
    owns = seen_by_cells(own, kernel_size, 0)
    top = np.max([np.where(g, o, -np.inf) for g, o in zip(groups, owns, strict=True)], axis=0)
    cells = zip(w, groups, owns, strict=True)
    S = sum(w_d * np.exp(np.where(g, o - top, -np.inf)) for w_d, g, o in cells)
    log_S = top + np.log(S)  # (N, H, W): logarithm of the group's weighted sum of probabilities

    def backward(ell_bar):
        R = np.zeros_like(ell_bar)  # what pixel q is answerable for in all the windows around it
        windows = zip(w, groups, seen_by_cells(log_S, kernel_size, 0), strict=True)
        for (w_d, g, log_S_p), bar in zip(windows, seen_by_cells(ell_bar, kernel_size, 0), strict=True):
            R += bar * w_d * np.exp(np.where(g, own - log_S_p, -np.inf))
        return R[:, None] * (np.exp(log_u) - target(x, y, 0.0))

    return np.log(D[:, 0]) - log_S, backward


def power_mean(ell, omega, p, reduction):
    """Minkowski pooling of the window losses, and its gradient with respect to each."""
    top = ell.max(initial=0.0)
    if top == 0:
        return np.float64(0), np.zeros_like(ell)
    if p == math.inf:
        tied = np.where(ell >= top * (1 - 16 * np.finfo(np.float64).eps), omega, 0)
        return top, tied / tied.sum()
    r = ell / top
    S = (omega * r**p).sum()
    B = omega.sum() if reduction == "mean" else 1.0
    scale = (S / B) ** (1 / p)
    return top * scale, omega * r ** (p - 1) / S * scale
