"""SPADE's first convolution as published (CVPR 2019): of the one-hot label map."""

import torch.nn.functional as F
from torch import Tensor, nn


class OneHotConvolution(nn.Conv2d):
    """one_hot (N,classes,H,W). `scale`, of the weight, is what the harness differentiates."""

    def forward(self, scale: Tensor, one_hot: Tensor, labels: Tensor) -> Tensor:
        return F.conv2d(one_hot, self.weight * scale, self.bias, padding=self.padding)
