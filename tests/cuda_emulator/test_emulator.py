"""The emulator itself: does it do what a GPU does, and does it notice what a GPU would not?"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cuda_emulator

HERE = Path(__file__).resolve().parent
KERNELS = HERE / "fixtures" / "kernels.cu"
OVERFLOW = HERE / "fixtures" / "overflow.cu"
ORDERS = ("forward", "reverse", "shuffled:1", "shuffled:2")
FULL = 0xFFFFFFFF
NOTHING = torch.empty(0)


@pytest.fixture(scope="module")
def emulator():
    return cuda_emulator.load((KERNELS,))


@pytest.fixture
def run(emulator):
    def call(kernel, input=NOTHING, output=NOTHING, *arguments):
        torch.ops.cuda_emulator_fixtures.run(kernel, input, output, list(arguments))
        return output

    return call


def in_every_order(emulator, make):
    results = []
    for order in ORDERS:
        with emulator.order(order):
            results.append(make())
    return results


def test_indices_cover_grid_and_block(emulator, run):
    grid, block = (3, 4, 2), (5, 3, 7)
    threads = 5 * 3 * 7
    expected = torch.arange(24).repeat_interleave(threads) * 65536 + torch.arange(threads).repeat(
        24
    )
    for actual in in_every_order(
        emulator,
        lambda: run(
            "index", NOTHING, torch.full((24 * threads,), -1, dtype=torch.int32), *grid, *block
        ),
    ):
        assert torch.equal(actual, expected.int())


def shuffle_source(kind, lane, argument, width):
    """The lane read; a lane keeps its own value where the source is out of range."""
    first = lane // width * width
    source = (
        first + argument % width,
        lane - argument,
        lane + argument,
        lane ^ argument,
    )[kind]
    if kind == 1:
        return source if source >= first else lane
    return source if source < first + width else lane


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_shuffles(emulator, run, dtype):
    value = torch.randn(64).mul(100).to(dtype)
    for width in (32, 16, 4):
        for kind in range(4):
            for argument in (0, 1, 3, 8, 17):
                lanes = [shuffle_source(kind, lane, argument, width) for lane in range(32)]
                expected = value.view(2, 32)[:, lanes].reshape(-1)
                with emulator.order(ORDERS[(argument + kind) % 4]):
                    actual = run("shuffle", value, torch.zeros_like(value), kind, argument, width)
                assert torch.equal(actual, expected), (kind, argument, width)


def test_votes_and_counting_barriers(emulator, run):
    value = torch.arange(64) % 5
    value[1::2] = 7

    def expected(thread):
        warp = thread // 32 * 32
        group = [i for i in range(32) if i % 2 == thread % 2]
        mask = sum(1 << i for i in group)
        votes = [int(value[warp + i]) > 2 for i in group]
        ballot = sum(1 << i for i, vote in zip(group, votes, strict=True) if vote)
        match = sum(1 << i for i in range(32) if value[warp + i] == value[thread])
        equal = len({int(value[warp + i]) for i in group}) == 1
        above = int((value > 2).sum())
        row = [ballot, any(votes), all(votes), match, mask if equal else 0, equal]
        return [*row, above, above == 64, above > 0, FULL]

    rows = torch.tensor([[int(x) for x in expected(thread)] for thread in range(64)])
    for actual in in_every_order(
        emulator, lambda: run("vote", value.int(), torch.zeros(64, 10, dtype=torch.int32))
    ):
        assert torch.equal(actual.long() & FULL, rows)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_shared_memory_holds_nan_at_the_start_of_every_block(run, dtype):
    output = run("uninitialised", NOTHING, torch.zeros(128, 3, dtype=dtype))
    assert output[:, :2].isnan().all()
    assert (output[:, 2] == 2).all()
    assert run("uninitialised_scalar", NOTHING, torch.zeros(4)).isnan().all()


def test_a_missing_barrier_shows_in_the_order(emulator, run):
    value = torch.arange(256.0)
    for actual in in_every_order(emulator, lambda: run("neighbour", value, torch.zeros(256), 1)):
        assert torch.equal(actual, value.roll(-1))
    racy = in_every_order(emulator, lambda: run("neighbour", value, torch.zeros(256), 0))
    assert racy[0].isnan().any()  # forward reads what the neighbour has not written
    assert not torch.equal(racy[0], racy[1])
    assert not torch.equal(racy[0].nan_to_num(-1), racy[2].nan_to_num(-1))


def test_a_race_of_blocks_shows_in_the_order(emulator, run):
    last = in_every_order(emulator, lambda: run("block_race", NOTHING, torch.zeros(1)).item())
    assert last[:2] == [99.0, 0.0]
    assert len(set(last)) > 2


def test_orders_are_checked_and_restored(emulator, run):
    for wrong in ("backward", "shuffled1", ""):
        with pytest.raises(ValueError, match="order must be 'forward', 'reverse'"):
            emulator.set_order(wrong)
    with emulator.order("reverse"):
        assert run("block_race", NOTHING, torch.zeros(1)).item() == 0.0
    assert run("block_race", NOTHING, torch.zeros(1)).item() == 99.0


FAILURES = {
    ("early_exit", 64): r"deadlock in early_exit_kernel, block \(0, 0, 0\): 63 of 64 threads wait "
    r"at __syncthreads .*, 1 have exited",
    ("missing_lane", 64): r"deadlock in missing_lane_kernel, .*lanes 0x0000ffff of warp 0 wait at "
    r"__shfl_xor_sync with mask 0xffffffff, lanes 0xffff0000 have exited",
    ("missing_lane", 16): r"lanes 0xffff0000 do not exist",
    ("mixed_collectives",): r"__ballot_sync where lane 0 of its mask waits at __syncwarp",
    ("mixed_barriers",): r"__syncthreads_count where other threads wait at __syncthreads in",
    ("outside_mask",): r"__syncwarp by a lane that its mask leaves out in outside_mask_kernel.*"
    r"thread \(1, 0, 0\)",
    ("misaligned",): r"misaligned access of 16 bytes in misaligned_kernel",
    ("assert",): r"assertion `load\(&input\[threadIdx.x\]\) < 8` \(.*kernels.cu:\d+\) in "
    r"assert_kernel, .*thread \(8, 0, 0\)",
    ("shape", 1025, 0): "invalid configuration",
    ("shape", 32, 228 * 1024): "shared memory request failed: invalid argument",
}


@pytest.mark.parametrize("call", FAILURES, ids=lambda call: "-".join(map(str, call)))
def test_a_wrong_kernel_fails_the_launch_and_the_next_one_works(run, call):
    kernel, *arguments = call
    for _ in range(2):
        with pytest.raises(RuntimeError, match=FAILURES[call]):
            run(kernel, torch.arange(64.0), torch.zeros(64), *arguments)
        value = torch.arange(256.0)
        assert torch.equal(run("neighbour", value, torch.zeros(256), 1), value.roll(-1))


def test_large_dynamic_shared_memory_is_asked_for(run):
    run("shape", NOTHING, NOTHING, 1024, 227 * 1024)


def all_kinds_of_floats():
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1 << 20,), generator=generator).int().view(torch.float32)
    halves = torch.arange(65536).short().view(torch.float16).float()
    finite = halves[halves.isfinite()].sort().values
    ties = (finite[1:] + finite[:-1]) / 2  # halfway between neighbouring halves
    return torch.cat(
        [bits, halves, ties, ties.nextafter(torch.tensor(1e9)), torch.tensor([65520.0])]
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_round_to_nearest_even(run, dtype):
    value = all_kinds_of_floats()
    code = {torch.float16: 5, torch.bfloat16: 15}[dtype]
    actual = run("convert", value, torch.zeros_like(value), code)
    torch.testing.assert_close(actual, value.to(dtype).float(), rtol=0, atol=0, equal_nan=True)
    every = torch.arange(65536).short().view(dtype)
    actual = run("decode", every, torch.zeros(65536))
    torch.testing.assert_close(actual, every.float(), rtol=0, atol=0, equal_nan=True)


def test_ledger_counts_bytes_and_sectors(emulator, run):
    value = torch.randn(4, 64, 256, 256)  # 64 MiB
    output = torch.empty_like(value)
    with emulator.ledger() as launches:
        run("copy", value, output, 0)
        run("copy", value.half(), output.half(), 8)
    assert torch.equal(output, value)
    full, half = launches
    assert full.kernel == "copy_kernel<float, 4>"
    assert (full.grid, full.block, full.shared_bytes) == ((16384, 1, 1), (256, 1, 1), 0)
    for traffic in (full.load, full.store):
        assert (traffic.bytes, traffic.sector_bytes, traffic.widest_access) == (2**26, 2**26, 16)
    assert half.load.bytes == half.store.bytes == 2**25 - 16
    assert half.load.sector_bytes == 2**25  # the first sector is half used


def test_ledger_counts_each_sector_once_and_global_memory_alone(emulator, run):
    value = torch.randn(16 * 1000)
    with emulator.ledger() as launches:
        run("strided", value, torch.zeros(1000), 16)
    (launch,) = launches
    assert launch.load.bytes == 1000 * 32 * 4  # every thread of a block asks for the same element
    assert launch.load.sectors == 1000
    assert launch.store.bytes == 4000
    assert launch.store.sectors in (125, 126)
    with emulator.ledger() as launches:
        pass
    assert launches == []


def test_reductions(emulator, run):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        for threads in (32, 96, 1024):
            generator = torch.Generator().manual_seed(threads)
            value = 1e4 + torch.randn(threads * 7, generator=generator, dtype=dtype)
            first, *others = in_every_order(
                emulator,
                lambda value=value, threads=threads: run(
                    "reduce", value, torch.zeros(threads, 6, dtype=value.dtype), threads
                ),
            )
            assert all(torch.equal(first, other) for other in others)
            assert (first == first[0]).all()  # every thread holds the same bits
            count, mean, m2, ones, numbers, twos = first[0].double()
            exact = value.double()
            assert count == threads * 7
            assert abs(mean - exact.mean()) < 1e4 * tolerance / 10
            assert abs(m2 / exact.var(unbiased=False) / count - 1) < tolerance
            assert (ones, numbers, twos) == (threads, threads * (threads - 1) // 2, 2 * threads)


def test_vector_width_follows_size_and_every_alignment(emulator):
    floats, labels = torch.zeros(64), torch.zeros(256, dtype=torch.uint8)

    def width(extent, offset):
        return torch.ops.cuda_emulator_fixtures.width(floats, labels, extent, offset)

    # floats at 4 * offset bytes, labels at offset bytes: both must allow it
    assert [width(64, offset) for offset in (0, 1, 2, 4)] == [4, 1, 2, 4]
    assert [width(extent, 0) for extent in (63, 62, 60)] == [1, 2, 4]


def test_atomics(emulator, run):
    value = (torch.arange(640) % 7).int()
    for result in in_every_order(
        emulator, lambda: run("atomic", value, torch.zeros(10, dtype=torch.int32))
    ):
        assert torch.equal(result[:8].long(), torch.bincount(value, minlength=8))
        assert result[8] == 6
        assert result[9:].view(torch.float32).item() == 320.0


def lines_of_another_build(kind, code):
    """In a process of its own: a build with a check defines the fixtures' ops again."""
    start = (
        "import sys, pathlib, torch, cuda_emulator\n"
        f"emulator = cuda_emulator.load((pathlib.Path(sys.argv[1]),), {kind}=True)\n"
        "run = torch.ops.cuda_emulator_fixtures.run\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", start + code, str(KERNELS)],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


