"""A port in PyTorch with mistakes made by hand: F.unfold, and autograd for the gradient.

Written from the specification alone, without a look at the catalogue of mistakes. Nothing of lalref is
imported. Mistakes of the backward are made by detach, by custom functions and by hooks.
"""

import torch
import torch.nn.functional as F

MISTAKES = {
    "log-probabilities pooled": "log softmax is taken first, and its averages are the losses",
    "neighbours detached": "backward: no gradient flows through the neighbours",
    "losses of softmax": "softmax is applied twice",
    "softmax over width": "softmax runs over the last axis",
    "per image": "each image has its own power mean, and these are averaged",
    "sum for mean": "the power sum is not divided",
    "void pooled": "ignored neighbours are averaged into every group",
    "dilated": "the neighbours are two pixels apart",
    "smoothing lost": "the target is (1 - alpha) onehot, and nothing for the others",
    "smoothing ignored": "label_smoothing is read and not used",
    "p ignored": "the plain mean, whatever p is",
    "upstream squared": "backward: grad_output is multiplied in twice",
    "maximum detached": "backward: the maximum that scales the losses is a constant, in front too",
    "weights ignored": "class_weight is not used",
    "border dropped": "windows that reach over the border take no part",
    "void gets gradient": "backward: ignored pixels get the gradient of class 0",
    "gradient twice": "backward: the gradient is doubled",
    "other space": "probabilities are pooled where logits should be",
}
CONSTANTS = {
    "sigma short": "sigma is 0.7 of what it should be",
    "factor": "the loss is 1.0173 times what it should be",
}
ODD = {
    "quantised": "the logits are rounded to steps of 0.1, straight through",
    "half of the maximum": "the mean of the loss and the greatest window's",
    "slow decay": "the weights are 1 / (1 + d**3.3)",
}
PAIRS = [("dilated", "per image"), ("neighbours detached", "void pooled"), ("p ignored", "border dropped")]


class Doubled(torch.autograd.Function):
    """The identity with twice the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


class Squared(torch.autograd.Function):
    """The identity, for a backward that multiplies by what it is given twice."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * g


class VoidToo(torch.autograd.Function):
    """The identity; on the way back, ignored pixels get what softmax - onehot(0) says."""

    @staticmethod
    def forward(ctx, x, seen):
        ctx.save_for_backward(x, seen)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        x, seen = ctx.saved_tensors
        wrong = torch.softmax(x, 1)
        wrong[:, 0] -= 1
        return torch.where(seen[:, None], g, wrong / seen.numel()), None


