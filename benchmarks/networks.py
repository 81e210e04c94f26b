"""Whole networks: `python -m benchmarks.networks` prints a table and writes results/networks.json.

Published is the network with the published operation sequences in pure PyTorch, on the same
weights; cap is its time over that of its bare convolutions in the same run: the most that fusing
everything else could give. What convolves less goes past it: up-sampling by phases, holes that are
skipped, labels of DAGAN and MaskGAN that are looked up instead of convolved as one-hot maps, last
levels of MichiGAN that are computed near the hair alone. The row of PD-GAN's samples compares eight
of one photo with eight separate passes.
"""

from .environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import torchext
from torchext.models import masks, papers
from torchext.models.blocks import iterated
from torchext.models.dagan import SPADEGenerator
from torchext.models.deepfaceediting.networks import GeometryEncoder, PartGenerator
from torchext.models.fe_gan.networks import InpaintingGenerator
from torchext.models.maggan import (
    MagGANGenerator,
    difference,
    influence_regions,
    labels_of,
    one_hot,
)
from torchext.models.maskgan.networks import DenseMappingNetwork
from torchext.models.michigan.networks import HairGenerator
from torchext.models.partial_convolutions import PConvUNet
from torchext.models.pd_gan import Sampler, SPDNormGenerator
from torchext.models.pd_gan.first_stage import restore
from torchext.models.region_normalization import G_Net
from torchext.models.semantic_photo_manipulation.networks import ProgressiveGenerator

from . import label_maps
from .baselines import networks as published
from .baselines.partial_conv import PartialConv2d
from .harness import computes_bfloat16, cores, machine

Call = Callable[[], object]
DIRECTIONS = ("inference", "training step")
TITLES = f"{'':<52}{'published':>8} ms{'ours ms':>10}{'ratio':>11}{'cap':>9}"


@dataclass
class Row:
    """Medians in milliseconds."""

    network: str
    dtype: str
    direction: str
    published_ms: float
    ours_ms: float
    convolutions_ms: float | None

    @property
    def ratio(self) -> float:
        return self.published_ms / self.ours_ms

    @property
    def cap(self) -> float | None:
        return None if self.convolutions_ms is None else self.published_ms / self.convolutions_ms

    def matches(self, network: str, direction: str) -> bool:
        return self.network.startswith(network) and self.direction == direction

    @property
    def line(self) -> str:
        cap = "-" if self.cap is None else f"{self.cap:.2f}x"
        name = f"{self.network} {self.dtype} {self.direction}"
        return (
            f"{name:<52}{self.published_ms:>11.0f}{self.ours_ms:>10.0f}{self.ratio:>10.2f}x{cap:>9}"
        )


def medians(calls: Sequence[Call], rounds: int, seconds: float = float("inf")) -> list[float]:
    """In milliseconds, the calls taking turns; the first turn is not timed.

    After the second turn none begins that would not end within the seconds.
    """
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for i in range(rounds + 1):
        spent = time.perf_counter() - start
        if i >= 2 and spent * (i + 1) / i > seconds:
            break
        for call, found in zip(calls, times, strict=True):
            begin = time.perf_counter()
            call()
            if i > 0:
                found.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(found) for found in times]


def convolutions(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[nn.Module, Tensor]]:
    """The convolutions of features in one forward, each with its input."""
    found: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, given: found.append((layer, given[0])))
        for name, layer in network.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)) and "mask_conv" not in name
    ]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    return found