def test_a_missing_barrier_is_a_race():
    with_barrier, without = lines_of_another_build(
        "races",
        "for barrier in (1, 0):\n"
        "    run('neighbour', torch.zeros(256), torch.zeros(256), [barrier])\n"
        "    checked, found = emulator.races()\n"
        "    print(checked > 0, found)\n",
    )
    assert with_barrier == "True []"
    assert without.startswith("True ['neighbour_kernel")
    assert "after" in without


# Elements at a time and stride, to the sectors over the ideal of loads and of stores. A word of 16
# bytes in 32 uses half of each sector.
STRIDES = {(1, 1): (1, 1), (1, 0): (1, 1), (1, 2): (2, 1), (1, 8): (8, 1), (1, 64): (8, 1),
           (4, 4): (1, 1), (4, 8): (2, 1), (8, 8): (2, 2)}  # fmt: skip


def test_a_strided_access_touches_more_sectors():
    lines = lines_of_another_build(
        "requests",
        f"for width, stride in {tuple(STRIDES)}:\n"
        "    output = torch.zeros(6 * 64 * width)\n"
        "    with emulator.ledger() as launches:\n"
        "        run('gather', torch.zeros(6 * 64 * 64), output, [width, stride, 3])\n"
        "    load, store = launches[0].load, launches[0].store\n"
        "    print(load.request_ratio, store.request_ratio, load.requests, store.requests)\n",
    )
    for (width, _), ratios, line in zip(STRIDES, STRIDES.values(), lines, strict=True):
        requests = 2 * 2 * 3 * (2 if width == 8 else 1)  # blocks, warps, turns, words
        assert [float(x) for x in line.split()] == [*ratios, requests, requests]


