"""Every public function against the reference in float64, on the backends of this machine.

Together they run every op, which is checked too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import torchext

from . import backend, schema
from .ops.op import OPS

LIMIT = 1e-4  # of the largest value, for float32
Inputs = dict[str, Tensor]


def inputs(device: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    hole = torch.ones(1, 1, 80, 72)
    hole[..., 8:72, 4:68] = 0
    return {
        "x": normal(2, 16, 40, 36),
        "volume": normal(1, 4, 6, 8, 10),
        "skip": normal(2, 4, 80, 72),
        "mask": (normal(2, 1, 40, 36) > -0.4).float(),
        "hole": hole.to(device),
        "labels": torch.randint(5, (2, 40, 36), generator=generator).to(device),
        "gamma": normal(2, 16, 40, 36),
        "beta": normal(2, 16, 40, 36),
        "kernel": normal(6, 16, 3, 3),
        "kernel_3d": normal(3, 4, 3, 3, 3),
        "wide_kernel": normal(6, 20, 3, 3),
        "affine": normal(2, 16),
        "rows": normal(5, 16),
        "pooling": 0.1 * normal(1, 2, 7, 7),
        "filter": 0.1 * normal(1, 1, 7, 7),
        "one": 0.1 * normal(1),
    }


def _self_aware(t: Inputs) -> tuple[Tensor, ...]:
    return t["pooling"], t["filter"], t["one"], t["filter"], t["one"]


def _rows_of_windows(t: Inputs) -> tuple[Tensor, Tensor]:
    """Each pixel's labels around it, and SPADE's maps of them."""
    windows = torchext.label_windows(t["labels"])
    table = torchext.spade_modulation_table(
        windows, t["kernel"][:, :5], None, t["kernel"][:, :6], None
    )
    places = windows.index.long()
    inner = windows.windows[0][windows.windows[1].clamp(min=0).long()]
    return inner[places].to(t["x"].dtype), table[places]


def _moments(t: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Labels, count, mean and 1 / deviation of one region, as several processes share them."""
    labels = torch.zeros_like(t["mask"], dtype=torch.uint8)
    count, mean, variance = torchext.region_statistics(t["x"], labels, num_regions=1)
    return labels, count, mean, torch.rsqrt(variance + 1e-5)


def _shared_region_norm(t: Inputs) -> Tensor:
    """Region normalisation's ops of statistics that are given, one after the other."""
    x, (labels, count, mean, rstd) = t["x"].detach(), _moments(t)
    ops, tail = backend.choose("region_norm_apply", x).ops, (1, False, False)
    y = ops.region_norm_apply(x, labels, mean, rstd, None, None, None, None, *tail)
    sums, _, _ = ops.region_norm_backward_sums(y * y, x, labels, mean, rstd, None, *tail)
    statistics = (count, mean, rstd, sums)
    extra = (None, None, None, None)
    return y + ops.region_norm_backward_apply(y * y, x, labels, *statistics, *extra, *tail)


def _shared_modulated_norm(t: Inputs) -> Tensor:
    """The same of modulated normalisation."""
    x, gamma, beta = (t[key].detach() for key in ("x", "gamma", "beta"))
    _, count, mean, rstd = _moments(t)
    ops = backend.choose("modulated_norm_backward_sums", x).ops
    given = (mean[:, 0], rstd[:, 0], None)
    tail = ("one_plus", 1.0)
    sums, _, _, _ = ops.modulated_norm_backward_sums(
        x * x, None, x, gamma, beta, None, *given, *tail, False
    )
    means = (sums.double() / count).to(sums.dtype)
    return ops.modulated_norm_backward_apply(x * x, None, x, gamma, None, *given, means, *tail)


def _up(mask: Tensor) -> Tensor:
    return mask.repeat_interleave(2, dim=-1).repeat_interleave(2, dim=-2)


def _modulated(statistics: str) -> Callable[[Inputs], Tensor]:
    def case(t: Inputs) -> Tensor:
        maps = (t["gamma"], t["beta"])
        options = {"weight": t["mask"], "activation": 0.2, "statistics": statistics}
        return torchext.modulated_norm(t["x"], *maps, **options)

    return case


