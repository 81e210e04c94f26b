"""Set-up that must come before any import of torch or triton."""

import os

# Triton kernels run on CPU tensors; read when a kernel is decorated, so before it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")
