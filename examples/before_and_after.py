"""Time a network and its accelerated copy in turns, and compare what they compute."""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import torchext


def compare(make: Callable[[], nn.Module], inputs: Callable[[int], tuple[Tensor, ...]]) -> None:
    """Print the report of `torchext.accelerate`, the largest difference and the times.

    Args:
        make: builds the network; its first output, or its output, is compared.
        inputs: makes the network's inputs for an image size.
    """
    parser = argparse.ArgumentParser(description=make.__doc__)
    parser.add_argument("--size", type=int, default=256, help="height and width (default: 256)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    published = make().eval()
    fast, report = torchext.accelerate(copy.deepcopy(published))
    print(report, end="\n\n")
    values = inputs(arguments.size)
    times: dict[str, list[float]] = {"as published": [], "accelerated": []}
    outputs: dict[str, Tensor] = {}
    with torch.no_grad():
        for run in range(arguments.runs + 1):
            for name, model in zip(times, (published, fast), strict=True):
                begin = time.perf_counter()
                result = model(*values)
                if run > 0:  # the first warms up
                    times[name].append(time.perf_counter() - begin)
                outputs[name] = result[0] if isinstance(result, tuple) else result
    before, after = (statistics.median(values) for values in times.values())
    difference = (outputs["as published"] - outputs["accelerated"]).abs().max()
    largest = outputs["as published"].abs().max()
    print(f"largest difference: {difference:.1e} where the largest value is {largest:.1e}")
    print(f"as published {before * 1e3:.0f} ms, accelerated {after * 1e3:.0f} ms", end="")
    print(f": {before / after:.2f} times faster (inference, {torch.get_num_threads()} threads)")
