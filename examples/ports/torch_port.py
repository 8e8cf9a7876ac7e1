"""The locally adaptive learning loss in PyTorch, differentiated by autograd.

A port to be judged, and a port to read: it imports nothing of lalref. 2-D images, textbook arithmetic.

    lalref verify examples/ports/torch_port.py:loss --framework torch
"""

import math

import torch
import torch.nn.functional as F

IGNORED, OUTSIDE = -1, -2  # labels of pixels without a class, and of pixels beyond the border


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
    y = torch.where(labels == ignore_index, IGNORED, labels.long())  # (N, H, W)
    x = torch.where((y == IGNORED)[:, None], 0, logits).to(torch.promote_types(logits.dtype, torch.float32))

    # The weight of each window. Off the stride grid there is no window.
    omega = torch.ones_like(x[:, 0])  # (N, H, W)
    if class_weight is not None:
        omega = torch.as_tensor(class_weight, dtype=x.dtype, device=x.device)[y]
    if pixel_weight is not None:
        omega = omega * pixel_weight
    grid = torch.zeros_like(y, dtype=torch.bool)
    grid[:, ::stride, ::stride] = True
    valid = grid & (y != IGNORED) & (omega > 0)  # (N, H, W)
    omega = torch.where(valid, omega, 0)

    r = kernel_size // 2
    offsets = [(i, j) for i in range(-r, r + 1) for j in range(-r, r + 1)]
    d = [max(abs(i), abs(j)) for i, j in offsets]
    w = [1.0 if sigma is None else math.exp(-0.5 * (each / sigma) ** 2) for each in d]
    same = [y_q == y for y_q in seen_by_cells(y, r, OUTSIDE)]  # one (N, H, W) a cell
    counted = w if normalize == "weights" else [1.0] * len(w)
    D = sum(c * s.to(x.dtype) for c, s in zip(counted, same, strict=True))  # (N, H, W)

    if space == "logits":
        cells = zip(w, same, seen_by_cells(x, r, 0), strict=True)
        z = sum(torch.where(s[:, None], w_d * x_q, 0) for w_d, s, x_q in cells) / D[:, None]
        t = F.one_hot(y.clamp(min=0), C).movedim(-1, 1).to(x.dtype)  # (N, C, H, W)
        t = (1 - label_smoothing) * t + label_smoothing / C
        ell = -(t * F.log_softmax(z, dim=1)).sum(dim=1)  # (N, H, W)
    else:
        own = F.log_softmax(x, dim=1).gather(1, y.clamp(min=0)[:, None])[:, 0]  # (N, H, W)
        cells = zip(w, same, seen_by_cells(own, r, 0), strict=True)
        terms = [torch.where(s, math.log(w_d) + own_q, -math.inf) for w_d, s, own_q in cells]
        ell = D.log() - torch.logsumexp(torch.stack(terms), dim=0)
    ell = torch.where(valid, ell, 0)

    if reduction == "none":
        return (omega * ell)[:, ::stride, ::stride]
    return power_mean(ell, omega, p, reduction)


def seen_by_cells(u, r, outside):
    """u (..., H, W) as each cell of the window sees it, row by row; `outside` beyond the border."""
    H, W = u.shape[-2:]
    padded = F.pad(u, (r, r, r, r), value=outside)
    return [padded[..., i : i + H, j : j + W] for i in range(2 * r + 1) for j in range(2 * r + 1)]


def power_mean(ell, omega, p, reduction):
    """Minkowski pooling of the window losses. The maximum only scales, so nothing flows through it."""
    top = ell.detach().amax() if ell.numel() else 0
    if top == 0:
        return (0 * ell).sum()
    if p == math.inf:
        tied = torch.where(ell >= top * (1 - 16 * torch.finfo(ell.dtype).eps), omega, 0).detach()
        return (tied / tied.sum() * ell).sum()
    S = (omega * (ell / top) ** p).sum()
    B = omega.sum() if reduction == "mean" else 1.0
    return top * (S / B) ** (1 / p)
