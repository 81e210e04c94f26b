"""More than 2^31 elements must not overflow an index."""

import pytest
import torch

import torchext

pytestmark = pytest.mark.memory  # each takes up to 13 GB


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_more_than_two_to_the_31_elements(last: bool) -> None:
    N, C, H, W = 1, 66, 8192, 4096  # 2.2e9 elements, 4.4 GB in bfloat16
    x = torch.empty(
        (N, C, H, W),
        dtype=torch.bfloat16,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    ).zero_()
    x[..., ::2] = 1
    x[:, -1, -1, -1] = 5
    mask = torch.ones(1, 1, H, W, dtype=torch.bool)
    mask[:, :, -1] = False
    y = torchext.region_norm(x, mask)
    known = y[0, :, :2, :4].float()
    assert torch.allclose(known[..., ::2], torch.ones(()), atol=1e-2)
    assert torch.allclose(known[..., 1::2], -torch.ones(()), atol=1e-2)
    # The last row is a region of its own; only its last channel holds the outlier.
    count, mean, variance = torchext.region_statistics(x, mask)
    assert count.tolist() == [[W, (H - 1) * W]]
    assert torch.allclose(mean[0, 0, :-1], torch.tensor(0.5))
    assert torch.allclose(mean[0, 0, -1], torch.tensor((W / 2 + 5) / W))
    assert torch.allclose(variance[0, 1], torch.tensor(0.25))
    assert y[0, -1, -1, -1] > 5


def test_partial_convolution_of_many_elements() -> None:
    """A convolution of 1x1 keeps the size: product and epilogue over more than 2^31 elements."""
    C, H, W = 66, 8192, 4096
    x = torch.zeros((1, C, H, W), dtype=torch.bfloat16)
    x[:, -1] = 2
    mask = torch.ones(1, 1, H, W)
    mask[:, :, -1] = 0
    ops = torch.ops.torchext
    scale = torch.full((1, 1, H, W), 0.5)
    y = ops.mask_product(x, mask.bfloat16(), [])
    assert y[0, -1, -2].eq(2).all()
    assert y[0, -1, -1].eq(0).all()
    del x
    ops.partial_conv_epilogue_(y, scale, mask, torch.arange(C).float(), None, None, 1.0, True)
    assert y[0, -1, -2].eq(66).all()  # 2 / 2 + 65
    assert y[0, 3, 0].eq(3).all()
    assert y[0, :, -1].eq(0).all()
