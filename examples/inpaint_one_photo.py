"""Fill a hole in a photo from the photo itself: `python -m examples.inpaint_one_photo` draws it.

Two networks, a U-Net of partial convolutions and a generator with region normalisation, start from
random weights and learn from the known pixels of this one photo ("internal learning"): further
holes are cut into it and filled smoothly (scikit-image's biharmonic fill), and the networks learn
what the smooth fill lacks. What they put into the photo's own hole, whose pixels nothing here
reads, is compared with the truth, beside the smooth fill alone. The same training steps are timed
with the published layers.

Everything keeps to a budget of seconds: a slower machine learns fewer steps.
"""

from benchmarks.environment import restart_with_settled_heap

if __name__ == "__main__":
    restart_with_settled_heap()

import argparse
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.baselines import networks as published
from torchext.models import pictures
from torchext.models.masks import irregular_hole, known_from
from torchext.models.partial_convolutions import PConvUNet
from torchext.models.region_normalization import G_Net

SIZE = 256
SECONDS = 150.0
CROP = 64
RATE = 2e-3
WARM_UP = 0.1  # of the training
EXERCISES = 32
# Shares of the budget: of making holes, of each network's timing, of the last fills and the sheet.
# Training has the rest.
FOR_EXERCISES, FOR_TIMING, FOR_SHEET = 0.06, 0.03, 0.1
ROUNDS = 5  # of the timing, at most
STEP = 0.2  # scale of a network's output, which corrects the smooth fill


# --- networks -------------------------------------------------------------------------------------


@dataclass
class Variant:
    """A way to fill holes.

    Attributes:
        title: on the sheet.
        network: ours.
        with_published_layers: the same network, for the timing.
        predict: a network's prediction (N,3,H,W), H and W multiples of 16, for images whose holes
            are filled smoothly and masks, 1 known.
        batch: crops of a training step.
        ssim_weight: of SSIM in the loss, beside the squared error.
    """

    title: str
    network: nn.Module
    with_published_layers: nn.Module
    predict: Callable[[nn.Module, Tensor, Tensor], Tensor]
    batch: int
    ssim_weight: float


def partial_convolution() -> Variant:
    def predict(network: nn.Module, smooth: Tensor, known: Tensor) -> Tensor:
        # A mask between 0 and 1: a pixel of the smooth fill counts a quarter of a known one.
        return smooth + STEP * network(4 * (smooth - 0.5), 0.25 + 0.75 * known)[0]

    # The paper's formula: the released U-Net's starts learning only after thousands of steps.
    ours = PConvUNet(4, width=16, form="ratio")
    start_at_the_smooth_fill(ours.dec_1.conv.input_conv)
    theirs = published.UNet(PConvUNet(4, width=16))
    return Variant("partial convolutions", ours, theirs, predict, 12, 0.4)


def region_normalization() -> Variant:
    def predict(network: nn.Module, smooth: Tensor, known: Tensor) -> Tensor:
        # As `G_Net.forward`, which paints holes white; and a correction has no limits.
        x = network.encoder_pad1(4 * (smooth - 0.5))
        for i in (1, 2, 3):
            x = getattr(network, f"encoder_conv{i}")(x)
            x = F.relu(getattr(network, f"encoder_in{i}")(x, 1 - known))
        return smooth + STEP * network.decoder(network.middle(x))

    ours = G_Net(width=12, residual_blocks=2, scope="instance")
    start_at_the_smooth_fill(ours.decoder[-1])
    theirs = published.with_published_region_norm(ours)
    return Variant("region normalisation", ours, theirs, predict, 8, 0.8)


@torch.no_grad()
def start_at_the_smooth_fill(last: nn.Conv2d) -> None:
    """Before training the correction is 0."""
    last.weight.zero_()
    last.bias.zero_()


# --- learning from one photo ----------------------------------------------------------------------


def biharmonic(image: Tensor, known: Tensor) -> Tensor:
    """The smooth fill (1,3,H,W) of a photo, not clamped. Mask: 1 known, 0 hole."""
    from skimage.restoration import inpaint_biharmonic

    values = (image * known)[0].permute(1, 2, 0).double().numpy()
    filled = inpaint_biharmonic(
        values, (known == 0)[0, 0].numpy(), split_into_regions=True, channel_axis=2
    )
    return torch.from_numpy(filled).permute(2, 0, 1)[None].float()


@dataclass
class Exercise:
    """A photo with more holes: its own hole once more, mirrored and shifted around.

    Attributes:
        smooth: the photo, all holes filled.
        known: 0 in all holes.
    """

    smooth: Tensor
    known: Tensor


