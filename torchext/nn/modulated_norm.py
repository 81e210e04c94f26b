"""Layers that normalise, then modulate: SPADE, SPDNorm, attention normalisation, AdaIN, pixel norm.

The convolutions that make the maps are PyTorch's; what follows is `torchext.modulated_norm`.
"""

import math
import re
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.diversity_map import diversity_map, soft_diversity_map
from ..ops.label_conv2d import label_conv2d
from ..ops.modulated_norm import Statistics, modulated_norm

_HIDDEN = 128  # channels between the condition and its maps, in all published layers
_SLOPE = 0.2


class _ParameterFreeNorm(nn.BatchNorm2d):
    """The statistics of a modulated layer, with batch norm's buffers where they are the batch's.

    Args:
        num_features: C.
        statistics: as for `torchext.modulated_norm`.
        synchronised: take the batch's statistics over all processes in training, once
            torch.distributed is initialised.
    """

    def __init__(
        self, num_features: int, statistics: Statistics, *, synchronised: bool = False
    ) -> None:
        batch = statistics == "batch"
        super().__init__(num_features, affine=False, track_running_stats=batch)
        self.statistics: Statistics = statistics
        self.synchronised = synchronised

    def forward(
        self,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        *,
        weight: Tensor | None = None,
        gain: Literal["one_plus", "plain", "sigmoid"] = "one_plus",
        activation: float | None = None,
    ) -> Tensor:
        batch = self.statistics == "batch"
        group = None
        if batch and self.training:
            self.num_batches_tracked.add_(1)
            if self.synchronised and dist.is_available() and dist.is_initialized():
                group = dist.group.WORLD
        return modulated_norm(
            x,
            gamma,
            beta,
            weight=weight,
            statistics=self.statistics,
            eps=self.eps,
            unbiased=self.statistics == "position",
            gain=gain,
            activation=activation,
            running_mean=self.running_mean,
            running_var=self.running_var,
            training=self.training or not batch,
            momentum=self.momentum,
            process_group=group,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, statistics={self.statistics!r}, eps={self.eps}"


def _convolution(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def _pair(first: nn.Conv2d, second: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Two convolutions of one input as one, which is faster than two.

    One that is reparametrised by hooks (spectral norm of the old kind) must run itself.
    """
    if first._forward_pre_hooks or second._forward_pre_hooks:
        return first(x), second(x)
    weight = torch.cat((first.weight, second.weight))
    bias = torch.cat((first.bias, second.bias))
    both = F.conv2d(x, weight, bias, padding=first.padding)
    return tuple(both.split((first.out_channels, second.out_channels), dim=1))


def _nearest(value: Tensor, x: Tensor) -> Tensor:
    """Resize a condition to x's height and width, source index floor(i * in / out)."""
    size = x.shape[2:]
    return value if value.shape[2:] == size else F.interpolate(value, size=size, mode="nearest")


def _nearest_labels(labels: Tensor, x: Tensor) -> Tensor:
    """The same for a map of integers (N,h,w) or (N,1,h,w), which gives (N,H,W)."""
    labels = labels[:, 0] if labels.dim() == 4 else labels
    height, width = labels.shape[1:]
    H, W = x.shape[2:]
    if (height, width) == (H, W):
        return labels
    rows = torch.arange(H, device=labels.device) * height // H
    columns = torch.arange(W, device=labels.device) * width // W
    return labels[:, rows][:, :, columns]


class SPDNorm(nn.Module):
    """PD-GAN's spatially probabilistic diversity norm (CVPR 2021). Weight: 1 trusts the prior.

    y = xn * (1 + gamma * weight) + beta * weight, gamma and beta from convolutions of the prior.

    Args:
        norm_channel: C.
        norm_type: "position", the published choice: mean and unbiased variance over channels at
            each pixel; "instance"; or "batch".
        form: "published", or "paper", y = weight * (gamma * xn + beta).

    Shape: x (N,C,H,W), prior (N,3,h,w), resized by nearest neighbour, weight (N,1,H,W) or (N,C,H,W)
    -> (N,C,H,W).

    Raises:
        ValueError: norm_type or form is none of these; what `torchext.modulated_norm` raises.
    """

    def __init__(
        self,
        norm_channel: int,
        norm_type: Literal["position", "instance", "batch"] = "position",
        *,
        form: Literal["published", "paper"] = "published",
    ) -> None:
        super().__init__()
        if norm_type not in ("position", "instance", "batch"):
            raise ValueError(
                f"norm_type: expected 'position', 'instance' or 'batch', got {norm_type!r}"
            )
        if form not in ("published", "paper"):
            raise ValueError(f"form: expected 'published' or 'paper', got {form!r}")
        self.form = form
        self.param_free_norm = _ParameterFreeNorm(norm_channel, norm_type)
        self.mlp_activate = nn.Sequential(_convolution(3, _HIDDEN), nn.ReLU())
        self.mlp_gamma = _convolution(_HIDDEN, norm_channel)
        self.mlp_beta = _convolution(_HIDDEN, norm_channel)

    def forward(
        self, x: Tensor, prior: Tensor, weight: Tensor, activation: float | None = None
    ) -> Tensor:
        return self.modulate(x, self.maps(_nearest(prior, x)), weight, activation)

    def maps(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """gamma and beta, (N,C,h,w), of a prior (N,3,h,w)."""
        return _pair(self.mlp_gamma, self.mlp_beta, self.mlp_activate(prior))

    def modulate(
        self,
        x: Tensor,
        maps: tuple[Tensor, Tensor],
        weight: Tensor,
        activation: float | None = None,
    ) -> Tensor:
        """`forward` with the maps known."""
        gain = "one_plus" if self.form == "published" else "plain"
        return self.param_free_norm(x, *maps, weight=weight, gain=gain, activation=activation)

    def extra_repr(self) -> str:
        return f"form={self.form!r}"


class _HardMap(nn.Module):
    """The hard diversity map, with the published state entry: a box, whose size alone counts."""

    def __init__(self, steps: int, window: int, base: float) -> None:
        super().__init__()
        self.steps = steps
        self.window = window
        self.base = base
        self.mask_conv = nn.Conv2d(1, 1, window, padding=window // 2, bias=False)
        nn.init.constant_(self.mask_conv.weight, 1.0)
        self.mask_conv.weight.requires_grad_(False)

    def forward(self, mask: Tensor, size: tuple[int, int]) -> Tensor:
        return diversity_map(mask, self.steps, self.window, self.base, size=size)


class SPDNormConditions(NamedTuple):
    """What a residual block derives from prior and mask alone, at its own size."""

    norm_0: tuple[Tensor, Tensor]
    norm_1: tuple[Tensor, Tensor]
    norm_s: tuple[Tensor, Tensor]
    features: Tensor  # of the prior, for the soft map; or their share of its logits
    hard: Tensor
    mask: Tensor
    shared: bool  # whether features are logits

    def repeated(self, times: int) -> "SPDNormConditions":
        """For a batch that repeats the images."""

        def repeat(value: Tensor) -> Tensor:
            return value.repeat(times, 1, 1, 1)

        pairs = (tuple(map(repeat, pair)) for pair in self[:3])
        return SPDNormConditions(*pairs, *map(repeat, self[3:6]), self.shared)


class SPDNormResnetBlock(nn.Module):
    """PD-GAN's residual block (CVPR 2021). Mask: 1 known, 0 hole (as inside its networks).

    The hard map weights the two norms of the main path, the soft map the shortcut's.

    Args:
        fin, fout: channels in and out.
        mask_number, mask_ks: dilations of the hard map and their window.
        norm_G: spectral normalisation of the convolutions where it contains "spectral".
        norm_type, form: of the norms, see `SPDNorm`.
        base: of the hard map: e in the published code, 4 in the paper.

    Shape: x (N,fin,H,W), prior (N,3,h,w), mask (N,1 or more,h',w'), whose channel 0 counts
    -> (N,fout,H,W). In their place `conditions`, derived from them once for several x.

    Raises: what `torchext.modulated_norm` and `torchext.diversity_map` raise.
    """

    def __init__(
        self,
        fin: int,
        fout: int,
        mask_number: int,
        mask_ks: int,
        norm_G: str = "spectral",
        *,
        norm_type: Literal["position", "instance", "batch"] = "position",
        form: Literal["published", "paper"] = "published",
        base: float = math.e,
    ) -> None:
        super().__init__()
        middle = min(fin, fout)
        spectral = nn.utils.spectral_norm if "spectral" in norm_G else lambda layer: layer
        self.v = nn.Parameter(torch.zeros(1))  # never used, but in every published state
        self.conv_0 = spectral(_convolution(fin, middle))
        self.conv_1 = spectral(_convolution(middle, fout))
        self.conv_s = spectral(nn.Conv2d(fin, fout, 1, bias=False))
        self.norm_0 = SPDNorm(fin, norm_type, form=form)
        self.norm_1 = SPDNorm(middle, norm_type, form=form)
        self.norm_s = SPDNorm(fin, norm_type, form=form)
        self.mask_conv = _HardMap(mask_number, mask_ks, base)
        self.conv_to_f = nn.Sequential(
            _convolution(3, _HIDDEN),
            nn.InstanceNorm2d(_HIDDEN),
            nn.ReLU(),
            _convolution(_HIDDEN, fin),
        )
        self.attention = nn.Sequential(_convolution(2 * fin, fin), nn.Sigmoid())

    def conditions(
        self,
        prior: Tensor,
        mask: Tensor,
        size: tuple[int, int],
        hard: Tensor | None = None,
        *,
        shared: bool = True,
    ) -> SPDNormConditions:
        """What depends on prior and mask alone, for x of a size: samples of an image share it.

        Args:
            prior, mask, size: as in `forward`; (H,W).
            hard: the hard map, if it is known.
            shared: for several x. For a single one it is faster not to divide the convolution that
                makes the soft map.
        """
        prior = F.interpolate(prior, size=size, mode="nearest")
        mask = mask[:, :1]
        features = self.conv_to_f(prior)
        if shared:
            layer = self.attention[0]
            # The convolution is linear in its concatenated input, the prior's features come first.
            weight = layer.weight[:, : features.shape[1]]
            features = F.conv2d(features, weight, layer.bias, padding=1)
        return SPDNormConditions(
            self.norm_0.maps(prior),
            self.norm_1.maps(prior),
            self.norm_s.maps(prior),
            features,
            self.mask_conv(mask, size) if hard is None else hard,
            mask,
            shared,
        )

    def soft_map(self, x: Tensor, conditions: SPDNormConditions) -> Tensor:
        """(N,fin,H,W)."""
        layer = self.attention[0]
        if conditions.shared:
            weight = layer.weight[:, -x.shape[1] :]
            logits = F.conv2d(x, weight, padding=1) + conditions.features
        else:
            logits = layer(torch.cat((conditions.features, x), dim=1))
        return soft_diversity_map(logits, conditions.mask, resize_mask=True)

    def maps(self, x: Tensor, prior: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The soft map (N,fin,H,W) and the hard map (N,1,H,W) of a block."""
        conditions = self.conditions(prior, mask, tuple(x.shape[2:]), shared=False)
        return self.soft_map(x, conditions), conditions.hard

    def forward(
        self,
        x: Tensor,
        prior: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        conditions: SPDNormConditions | None = None,
    ) -> Tensor:
        if conditions is None:
            conditions = self.conditions(prior, mask, tuple(x.shape[2:]), shared=False)
        soft, hard = self.soft_map(x, conditions), conditions.hard
        shortcut = self.conv_s(self.norm_s.modulate(x, conditions.norm_s, soft))
        main = self.conv_0(self.norm_0.modulate(x, conditions.norm_0, hard, _SLOPE))
        main = self.conv_1(self.norm_1.modulate(main, conditions.norm_1, hard, _SLOPE))
        return shortcut + main


class SPADE(nn.Module):
    """Spatially adaptive normalisation (CVPR 2019), as DAGAN and others use it.

    y = xn * (1 + gamma) + beta, gamma and beta from convolutions of a label map.

    Args:
        config_text: "spade", then "batch", "syncbatch" or "instance", then the kernel size, as in
            "spadesyncbatch3x3". "syncbatch" takes the batch's statistics over all processes in
            training, once torch.distributed is initialised.
        norm_nc: C.
        label_nc: channels of the label map, or classes.

    Shape: x (N,C,H,W); segmap (N,label_nc,h,w), floating point, one-hot or any features; or an
    integer map (N,1,h,w) or (N,h,w) of classes, which gives the same as its one-hot form and takes
    much less time. It is resized by nearest neighbour. -> (N,C,H,W).

    Raises:
        ValueError: config_text has another form; what `torchext.modulated_norm` and, for classes,
            `torchext.label_conv2d` raise.
    """

    def __init__(self, config_text: str, norm_nc: int, label_nc: int) -> None:
        super().__init__()
        found = re.fullmatch(r"spade(syncbatch|batch|instance)(\d+)x\2", config_text)
        if found is None:
            raise ValueError(
                "config_text: expected 'spade', 'batch', 'syncbatch' or 'instance', and a kernel"
                f" size, as in 'spadesyncbatch3x3', got {config_text!r}"
            )
        kind, kernel_size = found.group(1), int(found.group(2))
        statistics: Statistics = "instance" if kind == "instance" else "batch"
        self.param_free_norm = _ParameterFreeNorm(
            norm_nc, statistics, synchronised=kind == "syncbatch"
        )
        self.mlp_shared = nn.Sequential(_convolution(label_nc, _HIDDEN, kernel_size), nn.ReLU())
        self.mlp_gamma = _convolution(_HIDDEN, norm_nc, kernel_size)
        self.mlp_beta = _convolution(_HIDDEN, norm_nc, kernel_size)

    def forward(self, x: Tensor, segmap: Tensor, activation: float | None = None) -> Tensor:
        if segmap.is_floating_point():
            hidden = self.mlp_shared(_nearest(segmap, x))
        else:
            first = self.mlp_shared[0]
            hidden = label_conv2d(_nearest_labels(segmap, x), first.weight, first.bias).relu()
        gamma, beta = _pair(self.mlp_gamma, self.mlp_beta, hidden)
        return self.param_free_norm(x, gamma, beta, activation=activation)


class SPADEResnetBlock(nn.Module):
    """The residual block of SPADE generators (CVPR 2019), as in DAGAN.

    Args:
        fin, fout: channels in and out; the shortcut has a convolution where they differ.
        norm_G: "spectral", for spectral normalisation of the convolutions, or nothing; then the
            `config_text` of `SPADE`, as in "spectralspadesyncbatch3x3".
        semantic_nc: channels of the label map, or classes.

    Shape: x (N,fin,H,W), segmap as for `SPADE` -> (N,fout,H,W).

    Raises: what `SPADE` raises.
    """

    def __init__(self, fin: int, fout: int, norm_G: str, semantic_nc: int) -> None:
        super().__init__()
        middle = min(fin, fout)
        spectral = nn.utils.spectral_norm if "spectral" in norm_G else lambda layer: layer
        config_text = norm_G.removeprefix("spectral")
        self.learned_shortcut = fin != fout
        self.conv_0 = spectral(_convolution(fin, middle))
        self.conv_1 = spectral(_convolution(middle, fout))
        self.norm_0 = SPADE(config_text, fin, semantic_nc)
        self.norm_1 = SPADE(config_text, middle, semantic_nc)
        if self.learned_shortcut:
            self.conv_s = spectral(nn.Conv2d(fin, fout, 1, bias=False))
            self.norm_s = SPADE(config_text, fin, semantic_nc)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        main = self.conv_0(self.norm_0(x, segmap, _SLOPE))
        main = self.conv_1(self.norm_1(main, segmap, _SLOPE))
        if not self.learned_shortcut:
            return x + main
        return self.conv_s(self.norm_s(x, segmap)) + main


class ANLs(nn.Module):
    """FE-GAN's attention normalisation layer (CVPR 2020).

    y = x + conv(leaky(n * (1 + alpha) + beta, 0.2)), n the batch norm of x without an affine, alpha
    a sigmoid; alpha and beta from convolutions of the condition.

    Args:
        norm_nc: C.
        label_nc: channels of the condition (noise, colour and sketch: 5).
        one_plus: False for the paper's n * alpha + beta.

    Shape: x (N,C,H,W), condition (N,label_nc,h,w), resized by nearest neighbour -> (N,C,H,W).

    Raises: what `torchext.modulated_norm` raises.
    """

    def __init__(self, norm_nc: int, label_nc: int, *, one_plus: bool = True) -> None:
        super().__init__()
        self.one_plus = one_plus
        self.batch_norm = _ParameterFreeNorm(norm_nc, "batch")
        self.conv = nn.utils.spectral_norm(_convolution(norm_nc, norm_nc))
        self.shared = nn.Sequential(_convolution(label_nc, _HIDDEN), nn.ReLU())
        self.gamma = _convolution(_HIDDEN, norm_nc)
        self.beta = _convolution(_HIDDEN, norm_nc)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = _pair(self.gamma, self.beta, self.shared(_nearest(condition, x)))
        if not self.one_plus:
            gamma = torch.sigmoid(gamma)
        gain = "sigmoid" if self.one_plus else "plain"
        return x + self.conv(self.batch_norm(x, gamma, beta, gain=gain, activation=_SLOPE))

    def extra_repr(self) -> str:
        return f"one_plus={self.one_plus}"


class AdaptiveInstanceNorm2d(nn.Module):
    """AdaIN: y = instance norm of x * scale + shift, scale and shift of each image and channel.

    Args:
        num_features: C.

    Shape: x (N,C,H,W), scale and shift (N,C) or (N,C,1,1) -> (N,C,H,W).

    Raises: what `torchext.modulated_norm` raises.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(
        self, x: Tensor, scale: Tensor, shift: Tensor, activation: Literal["relu"] | None = None
    ) -> Tensor:
        scale, shift = (
            value.flatten(1) if value.dim() == 4 and value.shape[2:] == (1, 1) else value
            for value in (scale, shift)
        )
        return modulated_norm(x, scale, shift, gain="plain", activation=activation)

    def extra_repr(self) -> str:
        return str(self.num_features)


class PixelNorm(nn.Module):
    """ProGAN's pixel norm: y = x / sqrt(mean over channels of x^2 + eps).

    Args:
        eps: 1e-8 as published.

    Shape: (N,C,H,W) -> (N,C,H,W).

    Raises: what `torchext.modulated_norm` raises.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return modulated_norm(x, statistics="rms", eps=self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"
