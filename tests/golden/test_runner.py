"""The golden runner itself: are calls read as they are meant, and is what is wrong noticed?"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchext
from golden import adapters, recipe, runner, statements
from golden.adapters.base import Adapter
from torchext.nn import RN_B, RN_binarylabel

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    "call, expected",
    [
        ("y = f(x*3+1)", {"y": 70}),
        ("y = f(2*x), where f is prose; z = y", {"y": 40, "z": 40}),
        ("y = f(x) (in train mode; once)", {"y": 20}),
        ("y = f(x)  # no mask; z = 2", {"y": 20, "z": 2}),
        ("y, z = x, 3; a = z >= x", {"y": 2, "z": 3, "a": True}),
        ("y,_ = f(x), 3; z = y + 1", {"y": 20, "_": 3, "z": 21}),
        ("items[:] = 1 (all of them); y = items[0]", {"y": 1}),
        ("x is used as 6*x: y = f(6*x); z = f(x)", {"y": 120, "z": 120}),
        ("x is used as 6*x everywhere; y = x", {"y": 12}),
        ("out.y is x[..., ::8]; y = unknown(x); k = g(x) + f(x)", {}),
        ("y = f.__class__; z = (lambda: x)(); a = [i for i in x]", {"z": 2}),
    ],
)
def test_calls(call: str, expected: dict) -> None:
    names = {"x": 2, "f": lambda value: 10 * value, "items": torch.tensor([3, 4])}
    assert statements.run(call, names) == expected


@pytest.mark.parametrize("text", ["__import__('os')", "x.__class__", "y + 1", "x ="])
def test_expressions_are_plain(text: str) -> None:
    with pytest.raises(ValueError, match="expression"):
        statements.evaluate(text, {"x": 1})


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut off"])
def test_unreadable_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.npz"
    path.write_bytes(content)
    with pytest.raises(recipe.IllFormedError, match=r"some\.npz"):
        recipe.read(path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("keys", None),
        ("inputs", np.array(["x|1,2"])),
        ("inputs", np.array(["x|1,2|gaussian"])),
        ("config", "{"),
        ("config", '{"paper": "p"}'),
        ("out.y", None),
    ],
)
def test_ill_formed_file_is_named(tmp_path: Path, key: str, value: object) -> None:
    path = write(tmp_path, np.zeros(2), key, value)
    with pytest.raises(recipe.IllFormedError, match=r"some\.npz"):
        recipe.read(path)


class BetaOfItsRegion(RN_B):
    """What one would expect of RN-B, and is not published."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        weight = torch.stack((self.background_gamma, self.foreground_gamma)) + 1
        bias = torch.stack((self.background_beta, self.foreground_beta))
        return torchext.region_norm(x, mask, weight, bias, resize_mask=True)


class OnePassVariance(RN_binarylabel):
    """Right in float64 only."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for region in (label, 1 - label):
            share = region.mean()
            mean = (x * region).mean((0, 2, 3), keepdim=True) / share
            square = (x * x * region).mean((0, 2, 3), keepdim=True) / share
            y = y + region * (x - mean) * (square - mean * mean + 1e-5 / share).rsqrt()
        return y


class NaNInFloat32(RN_binarylabel):
    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        y = super().forward(x, label)
        return y * float("nan") if x.dtype == torch.float32 else y


@pytest.mark.parametrize(
    "file, adapter, dtypes",
    [
        ("b", Adapter(BetaOfItsRegion, "rn_b"), {"float64", "float32"}),
        ("core-highmean", Adapter(OnePassVariance, "rn"), {"float32"}),
        ("core", Adapter(NaNInFloat32, "rn"), {"float32"}),
    ],
)
def test_wrong_modules_fail(file: str, adapter: Adapter, dtypes: set[str]) -> None:
    report = runner.check(recipe.read(DATA / f"region-normalization-{file}.npz"), adapter)
    assert {line.split()[0] for line in report.failures} == dtypes
    assert not report.kinks


class Threshold(nn.Module):
    """1 where x*x >= limit, up to a given relative error in float32."""

    def __init__(self, limit: float, float32_error: float) -> None:
        super().__init__()
        self.limit = limit
        self.float32_error = float32_error

    def forward(self, x: Tensor) -> Tensor:
        error = self.float32_error if x.dtype == torch.float32 else 0
        return (x * x * (1 + error) >= self.limit).to(x)


@pytest.mark.parametrize("float32_error, is_kink", [(-4e-7, True), (-0.5, False)])
def test_kinks_are_decided_in_float64(tmp_path: Path, float32_error: float, is_kink: bool) -> None:
    square = recipe.draw("x", (64,)).astype(np.float64) ** 2
    limit = np.sort(square)[32] * (1 - 1e-7)  # just below one of them
    path = write(tmp_path, (square >= limit).astype(np.float32))
    adapter = Adapter(lambda: Threshold(limit, float32_error), "net")
    report = runner.check(recipe.read(path), adapter)
    assert report.kinks == (["out.y"] if is_kink else [])
    assert bool(report.failures) != is_kink


def test_missing_output_is_named(tmp_path: Path) -> None:
    golden = recipe.read(write(tmp_path, np.zeros(64), "out.z", np.zeros(64)))
    with pytest.raises(adapters.MissingOutputError, match=r"\['z'\]"):
        runner.check(golden, Adapter(nn.Identity, "net"))


def write(folder: Path, y: np.ndarray, key: str = "", value: object = None) -> Path:
    """A file of a class without arguments and weights; with one entry replaced or left out."""
    config = {"paper": "p", "class": "c", "args": {}, "call": "y = net(x)", "mode": "eval"}
    entries = {
        "keys": np.array([], dtype=str),
        "inputs": np.array(["x|64|normal"]),
        "config": json.dumps(config),
        "out.y": y,
    }
    entries |= {key: value} if key else {}
    path = folder / "some.npz"
    np.savez(path, **{key: entry for key, entry in entries.items() if entry is not None})
    return path
