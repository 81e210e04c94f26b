"""The classifier of attributes: source labels of photos, and whether an edit succeeded."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from torchext.nn import Conv2d

from ..checks import check_images


class _Convolution(nn.Module):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class AttributeClassifier(nn.Module):
    """The classifier by which STGAN counts edits that succeeded.

    Args:
        n_att: number of attributes, those of CelebA.
        dim: channels behind the third layer; half of it behind the first, 8 times at the end.
        image_size: of the images, one number or (height, width), multiples of 32.

    Shape: (N,3,*image_size) in [-1,1] -> logits (N,n_att).

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self, n_att: int = 40, dim: int = 32, image_size: int | Sequence[int] = 128
    ) -> None:
        super().__init__()
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if any(side < 32 or side % 32 for side in sides):
            raise ValueError(f"image_size: expected multiples of 32, got {image_size}")
        if dim < 2 or dim % 2:
            raise ValueError(f"dim: expected an even number, got {dim}")
        self.image_size = sides
        widths = [dim // 2, dim, 2 * dim, 4 * dim, 8 * dim]
        channels = [3, *(width for width in widths for _ in range(2))]
        self.features = nn.ModuleList(map(_Convolution, channels, channels[1:]))
        inner = 8 * dim * (sides[0] // 32) * (sides[1] // 32)
        self.fc = nn.Sequential(nn.Linear(inner, 16 * dim), nn.Linear(16 * dim, n_att))

    def forward(self, x: Tensor) -> Tensor:
        check_images("x", x, 3)
        if tuple(x.shape[2:]) != self.image_size:
            raise ValueError(
                f"x: expected the height and width {self.image_size}, got {tuple(x.shape[2:])}"
            )
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i % 2:
                x = F.max_pool2d(x, 2)
        return self.fc[1](F.relu(self.fc[0](x.flatten(1))))
