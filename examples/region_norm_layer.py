"""Region normalisation on a real photo: `python -m examples.region_norm_layer` draws a sheet.

A photo with an irregular hole goes through the encoder block of "Region Normalization for Image
Inpainting" (AAAI 2020), with the published layers and with ours, on the same weights. The sheet
shows what plain batch norm does to a feature map behind a hole, what region normalisation does, and
that both forms agree.
"""

from benchmarks.environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import torchext
from benchmarks.baselines import region_norm as published
from benchmarks.harness import cores
from torchext.models import pictures
from torchext.models.masks import irregular_hole

LONGEST_SIDE = 512  # larger pictures are scaled down: memory grows with the pixels
SHORTEST_SIDE = 12  # of the network


class Encoder(nn.Module):
    """The paper's encoder: three convolutions, each with RN-B and ReLU. Mask: 1 hole, 0 valid."""

    def __init__(self, region_norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.encoder_conv1 = nn.Conv2d(3, 64, kernel_size=7)
        self.encoder_in1 = region_norm(64)
        self.encoder_conv2 = nn.Conv2d(64, 128, kernel_size=4, stride=2, padding=1)
        self.encoder_in2 = region_norm(128)
        self.encoder_conv3 = nn.Conv2d(128, 256, kernel_size=4, stride=2, padding=1)
        self.encoder_in3 = region_norm(256)

    def first(self, image: Tensor, mask: Tensor) -> Tensor:
        """Features before the first normalisation; holes are painted white."""
        white = image * (1 - mask) + mask
        return self.encoder_conv1(F.pad(white, (3, 3, 3, 3), mode="reflect"))

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = F.relu(self.encoder_in1(self.first(image, mask), mask))
        x = F.relu(self.encoder_in2(self.encoder_conv2(x), mask))
        return F.relu(self.encoder_in3(self.encoder_conv3(x), mask))


def encoders(seed: int = 0) -> tuple[Encoder, Encoder]:
    """Published and ours with the same weights, initialised as the paper's training does."""
    generator = torch.Generator().manual_seed(seed)
    theirs, ours = Encoder(published.RN_B), Encoder(torchext.nn.RN_B)
    for module in theirs.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            module.weight.data.mul_(0.1)
            nn.init.normal_(module.bias, 1e-4, 1.0, generator=generator)
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


# --- input ----------------------------------------------------------------------------------------


def open_rgb(option: str, path: Path) -> Image.Image:
    """A picture as RGB; an error names the option."""
    try:
        return pictures.read_image(path)
    except pictures.UnreadableError as error:
        raise pictures.UnreadableError(f"{option}: {error}") from None


def load_image(path: Path | None) -> Tensor:
    """(1,3,H,W) in [0,1], sides multiples of 4; scikit-image's astronaut without a path."""
    if path is None:
        import skimage.data

        picture = Image.fromarray(skimage.data.astronaut())
    else:
        picture = open_rgb("--image", path)
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    width, height = (side - side % 4 for side in picture.size)
    if min(width, height) < SHORTEST_SIDE:
        raise pictures.UnreadableError(
            f"--image: expected at least {SHORTEST_SIDE} pixels a side (at most"
            f" {LONGEST_SIDE} on the other), got {picture.size[0]} x {picture.size[1]}"
        )
    left, top = (picture.size[0] - width) // 2, (picture.size[1] - height) // 2
    picture = picture.crop((left, top, left + width, top + height))
    values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return values.float() / 255


def load_mask(path: Path | None, height: int, width: int) -> Tensor:
    """(1,1,H,W), 1 in the hole: brush strokes, or where a file's picture is not black."""
    if path is None:
        hole = irregular_hole(height, width, share=0.3, seed=4)
    else:
        picture = open_rgb("--mask", path).convert("L")
        hole = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)) > 0
    return torch.from_numpy(hole)[None, None].float()


# --- what is shown --------------------------------------------------------------------------------


