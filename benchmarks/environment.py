"""What has to be in the environment before torch is imported; imports nothing heavy itself."""

import os
import sys

# By default a fresh tensor of 32 MiB or more is mapped anew at every allocation, and the heap's end
# is returned to the system: each page then faults again at its first write, which can cost ten
# times the work itself. Fixed for all columns alike. glibc reads these when the process starts.
HEAP = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
QUIET = {
    "KINETO_LOG_LEVEL": "99"
}  # the profiler, used to measure memory, else logs to the terminal


def restart_with_settled_heap() -> None:
    """Start this process again with the allocator's thresholds fixed, unless they are."""
    wanted = HEAP | QUIET
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.environ.update(wanted)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
