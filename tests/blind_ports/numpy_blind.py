"""A port in NumPy with mistakes made by hand: a list of pairs (p, q), gathered and scattered.

Written from the specification alone, without a look at the catalogue of mistakes, so that naming a mistake
here is a finding and not an echo. Nothing of lalref is imported.
"""

import numpy as np

MISTAKES = {
    "euclidean": "the distance is the Euclidean one",
    "manhattan": "the distance is the sum of both axes",
    "no half": "the Gaussian lacks its factor 1/2",
    "variance": "sigma is used where its square belongs",
    "wraps": "windows run on at the opposite border",
    "diameter": "kernel_size is taken for the radius",
    "no centre": "the centre pixel is left out of its own group",
    "any class": "neighbours of every class are averaged",
    "whole kernel": "the divisor is the sum of the whole kernel, whoever is in the group",
    "all pixels": "the mean is over all pixels, ignored ones too",
    "no root": "the root of the power mean is missing",
    "neighbour's divisor": "backward: divided by the neighbour's divisor, not the window's own",
    "centre only": "backward: only the centre pixel gets the gradient",
    "no outer derivative": "backward: the derivative of the root is missing",
    "upstream ignored": "backward: grad_output is not multiplied in",
    "labels from one": "the class of label y is taken at y - 1",
    "smoothing C - 1": "the smoothing is spread as alpha / (C - 1) over the other classes",
    "mean by count": "the mean divides by the number of windows, not by the sum of their weights",
    "weight inside power": "the weight multiplies the loss before the power",
    "window count": "normalize='count' counts the pixels of the window, not of the group",
    "stride centred": "the stride grid begins at s // 2",
    "channels last": "the memory of (N, C, H, W) is read as (N, H, W, C)",
    "accumulates": "the gradient is added to that of the call before",
    "overwrites": "the greatest logit is subtracted in place",
    "epsilon": "log(probability + 1e-7)",
    "binary log": "the logarithm has base 2",
    "sign": "backward: the sign is flipped",
    "edges repeated": "windows at the border see the border's pixels again",
    "void is background": "ignored pixels count as class 0",
    "divided by N": "backward: divided by the number of images once more",
}
ODD = {
    "seventh class": "1e-3 is added to the logit of the seventh class",
    "tanh": "the logits go through tanh",
    "sorted": "the logits of a pixel are sorted",
    "cubed": "a loss above 2 is cubed",
    "last column": "the windows of the last column count 1.37 times",
    "ripple": "a ripple of the position is added to each loss",
    "outer ring": "weights at a distance of 2 and more are 0.9 of what they should be",
    "absolute third": "backward: every third entry is made positive",
}
PAIRS = [
    ("euclidean", "no root"),
    ("wraps", "upstream ignored"),
    ("no half", "centre only"),
    ("smoothing C - 1", "mean by count"),
    ("all pixels", "neighbour's divisor"),
    ("diameter", "sign"),
]