def exercises(
    image: Tensor, known: Tensor, random: np.random.Generator, seconds: float
) -> list[Exercise]:
    """As many as the seconds allow, 2 at least."""
    found: list[Exercise] = []
    begin = time.perf_counter()
    while len(found) < 2 or (len(found) < EXERCISES and time.perf_counter() - begin < seconds):
        moved = oriented(known, int(random.integers(4)))
        shift = [int(random.integers(length)) for length in known.shape[2:]]
        more = known * moved.roll(shift, (2, 3))
        if more.mean() > 0:
            found.append(Exercise(biharmonic(image, more), more))
    return found


def oriented(x: Tensor, orientation: int) -> Tensor:
    """Mirrored (1, 2) and transposed (4): eight ways. 0 to 3 undo themselves."""
    axes = [3 - bit for bit in (0, 1) if orientation >> bit & 1]
    x = x.flip(axes) if axes else x
    return x.transpose(2, 3) if orientation & 4 else x


@dataclass
class Crops:
    """A batch of crops, each of one orientation, contrast and tint.

    Attributes:
        image: (N,3,H,W), 0 in the photo's own hole.
        smooth: (N,3,H,W), with the holes filled smoothly.
        of_photo: (N,1,H,W), 0 in the photo's own hole.
        known: (N,1,H,W), 0 in all holes.
    """

    image: Tensor
    smooth: Tensor
    of_photo: Tensor
    known: Tensor


def crops(
    image: Tensor,
    known: Tensor,
    pool: Sequence[Exercise],
    batch: int,
    random: np.random.Generator,
) -> Crops:
    """Crops of the photo in which something that is known has to be filled."""
    side = min(CROP, *image.shape[2:]) // 16 * 16
    rows = []
    for _ in range(batch):
        for _ in range(100):  # some photos have few places to learn from
            exercise = pool[int(random.integers(len(pool)))]
            top, left = (int(random.integers(length - side + 1)) for length in image.shape[2:])
            part = (..., slice(top, top + side), slice(left, left + side))
            of_photo, more = known[part], exercise.known[part]
            if more.mean() > 0.3 and (of_photo - more).mean() > 0.03:
                break
        orientation = int(random.integers(8))
        # The biharmonic fill is linear: it takes part in what is done to contrast and tint.
        gain = random.uniform(0.5, 1.3) * random.uniform(0.8, 1.2, (1, 3, 1, 1))
        shift = random.uniform(-0.1, 0.1, (1, 3, 1, 1))
        gain, shift = (torch.from_numpy(value).float() for value in (gain, shift))
        truth, smooth = (0.5 + shift + gain * (x[part] - 0.5) for x in (image, exercise.smooth))
        truth = torch.where(of_photo > 0, truth, 0)
        rows.append([oriented(x, orientation) for x in (truth, smooth, of_photo, more)])
    return Crops(*(torch.cat(column) for column in zip(*rows, strict=True)))


def similarity(x: Tensor, y: Tensor) -> Tensor:
    """The SSIM of each pixel's 7x7 neighbourhood."""

    def mean(value: Tensor) -> Tensor:
        return F.avg_pool2d(value, 7, stride=1, padding=3)

    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    means = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    return means * (2 * covariance + 9e-4) / (variances + 9e-4)


def loss_of(prediction: Tensor, given: Crops, ssim_weight: float) -> Tensor:
    """Squared error and SSIM, which the sheet measures, in the holes that were cut."""
    cut = given.of_photo * (1 - given.known)
    filled = torch.where(cut > 0, prediction, given.image)
    error = 4 * (prediction - given.image) ** 2
    error = error + ssim_weight * (1 - similarity(filled, given.image))
    return (cut * error).sum() / (3 * cut.sum()).clamp_min(1)


@dataclass
class Learnt:
    """What a training came to: its steps, seconds, and first and last mean losses."""

    steps: int
    seconds: float
    first: float
    last: float


