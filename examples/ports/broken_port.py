"""A port with one mistake, as one might well make it: the loss is right, the gradient is not.

The backward of "pool, then divide by D" is "divide by D, then pool": each window's gradient is divided by
its own divisor before it is sent to the pixels. Here the pixels divide what they receive by the divisor of
the window around themselves. At kernel_size=1, and where all divisors are alike, nobody would notice.

    lalref verify examples/ports/broken_port.py:value_and_grad
"""

import math

import numpy as np

IGNORED, OUTSIDE = -1, -2  # labels of pixels without a class, and of pixels beyond the border


def value_and_grad(logits, labels, *, kernel_size=5, sigma=1.0, p=5.0, ignore_index=255, grad_output=1.0):
    """Loss of logits (N, C, H, W) with labels (N, H, W), and its gradient (N, C, H, W)."""
    y = np.where(labels == ignore_index, IGNORED, labels.astype(np.int64))  # (N, H, W)
    x = np.where((y == IGNORED)[:, None], 0, logits)  # (N, C, H, W)
    valid = y != IGNORED
    D = pool(np.ones_like(x[:, :1]), y, kernel_size, sigma)  # (N, 1, H, W)

    z = pool(x, y, kernel_size, sigma) / D
    z = z - z.max(axis=1, keepdims=True)
    log_P = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    onehot = y[:, None] == np.arange(x.shape[1])[:, None, None]
    ell = np.where(valid, -(onehot * log_P).sum(axis=1), 0)  # (N, H, W)

    top = ell.max(initial=0)
    if top == 0:
        return logits.dtype.type(0), np.zeros_like(logits)
    mean = ((ell / top) ** p).sum() / valid.sum()
    ell_bar = grad_output * (ell / top) ** (p - 1) / valid.sum() * mean ** (1 / p - 1)  # (N, H, W)
    z_bar = (ell_bar * valid)[:, None] * (np.exp(log_P) - onehot)
    grad = pool(z_bar, y, kernel_size, sigma) / D  # the mistake; right is pool(z_bar / D, ...)
    return logits.dtype.type(top * mean ** (1 / p)), grad.astype(logits.dtype)


def pool(u, y, kernel_size, sigma):
    """Weighted sum of u (N, C, H, W) over each pixel's group: the neighbours with the pixel's own label."""
    r = kernel_size // 2
    H, W = y.shape[1:]
    padded_u = np.pad(u, [(0, 0), (0, 0), (r, r), (r, r)])
    padded_y = np.pad(y, [(0, 0), (r, r), (r, r)], constant_values=OUTSIDE)
    total = np.zeros_like(u)
    for i in range(kernel_size):
        for j in range(kernel_size):
            w = math.exp(-0.5 * (max(abs(i - r), abs(j - r)) / sigma) ** 2)
            same = padded_y[:, i : i + H, j : j + W] == y
            total += np.where(same[:, None], w * padded_u[..., i : i + H, j : j + W], 0)
    return total