@dataclass
class Statistics:
    """Mean and deviation of one channel, known pixels and hole."""

    title: str
    known: tuple[float, float]
    hole: tuple[float, float]


def region_table(features: dict[str, Tensor], known: Tensor, channel: int) -> list[Statistics]:
    result = []
    for title, x in features.items():
        _, mean, variance = torchext.region_statistics(x, known)
        hole, rest = (
            (mean[0, k, channel].item(), variance[0, k, channel].sqrt().item()) for k in (0, 1)
        )
        result.append(Statistics(title, rest, hole))
    return result


def telling_channel(x: Tensor, batch: Tensor, known: Tensor) -> int:
    """The channel whose known pixels plain batch norm shifts most against their own spread.

    Among channels in which the known pixels still vary, so that there is something to see.
    """
    _, mean, variance = torchext.region_statistics(batch, known)
    shift, deviation = mean[0, 1].abs(), variance[0, 1].sqrt()
    return int((shift * (deviation > 0.25 * deviation.max())).argmax())


def milliseconds(calls: Sequence[Callable[[], object]], rounds: int = 5) -> list[float]:
    """Medians, the calls taking turns."""
    samples: list[list[float]] = [[] for _ in calls]
    for i in range(rounds + 1):
        for call, times in zip(calls, samples, strict=True):
            begin = time.perf_counter()
            call()
            if i > 0:
                times.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(times) for times in samples]


@dataclass
class Result:
    """Everything that the sheet shows."""

    image: Tensor
    hole: Tensor
    channel: int
    plain: Tensor
    region: Tensor
    difference: Tensor  # of the first normalisation, largest over channels
    encoder_difference: float  # at the encoder's end
    layer_ms: tuple[float, float]  # the three RN-B of the encoder: published, ours
    encoder_ms: tuple[float, float]
    statistics: list[Statistics]


@torch.no_grad()
def run(image: Tensor, hole: Tensor) -> Result:
    theirs, ours = encoders()
    features = ours.first(image, hole)
    plain = F.batch_norm(features, None, None, training=True)
    as_published, region = theirs.encoder_in1(features, hole), ours.encoder_in1(features, hole)
    channel = telling_channel(features, plain, 1 - hole)

    second = ours.encoder_conv2(F.relu(region))
    third = ours.encoder_conv3(F.relu(ours.encoder_in2(second, hole)))
    inputs = {"encoder_in1": features, "encoder_in2": second, "encoder_in3": third}

    def layers(encoder: Encoder) -> Callable[[], None]:
        def call() -> None:
            for name, x in inputs.items():
                encoder.get_submodule(name)(x, hole)

        return call

    return Result(
        image=image,
        hole=hole,
        channel=channel,
        plain=plain[0, channel],
        region=region[0, channel],
        difference=(as_published - region).abs().amax(dim=1)[0],
        encoder_difference=(theirs(image, hole) - ours(image, hole)).abs().max().item(),
        layer_ms=tuple(milliseconds([layers(theirs), layers(ours)])),
        encoder_ms=tuple(milliseconds([lambda: theirs(image, hole), lambda: ours(image, hole)])),
        statistics=region_table(
            {"convolution": features, "batch norm": plain, "region norm": region},
            1 - hole,
            channel,
        ),
    )


