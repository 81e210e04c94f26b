"""Features of VGG-16 and VGG-19 for losses, with torchvision's weights."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from torchext.nn import Conv2d

from . import checkpoint, pretrained
from .checks import check_images

# Channels of the 3x3 convolutions, "M" where a maximum over 2x2 follows.
LAYERS: dict[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", *(256,) * 3, "M", *(512,) * 3, "M", *(512,) * 3, "M"),
    19: (64, 64, "M", 128, 128, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4, "M"),
}
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DEPTHS = (16, 19)
# Features of VGG-19 by which photos of a synthesis are compared, and their weights.
SYNTHESIS_TAPS = {
    "relu1_1": 1 / 32, "relu2_1": 1 / 16, "relu3_1": 1 / 8, "relu4_1": 1 / 4, "relu5_1": 1.0
}  # fmt: skip


class VGGFeatures(nn.Module):
    """Features of a frozen VGG (keys `features.{i}.weight`, `.bias`, as in torchvision's files).

    Args:
        depth: 16 or 19.
        taps: "relu{stage}_{i}" (behind that ReLU) or "pool{stage}"; nothing behind the last of them
            is built.

    Shape: x (N,3,H,W), in whatever range the loss wants -> features by tap, in the order of taps.

    Raises:
        ValueError: an unknown depth or tap.
    """

    def __init__(self, depth: int = 16, taps: Iterable[str] = ("pool1", "pool2", "pool3")) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"depth: expected 16 or 19, got {depth!r}")
        self.depth = depth
        self.taps = tuple(taps)
        layers: list[nn.Module] = []
        index: dict[str, int] = {}  # of the layer whose output a tap is
        channels, stage, i = 3, 1, 0
        for width in LAYERS[depth]:
            if width == "M":
                index[f"pool{stage}"] = len(layers)
                layers.append(nn.MaxPool2d(2, stride=2))
                stage, i = stage + 1, 0
            else:
                i += 1
                layers += [Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                index[f"relu{stage}_{i}"] = len(layers) - 1
                channels = width
        unknown = [tap for tap in self.taps if tap not in index]
        if unknown or not self.taps:
            raise ValueError(f"taps: expected some of {list(index)}, got {unknown or 'none'}")
        self.index = {tap: index[tap] for tap in self.taps}
        self.features = nn.Sequential(*layers[: max(self.index.values()) + 1])
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        check_images("x", x, 3)
        outputs = {}
        wanted = {i: tap for tap, i in self.index.items()}
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in wanted:
                outputs[wanted[i]] = x
        return {tap: outputs[tap] for tap in self.taps}

    def load(self, path: Path | None = None) -> "VGGFeatures":
        """Load torchvision's ImageNet weights; returns this module.

        Args:
            path: a state_dict of torchvision's VGG, or of its `features` alone. By default the file
                that torchvision left in PyTorch's cache (`torch.hub.get_dir()`).

        Raises:
            FileNotFoundError: no such file; the text says where to get one.
            ValueError: it cannot be read, or holds another network.
        """
        path = pretrained.find(f"vgg{self.depth}", path)
        return self.load_torchvision(checkpoint.load_published(path), path)

    def load_torchvision(self, state: Mapping[str, Tensor], source: object) -> "VGGFeatures":
        """Load a state_dict of torchvision's; returns this module.

        Entries of the classifier and of layers behind the last tap are left out.

        Raises:
            ValueError: it holds another network; `source` is named.
        """
        state, own = checkpoint.weights(state, [self]), self.state_dict().keys()
        further = re.compile(r"(features|classifier)\.\d+\.(weight|bias)")
        kept = {k: v for k, v in state.items() if k in own or not further.fullmatch(k)}
        checkpoint.load_strictly(self, kept, f"{source} as VGG-{self.depth}")
        return self


def imagenet_normalised(image: Tensor) -> Tensor:
    """(N,3,H,W) in [0,1] -> zero mean and unit deviation over ImageNet."""
    mean, deviation = (
        torch.tensor(values, dtype=image.dtype, device=image.device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (image - mean) / deviation


def imagenet_restored(image: Tensor) -> Tensor:
    """The inverse of `imagenet_normalised`."""
    mean, deviation = (
        torch.tensor(values, dtype=image.dtype, device=image.device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return image * deviation + mean
