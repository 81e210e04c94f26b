"""What a golden file (NAME.npz) holds, and how its weights and inputs are rebuilt.

A file stores no weights: they follow from the names and shapes of the published state_dict, inputs
from their names, shapes and kinds. The arithmetic here must stay bit for bit what the files were
made with.
"""

import json
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from golden.statements import evaluate

Array = np.ndarray
Shape = tuple[int, ...]

KINDS = ("normal", "uniform", "unit", "holes")
# How far a result may lie from the file's, as a share of the array's largest value.
SCALE_TOLERANCE = 2e-5
# How far above the published code's own float32 error a result may lie.
NOISE_FACTOR = 50


class IllFormedError(ValueError):
    """A file that is no golden file; the message names it."""


@dataclass(frozen=True)
class Input:
    """One drawn input tensor."""

    shape: Shape
    kind: str


@dataclass(frozen=True)
class Golden:
    """A golden file.

    Attributes:
        name: the file's, without the suffix.
        config: its `config`: paper, class, args, call, mode, ...
        shapes: published state_dict key to shape.
        inputs: name to shape and kind, in the file's order.
        arrays: what was computed: out.NAME, f64.NAME (the same in float64), gradin.INPUT,
            grad.PARAMETER.
        data: further arrays, stored because no recipe draws them (pictures).
    """

    name: str
    config: dict
    shapes: dict[str, Shape]
    inputs: dict[str, Input]
    arrays: dict[str, Array]
    data: dict[str, Array]

    @property
    def paper(self) -> str:
        return self.config["paper"]

    @property
    def class_name(self) -> str:
        return self.config["class"]

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())

    def wanted(self, prefix: str) -> list[str]:
        """The names NAME of the arrays PREFIX.NAME."""
        start = prefix + "."
        return [key.removeprefix(start) for key in self.arrays if key.startswith(start)]

    def tolerance(self, key: str) -> float:
        """The largest absolute error that an array may have."""
        scale = self.config.get("scale_absmax", {}).get(key)
        if scale is None:
            scale = float(np.abs(self.arrays[key]).max(initial=0))
        noise = self.config.get("fp32_noise_maxabs", {}).get(key, 0)
        return max(SCALE_TOLERANCE * scale, NOISE_FACTOR * noise)

    def draw_inputs(self) -> dict[str, Array]:
        """The input arrays."""
        return {name: draw(name, item.shape, item.kind) for name, item in self.inputs.items()}

    def draw_state(self) -> dict[str, Array]:
        """The published state_dict."""
        state = fill_state(self.shapes)
        for part, value in self.config.get("overrides", {}).items():
            for key in matching(state, part):
                array = state[key]
                state[key] = np.abs(array) if value == "abs" else np.full_like(array, value)
        functions = {"prod": np.prod, "sqrt": np.sqrt}
        for part, expression in self.config.get("weight_scale", {}).items():
            for key in matching(state, part):
                scale = evaluate(expression, {"shape": self.shapes[key], **functions})
                state[key] = (state[key] * np.float64(scale)).astype(np.float32)
        steps = self.config.get("spectral_power_iterations", 0)
        for key in [key for key in state if steps and key.endswith(".weight_u")]:
            prefix = key.removesuffix("_u")
            state[key], state[prefix + "_v"] = singular_vectors(
                state[prefix + "_orig"], state[key], steps
            )
        return state


def matching(state: dict[str, Array], part: str) -> list[str]:
    """The keys that contain a string."""
    return [key for key in state if part in key]


