"""Weight-normalised, masked and depthwise convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from nvae.model.convolutions import DepthwiseConv2d, causal_mask, masked_convolution, weight_normalised


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def twins(channels: int, kernel: int, dtype: torch.dtype = torch.float64) -> tuple[DepthwiseConv2d, nn.Conv2d]:
    """Ours and torch's, with the same weights."""
    ours = DepthwiseConv2d(channels, kernel).to(dtype)
    theirs = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False).to(dtype)
    for convolution in (ours, theirs):
        with torch.no_grad():
            convolution.weight.copy_(random(channels, 1, kernel, kernel, seed=9))
    return ours, theirs


@pytest.mark.parametrize(
    ("batch", "channels", "height", "width", "kernel"),
    [(3, 4, 8, 8, 5), (1, 1, 7, 5, 5), (2, 6, 2, 2, 5), (4, 3, 1, 1, 5), (2, 5, 9, 4, 3), (2, 2, 6, 6, 1)],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_depthwise_convolution_and_its_gradients_are_torchs(batch, channels, height, width, kernel, layout):
    ours, theirs = (convolution.to(memory_format=layout) for convolution in twins(channels, kernel))
    images = random(batch, channels, height, width).contiguous(memory_format=layout)
    weighting = random(batch, channels, height, width, seed=1)
    results = []
    for convolution in (ours, theirs):
        x = images.clone().requires_grad_()
        y = convolution(x)
        (y * weighting).sum().backward()
        results.append((y.detach(), x.grad, convolution.weight.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_depthwise_convolution_passes_gradcheck():
    ours, _ = twins(2, 3)

    def f(x, weight):
        return torch.func.functional_call(ours, {"weight": weight}, (x,))

    x, weight = random(2, 2, 4, 4).requires_grad_(), ours.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(f, (x, weight))


def test_depthwise_convolution_gives_the_weights_gradient_of_an_input_without_one():
    ours, theirs = twins(3, 5)
    for convolution in (ours, theirs):
        convolution(random(2, 3, 6, 6)).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_depthwise_convolution_is_the_same_without_gradients_and_with_frozen_weights():
    ours, theirs = twins(3, 5)
    x = random(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    ours.requires_grad_(False)
    x.requires_grad_()
    (found,) = torch.autograd.grad(ours(x).square().sum(), x)
    (expected,) = torch.autograd.grad(theirs(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert ours.weight.grad is None


def test_depthwise_convolution_under_autocast_is_torchs_to_the_precision_of_bfloat16():
    ours, theirs = twins(4, 5, torch.float32)
    images, weighting = random(3, 4, 8, 8, dtype=torch.float32), random(3, 4, 8, 8, seed=1, dtype=torch.float32)
    results = []
    for convolution in (ours, theirs):
        x = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = convolution(x)
        assert y.dtype == torch.bfloat16
        (y.float() * weighting).sum().backward()
        assert x.grad.dtype == convolution.weight.grad.dtype == torch.float32
        results.append((y.detach().float(), x.grad, convolution.weight.grad))
    for found, expected in zip(*results, strict=True):
        assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_weight_normalised_weight_is_g_v_over_the_norm_of_v_per_output_channel():
    convolution = weight_normalised(nn.Conv2d(3, 5, 3).double())
    g, v = convolution.parametrizations.weight.original0, convolution.parametrizations.weight.original1
    assert g.shape == (5, 1, 1, 1)
    with torch.no_grad():
        g.copy_(random(5, 1, 1, 1))
        v.copy_(random(5, 3, 3, 3, seed=1))
    expected = torch.stack([g[i].item() * v[i] / v[i].square().sum().sqrt() for i in range(5)])
    torch.testing.assert_close(convolution.weight, expected)
    x = random(2, 3, 6, 6)
    torch.testing.assert_close(convolution(x), functional.conv2d(x, expected, convolution.bias))
    with torch.no_grad():
        v.mul_(7)
    torch.testing.assert_close(convolution.weight, expected, msg="the length of v must not matter")


def test_weight_normalisation_starts_at_the_convolutions_own_weight():
    convolution = nn.Conv2d(3, 5, 3)
    before = convolution.weight.detach().clone()
    torch.testing.assert_close(weight_normalised(convolution).weight, before)


def test_the_mask_of_a_full_convolution_shows_rows_above_columns_to_the_right_and_earlier_channels():
    mask = causal_mask(2, 4, 3, 1, "earlier")  # two latents; outputs 0 and 1 belong to the first, 2 and 3 to the second
    assert mask.shape == (4, 2, 3, 3)
    for output in range(4):
        for channel in range(2):
            centre = int(channel == 0 and output >= 2)
            assert mask[output, channel].tolist() == [[1, 1, 1], [0, centre, 1], [0, 0, 0]]


def test_the_mask_of_a_depthwise_convolution_has_the_centre_only_where_own_channels_are_visible():
    assert causal_mask(3, 3, 3, 3, "earlier")[1, 0].tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert causal_mask(3, 3, 3, 3, "earlier and own")[1, 0].tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 0]]


def test_the_mask_of_the_last_1x1_convolution_shows_a_latent_its_own_group_and_earlier_ones():
    mask = causal_mask(6, 2, 1, 1, "earlier and own")[:, :, 0, 0]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


def test_a_masks_own_entries_are_not_saved():
    convolution = masked_convolution(2, 4, 3, centre="earlier", mirrored=False)
    assert set(convolution.state_dict()) == {"bias", "parametrizations.weight.original"}
