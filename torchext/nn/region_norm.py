"""Region normalisation layers: "Region Normalization for Image Inpainting" (AAAI 2020)."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..ops.checks import check_feature_map
from ..ops.region_norm import EpsForm, Scope, region_norm
from ..ops.self_aware_affine import self_aware_affine
from ..ops.self_aware_region_norm import self_aware_region_norm
from .plain import plain


class RegionNorm2d(nn.Module):
    """Normalise each region of a feature map on its own. Mask: 1 known, 0 hole (or labels 0..K-1).

    Args:
        num_features: C.
        num_regions, scope, eps, eps_form, ignore_holes, process_group: as for
            `torchext.region_norm`.
        affine: learn a weight (K,C), initialised to 1, and a bias (K,C), initialised to 0.

    Shape: x (N,C,H,W), mask (N or 1,1,H,W) -> (N,C,H,W).

    Raises: what `torchext.region_norm` raises.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_regions: int = 2,
        scope: Scope = "batch",
        eps: float = 1e-5,
        eps_form: EpsForm = "published",
        affine: bool = True,
        ignore_holes: bool = False,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.num_regions = num_regions
        self.scope: Scope = scope
        self.eps = eps
        self.eps_form: EpsForm = eps_form
        self.affine = affine
        self.ignore_holes = ignore_holes
        self.process_group = process_group
        if affine:
            shape = (num_regions, num_features)
            self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.affine:
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return region_norm(
            x,
            mask,
            self.weight,
            self.bias,
            num_regions=self.num_regions,
            scope=self.scope,
            eps=self.eps,
            eps_form=self.eps_form,
            ignore_holes=self.ignore_holes,
            process_group=self.process_group,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, num_regions={self.num_regions}, scope={self.scope!r},"
            f" eps={self.eps}, eps_form={self.eps_form!r}, affine={self.affine},"
            f" ignore_holes={self.ignore_holes}"
        )


class RN_binarylabel(nn.Module):
    """The published core: both regions of a label normalised, no affine. Label: 1 foreground.

    Statistics over the batch, eps 1e-5 in the published form. Has no parameters.

    Args:
        feature_channels: C.

    Shape: x (N,C,H,W), label (N or 1,1,H,W) or that expanded to (N,C,H,W) -> (N,C,H,W).

    Raises: what `torchext.region_norm` raises.
    """

    def __init__(self, feature_channels: int) -> None:
        super().__init__()
        self.feature_channels = feature_channels

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return region_norm(x, label)

    def extra_repr(self) -> str:
        return str(self.feature_channels)


