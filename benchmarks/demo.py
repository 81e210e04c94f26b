"""Fill a hole in a photo from the photo itself: `python -m benchmarks.demo` writes a picture sheet.

Two networks, a U-Net of partial convolutions and a generator with region normalisation, start from
random weights and learn from the known pixels of this one photo ("internal learning"): further
holes are cut into it, and the networks learn to undo them. What they put into the photo's own hole,
whose pixels nothing here reads, is compared with the truth, beside scikit-image's biharmonic fill.
The same training steps are timed with the published layers.
"""

from .environment import restart_with_settled_heap

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

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from torchext.models import pictures
from torchext.models.masks import irregular_hole, known_from
from torchext.models.partial_convolutions import PConvUNet
from torchext.models.partial_convolutions import fill as fill_by_partial_convolution
from torchext.models.region_normalization import G_Net
from torchext.models.region_normalization import fill as fill_by_region_normalization
from torchext.models.vgg import imagenet_normalised, imagenet_restored

from .baselines import networks as published
from .harness import cores

SIZE = 256
CROP = 128
BATCH = 4
RATE = 2e-3
ROUNDS = 5  # of the timing


# --- learning from one photo ----------------------------------------------------------------------


@dataclass
class Variant:
    """A way to fill holes.

    Attributes:
        title: on the sheet.
        network: ours.
        with_published_layers: the same network, for the timing.
        predict: a network's prediction in [0,1] for images and masks, 1 known.
        fill: fills a whole photo.
        iterations: of training.
    """

    title: str
    network: nn.Module
    with_published_layers: nn.Module
    predict: Callable[[nn.Module, Tensor, Tensor], Tensor]
    fill: Callable[[nn.Module, Tensor, Tensor], Tensor]
    iterations: int


def partial_convolution(scale: float) -> Variant:
    def predict(network: nn.Module, image: Tensor, known: Tensor) -> Tensor:
        return imagenet_restored(network(imagenet_normalised(image) * known, known)[0])

    # The paper's formula: the released U-Net's starts learning only after thousands of steps.
    ours = PConvUNet(5, width=24, form="ratio")
    theirs = published.UNet(PConvUNet(5, width=24))
    return Variant(
        "partial convolutions", ours, theirs, predict, fill_by_partial_convolution, int(700 * scale)
    )


def region_normalization(scale: float) -> Variant:
    def predict(network: nn.Module, image: Tensor, known: Tensor) -> Tensor:
        return network(image, 1 - known)

    ours = G_Net(width=16, residual_blocks=4)
    return Variant(
        "region normalisation",
        ours,
        published.with_published_region_norm(ours),
        predict,
        fill_by_region_normalization,
        int(450 * scale),
    )