CASES: dict[str, Callable[[Inputs], Tensor]] = {
    "region_norm": lambda t: torchext.region_norm(t["x"], t["mask"], t["affine"], t["affine"]),
    "region_statistics": lambda t: torchext.region_statistics(t["x"], t["mask"])[2],
    "region_norm, shared statistics": _shared_region_norm,
    "modulated_norm, shared statistics": _shared_modulated_norm,
    "self_aware_affine": lambda t: torch.cat(
        torchext.self_aware_affine(t["x"], *_self_aware(t))[:3], dim=1
    ),
    "self_aware_region_norm": lambda t: torchext.self_aware_region_norm(
        t["x"], *_self_aware(t), threshold=0.5
    ),
    "partial_conv2d": lambda t: torchext.partial_conv2d(t["x"], t["mask"], t["kernel"])[0],
    # Strided, as Winograd's form has an epilogue and tiles of its own.
    "partial_conv2d, fused": lambda t: torchext.partial_conv2d(
        t["x"], t["mask"], t["kernel"], t["one"].expand(6), stride=2, padding=1, form="sum",
        negative_slope=0.2,
    )[0],
    "partial_conv2d, a large hole": lambda t: torchext.partial_conv2d(
        t["skip"], t["hole"], t["kernel"][:, :4], stride=(1, 2), padding=1
    )[0],
    "partial_conv3d": lambda t: torchext.partial_conv3d(t["volume"], None, t["kernel_3d"])[0],
    "partial_upsample_conv2d": lambda t: torchext.partial_upsample_conv2d(
        t["x"], t["mask"], t["wide_kernel"], skip=t["skip"], skip_mask=_up(t["mask"])
    )[0],
    "mask_window": lambda t: torchext.mask_window(t["mask"], 3)[0],
    "upsample_conv2d": lambda t: torchext.upsample_conv2d(t["x"], t["kernel"]),
    "winograd_conv2d": lambda t: torchext.winograd_conv2d(t["x"], t["kernel"]),
    **{
        f"modulated_norm, {statistics}": _modulated(statistics)
        for statistics in ("instance", "batch", "position", "rms", "none")
    },
    "label_windows": lambda t: _rows_of_windows(t)[0],
    "spade_modulation_table": lambda t: _rows_of_windows(t)[1],
    "modulated_norm, rows of a table": lambda t: torchext.modulated_norm(
        t["x"], t["rows"], t["rows"], index=t["labels"].int(), statistics="batch"
    ),
    "dual_attention_pools": lambda t: torchext.dual_attention_pools(t["x"], t["beta"])[0],
    "dual_attention": lambda t: torchext.dual_attention(
        t["x"], t["beta"], t["affine"], torchext.dual_attention_pools(t["x"], t["beta"])[1][:, 1:]
    ),
    "diversity_map": lambda t: torchext.diversity_map(t["mask"], 3, 5),
    "soft_diversity_map": lambda t: torchext.soft_diversity_map(t["x"], t["mask"]),
    "label_conv2d": lambda t: torchext.label_conv2d(t["labels"], t["kernel"]),
    "oriented_filter_max": lambda t: torchext.oriented_filter_max(
        t["x"][:, :1], torchext.gabor_bank(8, 5, dtype=t["x"].dtype, device=t["x"].device)
    )[1],
    "oriented_filter_max, any filters": lambda t: torchext.oriented_filter_max(
        t["x"][:, :1], t["kernel"][:, 0]
    )[1],
    "oriented_filter_statistics": lambda t: torch.cat(
        torchext.oriented_filter_statistics(
            t["x"][:, :1], torchext.gabor_bank(8, 5, dtype=t["x"].dtype, device=t["x"].device)
        )[1:]
    ),
    "oriented_filter_statistics, any filters": lambda t: torchext.oriented_filter_statistics(
        t["x"][:, :1], t["kernel"][:, 0], confidence="spread", border="wrap"
    )[2],
    "gabor_orientation": lambda t: torchext.gabor_orientation(t["x"][:, :3])[1],
}  # fmt: skip


def results(case: Callable[[Inputs], Tensor], given: Inputs, dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of all that it depends on."""
    leaves = {
        name: value.to(dtype, copy=True) if value.is_floating_point() else value
        for name, value in given.items()
    }
    for name, value in leaves.items():
        value.requires_grad_(value.is_floating_point() and name not in ("mask", "hole"))
    y = case(leaves)
    if y.requires_grad:
        cotangent = torch.arange(y.numel(), device=y.device).mul(0.7).sin().view(y.shape)
        (y * cotangent).sum().backward()
    gradients = [value.grad for value in leaves.values() if value.grad is not None]
    return [y.detach(), *gradients]


class _Recorded(TorchDispatchMode):
    """Notes the ops that run inside, those that ops are made of too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        namespace, name = func._schema.name.split("::")
        op = OPS.get(name) if namespace.startswith("torchext") else None
        if op is not None:
            self.names.add(name)
            if op.compose is not None:
                with self:
                    return op.compose(getattr(torch.ops, namespace), *args)
        return func(*args, **(kwargs or {}))


def run() -> Iterator[str]:
    """A line for each function and backend, beginning with "ok" or "FAILED"."""
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        given = inputs(device)
        for name, problem in backend.explain("region_norm", given["x"]).items():
            if problem or name == "reference":
                continue
            recorded = _Recorded()
            for title, case in CASES.items():
                with backend.use("reference"):
                    expected = results(case, given, torch.float64)
                with backend.use(name), recorded:
                    got = results(case, given, torch.float32)
                error = max(
                    float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))
                    for a, b in zip(got, expected, strict=True)
                )
                verdict = "ok" if error < LIMIT else "FAILED"
                yield f"{verdict:6} {title} on {name} ({device}): largest error {error:.1e}"
            missed = (
                OPS.keys() - recorded.names - (set() if name == "cpu" else set(schema.CPU_ONLY))
            )
            if missed:
                yield f"FAILED {', '.join(sorted(missed))} on {name} ({device}): not run"
            else:
                yield f"ok     all of {len(OPS)} ops ran on {name} ({device})"