def learn(
    variant: Variant,
    image: Tensor,
    known: Tensor,
    pool: Sequence[Exercise],
    seconds: float,
    show: Callable[[str], None],
    seed: int = 0,
) -> Learnt:
    """Train on one photo until the seconds are spent; one step at least.

    The learning rate rises and falls with the share of the seconds that is spent. `show` is given
    a line of progress behind each step.
    """
    random = np.random.default_rng(seed)
    network = variant.network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, RATE, betas=(0.9, 0.99))
    losses: list[float] = []
    begin = time.perf_counter()
    spent = 0.0
    while not losses or spent < seconds:
        done = min(spent / max(seconds, 1e-9), 1)
        rise, fall = done / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * done)
        for group in optimiser.param_groups:
            group["lr"] = RATE * max(0.01, min(rise, fall))
        given = crops(image, known, pool, variant.batch, random)
        prediction = variant.predict(network, given.smooth, given.known)
        loss = loss_of(prediction, given, variant.ssim_weight)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.item())
        spent = time.perf_counter() - begin
        recent = statistics.fmean(losses[-50:])
        show(f"{variant.title}, {len(losses)} steps, loss {recent:.3f}")
    tenth = max(1, len(losses) // 10)
    first, last = (statistics.fmean(part) for part in (losses[:tenth], losses[-tenth:]))
    return Learnt(len(losses), spent, first, last)


@torch.no_grad()
def fill(variant: Variant, smooth: Tensor, known: Tensor) -> Tensor:
    """The mean of the network's fills in all eight orientations, where the photo is not known."""
    network = variant.network.eval()
    H, W = smooth.shape[2:]
    margin = (0, -W % 16, 0, -H % 16)
    total = torch.zeros_like(smooth)
    for orientation in range(8):
        given, mask = (
            oriented(F.pad(x, margin, mode="replicate"), orientation) for x in (smooth, known)
        )
        filled = variant.predict(network, given.contiguous(), mask.contiguous())
        filled = filled.transpose(2, 3) if orientation & 4 else filled
        total += oriented(filled, orientation & 3)[..., :H, :W]
    return torch.where(known > 0, smooth, (total / 8).clamp(0, 1))


def step_seconds(variant: Variant, given: Crops, seconds: float) -> tuple[float, float]:
    """Medians of a training step's time, with the published layers and with ours, in turns."""

    def step(network: nn.Module) -> None:
        prediction = variant.predict(network, given.smooth, given.known)
        loss_of(prediction, given, variant.ssim_weight).backward()

    both = variant.with_published_layers.train(), variant.network.train()
    times: tuple[list[float], list[float]] = ([], [])
    start = time.perf_counter()
    for i in range(ROUNDS + 1):
        if i > 1 and time.perf_counter() - start > seconds:
            break
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

    @property
    def score(self) -> str:
        return f"{self.psnr:.2f} dB, SSIM {self.ssim:.3f}"

    def against(self, other: "Fill") -> str:
        return f"{self.psnr - other.psnr:+.2f} dB, SSIM {self.ssim - other.ssim:+.3f}"

    def beats(self, other: "Fill") -> bool:
        return self.psnr > other.psnr and self.ssim > other.ssim


def measured(title: str, filled: Tensor, image: Tensor, known: Tensor, note: str) -> Fill:
    from skimage.metrics import structural_similarity

    hole = (known == 0)[0, 0]
    error = ((filled - image)[0, :, hole] ** 2).mean().item()
    pair = (x[0].permute(1, 2, 0).numpy() for x in (filled, image))
    _, similarities = structural_similarity(*pair, channel_axis=2, data_range=1, full=True)
    ssim = float(similarities[hole.numpy()].mean())
    return Fill(title, filled, -10 * math.log10(max(error, 1e-12)), ssim, note)


def run(image: Tensor, known: Tensor, seconds: float = SECONDS) -> list[Fill]:
    """Fill a photo (1,3,H,W) in [0,1]: smoothly, then by each network. Mask: 1 known, 0 hole."""
    seen = torch.where(known > 0, image, 0)  # nothing below reads the hole's pixels
    begin = time.perf_counter()
    smooth = biharmonic(seen, known)
    note = f"scikit-image, {time.perf_counter() - begin:.1f} s: where the networks start"
    fills = [measured("biharmonic", smooth.clamp(0, 1), image, known, note)]
    random = np.random.default_rng(0)
    form = "{percentage:3.0f}%|{bar:20}| {n:.0f} of {total:.0f} s, {remaining} left{postfix}"
    with tqdm(total=seconds, bar_format=form) as bar:

        def show(text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.update(min(time.perf_counter() - begin, seconds) - bar.n)

        show("holes to learn from")
        pool = exercises(seen, known, random, FOR_EXERCISES * seconds)
        left = (1 - FOR_SHEET) * seconds - (time.perf_counter() - begin)
        for make in (partial_convolution, region_normalization):
            torch.manual_seed(0)
            variant = make()
            learnt = learn(variant, seen, known, pool, left / 2 - FOR_TIMING * seconds, show)
            filled = fill(variant, smooth, known)
            given = crops(seen, known, pool, variant.batch, random)
            published_step, our_step = step_seconds(variant, given, FOR_TIMING * seconds)
            note = (
                f"{learnt.steps} steps in {learnt.seconds:.0f} s,"
                f" loss {learnt.first:.3f} to {learnt.last:.3f}\n"
                f"a step: {1e3 * our_step:.0f} ms; with published layers"
                f" {1e3 * published_step:.0f} ms, {published_step / our_step:.2f}x"
            )
            fills.append(measured(variant.title, filled, image, known, note))
    return fills


def verdict(fills: Sequence[Fill]) -> str:
    """Which networks are better than the biharmonic fill they start from; one line each."""
    smooth, *learnt = fills
    lines = []
    for filled in learnt:
        better = "better than" if filled.beats(smooth) else "NOT better in both than"
        lines.append(f"{filled.title}: {better} the biharmonic fill, {filled.against(smooth)}")
    return "\n".join(lines)


def widest_of_hole(known: Tensor) -> tuple[slice, slice]:
    """Rows and columns, a third of the photo's shape, in which most is missing."""
    size = tuple(max(1, length // 3) for length in known.shape[2:])
    missing = F.avg_pool2d(1 - known, size, stride=1)[0, 0]
    top, left = divmod(int(missing.argmax()), missing.shape[1])
    return slice(top, top + size[0]), slice(left, left + size[1])


def draw(image: Tensor, known: Tensor, fills: Sequence[Fill], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    share = 1 - known.mean().item()
    smooth = fills[0]
    cells = [
        (
            "photo",
            image,
            "PSNR and SSIM are those of the hole's pixels,\nwhich nothing else reads.",
        ),
        (f"given: {share:.0%} missing", torch.where(known > 0, image, 1), ""),
    ]
    for filled in fills:
        against = "" if filled is smooth else f" ({filled.against(smooth)})"
        cells.append((filled.title, filled.image, f"{filled.score}{against}\n{filled.note}"))
    ratio = image.shape[2] / image.shape[3]
    figure, axes = pyplot.subplots(
        2, len(cells), figsize=(20, 2.2 + 8 * ratio), layout="constrained", squeeze=False
    )
    detail = widest_of_hole(known)
    for (above, below), (title, picture, note) in zip(axes.T, cells, strict=True):
        pixels = picture[0].permute(1, 2, 0).numpy()
        above.set_title(title, fontsize=12, loc="left", fontweight="bold")
        above.imshow(pixels, interpolation="nearest")
        above.set_xlabel(note, fontsize=9, loc="left")
        below.imshow(pixels[detail], interpolation="nearest")
        for axis in (above, below):
            axis.set_xticks([])
            axis.set_yticks([])
    axes[1, 0].set_xlabel("the detail in which most is missing", fontsize=9, loc="left")
    figure.supxlabel(
        "Both networks start from random weights and learn from the known pixels of this one photo"
        " alone what the biharmonic fill lacks: they correct it.\n"
        + "; ".join(verdict(fills).splitlines())
        + f". {torch.get_num_threads()} threads, float32, torch {torch.__version__}",
        fontsize=10,
        x=0.005,
        ha="left",
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
    share = 1 - float(known.mean())
    if not 0 < share <= 0.5:
        raise ValueError(f"{mask}: expected a hole of at most half the photo, got {share:.0%}")
    return pictures.to_tensor(picture)[None], torch.from_numpy(known)[None, None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.inpaint_one_photo",
        description="Learn to fill a hole in a photo from the photo alone.",
    )
    parser.add_argument("--image", type=Path, help="a picture (default: scikit-image's coffee)")
    parser.add_argument("--mask", type=Path, help="a picture, not black = hole (default: strokes)")
    parser.add_argument("--size", type=int, default=SIZE, help="of the longer side")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for everything (default: %(default)g)"
    )
    parser.add_argument("--output", type=Path, default=Path("results", "inpainting.png"))
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds: expected more than 0, got {options.seconds:g}")
    try:
        image, known = load(options.image, options.mask, options.size)
    except ValueError as error:
        parser.error(str(error))
    begin = time.perf_counter()
    height, width = image.shape[2:]
    print(
        f"{width} x {height} pixels, {1 - known.mean().item():.0%} missing;"
        f" {torch.get_num_threads()} threads. This takes {options.seconds:.0f} s, most of it the"
        " training of two networks",
        flush=True,
    )
    fills = run(image, known, options.seconds)
    for filled in fills:
        print(f"{filled.title}: {filled.score} in the hole; {filled.note}")
    print(verdict(fills))
    draw(image, known, fills, options.output)
    print(f"wrote {options.output}, {time.perf_counter() - begin:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
