"""The published layers in plain PyTorch, op by op; what the package is compared with."""
