"""Of the convolution: `torch.nn.Conv2d` itself."""
