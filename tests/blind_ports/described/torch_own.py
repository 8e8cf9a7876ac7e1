"""PyTorch ports with mistakes that the catalogue has not."""

import torch.nn.functional as F

from blind_ports.described.torch_right import Port


class ScaledAsAttention(Port):
    """Scores are divided by the root of their number before softmax, as attention does."""

    def cross_entropy(self, z, t):
        return super().cross_entropy(z / z.shape[1] ** 0.5, t)


class WithMargin(Port):
    """The label's score has to be ahead by a margin, as in face recognition."""

    def target(self, onehot, C):
        self.onehot = onehot
        return super().target(onehot, C)

    def cross_entropy(self, z, t):
        return -(t * F.log_softmax(z - 0.35 * self.onehot, dim=1)).sum(1)


scaled_as_attention = ScaledAsAttention()
with_margin = WithMargin()
