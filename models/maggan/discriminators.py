"""STGAN's discriminator, and MagGAN's on several levels, the finer ones on patches."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext import backend
from torchext.nn import Conv2d

from ..checks import check_images

WIDEST = 1024
Views = list[Tensor]  # what each level sees


class _Down(nn.Module):
    """Convolution 4x4 of stride 2, instance norm, leaky ReLU 0.2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
        self.norm = nn.InstanceNorm2d(out_channels, eps=1e-6, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class _Head(nn.Sequential):
    """Two linear layers, a leaky ReLU 0.2 between them."""

    def __init__(self, in_features: int, inner: int, out_features: int) -> None:
        super().__init__(nn.Linear(in_features, inner), nn.Linear(inner, out_features))

    def forward(self, x: Tensor) -> Tensor:
        return self[1](F.leaky_relu(self[0](x), 0.2))


def _body(dim: int, n_layers: int) -> nn.Sequential:
    if n_layers < 1:
        raise ValueError(f"n_layers: expected at least 1, got {n_layers}")
    channels = [3, *(min(dim * 2**i, WIDEST) for i in range(n_layers))]
    return nn.Sequential(*map(_Down, channels, channels[1:]))


def _reset(network: nn.Module) -> None:
    """Xavier-uniform weights, biases 0; norms keep what they begin with."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class STGANDiscriminator(nn.Module):
    """Whether an image is real, and which attributes it shows (STGAN, 3.3).

    Args:
        n_att: number of attributes.
        dim: channels behind the first layer; doubled by each further one, at most 1024.
        fc_dim: of the layers before the last ones.
        n_layers: halvings.
        image_size: of the images, one number or (height, width).

    Shape: (N,3,*image_size) in [-1,1] -> logits (N,1), and of the attributes (N,n_att).

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        n_att: int = 13,
        dim: int = 64,
        fc_dim: int = 1024,
        n_layers: int = 5,
        image_size: int | Sequence[int] = 128,
    ) -> None:
        super().__init__()
        sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.image_size = sides
        self.body = _body(dim, n_layers)
        height, width = (side // 2**n_layers for side in sides)
        # The last instance norm needs more than one pixel.
        if any(side % 2**n_layers for side in sides) or height * width < 2:
            raise ValueError(
                f"image_size: expected multiples of {2**n_layers}, as there are {n_layers}"
                f" halvings, and more than one pixel behind them, got {image_size}"
            )
        features = min(dim * 2 ** (n_layers - 1), WIDEST) * height * width
        self.gan = _Head(features, fc_dim, 1)
        self.att = _Head(features, fc_dim, n_att)
        _reset(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_images("x", x, 3)
        if tuple(x.shape[2:]) != self.image_size:
            raise ValueError(
                f"x: expected the height and width {self.image_size}, got {tuple(x.shape[2:])}"
            )
        x = self.body(x).flatten(1)
        return self.gan(x), self.att(x)

    # The same names as of several levels.

    def draw_offsets(self, count: int) -> Tensor:
        """No patches of so many images: int64 (0,count,2)."""
        return torch.zeros(0, count, 2, dtype=torch.int64)

    def views(self, x: Tensor, offsets: Tensor) -> Views:
        """The image itself."""
        return [x]

    def score(self, level: int, view: Tensor) -> Tensor:
        """The logits (N,1) of a view alone."""
        return self(view)[0]

    def judge(self, views: Views) -> tuple[list[Tensor], Tensor]:
        """Logits of each level, and of the attributes."""
        gan, att = self(views[0])
        return [gan], att


class PatchDiscriminator(nn.Module):
    """Whether patches are real: a score of each place, averaged.

    Args:
        dim: channels behind the first layer; doubled by each further one, at most 1024.
        n_layers: halvings.

    Shape: (N,3,H,W) in [-1,1], H and W multiples of 2^n_layers -> logits (N,1).
    """

    def __init__(self, dim: int = 64, n_layers: int = 3) -> None:
        super().__init__()
        self.body = _body(dim, n_layers)
        self.score = Conv2d(min(dim * 2 ** (n_layers - 1), WIDEST), 1, 3, padding=1)
        _reset(self)

    def forward(self, x: Tensor) -> Tensor:
        check_images("x", x, 3)
        return self.score(self.body(x)).mean(dim=(2, 3))


def levels(image_size: int, base_size: int) -> int:
    """How many sizes there are from the base size to the image's, each twice the one before.

    Raises:
        ValueError: there are none.
    """
    for count in range(1, 16):
        if base_size * 2 ** (count - 1) == image_size and base_size > 0:
            return count
    raise ValueError(f"size: expected base_size, {base_size}, times a power of 2, got {image_size}")


class MultiLevelPatchDiscriminator(nn.Module):
    """Discriminators of several sizes, all of which see as many pixels (MagGAN, by its abstract).

    The coarsest sees the whole image, averaged down, and it alone judges attributes, which are
    global. Each finer one sees a patch of the image at twice the size of the level before. All are
    shallow. The paper's numbers were not at hand.

    Args:
        n_att: number of attributes.
        image_size: of the images, height and width.
        base_size: of what each level sees.
        dim, fc_dim, n_layers: of the coarsest, see `STGANDiscriminator`.
        patch_dim, patch_layers: of the others, see `PatchDiscriminator`.

    Shape: x (N,3,image_size,image_size) in [-1,1]; offsets int64 (levels-1,N,2), top and left of
    each image's patch in the pixels of its level -> logits (N,1) of each level, coarsest first, and
    of the attributes (N,n_att).

    Raises:
        ValueError: an argument does not fit.
    """

    def __init__(
        self,
        n_att: int = 13,
        image_size: int = 1024,
        base_size: int = 256,
        dim: int = 64,
        fc_dim: int = 1024,
        n_layers: int = 6,
        patch_dim: int = 64,
        patch_layers: int = 3,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.base_size = base_size
        count = levels(image_size, base_size)
        self.levels = nn.ModuleList(
            [STGANDiscriminator(n_att, dim, fc_dim, n_layers, base_size)]
            + [PatchDiscriminator(patch_dim, patch_layers) for _ in range(count - 1)]
        )

    def draw_offsets(self, count: int) -> Tensor:
        """Patches of so many images: int64 (levels-1,count,2), uniform, of PyTorch's generator."""
        drawn = [
            torch.randint(self.base_size * (2**level - 1) + 1, (count, 2))
            for level in range(1, len(self.levels))
        ]
        return torch.stack(drawn) if drawn else torch.zeros(0, count, 2, dtype=torch.int64)

    def views(self, x: Tensor, offsets: Tensor | Sequence) -> Views:
        """What each level sees: (N,3,base_size,base_size), coarsest first."""
        check_images("x", x, 3)
        if tuple(x.shape[2:]) != (self.image_size, self.image_size):
            raise ValueError(
                f"x: expected the height and width {self.image_size}, got {tuple(x.shape[2:])}"
            )
        offsets = torch.as_tensor(offsets, device=x.device)
        count, base = len(self.levels), self.base_size
        if offsets.numel() == 0:
            offsets = offsets.new_zeros(0, len(x), 2)
        if offsets.shape != (count - 1, len(x), 2):
            raise ValueError(
                f"offsets: expected the shape ({count - 1}, {len(x)}, 2), got"
                f" {tuple(offsets.shape)}"
            )
        if backend.checks_values(offsets):
            most = torch.tensor(
                [base * (2**level - 1) for level in range(1, count)], device=x.device
            )[:, None, None]
            if ((offsets < 0) | (offsets > most)).any():
                raise ValueError(
                    f"offsets: expected places from 0 to {most.flatten().tolist()} of each level,"
                    f" got {offsets.tolist()}"
                )
        seen = [F.avg_pool2d(x, self.image_size // base)]
        image = torch.arange(len(x), device=x.device)[:, None, None]
        side = torch.arange(base, device=x.device)
        for level, places in enumerate(offsets, start=1):
            small = F.avg_pool2d(x, self.image_size // (base * 2**level))
            top, left = places.unbind(1)
            rows, columns = top[:, None] + side, left[:, None] + side
            # Indices, not slices: the host need not know the places.
            patches = small[image, :, rows[:, :, None], columns[:, None, :]]
            seen.append(patches.movedim(-1, 1).contiguous())
        return seen

    def score(self, level: int, view: Tensor) -> Tensor:
        """The logits (N,1) of a level."""
        return self.levels[level](view)[0] if level == 0 else self.levels[level](view)

    def judge(self, views: Views) -> tuple[list[Tensor], Tensor]:
        """Logits of each level, and of the attributes."""
        gan, att = self.levels[0](views[0])
        return [gan, *(level(x) for level, x in zip(self.levels[1:], views[1:], strict=True))], att

    def forward(self, x: Tensor, offsets: Tensor | Sequence) -> tuple[list[Tensor], Tensor]:
        return self.judge(self.views(x, offsets))
