"""Padded classifiers: ResNet and VGG whose convolutions correct their zero padding.

"Partial Convolution based Padding", arXiv 1811.11718. State keys are torchvision's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchext.nn import PartialConv2d

from .. import checkpoint
from ..checks import check_images
from ..vgg import LAYERS


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = PartialConv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = PartialConv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(inplanes, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions and a shortcut."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = PartialConv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = PartialConv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = PartialConv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inplanes, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(before: int, behind: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and before == behind:
        return None
    return nn.Sequential(
        PartialConv2d(before, behind, 1, stride, bias=False), nn.BatchNorm2d(behind)
    )


class PaddedResNet(nn.Module):
    """ResNet for images (N,3,224,224), ImageNet-normalised -> logits (N,num_classes)."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.conv1 = PartialConv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inplanes = 64
        for i, count in enumerate(layers):
            planes = 64 * 2**i
            blocks = []
            for j in range(count):
                blocks.append(block(inplanes, planes, stride=2 if i > 0 and j == 0 else 1))
                inplanes = planes * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AvgPool2d(7, stride=1)
        self.fc = nn.Linear(inplanes, num_classes)
        for module in self.modules():
            if isinstance(module, PartialConv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        check_images("x", x, 3)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class PaddedVGG(nn.Module):
    """VGG for images (N,3,224,224), ImageNet-normalised -> logits (N,num_classes)."""

    def __init__(self, depth: int, batch_norm: bool = False, num_classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in LAYERS[depth]:
            if width == "M":
                layers.append(nn.MaxPool2d(2, stride=2))
                continue
            layers.append(PartialConv2d(channels, width, 3, padding=1))
            nn.init.kaiming_normal_(layers[-1].weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layers[-1].bias)
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU(inplace=True))
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512 * 7 * 7, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(4096, num_classes),
        )
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        check_images("x", x, 3)
        return self.classifier(self.features(x).flatten(1))


_RESNETS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}
NAMES = (
    *(f"pdresnet{depth}" for depth in _RESNETS),
    *(f"pdvgg{depth}{norm}" for depth in LAYERS for norm in ("", "_bn")),
)


def build(name: str, num_classes: int = 1000) -> nn.Module:
    """A padded classifier by its published name, such as "pdresnet50" or "pdvgg16_bn".

    Raises:
        ValueError: none of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {NAMES}, got {name!r}")
    if name.startswith("pdresnet"):
        return PaddedResNet(*_RESNETS[int(name.removeprefix("pdresnet"))], num_classes)
    depth = name.removeprefix("pdvgg").removesuffix("_bn")
    return PaddedVGG(int(depth), name.endswith("_bn"), num_classes)


def load_published(
    network: nn.Module, content: Mapping[str, Any], source: object = "checkpoint"
) -> nn.Module:
    """Load what the published training script saved, or a bare state_dict; returns the network.

    Raises:
        ValueError: an entry is missing, unexpected, or of another shape.
    """
    checkpoint.load_strictly(network, checkpoint.weights(content, [network]), source)
    return network


def optimizer(network: nn.Module) -> torch.optim.SGD:
    """The published one: rate 0.1, to be divided by 10 every 30 of 100 epochs; batches of 192."""
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
