"""Whole networks with the published operation sequences, in pure PyTorch.

The U-Net of partial convolutions carries masks of all channels and sums them by dense convolutions
of ones; the generators of region normalisation, PD-GAN, DAGAN and MaskGAN have the published layers
in place of ours, the last two on one-hot label maps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext.models.dagan import SPADEGenerator
from torchext.models.maskgan.networks import (
    ConvBlock,
    DenseMappingNetwork,
    InstanceNormReLU,
    ResidualBlock,
)
from torchext.models.partial_convolutions import PConvUNet
from torchext.models.pd_gan.networks import SPDNormGenerator
from torchext.models.region_normalization import G_Net
from torchext.nn import RN_B, RN_L, SPADEResnetBlock, SPDNormResnetBlock

from . import modulated_layers, region_norm
from .dual_attention import DualAttention
from .partial_conv import PartialConv


def with_published_partial_conv(ours: nn.Module) -> PartialConv:
    """The published layer on the weights of ours."""
    conv = ours.input_conv
    shape = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    layer = PartialConv(*shape)
    layer.input_conv = conv
    return layer


class Stage(nn.Module):
    """Partial convolution, batch norm, activation, one after the other."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.conv = with_published_partial_conv(ours.conv)
        self.bn = getattr(ours, "bn", None)
        self.slope = ours.slope

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = self.conv(x, mask)
        if self.bn is not None:
            x = self.bn(x)
        return x if self.slope is None else F.leaky_relu(x, self.slope), mask


class UNet(nn.Module):
    """The published U-Net, nearest up-sampling, on the weights of ours."""

    def __init__(self, ours: PConvUNet) -> None:
        super().__init__()
        count = range(1, ours.layer_size + 1)
        self.enc = nn.ModuleList(Stage(ours.get_submodule(f"enc_{i}")) for i in count)
        self.dec = nn.ModuleList(Stage(ours.get_submodule(f"dec_{i}")) for i in reversed(count))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask.expand_as(x).contiguous()
        features, masks = [x], [mask]
        for stage in self.enc:
            x, mask = stage(x, mask)
            features.append(x)
            masks.append(mask)
        features.pop()
        masks.pop()
        for stage in self.dec:
            x, mask = (F.interpolate(value, scale_factor=2, mode="nearest") for value in (x, mask))
            x, mask = torch.cat((x, features.pop()), 1), torch.cat((mask, masks.pop()), 1)
            x, mask = stage(x, mask)
        return x, mask


def with_published_region_norm(ours: G_Net) -> G_Net:
    """The same network with the published layers, on weights of its own."""
    network = G_Net(
        residual_blocks=len(ours.middle),
        threshold=ours.middle[0].conv_block[2].threshold,
        width=ours.encoder_conv1.out_channels,
    )
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, RN_B):
                channels = len(layer.foreground_gamma)
                setattr(parent, name, region_norm.RN_B(channels))
            elif isinstance(layer, RN_L):
                published = region_norm.RN_L(layer.feature_channels, layer.threshold)
                setattr(parent, name, published)
    network.load_state_dict(ours.state_dict())
    return network


class SPDNormBlock(nn.Module):
    """PD-GAN's residual block with the published layers, on the weights of ours."""

    def __init__(self, ours: SPDNormResnetBlock) -> None:
        super().__init__()
        for name in ("conv_0", "conv_1", "conv_s", "conv_to_f", "attention"):
            self.add_module(name, getattr(ours, name))
        for name in ("norm_0", "norm_1", "norm_s"):
            layer = getattr(ours, name)
            norm = modulated_layers.SPDNorm(layer.mlp_gamma.out_channels, "position")
            norm.load_state_dict(layer.state_dict())
            self.add_module(name, norm)
        hard = ours.mask_conv
        self.mask_conv = modulated_layers.HardMap(hard.steps, hard.window, hard.base)

    def forward(self, x: Tensor, prior: Tensor, mask: Tensor) -> Tensor:
        prior, mask = (F.interpolate(value, size=x.shape[2:]) for value in (prior, mask))
        hard = self.mask_conv(mask)
        logits = torch.cat((self.conv_to_f(prior), x), dim=1)
        soft = self.attention(logits) * (1 - mask) + mask
        shortcut = self.conv_s(self.norm_s(x, prior, soft))
        main = self.conv_0(F.leaky_relu(self.norm_0(x, prior, hard), 0.2))
        main = self.conv_1(F.leaky_relu(self.norm_1(main, prior, hard), 0.2))
        return shortcut + main


class PDGAN(nn.Module):
    """The generator with the published layers, on the weights of ours."""

    def __init__(self, ours: SPDNormGenerator) -> None:
        super().__init__()
        self.latent = ours.latent
        self.fc = ours.fc
        self.blocks = nn.ModuleList(SPDNormBlock(unit.block) for unit in ours.generated)
        self.ups = nn.ModuleList(unit.up for unit in ours.generated)
        self.conv_img = ours.conv_img

    def forward(self, z: Tensor, prior: Tensor, mask: Tensor) -> Tensor:
        x = self.fc(z).unflatten(1, (-1, *self.latent))
        for block, up in zip(self.blocks, self.ups, strict=True):
            x = up(block(x, prior, mask))
        return torch.tanh(self.conv_img(F.leaky_relu(x, 0.2)))