def text_table(result: Result) -> str:
    lines = [f"{'mean ± deviation':<16}{'known pixels':>16}{'hole':>16}"]
    for row in result.statistics:
        cells = (
            f"{round(mean, 2) + 0.0:+.2f} ± {deviation:.2f}"
            for mean, deviation in (row.known, row.hole)
        )
        lines.append(f"{row.title:<16}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def text_times(result: Result) -> str:
    lines = [
        f"{'ms, ' + str(torch.get_num_threads()) + ' threads':<16}{'published':>16}{'ours':>16}"
    ]
    for title, times in (("3 RN-B layers", result.layer_ms), ("whole encoder", result.encoder_ms)):
        lines.append(f"{title:<16}" + "".join(f"{value:>16.1f}" for value in times))
    return "\n".join(lines)


def text_difference(result: Result) -> str:
    return (
        "largest |published - ours|:\n"
        f"{'  RN-B':<24}{result.difference.max().item():>24.1e}\n"
        f"{'  encoder output':<24}{result.encoder_difference:>24.1e}"
    )


def draw(result: Result, path: Path) -> None:
    """The sheet: two rows of three."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    photo = result.image[0].permute(1, 2, 0).numpy()
    hole = result.hole[0, 0].numpy()
    white = photo * (1 - hole[..., None]) + hole[..., None]
    ratio = photo.shape[0] / photo.shape[1]
    figure, axes = pyplot.subplots(
        2, 3, figsize=(12, 1.5 + 7.4 * min(max(ratio, 0.5), 2)), layout="constrained"
    )
    # One scale, centred on 0, for both feature maps: what differs between them is the layer.
    limit = float(result.region.abs().quantile(0.98))
    maps: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}

    def show(axis: Any, title: str, values: Any, **options: Any) -> Any:
        axis.set_title(title, fontsize=11, loc="left")
        axis.set_axis_off()
        return axis.imshow(values, interpolation="nearest", **options)

    shift = result.statistics[1].known[0]
    show(axes[0, 0], "photo", photo)
    show(axes[0, 1], f"input, hole painted white ({hole.mean():.0%})", white)
    show(axes[1, 0], f"batch norm: known pixels at mean {shift:+.2f}", result.plain.numpy(), **maps)
    picture = show(
        axes[1, 1],
        f"region norm: known pixels at mean {abs(result.statistics[2].known[0]):.2f}",
        result.region.numpy(),
        **maps,
    )
    figure.colorbar(picture, ax=axes[1, :2], shrink=0.8, aspect=40, pad=0.01, location="bottom")
    peak = result.difference.max().item()
    top = 10 ** np.ceil(np.log10(max(peak, 1e-12)))
    picture = show(
        axes[1, 2],
        f"|published - ours|, all channels: at most {peak:.0e}",
        result.difference.numpy(),
        cmap="Greys",
        vmin=0,
        vmax=top,
    )
    figure.colorbar(
        picture,
        ax=axes[1, 2],
        shrink=0.8,
        pad=0.01,
        location="bottom",
        ticks=[0, top],
        format="%.0e",
    )
    axes[0, 2].set_axis_off()
    axes[0, 2].text(
        0,
        1,
        f"feature channel {result.channel} of 64\n\n"
        f"{text_table(result)}\n\n\n{text_times(result)}\n\n\n{text_difference(result)}",
        family="monospace",
        fontsize=9.5,
        va="top",
        linespacing=1.5,
    )
    figure.suptitle(
        "Region normalisation behind the first convolution of the published encoder", fontsize=13
    )
    figure.get_layout_engine().set(h_pad=0.08)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor="white")
    pyplot.close(figure)
    # 256 colours, undithered: a third of the size, and no visible loss at this scale.
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.region_norm_layer",
        description="Send a photo with a hole through the encoder, published layers and ours.",
    )
    parser.add_argument("--image", type=Path, help="a picture (default: scikit-image's astronaut)")
    parser.add_argument("--mask", type=Path, help="a picture, not black = hole (default: strokes)")
    parser.add_argument("--output", type=Path, default=Path("results", "demo.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(cores())
    try:
        image = load_image(options.image)
        hole = load_mask(options.mask, *image.shape[2:])
    except pictures.UnreadableError as error:
        parser.error(str(error))
    result = run(image, hole)
    print(f"feature channel {result.channel} behind the first convolution")
    print(f"{text_table(result)}\n\n{text_times(result)}\n\n{text_difference(result)}")
    draw(result, options.output)
    print(f"\nwrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