def read(path: Path) -> Golden:
    """Read a golden file.

    Raises:
        IllFormedError: it cannot be read, or lacks what a golden file has.
    """
    try:
        with np.load(path) as archive:
            stored = {key: archive[key] for key in archive.files}
        if missing := [key for key in ("config", "keys", "inputs") if key not in stored]:
            raise ValueError(f"it lacks {missing}")
        config = json.loads(str(stored.pop("config")[()]))
        if not isinstance(config, dict):
            raise ValueError("config should be a JSON object")
        for key, kind in {"paper": str, "class": str, "args": dict, "call": str}.items():
            if not isinstance(config.get(key), kind):
                raise ValueError(f"config[{key!r}] should be a {kind.__name__}")
        if config.get("mode") not in ("eval", "train"):
            raise ValueError("config['mode'] should be 'eval' or 'train'")
        shapes = {}
        for entry in stored.pop("keys").tolist():
            key, dims = entry.split("|")
            shapes[key] = _shape(dims)
        inputs = {}
        for entry in stored.pop("inputs").tolist():
            key, dims, kind = entry.split("|")
            if kind not in KINDS:
                raise ValueError(f"input {key!r} should be of kind {KINDS}, not {kind!r}")
            inputs[key] = Input(_shape(dims), kind)
        prefixes = ("out.", "f64.", "gradin.", "grad.")
        arrays = {key: value for key, value in stored.items() if key.startswith(prefixes)}
        if not arrays:
            raise ValueError(f"no array to compare: none starts with one of {prefixes}")
        if unknown := [key for key in config.get("sampled", {}) if key not in arrays]:
            raise ValueError(f"config['sampled'] names {unknown}, which it does not hold")
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise IllFormedError(f"{path.name} cannot be read: {error}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise IllFormedError(f"{path.name} is no golden file: {error}") from error
    data = {key: value for key, value in stored.items() if key not in arrays}
    return Golden(path.stem, config, shapes, inputs, arrays, data)


def _shape(dims: str) -> Shape:
    return tuple(int(size) for size in dims.split(",")) if dims else ()


def draw(name: str, shape: Shape, kind: str = "normal") -> Array:
    """A float32 array that depends only on its arguments.

    Args:
        name: seeds the generator.
        shape: of the result; (N,C,H,W) for "holes".
        kind: one of `KINDS`: "normal" (standard), "uniform" (in [-1,1)), "unit" (in [0,1)) or
            "holes" (1 known, three rectangles of 0 in each image, the same for all channels).
    """
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if kind == "normal":
        return generator.standard_normal(shape).astype(np.float32)
    if kind == "uniform":
        return (generator.random(shape) * 2 - 1).astype(np.float32)
    if kind == "unit":
        return generator.random(shape).astype(np.float32)
    if kind != "holes":
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    N, _, H, W = shape
    mask = np.ones(shape, np.float32)
    for n in range(N):
        for _ in range(3):
            height = generator.integers(H // 8, H // 2 + 1)
            width = generator.integers(W // 8, W // 2 + 1)
            top = generator.integers(0, H - height + 1)
            left = generator.integers(0, W - width + 1)
            mask[n, :, top : top + height, left : left + width] = 0
    return mask


def fill_state(shapes: dict[str, Shape]) -> dict[str, Array]:
    """A state_dict of float32 arrays (int64 counters) for the published keys and shapes."""
    return {key: _fill(key, shape) for key, shape in shapes.items()}


def _fill(key: str, shape: Shape) -> Array:
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    noise = draw(key, shape or (1,)).reshape(shape)
    if last.endswith(("_u", "_v")):
        return _unit(noise.astype(np.float64)).astype(np.float32)
    if last == "running_var":
        return (1 + 0.1 * np.abs(noise)).astype(np.float32)
    if len(shape) >= 2:
        return (noise / np.sqrt(int(np.prod(shape[1:])))).astype(np.float32)
    if last.startswith("weight"):
        return (1 + 0.1 * noise).astype(np.float32)
    return (0.1 * noise).astype(np.float32)


def singular_vectors(weight: Array, u: Array, steps: int) -> tuple[Array, Array]:
    """u and v of a spectrally normalised weight after some power iterations from u, v first."""
    weight = weight.astype(np.float64)
    if weight.shape[0] != u.size:  # a transposed convolution: output channels come second
        weight = weight.swapaxes(0, 1)
    matrix = weight.reshape(u.size, -1)
    u = u.astype(np.float64)
    for _ in range(steps):
        v = _unit(matrix.T @ u)
        u = _unit(matrix @ v)
    return u.astype(np.float32), v.astype(np.float32)


def _unit(vector: Array) -> Array:
    return vector / np.linalg.norm(vector)
