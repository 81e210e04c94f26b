"""PyTorch's convolution layer, by Winograd's form on the CPU where that is faster."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.winograd_conv import conv2d


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`: same constructor, same state-dict keys, same result to rounding.

    On the CPU, contiguous float32 images are convolved by 3x3 kernels with stride 1 in Winograd's
    form (see `torchext.winograd_conv2d`) where it is expected to be faster, and the gradient of the
    input likewise; all else is PyTorch's own. `torchext.backend.convolution` chooses. In evaluation
    transformed weights are kept, four times the weight's size, while the weight stays as it is.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            border = self._reversed_padding_repeated_twice
            input, padding = F.pad(input, border, mode=self.padding_mode), (0, 0)
        elif isinstance(padding, str) or input.dim() != 4:
            return super()._conv_forward(input, weight, bias)
        return conv2d(input, weight, bias, self.stride, padding, self.dilation, self.groups)
