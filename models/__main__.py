"""`python -m torchext.models PAPER {train,edit,info}`: every paper by the same options."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import inpainting, papers, pictures


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the paper (`info` lists them); may be given several times",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torchext.models", description=__doc__)
    of_paper = parser.add_subparsers(dest="paper", required=True, metavar="PAPER")
    for name in papers.NAMES:
        paper = papers.find(name)
        actions = of_paper.add_parser(name, help=paper.title).add_subparsers(
            dest="action", required=True
        )
        info = actions.add_parser("info", help="parameters, operations, our layers, options")
        _settings(info)

        edit = actions.add_parser("edit", help="use trained networks")
        paper.edit_arguments(edit)
        edit.add_argument("-o", "--output", type=Path, required=True, help="a picture to write")
        edit.add_argument("--checkpoint", type=Path, required=True, help="published, or ours")
        edit.add_argument("--device", default="cpu")
        _settings(edit)

        train = actions.add_parser("train", help="train on a folder of images")
        train.add_argument("images", type=Path, help="a folder, searched at any depth")
        train.add_argument("-o", "--output", type=Path, required=True, help="a folder to write to")
        train.add_argument(
            "--masks",
            default="strokes",
            help="a folder of masks, or strokes, walk, boxes (default: %(default)s)",
        )
        train.add_argument(
            "--share",
            type=float,
            nargs=2,
            metavar=("LOW", "HIGH"),
            default=(0.1, 0.4),
            help="of the hole in generated masks",
        )
        train.add_argument(
            "--inner-holes", action="store_true", help="generated holes do not touch the border"
        )
        inpainting.add_mask_options(train)
        train.add_argument("--epochs", type=int, help="(default: the paper's)")
        train.add_argument("--iterations", type=int, help="instead of epochs")
        train.add_argument("--batch", type=int, help="per process (default: the paper's)")
        train.add_argument("--accumulate", type=int, default=1, help="batches for each step")
        train.add_argument("--workers", type=int, default=2)
        train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        train.add_argument(
            "--precision", choices=("float32", "bfloat16", "float16"), default="float32"
        )
        train.add_argument("--channels-last", action="store_true")
        train.add_argument("--average", type=float, default=0.0, help="decay of averaged weights")
        train.add_argument("--save-every", type=int, default=1000, help="iterations")
        train.add_argument("--sample-every", type=int, default=1000, help="iterations")
        train.add_argument("--log-every", type=int, default=10, help="iterations")
        train.add_argument("--keep", type=int, default=3, help="checkpoints")
        train.add_argument("--resume", action="store_true", help="from the newest checkpoint")
        train.add_argument("--checkpoint", type=Path, help="start from these networks")
        train.add_argument("--vgg", type=Path, help="torchvision's weights (default: its cache)")
        train.add_argument("--seed", type=int, default=0)
        train.add_argument("--tensorboard", action="store_true")
        _settings(train)
    return parser


def _configuration(paper: papers.Paper, options: argparse.Namespace) -> Any:
    values = {}
    for setting in options.set:
        name, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--set: expected NAME=VALUE, got {setting!r}")
        values[name] = value
    return papers.configure(paper.config, values)


def info(paper: papers.Paper, options: argparse.Namespace) -> None:
    """Print what the paper's networks are, at its size."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = _configuration(paper, options)
    with FakeTensorMode():  # sizes alone: no weights, no arithmetic
        _print_info(paper, config)


def _print_info(paper: papers.Paper, config: Any) -> None:
    import dataclasses

    networks, inputs = paper.networks(config), paper.example(config)
    print(paper.title)
    for name, network in networks.items():
        line = f"  {name}: {papers.parameters(network):,} parameters"
        if name in inputs:
            count = papers.floating_point_operations(network.eval(), inputs[name])
            tensors = [x for given in inputs[name] for x in papers.tensors(given)]
            shapes = " and ".join("x".join(map(str, x.shape)) for x in tensors)
            line += f", {count / 1e9:.1f} GFLOP for {shapes}"
        print(line)
    layers = papers.our_layers(networks)
    print("our layers: " + ", ".join(f"{count} {name}" for name, count in sorted(layers.items())))
    print("options (--set NAME=VALUE):")
    for field in dataclasses.fields(config):
        print(f"  {field.name} = {getattr(config, field.name)}")


