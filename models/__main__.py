"""`python -m torchext.models PAPER {train,edit,info}`: every paper by the same options.

Without arguments: a table of the papers.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import inpainting, papers, pictures, pretrained


def _settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the paper (`info` lists them); may be given several times",
    )


def _stages(paper: papers.Paper) -> str:
    parts = [
        f"{stage.name} trains {', '.join(stage.trains)}"
        + (f" (needs {', '.join(stage.needs)} in --checkpoint)" if stage.needs else "")
        for stage in paper.stages
    ]
    return f"{'; '.join(parts)} (default: {paper.stage().name})"


def _pretrained(paper: papers.Paper) -> str:
    names = sorted({name for stage in paper.stages for name in stage.pretrained})
    return ", ".join(f"{name} ({pretrained.KNOWN[name].what})" for name in names) or "none"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m torchext.models", description=__doc__.split("\n")[0]
    )
    of_paper = parser.add_subparsers(dest="paper", required=True, metavar="PAPER")
    for name in papers.names():
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

        train = actions.add_parser("train", help="train, or continue to")
        paper.train_arguments(train)
        train.add_argument("-o", "--output", type=Path, required=True, help="a folder to write to")
        if len(paper.stages) > 1:
            train.add_argument("--stage", help=_stages(paper))
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
        train.add_argument(
            "--pretrained",
            action="append",
            default=[],
            metavar="NAME=FILE",
            help=f"weights of others that the losses need: {_pretrained(paper)}",
        )
        train.add_argument("--vgg", type=Path, help="the same as --pretrained vgg16=FILE")
        train.add_argument("--seed", type=int, default=0)
        train.add_argument("--tensorboard", action="store_true")
        _settings(train)
    return parser


def _configuration(
    paper: papers.Paper, options: argparse.Namespace
) -> tuple[Any, papers.Stage | None]:
    """The configuration, and the stage if `--stage` or `--set stage=NAME` names one."""
    values = {}
    for setting in options.set:
        name, separator, value = setting.partition("=")
        if not separator:
            raise ValueError(f"--set: expected NAME=VALUE, got {setting!r}")
        values[name] = value
    by_setting = values.pop("stage", None) if len(paper.stages) > 1 else None
    name = getattr(options, "stage", None) or by_setting
    stage = None if name is None else paper.stage(name)
    return papers.configure(paper.config, values), stage


def table() -> None:
    """Print the papers: what each does, in how many stages, with which networks and files."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    rows = []
    for name in papers.names():
        paper = papers.find(name)
        with FakeTensorMode():
            networks = paper.networks(paper.config())
        count = sum(papers.parameters(network) for network in networks.values())
        rows.append((name, paper.does, str(len(paper.stages)), f"{count / 1e6:.1f} M"))
    titles = ("paper", "edit", "stages", "parameters")
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    for row in (titles, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
        if row in rows:
            paper = papers.find(row[0])
            print(f"    {paper.title}\n    published files: {paper.published}")
    print("\npython -m torchext.models PAPER {info,train,edit} --help")


def info(paper: papers.Paper, options: argparse.Namespace) -> None:
    """Print what the paper's networks are, at its size."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config, stage = _configuration(paper, options)
    with FakeTensorMode():  # sizes alone: no weights, no arithmetic
        _print_info(paper, config, stage)


def _print_info(paper: papers.Paper, config: Any, stage: papers.Stage | None) -> None:
    networks = paper.networks(config, None if stage is None else stage.networks)
    inputs = paper.example(config)
    print(paper.title)
    print(f"edit: {paper.does}; published files: {paper.published}")
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
    for name, value in papers.options_of(config):
        print(f"  {name} = {value}")
    if len(paper.stages) > 1:
        print(f"train --stage: {_stages(paper)}")


def edit(paper: papers.Paper, options: argparse.Namespace) -> None:
    config, _ = _configuration(paper, options)
    paper.check_options(options)
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


def _check_training(paper: papers.Paper, options: argparse.Namespace) -> None:
    from .training import check_ranges

    paper.check_options(options)
    _check_device(options.device)
    check_ranges(options, lambda name: f"--{name.replace('_', '-')}")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output: expected a folder to write to, {options.output} is a file")


def _weights(stage: papers.Stage, options: argparse.Namespace) -> dict[str, Path]:
    """The files of others' weights that a stage needs, as far as they are given."""
    given = {} if options.vgg is None else {"vgg16": options.vgg}
    for text in options.pretrained:
        name, separator, file = text.partition("=")
        if not separator:
            raise ValueError(f"--pretrained: expected NAME=FILE, got {text!r}")
        given[name] = Path(file)
    if options.vgg is None or options.pretrained:  # --vgg is harmless where none is needed
        pretrained.check(given, stage.pretrained)
    return {name: file for name, file in given.items() if name in stage.pretrained}


def train(paper: papers.Paper, options: argparse.Namespace) -> None:
    from .training import Options, Trainer, checkpoints

    config, stage = _configuration(paper, options)
    stage = stage or paper.stage()
    _check_training(paper, options)
    weights = _weights(stage, options)
    torch.manual_seed(options.seed)
    dataset = paper.dataset(options, config, stage)
    dataset[0, 0, 0]  # files of which none can be read are an error here, not in a worker
    networks, fresh = paper.networks(config, stage.networks), set(stage.networks)
    if options.checkpoint is not None:  # it may hold a part of them, such as the first stage
        given, _ = papers.load(options.checkpoint, paper, config)
        fresh -= given.keys()
        networks |= {name: network for name, network in given.items() if name in networks}
    resumes = options.resume and checkpoints(options.output)
    if not resumes and (missing := [n for n in stage.needs if n in fresh and n in networks]):
        raise ValueError(
            f"--checkpoint: expected a file with {', '.join(missing)}, which stage {stage.name}"
            " uses as they are; train an earlier stage first"
        )
    recipe = stage.recipe(networks, config, pretrained=weights, initialise=fresh)
    schedule = config.schedule
    batch = options.batch or schedule.batch
    iterations = options.iterations
    if iterations is None and options.epochs is None:
        iterations = schedule.iterations
    if iterations is None:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        per_epoch = max(1, len(dataset) // (batch * options.accumulate * world))
        iterations = (options.epochs or schedule.epochs) * per_epoch
    same = ("output", "accumulate", "workers", "device", "precision", "channels_last", "average")
    same += ("save_every", "sample_every", "log_every", "keep", "resume", "seed", "tensorboard")
    given = {name: getattr(options, name) for name in same}
    how = Options(iterations=iterations, batch=batch, **given)
    trainer = Trainer(paper, config, stage, recipe, dataset, how)
    losses = trainer.run()
    shown = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    print(f"{trainer.iteration} iterations; last losses: {shown}")


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        table()
        return 0
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
