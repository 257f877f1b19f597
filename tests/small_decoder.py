"""A decoder of two convolutions."""

import torch


class Normed(torch.nn.Module):
    """What an autoencoder's decoder has: convolutions and group norms."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 3, 3, padding=1)
        self.norm, self.again = torch.nn.GroupNorm(2, 8), torch.nn.GroupNorm(4, 8, affine=False)

    def forward(self, x):
        return self.last(self.again(self.norm(self.first(x)).relu()))