def port(*mistakes):
    """A new subject with these mistakes in it; without any it is right."""
    assert set(mistakes) <= set(MISTAKES | ODD)
    made = set(mistakes).__contains__
    before = {}  # the state of "accumulates"

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
        if made("overwrites") and logits.flags.writeable:
            logits -= logits.max(axis=1, keepdims=True)
        N, C, H, W = logits.shape
        kind = np.result_type(logits.dtype, np.float32)
        if made("channels last"):
            X = np.array(logits, kind, order="C").reshape(N * H * W, C)
        else:
            X = np.array(np.moveaxis(logits, 1, 3), kind).reshape(N * H * W, C)
        y = np.array(labels).reshape(-1).astype(int)
        if made("void is background"):
            y[y == ignore_index] = 0
        seen = np.ones(y.size, bool) if ignore_index is None else y != ignore_index
        raw = X
        if made("seventh class"):
            X = X + np.where(np.arange(C) == min(6, C - 1), 1e-3, 0).astype(kind)
        if made("tanh"):
            X = np.tanh(X)
        if made("sorted"):
            order = np.argsort(X, axis=1)
            X = np.take_along_axis(X, order, axis=1)

        # omega
        n, i, j = np.unravel_index(np.arange(y.size), (N, H, W))
        omega = np.ones(y.size)
        if class_weight is not None:
            omega[seen] = np.asarray(class_weight, float)[y[seen]]
        if pixel_weight is not None:
            omega[seen] *= np.asarray(pixel_weight, float).reshape(-1)[seen]
        first = stride // 2 if made("stride centred") and stride < min(H, W) else 0
        rows, columns = np.arange(first, H, stride), np.arange(first, W, stride)
        if made("stride centred"):  # the map keeps its shape
            rows, columns = (np.minimum(np.arange(0, S, stride) + first, S - 1) for S in (H, W))
        on_grid = np.isin(i, rows) & np.isin(j, columns)
        valid = seen & on_grid & (omega > 0)
        omega = np.where(valid, omega, 0.0)
        if made("last column"):
            omega[j == W - 1] *= 1.37

        # the pairs of window p and pixel q
        r = kernel_size if made("diameter") else kernel_size // 2
        P, Q, D2 = [], [], []
        inside = np.zeros(y.size)
        kernel = 0.0
        for a in range(-r, r + 1):
            for b in range(-r, r + 1):
                k, l = i + a, j + b
                d = max(abs(a), abs(b))
                if made("euclidean"):
                    d = np.hypot(a, b)
                if made("manhattan"):
                    d = abs(a) + abs(b)
                kernel += weight(d, sigma, made)
                if made("no centre") and a == b == 0:
                    continue
                if made("wraps"):
                    k, l = k % H, l % W
                if made("edges repeated"):
                    k, l = k.clip(0, H - 1), l.clip(0, W - 1)
                ok = (k >= 0) & (k < H) & (l >= 0) & (l < W)
                inside += ok
                at = np.flatnonzero(ok & seen)
                to = (n * H * W + k * W + l)[at]
                same = seen[to] if made("any class") else y[to] == y[at]
                P.append(at[same])
                Q.append(to[same])
                D2.append(np.full(same.sum(), weight(d, sigma, made)))
        P, Q, w = np.concatenate(P), np.concatenate(Q), np.concatenate(D2).astype(kind)

        if normalize == "count":
            D = inside if made("window count") else np.bincount(P, minlength=y.size)
        elif made("whole kernel"):
            D = np.full(y.size, kernel)
        else:
            D = np.bincount(P, w, y.size)
        D = np.where(D > 0, D, 1).astype(kind)

        # stages 1 and 2
        own = np.where(seen, y - 1 if made("labels from one") else y, 0) % C
        T = (np.arange(C) == own[:, None]).astype(kind)
        alpha = label_smoothing
        if made("smoothing C - 1"):
            T_s = (1 - alpha) * T + alpha * (1 - T) / max(C - 1, 1)
        else:
            T_s = (1 - alpha) * T + alpha / C
        T_s = T_s.astype(kind)
        unit = np.log(2) if made("binary log") else 1
        if space == "logits":
            Z = np.zeros_like(X)
            np.add.at(Z, P, w[:, None] * X[Q])
            Z /= D[:, None]
            log_u = log_softmax(Z)
            if made("epsilon"):
                u = np.exp(log_u)
                ell = -(T_s * np.log(u + 1e-7)).sum(1)
                pull = T_s * u / (u + 1e-7)
                dz = u * pull.sum(1, keepdims=True) - pull
            else:
                ell = -(T_s * log_u).sum(1)
                dz = np.exp(log_u) - T_s
        else:
            log_u = log_softmax(X)
            u_own = np.exp(log_u[np.arange(y.size), own])
            top = np.zeros(y.size, kind)
            np.add.at(top, P, w * u_own[Q])
            tiny = 1e-7 if made("epsilon") else 0
            with np.errstate(divide="ignore"):
                ell = -np.log(top / D + tiny)
        ell = np.where(valid, ell / unit, 0).astype(float)
        if made("ripple"):
            ell = ell + np.where(valid, 0.0137 * np.sin(i * j) ** 2, 0)

        # stage 3
        shape = (N, len(rows), len(columns))
        grid = (np.arange(N)[:, None, None] * H + rows[:, None]) * W + columns  # the windows of the map
        if made("upstream ignored"):
            grad_output = np.ones_like(grad_output)
        dell = np.zeros(y.size)
        if reduction == "none":
            value = (omega * ell)[grid].reshape(shape)
            np.add.at(dell, grid.reshape(-1), np.broadcast_to(grad_output, shape).reshape(-1))
            dell = dell * omega
        else:
            value, dell = power_mean(ell, omega, valid, seen, p, reduction, made)
            dell = dell * float(grad_output)
            if made("cubed") and value > 2:
                value, dell = value**3, dell * 3 * value**2
        dell = np.where(valid, dell, 0) / unit
        if made("sign"):
            dell = -dell
        if made("divided by N"):
            dell = dell / N
        dell = dell.astype(kind)

        # backwards
        G = np.zeros_like(X)
        if space == "logits":
            V = np.where(valid[:, None], dell[:, None] * dz, 0)
            if made("centre only"):
                G = np.where(valid[:, None], V / D[:, None], 0)
            elif made("neighbour's divisor"):
                np.add.at(G, Q, w[:, None] * V[P] / D[Q][:, None])
            else:
                np.add.at(G, Q, w[:, None] * V[P] / D[P][:, None])
        else:
            on = valid[P]
            P, Q, w = P[on], Q[on], w[on]
            R = np.zeros(y.size, kind)
            if made("centre only"):
                centre = P == Q
                P, Q, w = P[centre], Q[centre], w[centre]
            base = top[P] + tiny * D[P]
            if made("neighbour's divisor"):
                base = base * D[Q] / D[P]
            np.add.at(R, Q, dell[P] * w * u_own[Q] / base)
            G = np.where(seen[:, None], R[:, None] * (np.exp(log_u) - T), 0)
        if made("tanh"):
            G = G * (1 - np.tanh(raw) ** 2)
        if made("sorted"):
            back = np.zeros_like(G)
            np.put_along_axis(back, order, G, axis=1)
            G = back
        if made("absolute third"):
            G.reshape(-1)[2::3] = abs(G.reshape(-1)[2::3])
        if made("accumulates"):
            old = before.get(G.shape)
            before[G.shape] = G = G if old is None or old.dtype != G.dtype else G + old
        G = G.reshape(logits.shape) if made("channels last") else np.moveaxis(G.reshape(N, H, W, C), 3, 1)
        value = np.asarray(value, kind)[()]
        return value, np.ascontiguousarray(G).astype(logits.dtype)

    return value_and_grad


