"""PyTorch ports with two described mistakes each, and with mistakes of the author's own."""

import torch
import torch.nn.functional as F

from blind_ports.described.torch_right import Port


class PerImage(Port):
    """Each image has its own power mean."""

    def each_image(self, ell):
        return [self.power_mean(e, o) for e, o in zip(ell, self.omega, strict=True) if o.sum() > 0]


class PerImageSumSwapped(PerImage):
    def read(self, logits, axis):
        x = super().read(logits, axis)
        return x.transpose(2, 3).reshape(x.shape)  # as if height and width had come the other way round

    def pooled(self, ell):
        return torch.stack(self.each_image(ell)).sum()


class SingleAndWeightsOnlyBelow(Port):
    def read(self, logits, axis):
        self.dtype = logits.dtype
        return super().read(logits, axis).float()

    def weighted_map(self, ell):
        return super().weighted_map(ell).to(self.dtype)

    def pooled(self, ell):
        return super().pooled(ell).to(self.dtype)

    def powers(self, ratio, omega):
        return (ratio[omega > 0] ** self.p).sum()


class TooLittleLabelPerImageMean(PerImage):
    def target(self, onehot, C):
        return (1 - self.alpha - self.alpha / C) * onehot + self.alpha / C

    def pooled(self, ell):
        return torch.stack(self.each_image(ell)).mean()


class Divergence(Port):
    """F.kl_div looks like a cross-entropy that takes a smoothed target."""

    def cross_entropy(self, z, t):
        return F.kl_div(F.log_softmax(z, dim=1), t, reduction="none").sum(1)


class NeighboursByPixelWeight(Port):
    def weigh_neighbours(self, w, pixel_weight):
        return w * pixel_weight


class SigmaOfTheKernel(Port):
    """sigma is meant for the 5x5 window of the paper and grows with the kernel."""

    def weights(self, x):
        if self.sigma is None or self.r == 0:
            return super().weights(x)
        given, self.sigma = self.sigma, self.sigma * self.r / 2
        w = super().weights(x)
        self.sigma = given
        return w


class ClassesOneByOne(Port):
    """A power mean of each class's windows; then the classes that occur are averaged (or added up)."""

    def pooled(self, ell):
        classes = self.y[self.valid].unique()
        each = torch.stack(
            [self.power_mean(ell * (self.y == c), self.omega * (self.y == c)) for c in classes]
        )
        return each.mean() if self.reduction == "mean" else each.sum()


per_image_sum_and_swapped = PerImageSumSwapped()
single_precision_and_weights_only_below = SingleAndWeightsOnlyBelow()
too_little_label_and_per_image_mean = TooLittleLabelPerImageMean()
divergence = Divergence()
neighbours_by_pixel_weight = NeighboursByPixelWeight()
sigma_of_the_kernel = SigmaOfTheKernel()
classes_one_by_one = ClassesOneByOne()
