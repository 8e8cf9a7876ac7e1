"""A port in JAX with mistakes made by hand: one matrix of weights for each image, vmap over the batch.

Written from the specification alone, without a look at the catalogue of mistakes. Nothing of lalref is
imported. Mistakes of the backward are made by stop_gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np

MISTAKES = {
    "divisor by column": "the average is divided by the weight sum of the neighbour, forward and backward",
    "last row left out": "the window runs from -r to r - 1",
    "one axis": "the window is a row, not a square",
    "lonely dropped": "windows with nobody but their centre take no part",
    "maximum": "the greatest loss, whatever p is",
    "distance from one": "the distance begins at 1, for the centre too",
    "reciprocal sigma": "the Gaussian's sigma is 1 / sigma",
    "flat": "every weight is 1",
    "smoothing twice": "alpha is spread over the other classes, and the true one's part left at 1",
    "sum of losses": "the group's logits are added up, not averaged",
    "root detached": "backward: no gradient flows through the outer power",
    "softmax detached": "backward: the sum in log softmax is a constant",
    "smoothing detached": "backward: the logits of the other classes get no gradient",
    "exponent p + 1": "the power is p + 1, the root 1 / p",
    "void counts": "B is the sum over all pixels, ignored ones too",
    "cross term": "the group is that of all unignored pixels of other classes",
}
ODD = {
    "chequered": "windows on the black squares weigh 1.9",
    "mirror": "the left-most logit is taken for the right-most pixel",
    "squashed labels": "the logit of the true class is taken 0.97 times",
}
PAIRS = [("flat", "root detached"), ("one axis", "exponent p + 1"), ("divisor by column", "void counts")]


def port(*mistakes):
    """A loss with these mistakes in it; without any it is right."""
    assert set(mistakes) <= set(MISTAKES | ODD)
    made = set(mistakes).__contains__

    def geometry(H, W, kernel_size, sigma):
        """Distances of all pixels of an image to each other, their weights, and which are near."""
        i, j = (u.reshape(-1) for u in np.mgrid[:H, :W])
        down, right = i[None] - i[:, None], j[None] - j[:, None]  # [p, q]
        r = kernel_size // 2
        near = (abs(down) <= r) & (abs(right) <= r)
        if made("last row left out"):
            near &= ((down < r) & (right < r)) | (r == 0)
        if made("one axis"):
            near &= down == 0
        d = np.maximum(abs(down), abs(right)).astype(float)
        if made("distance from one"):
            d += 1
        if sigma is None or made("flat"):
            return near, np.ones_like(d)
        return near, np.exp(-0.5 * (d * sigma if made("reciprocal sigma") else d / sigma) ** 2)

    def loss(
        logits,
        labels,
        *,
        kernel_size=5,
        sigma=1.0,
        space="logits",
        normalize="weights",
        p=5.0,
        label_smoothing=0.0,
        ignore_index=255,
        reduction="mean",
        pixel_weight=None,
    ):
        N, C, H, W = logits.shape
        near, w = geometry(H, W, kernel_size, sigma)
        near, w = jnp.asarray(near), jnp.asarray(w, logits.dtype)
        omega = jnp.ones(labels.shape, logits.dtype) if pixel_weight is None else pixel_weight

        def windows(x, y, omega):
            """The losses of one image's windows, their weights, and which are valid, each (H*W,)."""
            x, y, omega = x.reshape(C, -1), y.reshape(-1), omega.reshape(-1)
            seen = y != (C if ignore_index is None else ignore_index)
            valid = seen & (omega > 0)
            x = jnp.where(seen, x, 0)
            if made("mirror"):
                x = x.at[:, W - 1 :: W].set(x[:, ::W])
            same = y[:, None] == y[None]
            if made("cross term"):
                same = ~same | jnp.eye(H * W, dtype=bool)
            group = near & same & seen[:, None] & seen[None]
            K = jnp.where(group, w, 0)  # [p, q]
            D = (K if normalize == "weights" else group).sum(1)
            D = jnp.where(D > 0, D, 1).astype(x.dtype)
            K = K if made("sum of losses") else K / (D[None] if made("divisor by column") else D[:, None])
            if made("lonely dropped"):
                valid &= group.sum(1) > 1
            onehot = (jnp.arange(C)[:, None] == y).astype(x.dtype)  # (C, p)
            if made("squashed labels"):
                x = x * (1 - 0.03 * onehot)
            if space == "logits":
                z = jnp.einsum("pq,cq->cp", K, x)
                if made("smoothing detached"):
                    z = onehot * z + (1 - onehot) * jax.lax.stop_gradient(z)
                log_u = z - total(z)
                t = (1 - label_smoothing) * onehot + label_smoothing / C
                if made("smoothing twice"):
                    t = onehot + (1 - onehot) * label_smoothing / C
                ell = -(t * log_u).sum(0)
            else:
                u = jnp.exp(jnp.where(onehot > 0, x - total(x), 0)) * onehot
                own = jnp.where(seen, u.sum(0), 1)
                ell = -jnp.log(jnp.where(valid, K @ own, 1))
            return jnp.where(valid, ell, 0), jnp.where(valid, omega, 0), valid

        def total(z):
            s = jax.nn.logsumexp(z, 0)
            return jax.lax.stop_gradient(s) if made("softmax detached") else s

        ell, omega, valid = (u.reshape(N, H, W) for u in jax.vmap(windows)(logits, labels, omega))
        if made("chequered"):
            omega = omega * jnp.where(np.indices((H, W)).sum(0) % 2, 1.9, 1.0).astype(omega.dtype)
        if reduction == "none":
            return omega * ell
        top = jax.lax.stop_gradient(ell.max(initial=0))
        scale = jnp.where(top > 0, top, 1)
        if made("maximum") or p == np.inf:
            return ell.max()
        B = omega.sum() if reduction == "mean" else 1.0
        if reduction == "mean" and made("void counts"):
            B = B + (~valid).sum()
        r = jnp.where(valid & (ell > 0), ell / scale, 0)
        S = (omega * r ** (p + 1 if made("exponent p + 1") else p)).sum() / jnp.where(B > 0, B, 1)
        if made("root detached"):  # S**(1/p) as S * S**(1/p - 1)
            return scale * S * jax.lax.stop_gradient(jnp.where(S > 0, S, 1) ** (1 / p - 1))
        return jnp.where(S > 0, scale * jnp.where(S > 0, S, 1) ** (1 / p), ell.sum()).astype(logits.dtype)

    return loss