def inference(network: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    def call() -> None:
        with torch.no_grad():
            network(*inputs)

    return call


def training(network: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    def call() -> None:
        result = network(*inputs)
        (result[0] if isinstance(result, tuple) else result).square().mean().backward()
        network.zero_grad()

    return call


def as_published(call: Call) -> Call:
    """With PyTorch's own convolutions in the layers that both forms share."""

    def direct() -> None:
        with torchext.backend.convolution("direct"):
            call()

    return direct


def bare(layers: list[tuple[nn.Module, Tensor]], backward: bool) -> Call:
    def call() -> None:
        with torch.set_grad_enabled(backward):
            for layer, x in layers:
                convolve = layer.convolved if isinstance(layer, PartialConv2d) else layer
                y = convolve(x.requires_grad_(backward))
                if backward:
                    y.backward(y.detach())
                    layer.zero_grad()

    return call


Pair = tuple[nn.Module, nn.Module, tuple]  # published form, ours, inputs


def _known(size: int, dtype: torch.dtype) -> Tensor:
    hole = torch.from_numpy(masks.irregular_hole(size, size, share=0.25, seed=4))
    return (~hole)[None, None].to(dtype)


def _labels(size: int, classes: int, *photographs: str) -> list[Tensor]:
    maps = (label_maps.segmented(size, size, classes, name) for name in photographs)
    return [torch.from_numpy(labels)[None, None] for labels in maps]


def partial_convolutions(size: int, dtype: torch.dtype) -> Pair:
    image, known = torch.rand(1, 3, size, size, dtype=dtype), _known(size, dtype)
    ours = PConvUNet().to(dtype)
    return published.UNet(ours), ours, (image * known, known)


def region_normalization(size: int, dtype: torch.dtype) -> Pair:
    image, known = torch.rand(1, 3, size, size, dtype=dtype), _known(size, dtype)
    ours = G_Net().to(dtype)
    theirs = published.with_published_region_norm(ours).to(dtype)
    return theirs, ours, (image, 1 - known)


def pd_gan(size: int, dtype: torch.dtype) -> Pair:
    side = size // 64
    ours = SPDNormGenerator(latent_sh=side, latent_sw=side).to(dtype)
    prior, noise = torch.rand(1, 3, size, size, dtype=dtype) * 2 - 1, torch.randn(1, 256).to(dtype)
    return published.PDGAN(ours).to(dtype), ours, (noise, prior, _known(size, dtype))


def dagan(size: int, dtype: torch.dtype) -> Pair:
    ours = iterated(SPADEGenerator(semantic_nc=151, crop_size=size)).to(dtype)
    labels = _labels(size, ours.semantic_nc, *label_maps.PHOTOGRAPHS[:1])
    return published.DAGAN(ours).to(dtype), ours, (*labels,)


def maskgan(size: int, dtype: torch.dtype) -> Pair:
    ours = DenseMappingNetwork().to(dtype)
    image = torch.rand(1, 3, size, size, dtype=dtype) * 2 - 1
    labels = _labels(size, 19, *label_maps.PHOTOGRAPHS[:2])
    return published.MaskGAN(ours).to(dtype), ours, (*labels, image)


def michigan(size: int, dtype: torch.dtype) -> Pair:
    """Hair on 30 % of the photo: a disc above its middle."""
    ours = iterated(HairGenerator()).to(dtype)
    reference, target, noise = torch.rand(3, 1, 3, size, size, dtype=dtype)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    distance = (rows - 0.4 * size) ** 2 + (columns - 0.5 * size) ** 2
    hair = (distance < 0.3 / math.pi * size**2)[None, None].to(dtype)
    angles = torch.rand(1, 1, size // 16, size // 16, dtype=dtype) * 2 * math.pi
    angles = F.interpolate(angles, size=(size, size))
    orientation = torch.cat((angles.sin(), angles.cos()), 1) * hair
    inputs = (reference * 2 - 1, hair, target * 2 - 1, hair, orientation, noise)
    return published.michigan(ours).to(dtype), ours, inputs


def fe_gan(size: int, dtype: torch.dtype) -> Pair:
    ours = iterated(InpaintingGenerator()).to(dtype)
    [labels] = _labels(size, 20, *label_maps.PHOTOGRAPHS[:1])
    known = _known(size, dtype)
    image, condition = (torch.rand(1, channels, size, size, dtype=dtype) for channels in (3, 5))
    parsing = published.one_hot(labels, 20, image)
    x = torch.cat((parsing, (image * 2 - 1) * known, known, condition * (1 - known)), 1)
    return published.fe_gan(ours).to(dtype), ours, (x,)


def maggan(size: int, dtype: torch.dtype) -> Pair:
    """Other hair and glasses on a map of a face's parts."""
    ours = MagGANGenerator().to(dtype)
    [labels] = _labels(size, 19, *label_maps.PHOTOGRAPHS[:1])
    att = difference(labels_of({"Young"}), ["Blond_Hair", "Eyeglasses"]).to(dtype)
    condition = influence_regions(one_hot(labels).to(dtype), att).condition
    image = torch.rand(1, 3, size, size, dtype=dtype) * 2 - 1
    return published.maggan(ours).to(dtype), ours, (image, att, condition)


def deepfaceediting(size: int, dtype: torch.dtype) -> Pair:
    ours = published.DeepFaceEditing(GeometryEncoder(), PartGenerator()).to(dtype)
    sketch, photo = torch.rand(2, 1, 3, size, size, dtype=dtype) * 2 - 1
    return published.deepfaceediting(ours).to(dtype), ours, (sketch, photo)


def progressive(size: int, dtype: torch.dtype) -> Pair:
    ours = ProgressiveGenerator(size).to(dtype)
    return published.progressive(ours).to(dtype), ours, (torch.randn(1, 512, dtype=dtype),)


NETWORKS: dict[str, Callable[[int, torch.dtype], Pair]] = {
    "PConv U-Net L=7": partial_convolutions,
    "RN generator": region_normalization,
    "PD-GAN generator": pd_gan,
    "DAGAN generator": dagan,
    "MaskGAN generator": maskgan,
    "MichiGAN generator": michigan,
    "FE-GAN inpainting": fe_gan,
    "MagGAN generator": maggan,
    "DeepFaceEditing part": deepfaceediting,
    "progressive generator": progressive,
}


@torch.no_grad()
def check_equal(name: str, theirs: nn.Module, ours: nn.Module, inputs: tuple) -> None:
    expected, got = (network(*inputs) for network in (theirs, ours))
    expected, got = (y[0] if isinstance(y, tuple) else y for y in (expected, got))
    error = float((expected - got).abs().max() / expected.abs().max())
    if not error < 1e-3:
        raise RuntimeError(f"{name}: ours differs from the published form by {error:.1e}")


def measure(
    size: int,
    dtype: torch.dtype,
    rounds: int,
    seconds: float = float("inf"),
    *,
    directions: Sequence[str] = DIRECTIONS,
    networks: Sequence[str] = tuple(NETWORKS),
) -> Iterator[Callable[[], Row]]:
    """The rows, each measured when it is called; `seconds` for each."""

    def row(name: str, direction: str) -> Row:
        torch.manual_seed(0)
        theirs, ours, inputs = NETWORKS[name](size, dtype)
        train = direction == "training step"
        if dtype == torch.float32 and not train:
            check_equal(name, theirs.eval(), ours.eval(), inputs)
        make = training if train else inference
        both = [network.train(train) for network in (theirs, ours)]
        published_call, our_call = (make(network, inputs) for network in both)
        convolve = bare(convolutions(theirs, inputs), train)
        calls = [as_published(published_call), our_call, as_published(convolve)]
        times = medians(calls, rounds, seconds)
        return Row(f"{name} {size}", str(dtype).removeprefix("torch."), direction, *times)

    for direction in directions:
        for name in networks:
            yield functools.partial(row, name, direction)


@torch.no_grad()
def measure_samples(count: int, rounds: int) -> Row:
    """PD-GAN at its size: samples that share, against separate passes."""
    paper = papers.find("pd_gan")
    config = paper.config()
    torch.manual_seed(0)
    networks = {name: network.eval() for name, network in paper.networks(config).items()}
    size = config.network.size
    hole = torch.from_numpy(masks.irregular_hole(size, size, share=0.25, seed=4))[None, None]
    image, known = torch.rand(1, 3, size, size), (~hole).float()
    noise = torch.randn(count, 1, config.network.noise)
    sampler = Sampler(networks["encoder"], networks["decoder"], networks["generator"])

    def separate() -> None:
        for z in noise:
            prior = restore(networks["encoder"], networks["decoder"], image * 2 - 1, known)
            networks["generator"](z, prior, known)

    together = functools.partial(sampler, image, known, count, noise=noise)
    times = medians([as_published(separate), together], rounds)
    return Row(f"PD-GAN {count} samples {size}", "float32", "inference", *times, None)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--network", choices=NETWORKS, nargs="*", default=tuple(NETWORKS))
    parser.add_argument("--no-bfloat16", action="store_true")
    parser.add_argument("--no-samples", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("results", "networks.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(cores())
    dtypes = [torch.float32]
    if computes_bfloat16("cpu") and not options.no_bfloat16:
        dtypes.append(torch.bfloat16)
    print(TITLES)
    rows = []
    rows_of_each = len(options.network) * len(DIRECTIONS)
    with tqdm(total=rows_of_each * len(dtypes) + (not options.no_samples), leave=False) as bar:
        for dtype in dtypes:
            for measured in measure(options.size, dtype, options.rounds, networks=options.network):
                rows.append(measured())
                bar.write(rows[-1].line)
                bar.update()
        if not options.no_samples:
            rows.append(measure_samples(8, max(1, options.rounds // 2)))
            bar.write(rows[-1].line)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine("cpu"), "rows": [asdict(row) for row in rows]}
    options.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


def read(path: Path) -> tuple[list[Row], str]:
    """The rows of a file that `main` has written, and the machine in words."""
    if not path.is_file():
        return [], "not measured"
    content = json.loads(path.read_text())
    on = content["machine"]
    words = f"{on['processor']}, {on['threads']} threads, torch {on['torch']}"
    return [Row(**row) for row in content["rows"]], words


if __name__ == "__main__":
    sys.exit(main())