class SPADEBlock(nn.Module):
    """SPADE's residual block with the published layers, on the weights of ours."""

    def __init__(self, ours: SPADEResnetBlock) -> None:
        super().__init__()
        self.learned_shortcut = ours.learned_shortcut
        ends = ("0", "1", "s") if self.learned_shortcut else ("0", "1")
        for end in ends:
            self.add_module(f"conv_{end}", getattr(ours, f"conv_{end}"))
            layer = getattr(ours, f"norm_{end}")
            norm = modulated_layers.SPADE("batch", layer.mlp_gamma.out_channels, layer.label_nc)
            norm.load_state_dict(layer.state_dict())
            self.add_module(f"norm_{end}", norm)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        shortcut = self.conv_s(self.norm_s(x, labels)) if self.learned_shortcut else x
        main = self.conv_0(F.leaky_relu(self.norm_0(x, labels), 0.2))
        main = self.conv_1(F.leaky_relu(self.norm_1(main, labels), 0.2))
        return shortcut + main


def one_hot(labels: Tensor, classes: int, like: Tensor) -> Tensor:
    """(N,classes,H,W) of integers (N,1,H,W), as users have them from files."""
    N, _, H, W = labels.shape
    return like.new_zeros((N, classes, H, W)).scatter_(1, labels, 1.0)


class DAGAN(nn.Module):
    """The generator with the published layers, on the weights of ours.

    Integer label maps (N,1,H,W) become one-hot in every call.
    """

    def __init__(self, ours: SPADEGenerator) -> None:
        super().__init__()
        self.start, self.classes, self.more = ours.start, ours.semantic_nc, ours.more
        self.fc = ours.fc
        names = ("head_0", "G_middle_0", "G_middle_1", "up_0", "up_1", "up_2", "up_3")
        self.blocks = nn.ModuleList(SPADEBlock(ours.get_submodule(name)) for name in names)
        self.conv_64, self.conv_img = ours.conv_64, ours.conv_img
        self.attention = DualAttention(ours)

    def forward(self, labels: Tensor) -> Tensor:
        condition = one_hot(labels, self.classes, self.conv_img.weight)
        x = self.fc(F.interpolate(condition, size=self.start))
        for i, block in enumerate(self.blocks):
            if i > 0 and (i != 2 or self.more):
                x = F.interpolate(x, scale_factor=2)
            wide, x = x, block(x, condition)
        return torch.tanh(self.conv_img(self.attention(self.conv_64(wide), x)))


class AdaptiveBlock(nn.Module):
    """Convolution, AdaIN, and a ReLU or none."""

    def __init__(self, ours: ConvBlock) -> None:
        super().__init__()
        self.conv = ours.conv
        self.norm = modulated_layers.AdaptiveInstanceNorm2d(ours.conv.out_channels)
        self.relu = ours.activation is not None

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """style (N,2,C): shift, then scale."""
        self.norm.bias, self.norm.weight = style.unbind(1)
        x = self.norm(self.conv(x))
        return F.relu_(x) if self.relu else x


class AdaptiveResidualBlock(nn.Module):
    def __init__(self, ours: ResidualBlock) -> None:
        super().__init__()
        self.first, self.second = (AdaptiveBlock(block) for block in ours.conv_block)

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        y = self.second(self.first(x, styles[:, 0]), styles[:, 1])
        y += x
        return y


class MaskGAN(nn.Module):
    """The dense mapping network with the published layers, on the weights of ours.

    Integer label maps (N,1,H,W) become one-hot in every call.
    """

    def __init__(self, ours: DenseMappingNetwork) -> None:
        super().__init__()
        self.classes, self.style_shape = ours.model[0].in_channels, ours.style_shape
        self.enc_style, self.enc_label = ours.enc_style, ours.enc_label
        self.model = nn.ModuleList()
        for layer in ours.model:
            if isinstance(layer, InstanceNormReLU):
                channels = self.model[-1].out_channels
                self.model += [nn.InstanceNorm2d(channels), nn.ReLU(inplace=True)]
            elif isinstance(layer, ResidualBlock):
                self.model.append(AdaptiveResidualBlock(layer))
            else:
                self.model.append(layer)

    def forward(self, labels: Tensor, style_labels: Tensor, style_image: Tensor) -> Tensor:
        layout, of_style = (one_hot(x, self.classes, style_image) for x in (labels, style_labels))
        style = self.enc_style(style_image, *self.enc_label(of_style)).flatten(1)
        styles = iter(style.unflatten(1, self.style_shape).unbind(1))
        x = layout
        for layer in self.model:
            adaptive = isinstance(layer, AdaptiveResidualBlock)
            x = layer(x, next(styles)) if adaptive else layer(x)
        return x
