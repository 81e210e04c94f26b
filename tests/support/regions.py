"""The table of cases of region normalisation, shared by its op and module tests."""

from dataclasses import dataclass, replace

import torch

from torchext import reference


@dataclass(frozen=True)
class Case:
    """One problem; tensors come from `inputs`, seeded by the name."""

    name: str
    shape: tuple[int, int, int, int]
    pattern: str = "irregular"
    num_regions: int = 2
    scope: str = "batch"
    affine: str = "none"  # none, region, spatial
    eps_form: str = "published"
    ignore_holes: bool = False
    shared_mask: bool = False
    mean: float = 0.0
    channels_last: bool = False

    def options(self) -> dict:
        return {
            "num_regions": self.num_regions,
            "scope": self.scope,
            "eps_form": self.eps_form,
            "ignore_holes": self.ignore_holes,
        }

    def reference_options(self) -> tuple:
        return (
            self.num_regions,
            self.scope == "instance",
            1e-5,
            self.eps_form == "published",
            self.ignore_holes,
        )


def formula(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Two regions over the batch, without an affine, as the reference has it."""
    options = (2, False, 1e-5, True, False)
    return reference.region_norm(x, labels.to(torch.uint8), None, None, None, None, *options)[0]


def mask_of(pattern: str, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """(N,1,H,W) labels of a pattern; binary ones hold 1 = known."""
    N, H, W = shape
    mask = torch.ones(N, 1, H, W)
    if pattern == "all_hole":
        mask.zero_()
    elif pattern == "one_pixel":
        mask[:, :, H // 2, W // 2] = 0
    elif pattern == "checkerboard":
        mask = ((torch.arange(H)[:, None] + torch.arange(W)) % 2).expand(N, 1, H, W).float()
    elif pattern == "border":
        mask[:, :, 0] = mask[:, :, -1] = mask[..., 0] = mask[..., -1] = 0
    elif pattern == "irregular":
        noise = torch.rand(N, 1, H, W, generator=generator)
        smooth = torch.nn.functional.avg_pool2d(noise, 5, 1, 2, count_include_pad=False)
        mask = (smooth > smooth.mean()).float()
    elif pattern == "labels":
        mask = torch.randint(0, 64, (N, 1, H, W), generator=generator).float()
    else:
        assert pattern == "none"
    return mask


def inputs(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor | None]:
    """x, mask, the affine tensors (or None) and the incoming gradient of a case."""
    seed = sum(ord(letter) * (i + 1) for i, letter in enumerate(case.name))
    generator = torch.Generator().manual_seed(seed)
    N, C, H, W = case.shape

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    mask = mask_of(case.pattern, (1 if case.shared_mask else N, H, W), generator)
    if case.pattern == "labels":
        mask = (mask % case.num_regions).to(torch.int64)
    # The second region's values lie far from the first's, so that mixing them would show.
    x = (normal(N, C, H, W) + case.mean + 3 * (mask == 0)).to(dtype)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    result: dict[str, torch.Tensor | None] = {
        "x": x,
        "mask": mask,
        "weight": None,
        "bias": None,
        "spatial_weight": None,
        "spatial_bias": None,
        "grad": normal(N, C, H, W).to(dtype),
    }
    if case.affine == "region":
        result["weight"] = normal(case.num_regions, C).to(accumulate)
        result["bias"] = normal(case.num_regions, C).to(accumulate)
    if case.affine == "spatial":
        result["spatial_weight"] = normal(N, 1, H, W).to(accumulate)
        result["spatial_bias"] = normal(N, 1, H, W).to(accumulate)
    result = {key: value if value is None else value.to(device) for key, value in result.items()}
    if case.channels_last:
        for key in ("x", "grad"):
            result[key] = result[key].to(memory_format=torch.channels_last)
    return result


_CONTIGUOUS = [
    Case("plain", (2, 5, 9, 13)),
    Case("affine", (2, 4, 16, 24), affine="region"),
    Case("spatial", (2, 6, 12, 20), affine="spatial"),
    Case("instance", (3, 4, 10, 10), scope="instance", affine="region"),
    Case("instance_spatial", (2, 4, 6, 6), scope="instance", affine="spatial"),
    Case("plain_eps", (2, 3, 11, 7), eps_form="plain", affine="region"),
    Case("no_hole", (2, 4, 8, 8), pattern="none", affine="region"),
    Case("all_hole", (2, 4, 8, 8), pattern="all_hole", affine="region"),
    Case("one_pixel", (1, 4, 12, 12), pattern="one_pixel", affine="region"),
    Case("checkerboard", (1, 8, 16, 16), pattern="checkerboard", affine="spatial"),
    Case("border", (1, 3, 40, 33), pattern="border", affine="region"),
    Case("shared_mask", (3, 4, 8, 16), shared_mask=True, affine="region"),
    Case("ignore_holes", (2, 4, 12, 16), ignore_holes=True, affine="region"),
    Case("ignore_holes_spatial", (2, 4, 12, 16), ignore_holes=True, affine="spatial"),
    Case("ignore_all", (1, 4, 8, 8), pattern="all_hole", ignore_holes=True, affine="region"),
    Case("three_regions", (2, 4, 16, 12), pattern="labels", num_regions=3, affine="region"),
    Case("many_regions", (2, 3, 24, 20), pattern="labels", num_regions=64, affine="region"),
    Case("many_instance", (2, 3, 22, 22), pattern="labels", num_regions=17, scope="instance"),
    Case("one_region", (2, 4, 8, 8), pattern="labels", num_regions=1, affine="region"),
    Case("large_mean", (2, 3, 32, 32), mean=1e4, affine="region"),
    Case("one_by_one", (4, 3, 1, 1), affine="region"),
    Case("one_channel", (2, 1, 16, 16), affine="spatial"),
    Case("row", (1, 4, 1, 37), affine="region"),
    Case("empty_batch", (0, 4, 8, 8), pattern="none", affine="region"),
]
# Sizes around the tiles (1024 pixels, 256 channels) and vectors of the kernels.
LARGE = [
    Case("tile", (1, 3, 32, 32), affine="region"),
    Case("tile_and_one", (1, 3, 25, 41), affine="spatial"),
    Case("tiles", (2, 2, 64, 65), affine="region"),
    Case("wide", (1, 260, 9, 8), affine="region"),
    Case("wide_spatial", (1, 257, 8, 8), affine="spatial"),
]
CASES = [
    replace(case, name=case.name + suffix, channels_last=channels_last)
    for suffix, channels_last in (("", False), ("_channels_last", True))
    for case in _CONTIGUOUS
]
LARGE_CASES = [
    replace(case, name=case.name + suffix, channels_last=channels_last)
    for suffix, channels_last in (("", False), ("_channels_last", True))
    for case in LARGE
]
