"""The face parser: a BiSeNet, which finds the label map of a photo of a face.

Published as face-parsing.PyTorch, by which the keys and the numbers of the classes are.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from torchext.nn import Conv2d

from ..blocks import BasicBlock
from ..checks import check_images
from ..face_labels import BISENET_NAMES
from ..label_maps import check_labels
from ..pictures import to_picture, to_tensor
from ..vgg import IMAGENET_MEAN, IMAGENET_STD

SIZE = 512  # of what the published file was trained on
MULTIPLE = 32
CLASSES = len(BISENET_NAMES)
# Of the published pictures, by class.
COLOURS = (
    *((255, 255, 255), (0, 85, 255), (0, 170, 255), (85, 0, 255), (170, 0, 255), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (85, 255, 0), (170, 255, 0), (255, 0, 0), (255, 0, 85)),
    *((255, 0, 170), (255, 85, 0), (255, 170, 0), (0, 255, 255), (85, 255, 255)),
    *((170, 255, 255), (255, 0, 255)),
)


# --- layers ---------------------------------------------------------------------------------------


class ConvBNReLU(nn.Module):
    """Convolution without a bias, batch norm, ReLU."""

    def __init__(
        self, in_chan: int, out_chan: int, ks: int = 3, stride: int = 1, padding: int = 1
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_chan, out_chan, ks, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_chan)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class AttentionRefinementModule(nn.Module):
    """A convolution whose channels are weighted by their means. (N,Ci,H,W) -> (N,Co,H,W)."""

    def __init__(self, in_chan: int, out_chan: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_chan, out_chan)
        self.conv_atten = Conv2d(out_chan, out_chan, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(out_chan)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        mean = y.mean(dim=(2, 3), keepdim=True)
        return y * self.bn_atten(self.conv_atten(mean)).sigmoid()


class FeatureFusionModule(nn.Module):
    """Joins two maps of one size; channels are weighted by their means, and added."""

    def __init__(self, in_chan: int, out_chan: int) -> None:
        super().__init__()
        self.convblk = ConvBNReLU(in_chan, out_chan, 1, padding=0)
        self.conv1 = Conv2d(out_chan, out_chan // 4, 1, bias=False)
        self.conv2 = Conv2d(out_chan // 4, out_chan, 1, bias=False)

    def forward(self, fsp: Tensor, fcp: Tensor) -> Tensor:
        y = self.convblk(torch.cat((fsp, fcp), dim=1))
        mean = y.mean(dim=(2, 3), keepdim=True)
        return y * self.conv2(F.relu(self.conv1(mean))).sigmoid() + y


class BiSeNetOutput(nn.Module):
    """Scores of the classes. (N,in_chan,H,W) -> (N,n_classes,H,W)."""

    def __init__(self, in_chan: int, mid_chan: int, n_classes: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_chan, mid_chan)
        self.conv_out = Conv2d(mid_chan, n_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class _ResNet(nn.Module):
    """ResNet-18 up to its last map; returns those of 1/8, 1/16 and 1/32 of the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for i in range(4):
            wider = width * 2**i
            blocks = BasicBlock(channels, wider, 1 if i == 0 else 2), BasicBlock(wider, wider)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            channels = wider

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class _ContextPath(nn.Module):
    """ResNet's maps, refined from the coarsest to the finest.

    Returns the map of 1/8 of the size as the ResNet gives it, and the refined ones of 1/8 and 1/16.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * width
        self.resnet = _ResNet(width)
        self.arm16 = AttentionRefinementModule(4 * width, inner)
        self.arm32 = AttentionRefinementModule(8 * width, inner)
        self.conv_head32 = ConvBNReLU(inner, inner)
        self.conv_head16 = ConvBNReLU(inner, inner)
        self.conv_avg = ConvBNReLU(8 * width, inner, 1, padding=0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eighth, sixteenth, last = self.resnet(x)
        mean = self.conv_avg(last.mean(dim=(2, 3), keepdim=True))
        coarse = F.interpolate(self.arm32(last) + mean, sixteenth.shape[2:], mode="nearest")
        coarse = self.conv_head32(coarse)
        fine = F.interpolate(self.arm16(sixteenth) + coarse, eighth.shape[2:], mode="nearest")
        return eighth, self.conv_head16(fine), coarse


class BiSeNet(nn.Module):
    """The face parser of face-parsing.PyTorch (`79999_iter.pth`).

    Args:
        n_classes: of the label map.
        width: channels behind the first layer; published files need 64.

    Shape: (N,3,H,W), H and W multiples of 32, normalised as by `normalised` -> logits
    (N,n_classes,H,W) of the fine map, and of the two that only training looks at. Batch norms see
    single pixels: training needs batches of two or more.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(self, n_classes: int = CLASSES, *, width: int = 64) -> None:
        super().__init__()
        self.cp = _ContextPath(width)
        self.ffm = FeatureFusionModule(4 * width, 4 * width)
        self.conv_out = BiSeNetOutput(4 * width, 4 * width, n_classes)
        self.conv_out16 = BiSeNetOutput(2 * width, width, n_classes)
        self.conv_out32 = BiSeNetOutput(2 * width, width, n_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        check_images("x", x, 3)
        if x.shape[2] % MULTIPLE or x.shape[3] % MULTIPLE:
            raise ValueError(
                f"x: expected sides that are multiples of {MULTIPLE}, got {tuple(x.shape[2:])}"
            )
        eighth, fine, coarse = self.cp(x)
        scores = (
            self.conv_out(self.ffm(eighth, fine)),
            self.conv_out16(fine),
            self.conv_out32(coarse),
        )
        return tuple(
            F.interpolate(score, x.shape[2:], mode="bilinear", align_corners=True)
            for score in scores
        )


# --- use ------------------------------------------------------------------------------------------


def normalised(image: Tensor) -> Tensor:
    """What the parser sees of images (N,3,H,W) in [0,1]: ImageNet's mean and deviation."""
    mean, deviation = (
        torch.tensor(values, dtype=image.dtype, device=image.device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (image - mean) / deviation


def prepared(picture: Image.Image, size: int = SIZE) -> Image.Image:
    """A picture as the parser is shown it: stretched to a square, bilinear, as published."""
    return picture.resize((size, size), Image.Resampling.BILINEAR)


@torch.no_grad()
def parse(parser: BiSeNet, photo: Tensor, *, size: int = SIZE, soft: bool = False) -> Tensor:
    """Label maps of photos of faces, by the parser's own size, as published.

    Args:
        parser: trained, in evaluation mode.
        photo: (N,3,H,W) in [0,1], of a face in a frame as CelebA-HQ's; 8 bits of it are seen.
        size: of the square in which the parser works, a multiple of 32.
        soft: give the probability of each class instead.

    Returns:
        int64 (N,1,H,W), by the numbers of `face_labels.BISENET_NAMES`, enlarged by nearest
        neighbour; if soft, (N,classes,H,W) in [0,1], which sum up to 1.

    Raises:
        TypeError, ValueError: the photo is none.
    """
    check_images("photo", photo, 3)
    if size < MULTIPLE or size % MULTIPLE:
        raise ValueError(f"size: expected a multiple of {MULTIPLE}, got {size}")
    images = torch.stack([to_tensor(prepared(to_picture(image), size)) for image in photo])
    scores = parser(normalised(images.to(photo)))[0]
    if soft:
        masks = scores.softmax(dim=1)
        return F.interpolate(masks, photo.shape[2:], mode="bilinear", align_corners=False)
    return resize_labels(scores.argmax(dim=1, keepdim=True), *photo.shape[2:])


def resize_labels(labels: Tensor, height: int, width: int) -> Tensor:
    """A label map (N,1,h,w) of another size: pixel i is that at floor(i * in / out)."""
    h, w = labels.shape[2:]
    rows = torch.arange(height, device=labels.device) * h // height
    columns = torch.arange(width, device=labels.device) * w // width
    return labels[:, :, rows[:, None], columns]


def one_hot(labels: Tensor) -> Tensor:
    """float32 masks (N,19,H,W) of label maps (N,1,H,W), integers.

    Raises:
        TypeError, ValueError: no integers, or a number that is no label.
    """
    labels = check_labels(labels, CLASSES)
    return F.one_hot(labels[:, 0], CLASSES).movedim(-1, 1).float()


def overlay(photo: Tensor, labels: Tensor) -> Tensor:
    """The published picture of a parsing: four parts of the photo, six of the classes' colours.

    Args:
        photo: (N,3,H,W) in [0,1].
        labels: (N,1,H,W), integers.

    Returns:
        (N,3,H,W) in [0,1], whole 8-bit values.
    """
    labels = check_labels(labels, CLASSES)
    colours = torch.from_numpy(np.array(COLOURS)).to(photo)
    mixed = 0.4 * (photo * 255).round() + 0.6 * colours[labels[:, 0]].movedim(-1, 1)
    return mixed.round() / 255