def weight(d, sigma, made):
    """w(d), with what can be wrong in it."""
    if sigma is None:
        w = 1.0
    elif made("no half"):
        w = np.exp(-((d / sigma) ** 2))
    elif made("variance"):
        w = np.exp(-0.5 * d * d / sigma)
    else:
        w = np.exp(-0.5 * (d / sigma) ** 2)
    return 0.9 * w if made("outer ring") and d >= 2 else w


def log_softmax(Z):
    """Along the last axis."""
    with np.errstate(invalid="ignore"):
        Z = Z - Z.max(axis=-1, keepdims=True)
        return Z - np.log(np.exp(Z).sum(-1, keepdims=True))


def power_mean(ell, omega, valid, seen, p, reduction, made):
    """Stage 3 and its derivative in each ell."""
    m = ell.max() if valid.any() else 0.0
    if m == 0:
        return 0.0, np.zeros_like(ell)
    if np.isinf(p):
        best = (ell >= m * (1 - 16 * 2.0**-52)) & valid
        return m, np.where(best, omega, 0) / omega[best].sum()
    B = omega.sum() if reduction == "mean" else 1.0
    if reduction == "mean" and made("all pixels"):
        B = B * ell.size / seen.sum()
    if reduction == "mean" and made("mean by count"):
        B = valid.sum()
    inner = np.where(valid, omega**p if made("weight inside power") else omega, 0)
    S = (inner * (ell / m) ** p).sum()
    value = m * (S / B) ** (1 / p)
    if made("no root"):
        return value**p, p * inner * ell ** (p - 1) / B
    if made("no outer derivative"):
        return value, inner * ell ** (p - 1) / B
    return value, inner * (ell / m) ** (p - 1) / S * (S / B) ** (1 / p)
