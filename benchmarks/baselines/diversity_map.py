"""PD-GAN's hard diversity map as published (CVPR 2021): a convolution for each dilation."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HardMaps(nn.Module):
    """Maps of several (steps, window, height, width), joined to one flat tensor."""

    def __init__(self, maps: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.maps = list(maps)
        for index, (_, window, _, _) in enumerate(self.maps):
            self.register_buffer(f"box{index}", torch.ones(1, 1, window, window))

    def forward(self, mask: Tensor) -> Tensor:
        parts = []
        for index, (steps, window, height, width) in enumerate(self.maps):
            known = F.interpolate(mask, size=(height, width), mode="nearest")
            result = known
            for ring in range(1, steps + 1):
                reached = F.conv2d(known, getattr(self, f"box{index}"), padding=window // 2)
                dilated = (reached != 0).to(mask.dtype)
                result = result + (dilated - known) * math.exp(-ring)
                known = dilated
            parts.append((result + (1 - known) * math.exp(-steps)).flatten())
        return torch.cat(parts)
