"""Coarse sketches: auto-encoders of drawn parts, and the projection onto what faces look like."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from torchext.nn import Conv2d

from ..checks import check_images
from ..files import whole_or_nothing
from .layers import BatchNorm, ResnetBlock, reflecting

MOMENTUM = 0.9
NEIGHBOURS = 15
ROUNDING = 1e-6
ANCHOR = 10.0  # weight of the equation that holds the sum of the shares down


def _norm(num_features: int, activation: str | None = None) -> BatchNorm:
    return BatchNorm(num_features, activation, of_batch=True)


def _stage_norm(num_features: int) -> BatchNorm:
    return BatchNorm(num_features, momentum=MOMENTUM, of_batch=True)


class _Halving(nn.Module):
    """A 4x4 convolution with stride 2 and a batch norm; the published leaky ReLU has slope 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.bn = _stage_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _Doubling(nn.Module):
    """The same with a transposed convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1),
            _stage_norm(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DrawingEncoder(nn.Module):
    """The code of a drawn part. Batch norms take the batch's statistics, in evaluation too.

    Args:
        image_size: S, height and width of the part, a multiple of 2^n_downsampling, at least twice
            that.
        input_nc: channels.
        latent_dim: length K of the code.
        ngf: channels of the first map; published files need 32.
        n_downsampling: halvings, 5 as published.

    Shape: (N,input_nc,S,S) in [-1,1] -> (N,K).

    Raises:
        TypeError, ValueError: the image does not fit.
    """

    def __init__(
        self,
        image_size: int,
        input_nc: int = 1,
        latent_dim: int = 512,
        ngf: int = 32,
        n_downsampling: int = 5,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.input_nc = input_nc
        layers: list[nn.Module] = [_Halving(input_nc, ngf)]
        for i in range(n_downsampling - 1):
            channels = 2**i * ngf
            layers += [ResnetBlock(channels, _norm), _Halving(channels, 2 * channels)]
        channels = 2 ** (n_downsampling - 1) * ngf
        layers.append(ResnetBlock(channels, _norm))
        self.conv = nn.Sequential(*layers)
        length = channels * (image_size // 2**n_downsampling) ** 2
        self.fc_mu = nn.Sequential(nn.Linear(length, latent_dim))

    def forward(self, x: Tensor) -> Tensor:
        check_images("x", x, self.input_nc)
        if x.shape[2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"x: expected a height and width of {self.image_size}, got {tuple(x.shape[2:])}"
            )
        return self.fc_mu(self.conv(x).flatten(1))


class DrawingDecoder(nn.Module):
    """A feature map of a code; the counterpart of `DrawingEncoder`, with its arguments.

    Args:
        output_nc: channels of the map.

    Shape: (N,K) -> (N,output_nc,S,S).
    """

    def __init__(
        self,
        image_size: int,
        output_nc: int = 32,
        latent_dim: int = 512,
        ngf: int = 32,
        n_downsampling: int = 5,
    ) -> None:
        super().__init__()
        side, channels = image_size // 2**n_downsampling, 2 ** (n_downsampling - 1) * ngf
        self.shape = (channels, side, side)
        self.fc = nn.Sequential(nn.Linear(latent_dim, channels * side * side))
        layers: list[nn.Module] = [ResnetBlock(channels, _norm)]
        for i in range(n_downsampling):
            # 16 -> 8, 8, 4, 2, 2 times ngf, as published.
            narrower = min(2 ** (n_downsampling - 2), max(2, 2 ** (n_downsampling - 1 - i))) * ngf
            layers += [_Doubling(channels, narrower), ResnetBlock(narrower, _norm)]
            channels = narrower
        # The reflection padding has a number of its own in published files.
        layers += [nn.Identity(), reflecting(channels, output_nc, 5)]
        self.conv = nn.Sequential(*layers)

    def forward(self, code: Tensor) -> Tensor:
        return self.conv(self.fc(code).unflatten(1, self.shape))


# --- projection -----------------------------------------------------------------------------------


def nearest_rows(code: Tensor, bank: Tensor, count: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """The rows of a bank that are nearest to codes, the nearest first.

    Args:
        code: (N,K).
        bank: (rows,K).
        count: how many.

    Returns:
        Indices and squared distances, (N,count).

    Raises:
        ValueError: lengths differ, or the bank has fewer rows.
    """
    if code.dim() != 2 or bank.dim() != 2 or code.shape[1] != bank.shape[1]:
        raise ValueError(
            f"bank: expected the shape (rows, {code.shape[-1]}) for codes of this length, got"
            f" {tuple(bank.shape)} and codes {tuple(code.shape)}"
        )
    if not 1 <= count <= len(bank):
        raise ValueError(f"count: expected 1 to the bank's {len(bank)} rows, got {count}")
    # Of differences, not of a product: near rows lose no digits.
    distances = torch.stack([(bank - row).square().sum(dim=1) for row in code])
    found = distances.topk(count, dim=1, largest=False, sorted=True)
    return found.indices, found.values


def project(
    code: Tensor,
    bank: Tensor,
    amount: float = 1.0,
    *,
    count: int = NEIGHBOURS,
    indices: Tensor | None = None,
) -> Tensor:
    """Codes of coarse drawings moved onto the manifold of real ones (locally linear).

    Each becomes the combination of its nearest rows that is nearest to it. Shares of the rows are
    relative to the first of them; an equation weighs their sum, so that the result depends on which
    row is first. That is the nearest here; in the published code it is left to chance.

    Args:
        code: (N,K).
        bank: (rows,K), codes of real drawings.
        amount: 0 leaves the codes, 1 takes the projections.
        count: of the nearest rows.
        indices: (N,count), which rows, in this order, in place of the nearest.

    Returns:
        (N,K).

    Raises:
        ValueError: what `nearest_rows` raises, or an amount outside [0,1].
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount: expected 0 to 1, got {amount}")
    if indices is None:
        indices, _ = nearest_rows(code, bank, count)
    rows = bank[indices].double().cpu()  # (N,count,K)
    first = rows[:, 0]
    differences = (rows[:, 1:] - first[:, None]).transpose(1, 2)
    weighed = torch.full_like(differences[:, :1], ANCHOR)
    left = torch.cat((differences, weighed), dim=1)
    wanted = code.double().cpu() - first
    right = torch.cat((wanted, torch.zeros_like(wanted[:, :1])), dim=1)[..., None]
    # By a driver that also takes rows which are equal, but for the rounding of codes in float32.
    shares = torch.linalg.lstsq(left, right, rcond=ROUNDING, driver="gelsd").solution
    projected = first + (differences @ shares)[..., 0]
    return (1 - amount) * code + amount * projected.to(code)


def read_bank(path: Path, length: int = 512) -> Tensor:
    """A bank (rows,length) from a file of float32 numbers and nothing else, as published.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it does not hold whole rows, or numbers that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file of codes, found none")
    size = path.stat().st_size
    if size == 0 or size % (4 * length):
        raise ValueError(f"{path}: expected rows of {length} float32 numbers, got {size} bytes")
    values = torch.from_numpy(np.fromfile(path, "<f4").astype(np.float32).reshape(-1, length))
    if not values.isfinite().all():
        raise ValueError(f"{path}: expected finite numbers, got others among {len(values)} rows")
    return values


def write_bank(codes: Tensor, path: Path) -> None:
    """Write codes (rows,K) as `read_bank` reads them, at once or not at all."""
    with whole_or_nothing(Path(path)) as partial:
        codes.detach().float().cpu().numpy().astype("<f4").tofile(partial)
