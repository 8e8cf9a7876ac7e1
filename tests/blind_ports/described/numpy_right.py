"""A right port in NumPy, by a person who shifts whole images and masks them, and writes the gradient by hand.

Each method is a step that a mistake may change; numpy_single.py and the rest override one of them. Nothing of
lalref may be imported here.
"""

import math

import numpy as np

VOID, OUTSIDE = -1, -2


class Port:
    """Callable as port(logits, labels, **options) -> (loss, gradient). Two spatial axes."""

    def __call__(
        self,
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
        empty="zero",
        pixel_weight=None,
        grad_output=1.0,
    ):
        dtype = np.promote_types(logits.dtype, np.float32)
        y = labels.astype(np.int64)  # (N, H, W)
        y[labels == ignore_index] = VOID
        x = np.moveaxis(logits, axis, 1).astype(dtype)  # (N, C, H, W)
        x = np.where(y[:, None] == VOID, 0, x)
        onehot = y[:, None] == np.arange(x.shape[1])[:, None, None]  # (N, C, H, W)

        omega = self.omega(y, class_weight, pixel_weight)
        grid = np.zeros(y.shape, bool)
        grid[:, ::stride, ::stride] = True
        valid = grid & (y != VOID) & (omega > 0)
        omega = np.where(valid, omega, 0)  # (N, H, W)

        self.cells = self.window(kernel_size // 2)
        self.w = [self.weight(d, sigma) for d in map(self.distance, self.cells)]
        self.same = self.members(y)
        self.D = self.divisor(normalize, dtype)  # (N, H, W)

        # forward, and what a loss of 1 in each window sends to the pixels
        if space == "logits":
            z = self.average(x)
            ell, slope = self.cross_entropy(z, self.target(onehot, label_smoothing).astype(dtype))
        else:
            u = np.exp(log_softmax(x))
            own = (u * onehot).sum(1)  # (N, H, W)
            ell, slope = self.surprisal(self.average(own[:, None])[:, 0])
        ell = np.where(valid, ell, 0)

        if reduction == "none":
            value = (omega * ell)[:, ::stride, ::stride]
            ell_bar = np.zeros_like(omega)
            ell_bar[:, ::stride, ::stride] = grad_output
            ell_bar = ell_bar * omega
        else:
            value, shares = self.power_mean(ell.astype(float), omega, p, reduction)
            ell_bar = grad_output * shares
            if empty == "nan" and not valid.any():
                value = math.nan

        ell_bar = np.where(valid, ell_bar, 0)
        if space == "logits":
            z_bar = ell_bar[:, None] * np.where(valid[:, None], slope, 0)
            x_bar = self.spread(z_bar / self.D[:, None])
        else:
            merged_bar = ell_bar * np.where(valid, slope, 0)
            x_bar = self.spread((merged_bar / self.D)[:, None]) * own[:, None] * (onehot - u)
        x_bar = np.where(y[:, None] == VOID, 0, x_bar)
        grad = self.write(x_bar, axis, logits.shape).astype(logits.dtype)
        return np.asarray(value).astype(dtype)[()], grad

    def omega(self, y, class_weight, pixel_weight):
        omega = np.ones(y.shape)
        if class_weight is not None:
            omega = omega * np.asarray(class_weight)[np.maximum(y, 0)]
        if pixel_weight is not None:
            omega = omega * pixel_weight
        return omega

    def window(self, r):
        return [(i, j) for i in range(-r, r + 1) for j in range(-r, r + 1)]

    def distance(self, cell):
        return max(map(abs, cell))

    def weight(self, d, sigma):
        return 1.0 if sigma is None else math.exp(-0.5 * (d / sigma) ** 2)

    def shift(self, u, cell, outside):
        """u (..., H, W) at the neighbour of each pixel that is a cell away."""
        (i, j), (H, W) = cell, u.shape[-2:]
        out = np.full_like(u, outside)
        here = (..., slice(max(0, -i), max(0, H - max(0, i))), slice(max(0, -j), max(0, W - max(0, j))))
        there = (..., slice(max(0, i), max(0, H + min(0, i))), slice(max(0, j), max(0, W + min(0, j))))
        out[here] = u[there]
        return out

    def members(self, y):
        return [self.shift(y, cell, OUTSIDE) == y for cell in self.cells]

    def divisor(self, normalize, dtype):
        counted = self.w if normalize == "weights" else [1.0] * len(self.w)
        return sum(w * same for w, same in zip(counted, self.same, strict=True)).astype(dtype)

    def average(self, u):
        """Weighted average (N, C, H, W) of u over each pixel's group."""
        total = np.zeros_like(u)
        for cell, w, same in zip(self.cells, self.w, self.same, strict=True):
            total += np.where(same[:, None], w * self.shift(u, cell, 0), 0).astype(u.dtype)
        return total / self.D[:, None]

    def spread(self, shares):
        """The transpose of pooling: what each window sends goes to the pixels that it read."""
        total = np.zeros_like(shares)
        for (i, j), w, same in zip(self.cells, self.w, self.same, strict=True):
            total += self.shift(np.where(same[:, None], w * shares, 0), (-i, -j), 0).astype(shares.dtype)
        return total

    def target(self, onehot, alpha):
        return (1 - alpha) * onehot + alpha / onehot.shape[1]

    def cross_entropy(self, z, t):
        """Loss of each window, and its derivative by z."""
        log_P = log_softmax(z)
        return -(t * log_P).sum(1), np.exp(log_P) - t

    def surprisal(self, merged):
        """Loss of a merged probability, and its derivative by it."""
        with np.errstate(divide="ignore"):
            return -np.log(merged), -1 / merged

    def power_mean(self, ell, omega, p, reduction):
        """The value, and the gradient by each ell."""
        top = ell.max(initial=0)
        if top == 0:
            return 0.0, np.zeros_like(ell)
        B = self.base(omega, reduction)
        if p == math.inf:
            tied = np.where(ell >= (1 - 16 * np.finfo(float).eps) * top, omega, 0)
            return top, tied / tied.sum()
        S = (omega * (ell / top) ** p).sum()
        return top * (S / B) ** (1 / p), self.shares(ell / top, omega, S, p) * (S / B) ** (1 / p)

    def base(self, omega, reduction):
        return omega.sum() if reduction == "mean" else 1.0

    def shares(self, ratio, omega, S, p):
        return omega * ratio ** (p - 1) / S

    def write(self, x_bar, axis, shape):
        return np.moveaxis(x_bar, 1, axis)


def log_softmax(x):
    shifted = x - x.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


right = Port()