def port(*mistakes):
    """A loss with these mistakes in it; without any it is right."""
    assert set(mistakes) <= set(MISTAKES | CONSTANTS | ODD)
    made = set(mistakes).__contains__

    def patches(u, k, fill=0.0):
        """(N, c, H, W) -> (N, c, k*k, H, W)"""
        step = 2 if made("dilated") else 1
        r = k // 2 * step
        u = F.pad(u, (r, r, r, r), value=fill)
        H, W = u.shape[2] - 2 * r, u.shape[3] - 2 * r
        rows = [
            u[:, :, a : a + H, b : b + W]
            for a in range(0, 2 * r + 1, step)
            for b in range(0, 2 * r + 1, step)
        ]
        return torch.stack(rows, 2)

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
    ):
        H, W = logits.shape[2:]
        y = labels.long()
        seen = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
        x = torch.where(seen[:, None] | torch.tensor(made("void pooled")), logits, 0)
        if made("void gets gradient"):
            x = VoidToo.apply(logits, seen)
        if made("gradient twice"):
            x = Doubled.apply(x)
        if made("quantised"):
            x = x + ((x * 10).round() / 10 - x).detach()
        y = torch.where(seen, y, -1)

        # who is in the group, and how much
        around = patches(y[:, None].double(), kernel_size, -7.0)[:, 0]  # (N, k*k, H, W)
        member = (around == y[:, None]) & seen[:, None]
        if made("void pooled"):
            member = member | ((around == -1) & seen[:, None])
        a = torch.arange(kernel_size) - kernel_size // 2
        if made("dilated"):
            a = 2 * a
        d = torch.maximum(a.abs()[:, None], a.abs()[None]).reshape(-1).to(x.dtype)
        if sigma is None:
            w = torch.ones_like(d)
        else:
            s = 0.7 * sigma if made("sigma short") else sigma
            w = torch.exp(-0.5 * (d / s) ** 2)
        if made("slow decay"):
            w = 1 / (1 + d**3.3)
        w = torch.where(member, w[None, :, None, None], 0)
        D = (w if normalize == "weights" else member.to(w.dtype)).sum(1)
        D = torch.where(seen, D, 1)

        def pool(u):
            around = patches(u, kernel_size)
            if made("neighbours detached"):
                centre = around.shape[2] // 2
                rest = around.detach()
                around = torch.cat((rest[:, :, :centre], u[:, :, None], rest[:, :, centre + 1 :]), 2)
            around = torch.where(member[:, None], around, 0)
            return (around * w[:, None]).sum(2) / D[:, None]

        # the loss of each window
        safe = torch.where(seen, y, 0)
        axis = 3 if made("softmax over width") else 1
        merged = space == "logits" and not made("other space")
        alpha = 0.0 if made("smoothing ignored") else label_smoothing
        if merged:
            if made("log-probabilities pooled"):
                log_u = pool(torch.log_softmax(x, axis))
            else:
                z = pool(x)
                if made("losses of softmax"):
                    z = torch.softmax(z, 1)
                log_u = torch.log_softmax(z, axis)
            ell = -(1 - alpha) * log_u.gather(1, safe[:, None])[:, 0]
            if not made("smoothing lost"):
                ell = ell - alpha * log_u.mean(1)
        else:
            own = torch.log_softmax(x, axis).gather(1, safe[:, None])
            if made("log-probabilities pooled"):
                ell = -pool(own)[:, 0]
            else:
                ell = -torch.log(torch.where(seen, pool(own.exp())[:, 0], 1))

        omega = torch.ones_like(ell)
        if class_weight is not None and not made("weights ignored"):
            omega = torch.as_tensor(class_weight, dtype=x.dtype)[safe]
        valid = seen & (omega > 0)
        if made("border dropped"):
            r = kernel_size // 2
            inner = torch.zeros_like(valid)
            inner[:, r : H - r, r : W - r] = True
            valid = valid & inner
        omega = torch.where(valid, omega, 0)
        ell = torch.where(valid, ell, 0)
        omega, ell, valid = (u[:, ::stride, ::stride] for u in (omega, ell, valid))

        if reduction == "none":
            value = omega * ell
        elif made("per image"):
            value = torch.stack(
                [minkowski(e, o, v, p, reduction) for e, o, v in zip(ell, omega, valid, strict=True)]
            )
            value = value.mean() if reduction == "mean" else value.sum()
        else:
            value = minkowski(ell, omega, valid, p, reduction)
            if made("half of the maximum"):
                value = (value + (ell * valid).max()) / 2
        if made("factor"):
            value = value * 1.0173
        return Squared.apply(value) if made("upstream squared") else value

    def minkowski(ell, omega, valid, p, reduction):
        ell, omega = ell[valid].double(), omega[valid].double()
        kind = torch.get_default_dtype()
        if not ell.numel() or ell.detach().max() == 0:
            return (ell * 0).sum().to(kind)
        if made("p ignored"):
            p = 1.0
        if p == float("inf"):
            top = (ell >= ell.max() * (1 - 16 * torch.finfo(kind).eps)).double() * omega
            return (ell * top / top.sum()).sum()
        top = ell.detach().max()
        r = ell / top if not made("maximum detached") else ell / ell.max()
        S = (omega * r**p).sum()
        B = omega.sum() if reduction == "mean" and not made("sum for mean") else 1.0
        return top * (S / B) ** (1 / p)

    def typed(logits, labels, **options):
        return loss(logits, labels, **options).to(logits.dtype)

    typed.__wrapped__ = loss  # the signature
    return typed