def crops(
    image: Tensor, known: Tensor, random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of the photo, mirrored at random: images, masks of the photo, masks with more holes."""
    images, of_photo, masks = [], [], []
    side = min(CROP, *image.shape[2:]) // 32 * 32  # what five levels of the U-Net take
    while len(images) < BATCH:
        top, left = (int(random.integers(length - side + 1)) for length in image.shape[2:])
        part = (..., slice(top, top + side), slice(left, left + side))
        axes = [3] if random.random() < 0.5 else []
        given = known[part].flip(axes)
        hole = irregular_hole(side, side, share=random.uniform(0.1, 0.3), seed=random)
        more = given * torch.from_numpy(~hole).float()
        if more.mean() > 0.3 and (given - more).sum() > 0:
            images.append(image[part].flip(axes))
            of_photo.append(given)
            masks.append(more)
    return torch.cat(images), torch.cat(of_photo), torch.cat(masks)


def loss_of(prediction: Tensor, image: Tensor, of_photo: Tensor, known: Tensor) -> Tensor:
    """L1 where the photo is known: six times as much in the holes that were cut."""
    weight = of_photo * (1 + 5 * (1 - known))
    return (weight * (prediction - image).abs()).sum() / (3 * weight.sum())


def learn(variant: Variant, image: Tensor, known: Tensor, seed: int = 0) -> tuple[float, float]:
    """Train on one photo; returns the mean losses of the first and of the last tenth."""
    random = np.random.default_rng(seed)
    network = variant.network.train()
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, max(2, variant.iterations))
    losses = []
    with tqdm(total=variant.iterations, desc=variant.title) as bar:
        for _ in range(variant.iterations):
            crop, of_photo, mask = crops(image, known, random)
            prediction = variant.predict(network, crop, mask)
            loss = loss_of(prediction, crop, of_photo, mask)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            bar.update()
            bar.set_postfix(loss=f"{statistics.fmean(losses[-20:]):.3f}", refresh=False)
    tenth = max(1, len(losses) // 10)
    return statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])


def step_seconds(variant: Variant, image: Tensor, known: Tensor) -> tuple[float, float]:
    """Medians of a training step's time, with the published layers and with ours, in turns."""
    crop, of_photo, mask = crops(image, known, np.random.default_rng(1))

    def step(network: nn.Module) -> None:
        loss_of(variant.predict(network, crop, mask), crop, of_photo, mask).backward()

    both = variant.with_published_layers.train(), variant.network.train()
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(ROUNDS + 1):
        for network, found in zip(both, times, strict=True):
            begin = time.perf_counter()
            step(network)
            if i > 0:
                found.append(time.perf_counter() - begin)
    return statistics.median(times[0]), statistics.median(times[1])


# --- the sheet ------------------------------------------------------------------------------------


@dataclass
class Fill:
    """A filled photo, and how close it is to the truth inside the hole."""

    title: str
    image: Tensor
    psnr: float
    ssim: float
    note: str


def measured(title: str, filled: Tensor, image: Tensor, known: Tensor, note: str) -> Fill:
    from skimage.metrics import structural_similarity

    hole = (known == 0)[0, 0]
    error = ((filled - image)[0, :, hole] ** 2).mean().item()
    pair = (x[0].permute(1, 2, 0).numpy() for x in (filled, image))
    _, similarity = structural_similarity(*pair, channel_axis=2, data_range=1, full=True)
    ssim = float(similarity[hole.numpy()].mean())
    return Fill(title, filled, -10 * np.log10(max(error, 1e-12)), ssim, note)


def biharmonic(image: Tensor, known: Tensor) -> Tensor:
    from skimage.restoration import inpaint_biharmonic

    values = (image * known)[0].permute(1, 2, 0).double().numpy()
    filled = inpaint_biharmonic(
        values, (known == 0)[0, 0].numpy(), split_into_regions=True, channel_axis=2
    )
    return torch.from_numpy(filled).permute(2, 0, 1)[None].float().clamp(0, 1)


def run(image: Tensor, known: Tensor, scale: float = 1.0) -> list[Fill]:
    """Fill a photo (1,3,H,W) in [0,1] in every way. Mask: 1 known, 0 hole."""
    seen = torch.where(known > 0, image, 0)  # nothing below reads the hole's pixels
    fills = []
    for make in (partial_convolution, region_normalization):
        torch.manual_seed(0)
        variant = make(scale)
        begin = time.perf_counter()
        first, last = learn(variant, seen, known)
        seconds = time.perf_counter() - begin
        published_step, our_step = step_seconds(variant, seen, known)
        saved = (published_step - our_step) * variant.iterations
        note = (
            f"loss {first:.3f} to {last:.3f}, {variant.iterations} steps in {seconds:.0f} s\n"
            f"a step: {1e3 * our_step:.0f} ms, published layers {1e3 * published_step:.0f} ms:"
            f" {published_step / our_step:.2f}x, {saved:.0f} s saved"
        )
        filled = variant.fill(variant.network.eval(), seen, known).clamp(0, 1)
        fills.append(measured(variant.title, filled, image, known, note))
    begin = time.perf_counter()
    filled = biharmonic(seen, known)
    note = f"scikit-image, {time.perf_counter() - begin:.0f} s"
    fills.append(measured("biharmonic", filled, image, known, note))
    return fills


def draw(image: Tensor, known: Tensor, fills: Sequence[Fill], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    share = 1 - known.mean().item()
    cells = [
        ("photo", image, ""),
        (f"given: {share:.0%} missing", torch.where(known > 0, image, 1), ""),
    ]
    for fill in fills:
        title = f"{fill.title}: {fill.psnr:.1f} dB, SSIM {fill.ssim:.2f} in the hole"
        cells.append((title, fill.image, fill.note))
    ratio = image.shape[2] / image.shape[3]
    figure, axes = pyplot.subplots(2, 3, figsize=(13.5, 1.8 + 9 * ratio), layout="constrained")
    for axis, (title, picture, note) in zip(axes.flat, cells, strict=False):
        axis.set_title(title, fontsize=11, loc="left")
        axis.imshow(picture[0].permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_xlabel(note, fontsize=9, loc="left")
    axes.flat[-1].set_axis_off()
    axes.flat[-1].text(
        0,
        1,
        "Both networks start from random weights and learn\n"
        "from the known pixels of this one photo alone, with\n"
        "an L1 loss. The biharmonic fill needs no learning.\n\n"
        "PSNR and SSIM are those of the hole's pixels.\n\n"
        f"{torch.get_num_threads()} threads, float32, torch {torch.__version__}",
        va="top",
        fontsize=10,
        linespacing=1.5,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=90, facecolor="white")
    pyplot.close(figure)
    sheet = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def load(photo: Path | None, mask: Path | None, size: int) -> tuple[Tensor, Tensor]:
    """The photo, no side longer than `size`, and its mask."""
    if photo is None:
        import skimage.data

        picture = Image.fromarray(skimage.data.coffee())
    else:
        picture = pictures.read_image(photo)
    picture.thumbnail((size, size), Image.Resampling.LANCZOS)
    width, height = picture.size
    if min(width, height) < 32:
        raise ValueError(f"{photo}: expected at least 32 pixels a side, got {width} x {height}")
    if mask is None:
        known = (~irregular_hole(height, width, share=0.2, seed=4)).astype(np.float32)
    else:
        known = known_from(pictures.read_mask(mask), height, width)
    if not 0 < known.mean() < 1:
        raise ValueError(f"{mask}: expected a hole and something known beside it")
    return pictures.to_tensor(picture)[None], torch.from_numpy(known)[None, None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo",
        description="Learn to fill a hole in a photo from the photo alone.",
    )
    parser.add_argument("--image", type=Path, help="a picture (default: scikit-image's coffee)")
    parser.add_argument("--mask", type=Path, help="a picture, not black = hole (default: strokes)")
    parser.add_argument("--size", type=int, default=SIZE, help="of the longer side")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of training steps")
    parser.add_argument("--output", type=Path, default=Path("results", "inpainting.png"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(cores())
    try:
        image, known = load(options.image, options.mask, options.size)
    except ValueError as error:
        parser.error(str(error))
    begin = time.perf_counter()
    fills = run(image, known, options.scale)
    for fill in fills:
        print(f"{fill.title}: {fill.psnr:.2f} dB, SSIM {fill.ssim:.3f} in the hole; {fill.note}")
    draw(image, known, fills, options.output)
    print(f"wrote {options.output}, {time.perf_counter() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