def test_an_access_out_of_bounds_ends_a_sanitized_process():
    cuda_emulator.build((OVERFLOW,), sanitize=True)
    code = (
        "import sys, pathlib, torch, cuda_emulator\n"
        "cuda_emulator.load((pathlib.Path(sys.argv[1]),))\n"
        "overflow = torch.ops.cuda_emulator_overflow.overflow\n"
        "for where in ('static', 'dynamic', 'tensor'): overflow(where, torch.zeros(64), 0)\n"
        "print('in bounds', flush=True)\n"
        "overflow(sys.argv[2], torch.zeros(64), 1)\n"
    )
    environment = {**os.environ, **cuda_emulator.sanitizer_environment()}
    environment["PYTHONPATH"] = str(HERE.parent)
    processes = {
        where: subprocess.Popen(
            [sys.executable, "-c", code, str(OVERFLOW), where],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for where in ("static", "dynamic", "tensor")
    }
    expected = {
        "static": "AddressSanitizer: global-buffer-overflow",
        "dynamic": "AddressSanitizer: heap-buffer-overflow",
        "tensor": "AddressSanitizer: heap-buffer-overflow",
    }
    for where, process in processes.items():
        output, errors = process.communicate(timeout=120)
        assert output == "in bounds\n", errors
        assert process.returncode != 0
        assert expected[where] in errors
        assert "overflow.cu:" in errors


def test_a_build_is_reused_until_something_changes(tmp_path):
    source = tmp_path / "empty.cu"
    source.write_text('#include "vec.cuh"\n')
    first = cuda_emulator.build((source,))
    written = first.stat().st_mtime_ns
    assert cuda_emulator.build((source,)) == first
    assert first.stat().st_mtime_ns == written
    source.write_text('#include "vec.cuh"\nint changed;\n')
    assert cuda_emulator.build((source,)) != first
    source.write_text("not C++\n")
    with pytest.raises(RuntimeError, match=r"empty\.cu"):
        cuda_emulator.build((source,))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_nvcc_compiles_the_same_file(tmp_path):
    torch_include = Path(torch.__file__).parent / "include"
    subprocess.run(
        ["nvcc", "-std=c++17", "-arch=sm_75", "-DUSE_CUDA", "-c", KERNELS, "-o", tmp_path / "k.o",
         "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{HERE.parents[1] / 'csrc' / 'cuda'}",
         f"-I{torch_include}"],
        check=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_portable_switch_gives_the_same_results():
    """ucontext, which other processors than x86-64 use."""
    code = (
        "import sys, pathlib, torch, cuda_emulator\n"
        "cuda_emulator.load((pathlib.Path(sys.argv[1]),), flags=('-DEMULATOR_UCONTEXT',))\n"
        "value = torch.arange(256.0)\n"
        "output = torch.zeros(256)\n"
        "torch.ops.cuda_emulator_fixtures.run('neighbour', value, output, [1])\n"
        "assert torch.equal(output, value.roll(-1))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    subprocess.run([sys.executable, "-c", code, str(KERNELS)], env=environment, check=True)
