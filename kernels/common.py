"""What every Triton kernel file shares: launching, block sizes and tile addressing.

A tile is BLOCK_C channels by BLOCK_P pixels. Contiguous tensors run along pixels (BLOCK_C = 1),
channels_last tensors along channels (64 bytes of them), so that both are read and written in
16-byte accesses. A launch on meta tensors is not run but written down, which is how the list of
variants to compile ahead of time is made from the launchers themselves.
"""

import contextlib
import itertools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTERPRETED = triton.knobs.runtime.interpret

# Left to itself, ptxas spills a few bytes to reach the next step of occupancy; given a limit it
# uses the registers it needs. The launches below take at most 256 threads, so all may have 255.
CUDA_OPTIONS = {"maxnreg": 255}


class Variant(NamedTuple):
    """One compilation of a kernel: what `triton.compiler.ASTSource` takes, and `num_warps`."""

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    attributes: dict[tuple[int], list]
    debug: bool = False  # whether device assertions are compiled in

    @property
    def aligned(self) -> bool:
        """Whether the sizes that decide about 16-byte accesses are all multiples of 16."""
        sizes = [n for n, name in enumerate(self.kernel.arg_names) if name in ("C", "P")]
        return all((n,) in self.attributes for n in sizes)

    def __str__(self) -> str:
        types = ",".join(kind for kind in self.signature.values() if kind.startswith("*"))
        values = ",".join(f"{name}={value}" for name, value in self.constexprs.items())
        alignment = "aligned" if self.aligned else "unaligned"
        return f"{self.kernel.__name__}[{types}; {values}; {alignment}]"


_POINTER = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}


def _variant(kernel, arguments, constexprs, num_warps, debug) -> Variant:
    """The specialization that Triton's own launch would choose for these arguments."""
    signature, constants, attributes = {}, {}, {}
    values = [*arguments, *constexprs.values()]
    for index, (name, value) in enumerate(zip(kernel.arg_names, values, strict=True)):
        plain = name in kernel.do_not_specialize
        if isinstance(value, float) and name not in constexprs:
            raise TypeError(f"{name}: Triton rounds a number to float32; pass it as a constexpr")
        if isinstance(value, torch.Tensor):
            signature[name] = _POINTER[value.dtype]
            aligned = True
        elif name in constexprs or value is None or (value == 1 and not plain):
            signature[name], constants[name] = "constexpr", value
            aligned = False
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not plain
        if aligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
    return Variant(kernel, signature, constants, num_warps, attributes, debug)


_recorded: list[Variant] | None = None


@contextlib.contextmanager
def recorded():
    """Collect the variants that launches on meta tensors would run."""
    global _recorded
    _recorded = variants = []
    try:
        yield variants
    finally:
        _recorded = None


def launch(
    kernel, programs: int, *arguments, num_warps: int = 4, debug: bool = False, **constexprs
) -> None:
    """Run `programs` programs of `kernel` on the device of its first argument."""
    if arguments[0].is_meta:
        if _recorded is not None:
            _recorded.append(_variant(kernel, arguments, constexprs, num_warps, debug))
    elif programs:
        options = {"num_warps": num_warps, "debug": debug}
        if not torch.version.hip:
            options |= CUDA_OPTIONS
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs,)](*arguments, **constexprs, **options)


def unique(variants: list[Variant]) -> list[Variant]:
    """The same variants, each once, in order."""
    return list({(str(v), str(v.attributes), v.num_warps): v for v in variants}.values())


def variant_tensors():
    """Meta tensors whose launches are compiled ahead of time: sizes that allow 16-byte accesses or
    not in every dtype and layout, and in float32 sizes that Triton treats in their own way: 1,
    which it makes a constant, multiples of 16 and their neighbours, and those of 64 bits."""
    for shape, dtype in itertools.product(((2, 64, 64, 64), (2, 7, 9, 9)), DTYPES):
        for layout in (torch.contiguous_format, torch.channels_last):
            yield torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
    odd = ((1, 1, 1, 1), (2, 1, 16, 16), (2, 16, 1, 1), (1, 17, 5, 3), (1, 15, 16, 1))
    for shape in (*odd, (1, 1, 65536, 65536), (65536, 64, 512, 512)):
        for layout in (torch.contiguous_format, torch.channels_last):
            yield torch.empty(shape, device="meta", memory_format=layout)


def accumulate_dtype(x: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for every narrower type."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether x runs along its channels; tensors that are both run along pixels."""
    return not x.is_contiguous()


@triton.jit
def accumulated(value):
    """`value` in the type that sums are kept in."""
    return value if value.dtype == tl.float64 else value.to(tl.float32)


@triton.jit
def element_offsets(image, c, p, C, P, CHANNELS_LAST: tl.constexpr):
    """Where (image, c, p) lies; `image` is int64, so every product is."""
    return (image * P + p) * C + c if CHANNELS_LAST else (image * C + c) * P + p
