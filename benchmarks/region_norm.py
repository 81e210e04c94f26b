"""Cases of region normalisation: RN-B (regions from the mask) and RN-L (regions it finds itself).

RN-B gets the mask at the features' own resolution, so that its resize costs nearly nothing in any
column. RN-L's weights are chosen so that both regions are there and no saliency lies close to the
threshold: otherwise rounding alone would decide what is computed.
"""

import torch
from torch import Tensor

from torchext import nn

from .baselines import region_norm as baseline
from .harness import Case, Problem
from .masks import irregular_hole

CASES = [
    Case("RN_B", (1, 64, 256, 256)),
    Case("RN_B", (4, 256, 64, 64)),
    Case("RN_L", (1, 256, 64, 64)),
    Case("RN_B", (1, 64, 256, 256), "channels_last"),
    Case("RN_B", (4, 256, 64, 64), "channels_last"),
]
HEADLINE = [CASES[0], CASES[2]]
SCALING = [
    *(Case("RN_B", (1, 64, size, size)) for size in (16, 32, 64, 128, 256, 512)),
    *(Case("RN_L", (1, 256, size, size)) for size in (16, 32, 64, 128)),
]
THRESHOLD = 0.8


def setup(case: Case, dtype: torch.dtype, device: str) -> Problem:
    """Both forms of a layer with the same weights, on the same seeded input."""
    N, C, H, W = case.shape
    generator = torch.Generator().manual_seed(0)
    holes = [torch.from_numpy(irregular_hole(H, W, seed=n)) for n in range(N)]
    hole = torch.stack(holes)[:, None].float()
    # The hole's values differ from the rest, as they do behind the first convolution.
    x = torch.randn(case.shape, generator=generator) + 3 * hole
    grad = torch.randn(case.shape, generator=generator)
    if case.op == "RN_B":
        published, ours, others = baseline.RN_B(C), nn.RN_B(C), (hole,)
    else:
        published, ours, others = baseline.RN_L(C, THRESHOLD), nn.RN_L(C, THRESHOLD), ()
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.normal_(0, 0.1, generator=generator)
        if case.op == "RN_L":
            # The centre tap on the channels' mean finds the hole; the rest hardly matters.
            published.sa.conv1.weight.mul_(0.02)[0, 0, 3, 3] = 1.4
            _require_two_clear_regions(published, x)
    ours.load_state_dict(published.state_dict())

    def ready(value: Tensor) -> Tensor:
        value = value.to(device, dtype)
        return value.contiguous(memory_format=case.memory_format)

    inputs = (ready(x), *(value.to(device, dtype) for value in others))
    return Problem(published.to(device, dtype), ours.to(device, dtype), inputs, ready(grad))


def _require_two_clear_regions(layer: baseline.RN_L, x: Tensor) -> None:
    saliency, _, _ = layer.sa(x)
    found = (saliency >= THRESHOLD).float().mean().item()
    margin = (saliency - THRESHOLD).abs().min().item()
    if not 0.05 < found < 0.95 or margin < 0.02:
        raise AssertionError(
            f"RN_L: expected two regions clear of the threshold, got a share of {found:.3f} and a"
            f" margin of {margin:.4f}"
        )