class RN_B(nn.Module):
    """RN-B, for layers that know the mask. Mask: **1 hole, 0 valid** (the paper's convention).

    y = r * m * (1 + foreground_gamma) + foreground_beta
      + r * (1 - m) * (1 + background_gamma) + background_beta,
    with r the region normalisation (statistics over the batch, also in evaluation) and m the mask
    resized to x by nearest neighbour. As published, **both betas are added at every pixel**.

    Args:
        feature_channels: C.
        scope: "batch" as published, or "instance", statistics per image, as the paper has it.
        betas: "everywhere" as published, or "region": each stays in its region.

    Parameters, (C,), initialised to 0: foreground_gamma, foreground_beta, background_gamma,
    background_beta.

    Shape: x (N,C,H,W), mask (N or 1,1,h,w) of any height and width -> (N,C,H,W).

    Raises:
        ValueError: an unknown `betas`; what `torchext.region_norm` raises.
    """

    def __init__(
        self,
        feature_channels: int,
        *,
        scope: Scope = "batch",
        betas: Literal["everywhere", "region"] = "everywhere",
    ) -> None:
        super().__init__()
        if betas not in ("everywhere", "region"):
            raise ValueError(f"betas: expected 'everywhere' or 'region', got {betas!r}")
        self.scope: Scope = scope
        self.betas = betas
        for name in ("foreground_gamma", "foreground_beta", "background_gamma", "background_beta"):
            self.register_parameter(name, nn.Parameter(torch.empty(feature_channels)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters(recurse=False):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = torch.stack((self.background_gamma, self.foreground_gamma)) + 1
        if self.betas == "everywhere":
            bias = (self.foreground_beta + self.background_beta).expand_as(weight)
        else:
            bias = torch.stack((self.background_beta, self.foreground_beta))
        return region_norm(x, mask, weight, bias, scope=self.scope, resize_mask=True)

    def extra_repr(self) -> str:
        channels = self.foreground_gamma.shape[0]
        return f"{channels}, scope={self.scope!r}, betas={self.betas!r}"


class SelfAware_Affine(nn.Module):
    """The maps by which RN-L finds its regions and affine.

    Args:
        kernel_size: of all three convolutions, 7 or 3.

    Shape: x (N,C,H,W) -> (saliency, gamma, beta), each (N,1,H,W) in x's dtype; saliency in (0,1).

    Raises:
        ValueError: kernel_size is neither 3 nor 7; what `torchext.self_aware_affine` raises.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        if kernel_size not in (3, 7):
            raise ValueError(f"kernel_size: expected 3 or 7, got {kernel_size!r}")
        padding = kernel_size // 2
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=padding, bias=False)
        self.gamma_conv = nn.Conv2d(1, 1, kernel_size, padding=padding)
        self.beta_conv = nn.Conv2d(1, 1, kernel_size, padding=padding)

    def weights(self) -> tuple[Tensor, ...]:
        """The five tensors that the functional forms take, in their order."""
        return (
            self.conv1.weight,
            self.gamma_conv.weight,
            self.gamma_conv.bias,
            self.beta_conv.weight,
            self.beta_conv.bias,
        )

    def is_plain(self) -> bool:
        """Whether `weights` say all that a call does."""
        children = (self.conv1, self.gamma_conv, self.beta_conv)
        return all(plain(child, nn.Conv2d) for child in children)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.is_plain():
            check_feature_map("x", x)
            pooled = torch.cat((x.mean(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)), dim=1)
            saliency = torch.sigmoid(self.conv1(pooled))
            return saliency, self.gamma_conv(saliency), self.beta_conv(saliency)
        saliency, gamma, beta, _ = self_aware_affine(x, *self.weights())
        return saliency.to(x.dtype), gamma.to(x.dtype), beta.to(x.dtype)


class RN_L(nn.Module):
    """RN-L, for layers that find the regions in the features.

    y = r * (1 + gamma) + beta, with r the region normalisation of x by saliency >= threshold.

    Args:
        feature_channels: C.
        threshold: of the saliency; no gradient passes it.
        scope: "batch" as published, or "instance", statistics per image, as the paper has it.

    Shape: x (N,C,H,W) -> (N,C,H,W).

    Raises: what `torchext.self_aware_region_norm` raises.
    """

    def __init__(
        self, feature_channels: int, threshold: float = 0.8, *, scope: Scope = "batch"
    ) -> None:
        super().__init__()
        self.feature_channels = feature_channels
        self.threshold = threshold
        self.scope: Scope = scope
        self.sa = SelfAware_Affine()

    def forward(self, x: Tensor) -> Tensor:
        if not (plain(self.sa, SelfAware_Affine) and self.sa.is_plain()):
            saliency, gamma, beta = self.sa(x)
            labels = saliency.detach() >= self.threshold
            affine = {"spatial_weight": gamma + 1, "spatial_bias": beta}
            return region_norm(x, labels, scope=self.scope, **affine)
        weights = self.sa.weights()
        return self_aware_region_norm(x, *weights, threshold=self.threshold, scope=self.scope)

    def extra_repr(self) -> str:
        return f"{self.feature_channels}, threshold={self.threshold}, scope={self.scope!r}"