def edit(paper: papers.Paper, options: argparse.Namespace) -> None:
    config = _configuration(paper, options)
    inpainting.check_options(options)
    _check_device(options.device)
    pictures.check_format(options.output)
    inpainting.check_not_read(options.output, options)
    networks, config = papers.load(options.checkpoint, paper, config)
    for network in networks.values():
        network.to(options.device).eval()
    with torch.no_grad():
        paper.edit(networks, config, options)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"--device: expected cpu, cuda, cuda:1 or the like, got {device!r}"
        ) from None
    if kind.type in ("cpu", "meta"):
        there = 1 if kind.type == "cpu" else 0
    else:
        module = getattr(torch, kind.type, None)
        there = module.device_count() if module and module.is_available() else 0
    number = int(os.environ.get("LOCAL_RANK", "0")) if kind.type == "cuda" else 0
    if (number if kind.index is None else kind.index) >= there:
        raise ValueError(
            f"--device: expected one that is there, got {device!r}; this PyTorch"
            f" ({torch.__version__}) finds {there or 'no'} such device{'s' if there > 1 else ''}"
        )


def _check_training(options: argparse.Namespace) -> None:
    inpainting.check_options(options)
    _check_device(options.device)
    least = {"batch": 1, "epochs": 1, "iterations": 1, "accumulate": 1, "workers": 0, "keep": 1}
    least |= {"save_every": 1, "sample_every": 1, "log_every": 1, "seed": 0}
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            option = name.replace("_", "-")
            raise ValueError(f"--{option}: expected at least {smallest}, got {value}")
    if not 0 <= options.average < 1:
        raise ValueError(f"--average: expected at least 0 and below 1, got {options.average}")
    low, high = options.share
    if not 0 <= low <= high <= 0.8:
        raise ValueError(f"--share: expected 0 <= LOW <= HIGH <= 0.8, got {low} {high}")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output: expected a folder to write to, {options.output} is a file")


def train(paper: papers.Paper, options: argparse.Namespace) -> None:
    from .masks import KINDS, GeneratedMasks, MaskFolder
    from .training import Options, Trainer

    config = _configuration(paper, options)
    _check_training(options)
    if options.masks in KINDS:
        share = None if options.masks == "walk" else tuple(options.share)
        masks = GeneratedMasks(options.masks, share, border=not options.inner_holes)
    else:
        masks = MaskFolder(
            Path(options.masks),
            white=options.white,
            binary=not options.fractions,
            threshold=options.threshold,
        )
    torch.manual_seed(options.seed)
    dataset = paper.dataset(options.images, masks, config, seed=options.seed)
    dataset[0, 0, 0]  # files of which none can be read are an error here, not in a worker
    networks, fresh = paper.networks(config), None
    if options.checkpoint is not None:  # it may hold a part of them, such as the first stage
        given, _ = papers.load(options.checkpoint, paper, config)
        fresh = networks.keys() - given.keys()
        networks |= {name: network for name, network in given.items() if name in networks}
    recipe = paper.recipe(networks, config, vgg=options.vgg, initialise=fresh)
    batch = options.batch or config.batch
    iterations = options.iterations
    if iterations is None and options.epochs is None:
        iterations = config.iterations
    if iterations is None:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        per_epoch = max(1, len(dataset) // (batch * options.accumulate * world))
        iterations = (options.epochs or config.epochs) * per_epoch
    same = ("output", "accumulate", "workers", "device", "precision", "channels_last", "average")
    same += ("save_every", "sample_every", "log_every", "keep", "resume", "seed", "tensorboard")
    given = {name: getattr(options, name) for name in same}
    trainer = Trainer(
        paper, config, recipe, dataset, Options(iterations=iterations, batch=batch, **given)
    )
    losses = trainer.run()
    shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    print(f"{trainer.iteration} iterations; last losses: {shown}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    action = {"info": info, "edit": edit, "train": train}[options.action]
    try:
        action(papers.find(options.paper), options)
    except (OSError, ValueError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
