"""MaskVAE: label maps of faces as codes, between which masks are interpolated."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchext.nn import Conv2d, UpsampleConv2d
from torchext.ops.labels import check_label_map

from ..checks import check_images

SLOPE = 0.2
GRID = 2**7  # pixels of a label map for each place of the encoder's last map


class MaskVAE(nn.Module):
    """A variational auto-encoder of label maps, without skip connections.

    Seven 4x4 convolutions of stride 2, two linear layers, and back by seven 3x3 convolutions behind
    nearest up-sampling. The encoder's batch norms have eps 1e-5, the decoder's 1e-3, as published.

    Args:
        nc: classes.
        ngf, ndf: channels of the decoder's last and of the encoder's first map.
        latent_variable_size: length L of a code.
        size: height and width of the label maps, a multiple of 128; 512 as published.

    Shape: labels (N,size,size) or (N,1,size,size), integers, or (N,nc,size,size), floating point
    (one-hot classes) -> logits (N,nc,size,size), mean and log-variance (N,L).

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        nc: int = 19,
        ngf: int = 32,
        ndf: int = 32,
        latent_variable_size: int = 1024,
        *,
        size: int = 512,
    ) -> None:
        super().__init__()
        if size < GRID or size % GRID:
            raise ValueError(f"size: expected a multiple of {GRID}, got {size}")
        self.nc = nc
        self.size = size
        self.latent_variable_size = latent_variable_size
        self.grid = size // GRID
        channels = [nc, *(ndf * 2**i for i in range(7))]
        for i in range(1, 8):
            self.add_module(f"e{i}", Conv2d(*channels[i - 1 : i + 1], 4, stride=2, padding=1))
            self.add_module(f"bn{i}", nn.BatchNorm2d(channels[i]))
        inner = channels[-1] * self.grid**2
        self.fc1 = nn.Linear(inner, latent_variable_size)
        self.fc2 = nn.Linear(inner, latent_variable_size)
        channels = [*(ngf * 2**i for i in reversed(range(7))), nc]
        self.d1 = nn.Linear(latent_variable_size, channels[0] * self.grid**2)
        for i in range(2, 9):
            self.add_module(f"d{i}", UpsampleConv2d(*channels[i - 2 : i]))
            if i < 8:
                self.add_module(f"bn{i + 6}", nn.BatchNorm2d(channels[i - 1], eps=1e-3))

    def encode(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the codes, (N,L) each."""
        if labels.is_floating_point():
            check_images("labels", labels, self.nc)
            x = labels
        else:
            classes = check_label_map(labels).long()
            wrong = classes[(classes < 0) | (classes >= self.nc)]
            if wrong.numel():
                raise ValueError(
                    f"labels: expected classes from 0 to {self.nc - 1}, got {wrong[0].item()}"
                )
            one_hot = F.one_hot(classes, self.nc).movedim(-1, 1)
            x = one_hot.to(self.fc1.weight.dtype)
        if x.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"labels: expected {self.size} x {self.size} pixels, got {tuple(x.shape[2:])}"
            )
        for i in range(1, 8):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"e{i}")(x))
            x = F.leaky_relu(x, SLOPE)
        x = x.flatten(1)
        return self.fc1(x), self.fc2(x)

    def decode(self, z: Tensor) -> Tensor:
        """Logits (N,nc,size,size) of codes (N,L)."""
        if z.dim() != 2 or z.shape[1] != self.latent_variable_size:
            expected = f"(N, {self.latent_variable_size})"
            raise ValueError(f"z: expected the shape {expected}, got {tuple(z.shape)}")
        x = F.relu(self.d1(z)).unflatten(1, (-1, self.grid, self.grid))
        for i in range(2, 9):
            # The up-sampled map is padded with its border: so is the small one, two pixels of the
            # large one for each, and cut again.
            x = self.get_submodule(f"d{i}")(F.pad(x, (1, 1, 1, 1), mode="replicate"))
            x = x[..., 2:-2, 2:-2]
            if i < 8:
                x = F.leaky_relu(self.get_submodule(f"bn{i + 6}")(x), SLOPE)
        return x

    @staticmethod
    def sample(mean: Tensor, log_variance: Tensor, noise: Tensor | None = None) -> Tensor:
        """Codes: mean + noise * standard deviation; standard normal noise is drawn without it."""
        noise = torch.randn_like(mean) if noise is None else noise
        return mean + noise * (log_variance / 2).exp()

    def forward(self, labels: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encode(labels)
        return self.decode(self.sample(mean, log_variance, noise)), mean, log_variance
