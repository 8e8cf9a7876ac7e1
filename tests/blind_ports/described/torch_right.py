"""A right port in PyTorch, by a person who thinks in F.unfold: the windows are one axis of a tensor.

Each method is a step that a mistake may change; torch_single.py and the rest override one of them. Nothing of
lalref may be imported here.
"""

import math

import torch
import torch.nn.functional as F

VOID, OUTSIDE = -1, -2


class Port:
    """Callable as port(logits, labels, **options) -> loss, differentiable by autograd. Two spatial axes."""

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
    ):
        x = self.read(logits, axis)  # (N, C, H, W)
        self.k, self.r, self.s, self.sigma = kernel_size, kernel_size // 2, stride, sigma
        self.normalize, self.p, self.alpha, self.reduction = normalize, p, label_smoothing, reduction
        N, C = x.shape[:2]
        if x.numel() == 0 or not self.fits(x):
            return 0 * logits.sum()
        y = labels.long().masked_fill(labels == ignore_index, VOID)  # (N, H, W)

        # windows: K = kernel_size ** 2 cells, P = number of windows in an image
        centre = self.k**2 // 2
        y_cells = self.cells(y[:, None].to(x.dtype), OUTSIDE).long()[:, 0]  # (N, K, P)
        self.y = y_cells[:, centre]  # (N, P)
        not_void = self.y != VOID
        cell_omega = self.cells(self.pixel_omega(x, y, class_weight, pixel_weight)[:, None], 0)[
            :, 0
        ]  # (N, K, P)
        self.all_omega = cell_omega[:, centre]  # (N, P), of void windows too
        self.valid = not_void & (self.all_omega > 0)
        self.omega = self.all_omega.masked_fill(~self.valid, 0)
        same = self.members((y_cells == self.y[:, None]) & not_void[:, None])
        w = self.weights(x)[None, :, None] * torch.ones_like(cell_omega)  # (N, K, P)
        if pixel_weight is not None:
            w = self.weigh_neighbours(w, self.cells(torch.as_tensor(pixel_weight).to(x)[:, None], 0)[:, 0])
        w = w * same
        D = w.sum(1) if normalize == "weights" else same.to(x.dtype).sum(1)
        D = torch.where(D > 0, D, 1)  # (N, P)

        onehot = F.one_hot(self.y.clamp(min=0), C).movedim(-1, 1).to(x.dtype)  # (N, C, P)
        if space == "logits":
            z = self.average(x, same, w, D)  # (N, C, P)
            ell = self.cross_entropy(z, self.target(onehot, C))
        else:
            u = self.average(x.softmax(1), same, w, D)
            ell = -torch.where(self.valid, (u * onehot).sum(1), 1).log()
        ell = torch.where(self.valid, ell, 0)  # (N, P)
        if reduction == "none":
            H, W = (self.along(n) for n in x.shape[2:])
            return self.weighted_map(ell).reshape(N, H, W)
        if not self.valid.any():
            return 0 * logits.sum() + (math.nan if empty == "nan" else 0)
        return self.pooled(ell)

    def read(self, logits, axis):
        x = logits.movedim(axis, 1)
        return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

    def fits(self, x):
        return True

    def along(self, n):
        """Number of windows along an axis of n pixels."""
        return (n - 1) // self.s + 1

    def cells(self, u, outside):
        """u (N, C, H, W) -> (N, C, K, P)."""
        u_padded = F.pad(u, (self.r,) * 4, value=outside)
        return F.unfold(u_padded, self.k, stride=self.s).unflatten(1, (u.shape[1], -1))

    def pixel_omega(self, x, y, class_weight, pixel_weight):
        omega = torch.ones_like(x[:, 0])
        if class_weight is not None:
            omega = torch.as_tensor(class_weight).to(x)[y.clamp(min=0)]
        if pixel_weight is not None:
            omega = omega * torch.as_tensor(pixel_weight).to(x)
        return omega

    def weights(self, x):
        """w of each cell (K,)."""
        steps = torch.arange(-self.r, self.r + 1, dtype=torch.float64).abs()
        d = torch.maximum(steps[:, None], steps).flatten()
        w = torch.ones_like(d) if self.sigma is None else torch.exp(-0.5 * (d / self.sigma) ** 2)
        return w.to(x)

    def members(self, same):
        return same

    def weigh_neighbours(self, w, pixel_weight):
        return w

    def average(self, u, same, w, D):
        """Weighted average (N, C, P) of u (N, C, H, W) over each window's group."""
        picked = torch.where(same[:, None], self.cells(u, 0), 0)
        return (w[:, None] * picked).sum(2) / D[:, None]

    def target(self, onehot, C):
        return (1 - self.alpha) * onehot + self.alpha / C

    def cross_entropy(self, z, t):
        return -(t * F.log_softmax(z, dim=1)).sum(1)

    def weighted_map(self, ell):
        return self.omega * ell

    def pooled(self, ell):
        return self.power_mean(ell, self.omega)

    def power_mean(self, ell, omega):
        """Minkowski pooling of the losses ell with weights omega (both of one shape)."""
        top = ell.detach().max()
        if top == 0:
            return 0 * ell.sum()
        if self.p == math.inf:
            tied = torch.where(ell.detach() >= (1 - 16 * torch.finfo(ell.dtype).eps) * top, omega, 0)
            return (tied * ell).sum() / tied.sum()
        return top * (self.powers(ell / top, omega) / self.divisor(omega)) ** (1 / self.p)

    def powers(self, ratio, omega):
        return (omega * ratio**self.p).sum()

    def divisor(self, omega):
        return omega.sum() if self.reduction == "mean" else 1.0


right = Port()
