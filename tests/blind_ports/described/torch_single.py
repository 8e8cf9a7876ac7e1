"""PyTorch ports with one mistake each, after the descriptions. Forward mistakes go backwards by autograd."""

import torch
import torch.nn.functional as F

from blind_ports.described.torch_right import Port


class PerImageGradient(torch.autograd.Function):
    """Leaves x as it is; its gradient is an average over the images."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / grad.shape[0]


class DividedByTheBatchSize(Port):
    def read(self, logits, axis):
        return PerImageGradient.apply(super().read(logits, axis))


class Weighted(torch.autograd.Function):
    """omega * ell, for an upstream gradient that is thought to be one number."""

    @staticmethod
    def forward(ctx, ell, omega):
        ctx.save_for_backward(omega)
        return omega * ell

    @staticmethod
    def backward(ctx, upstream):
        (omega,) = ctx.saved_tensors
        return upstream.flatten()[0] * omega, None


class UpstreamOfTheFirstWindow(Port):
    def weighted_map(self, ell):
        return Weighted.apply(ell, self.omega)


class WeightsTwice(Port):
    def powers(self, ratio, omega):
        return (omega * (omega * ratio**self.p)).sum()


class FlatWeights(Port):
    def weights(self, x):
        return torch.ones(self.k**2).to(x)


class LeavesOutTheCentre(Port):
    def members(self, same):
        neighbours = same.clone()
        neighbours[:, self.k**2 // 2] = False
        return torch.where(neighbours.any(1, keepdim=True), neighbours, same)


class IgnoredPixelsCount(Port):
    def divisor(self, omega):
        return self.all_omega.sum() if self.reduction == "mean" else 1.0


class NoWindowsAtTheBorder(Port):
    """F.unfold without padding: the first window stands at (r, r)."""

    def fits(self, x):
        return min(x.shape[2:]) >= self.k

    def along(self, n):
        return (n - self.k) // self.s + 1

    def cells(self, u, outside):
        return F.unfold(u, self.k, stride=self.s).unflatten(1, (u.shape[1], -1))


class Average(torch.autograd.Function):
    """The average over the groups, with a backward that folds the shares back into the image."""

    @staticmethod
    def forward(ctx, u, picked, w, cell_weights, D, k, r, s):
        ctx.save_for_backward(cell_weights, D)
        ctx.size, ctx.window = u.shape[2:], (k, r, s)
        return (w[:, None] * picked).sum(2) / D[:, None]

    @staticmethod
    def backward(ctx, z_bar):
        cell_weights, D = ctx.saved_tensors
        k, r, s = ctx.window
        shares = cell_weights[:, None] * (z_bar / D[:, None])[:, :, None]  # (N, C, K, P)
        u_bar = F.fold(shares.flatten(1, 2), ctx.size, k, padding=r, stride=s)
        return u_bar, None, None, None, None, None, None, None


class FlowsToOtherClasses(Port):
    def average(self, u, same, w, D):
        picked = torch.where(same[:, None], self.cells(u.detach(), 0), 0)
        every = self.weights(u)[None, :, None].expand_as(w)
        return Average.apply(u, picked, w, every, D, self.k, self.r, self.s)


divided_by_the_batch_size = DividedByTheBatchSize()
upstream_of_the_first_window = UpstreamOfTheFirstWindow()
weights_twice = WeightsTwice()
flat_weights = FlatWeights()
leaves_out_the_centre = LeavesOutTheCentre()
ignored_pixels_count = IgnoredPixelsCount()
no_windows_at_the_border = NoWindowsAtTheBorder()
flows_to_other_classes = FlowsToOtherClasses()
