"""Normalized, masked and depthwise convolutions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from nvae.models.nvae.convolutions import (
    DepthwiseConv2d,
    causal_mask,
    is_spectrally_normalized,
    masked_convolution,
    normalized,
    weight_norms,
    weights_computed_once,
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def twins(channels: int, kernel: int, dtype: torch.dtype = torch.float64) -> tuple[DepthwiseConv2d, nn.Conv2d]:
    """Return our depthwise convolution and torch's convolution with the same weights."""
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
def test_depthwise_convolution_and_gradients_match_torch(batch, channels, height, width, kernel, layout):
    ours, theirs = (convolution.to(memory_format=layout) for convolution in twins(channels, kernel))
    images = random(batch, channels, height, width).contiguous(memory_format=layout)
    weighting = random(batch, channels, height, width, seed=1)
    results = []
    for convolution in (ours, theirs):
        x = images.clone().requires_grad_()
        y = convolution(x)
        (y * weighting).sum().backward()
        results.append((y.detach(), x.grad, convolution.weight.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_depthwise_convolution_passes_gradcheck():
    ours, _ = twins(2, 3)

    def f(x, weight):
        return torch.func.functional_call(ours, {"weight": weight}, (x,))

    x, weight = random(2, 2, 4, 4).requires_grad_(), ours.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(f, (x, weight))


def test_depthwise_weight_gradient_without_an_input_gradient():
    ours, theirs = twins(3, 5)
    for convolution in (ours, theirs):
        convolution(random(2, 3, 6, 6)).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


def test_depthwise_convolution_without_gradients_or_with_frozen_weights_matches_torch():
    ours, theirs = twins(3, 5)
    x = random(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    ours.requires_grad_(False)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ours(x).square().sum(), x)
    (expected,) = torch.autograd.grad(theirs(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected)
    assert ours.weight.grad is None


def test_depthwise_convolution_under_autocast_matches_torch():
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
    for actual, expected in zip(*results, strict=True):
        assert (actual - expected).abs().max() < 0.02 * expected.abs().max()


def test_depthwise_convolution_with_stride_matches_torch():
    ours = DepthwiseConv2d(4, 5, stride=2).double()
    theirs = nn.Conv2d(4, 4, 5, stride=2, padding=2, groups=4, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for convolution in (ours, theirs):
        x = random(2, 4, 8, 6).requires_grad_()
        y = convolution(x)
        assert y.shape == (2, 4, 4, 3)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, convolution.weight.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_weight_norm_is_g_v_over_the_norm_of_v():
    convolution = normalized(nn.Conv2d(3, 5, 3).double(), "linear")
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
    torch.testing.assert_close(convolution.weight, expected, msg="the weight depends on the length of v")


def test_weight_norm_starts_at_the_given_weight():
    convolution = nn.Conv2d(3, 5, 3)
    before = convolution.weight.detach().clone()
    torch.testing.assert_close(normalized(convolution, "linear").weight, before)


MASKED_NORMS = pytest.mark.parametrize("normalization", ["linear", "exponential"])


def test_exponential_weight_norm_is_exp_n_v_over_the_norm_of_v():
    convolution = normalized(nn.Conv2d(3, 5, 3).double(), "exponential")
    n, v = convolution.parametrizations.weight.original0, convolution.parametrizations.weight.original1
    assert n.shape == (5, 1, 1, 1)
    with torch.no_grad():
        n.copy_(random(5, 1, 1, 1))
        v.copy_(random(5, 3, 3, 3, seed=1))
        v[0] *= 1e-6  # so that the 1e-5 in the denominator matters
    expected = torch.stack([math.exp(n[i].item()) * v[i] / (v[i].square().sum().sqrt() + 1e-5) for i in range(5)])
    torch.testing.assert_close(convolution.weight, expected)
    assert convolution.weight[0].norm() < 0.5 * n[0].exp()
    x = random(2, 3, 6, 6)
    torch.testing.assert_close(convolution(x), functional.conv2d(x, expected, convolution.bias))


def test_exponential_weight_norm_starts_a_hundredth_above_the_norm():
    convolution = nn.Conv2d(3, 5, 3).double()
    before = convolution.weight.detach().clone()
    norm = before.square().sum((1, 2, 3), keepdim=True).sqrt()
    after = normalized(convolution, "exponential")
    torch.testing.assert_close(after.parametrizations.weight.original0.detach(), (norm + 1e-2).log())
    assert torch.equal(after.parametrizations.weight.original1, before)
    torch.testing.assert_close(after.weight, before * (norm + 1e-2) / (norm + 1e-5))


@MASKED_NORMS
def test_masked_weight_norm_is_computed_after_the_mask(normalization):
    convolution = masked_convolution(
        2, 4, 3, center="earlier", columns="left", mirrored=False, normalization=normalization, gain=0.3
    ).double()
    length, v = convolution.parametrizations.weight.original0, convolution.parametrizations.weight.original1
    visible = v.detach() * causal_mask(2, 4, 3, 1, "earlier", "left")
    norm = visible.square().sum((1, 2, 3), keepdim=True).sqrt()
    start = 0.3 * norm if normalization == "linear" else (0.3 * norm + 1e-2).log()
    torch.testing.assert_close(length.detach(), start, rtol=1e-6, atol=0)  # computed in float32
    with torch.no_grad():
        length.copy_(random(4, 1, 1, 1))
    scale = length / norm if normalization == "linear" else length.exp() / (norm + 1e-5)
    torch.testing.assert_close(convolution.weight, scale * visible)
    with torch.no_grad():
        v[visible == 0] += 100
    torch.testing.assert_close(convolution.weight, scale * visible, msg="a hidden entry counts in the norm")


@pytest.mark.parametrize("normalization", ["linear", "exponential", "spectral"])
def test_normalized_weight_stays_channels_last(normalization):
    convolution = normalized(nn.Conv2d(6, 5, 3), normalization).to(memory_format=torch.channels_last)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


def normalized_of_many_kinds() -> nn.ModuleList:
    masked = [
        masked_convolution(4, 4, 3, center="earlier", columns="left", mirrored=mirrored, normalization="linear")
        for mirrored in (False, True)
    ]
    shapes = [(4, 4, 3), (4, 4, 3), (6, 4, 1), (4, 4, 3), (6, 4, 1)]
    kinds = ["linear", "exponential", "exponential", "exponential", "exponential"]
    plain = [normalized(nn.Conv2d(*shape), kind) for shape, kind in zip(shapes, kinds, strict=True)]
    modules = nn.ModuleList([*plain, *masked, normalized(nn.Conv2d(4, 4, 3), "spectral"), nn.Conv2d(4, 4, 3)])
    for i, parameter in enumerate(modules.parameters()):
        parameter.data = random(*parameter.shape, seed=i, dtype=torch.float32)
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return modules.eval()


def weights_and_gradients(modules: nn.ModuleList) -> list[torch.Tensor]:
    modules.zero_grad()
    weights = [module.weight for module in modules for _ in range(2)]  # used twice
    sum((weight * random(*weight.shape, dtype=weight.dtype)).sum() for weight in weights).backward()
    return [*(weight.detach() for weight in weights), *(p.grad for p in modules.parameters() if p.grad is not None)]


def test_weights_computed_once_have_the_numbers_strides_and_gradients_of_each_computed_alone():
    modules = normalized_of_many_kinds()
    expected = weights_and_gradients(modules)
    norms = weight_norms(modules)
    assert sorted(map(len, norms)) == [1, 2, 2, 2]
    with weights_computed_once(norms):
        assert modules[0].weight is modules[0].weight
        actual = weights_and_gradients(modules)
    for value, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-5, atol=1e-6)
        assert value.dim() != 4 or value.is_contiguous(memory_format=torch.channels_last)


def test_weights_are_those_of_the_parameters_again_after_the_context():
    modules = normalized_of_many_kinds()
    with pytest.raises(ZeroDivisionError), weights_computed_once(weight_norms(modules)):
        1 / 0  # noqa: B018
    with torch.no_grad():
        before = modules[0].weight.clone()
        modules[0].parametrizations.weight.original0.mul_(2)
        torch.testing.assert_close(modules[0].weight, 2 * before)


# ------------------------------------------------------------------------------------------ spectral normalization


def spectral(*arguments, kind: type[nn.Conv2d] = nn.Conv2d, **options) -> nn.Conv2d:
    """Return a spectrally normalized float64 convolution whose weight changed after the last power iteration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        convolution = normalized(kind(*arguments, **options).double(), "spectral")
    with torch.no_grad():
        raw = convolution.parametrizations.weight.original
        raw.copy_(random(*raw.shape, seed=6))
    return convolution


def largest(weight: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(weight.flatten(1))[0]


@pytest.mark.parametrize(
    "build",
    [
        lambda: spectral(3, 5, 3),
        lambda: spectral(7, 2, 1),
        lambda: spectral(8, 8, 5, groups=4),
        lambda: spectral(6, 5, kind=DepthwiseConv2d),
    ],
    ids=["3x3", "1x1", "grouped", "depthwise"],
)
def test_spectral_norm_converges_to_one_in_training(build):
    convolution = build()
    assert abs(largest(convolution.eval().weight).item() - 1) > 0.05, "the norm was one before training"
    convolution.train()
    for _ in range(1000):
        weight = convolution.weight
    assert largest(weight).item() == pytest.approx(1, rel=1e-6)
    raw = convolution.parametrizations.weight.original
    torch.testing.assert_close(weight, raw / largest(raw))


def test_spectral_norm_starts_near_one():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        for convolution in (nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1)):
            assert largest(normalized(convolution, "spectral").weight).item() == pytest.approx(1, abs=0.05)


def test_spectral_norm_gradient_matches_the_singular_value_decomposition():
    convolution, weighting = spectral(3, 5, 3), random(5, 3, 3, 3, seed=1)
    raw = convolution.parametrizations.weight.original
    for _ in range(1000):
        weight = convolution.weight
    (gradient,) = torch.autograd.grad((weight * weighting).sum(), raw)
    (expected,) = torch.autograd.grad((raw / largest(raw) * weighting).sum(), raw)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


def test_spectral_norm_gradient_does_not_depend_on_later_uses():
    one, two = spectral(3, 5, 3), spectral(3, 5, 3)
    weighting = random(5, 3, 3, 3, seed=1)
    early = one.weight
    for _ in range(3):
        one.weight  # noqa: B018 (one step of power iteration)
    (gradient,) = torch.autograd.grad((early * weighting).sum(), one.parametrizations.weight.original)
    (expected,) = torch.autograd.grad((two.weight * weighting).sum(), two.parametrizations.weight.original)
    assert torch.equal(gradient, expected)


def test_spectral_norm_iterates_in_training_only():
    convolution = spectral(3, 5, 3)
    vectors = convolution.parametrizations.weight[0]
    before = [buffer.clone() for buffer in vectors.buffers()]
    assert len(before) == 2
    first = convolution.eval().weight
    assert torch.equal(convolution.weight, first)
    assert all(torch.equal(old, new) for old, new in zip(before, vectors.buffers(), strict=True))
    assert not torch.equal(convolution.train().weight, first)
    assert not any(torch.equal(old, new) for old, new in zip(before, vectors.buffers(), strict=True))
    for buffer in vectors.buffers():
        assert buffer.norm().item() == pytest.approx(1)


def test_spectral_norm_vectors_are_saved_and_restored():
    trained, fresh = spectral(3, 5, 3), spectral(3, 5, 3)
    for _ in range(7):
        trained.weight  # noqa: B018
    assert not torch.equal(trained.eval().weight, fresh.eval().weight)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(trained.weight, fresh.weight)
    assert torch.equal(trained.train().weight, fresh.train().weight), "the next power iteration differs"


def test_spectral_norm_under_autocast_is_float32():
    rough, exact = spectral(4, 4, 3).float(), spectral(4, 4, 3).float()
    x = random(2, 4, 6, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = rough(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact(x), rtol=0.02, atol=0.05)
    for ours, theirs in zip(rough.buffers(), exact.buffers(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)
    y.float().square().sum().backward()
    assert rough.parametrizations.weight.original.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(500):
            weight = rough.weight
    assert weight.dtype == torch.float32
    assert largest(weight).item() == pytest.approx(1, rel=1e-5), "the iteration ran in bfloat16"


def test_is_spectrally_normalized_is_true_for_spectral_norm_only():
    assert is_spectrally_normalized(spectral(3, 5, 3))
    for other in ("none", "linear", "exponential"):
        assert not is_spectrally_normalized(normalized(nn.Conv2d(3, 5, 3), other))
    assert not is_spectrally_normalized(masked_convolution(2, 4, 3, center="earlier", columns="left", mirrored=False))


# ------------------------------------------------------------------------------------------------------- masks


COLUMNS = pytest.mark.parametrize(("columns", "left", "right"), [("left", 1, 0), ("right", 0, 1)])


@COLUMNS
def test_causal_mask_shows_rows_above_one_side_and_earlier_channels(columns, left, right):
    # two latents; outputs 0 and 1 belong to the first, 2 and 3 to the second
    mask = causal_mask(2, 4, 3, 1, "earlier", columns)
    assert mask.shape == (4, 2, 3, 3)
    for output in range(4):
        for channel in range(2):
            center = int(channel == 0 and output >= 2)
            assert mask[output, channel].tolist() == [[1, 1, 1], [left, center, right], [0, 0, 0]]


@COLUMNS
def test_causal_mask_of_a_depthwise_convolution_shows_the_center_for_own_channels(columns, left, right):
    earlier, own = (causal_mask(3, 3, 3, 3, center, columns) for center in ("earlier", "earlier and own"))
    assert earlier.shape == own.shape == (3, 1, 3, 3)
    assert earlier[1, 0].tolist() == [[1, 1, 1], [left, 0, right], [0, 0, 0]]
    assert own[1, 0].tolist() == [[1, 1, 1], [left, 1, right], [0, 0, 0]]


@COLUMNS
def test_causal_mask_5x5_shows_two_rows_and_two_columns(columns, left, right):
    mask = causal_mask(3, 3, 5, 3, "earlier and own", columns)[2, 0]
    assert mask.tolist() == [[1] * 5, [1] * 5, [left, left, 1, right, right], [0] * 5, [0] * 5]


@pytest.mark.parametrize("columns", ["left", "right"])
def test_causal_mask_1x1_shows_own_and_earlier_groups(columns):
    mask = causal_mask(6, 2, 1, 1, "earlier and own", columns)[:, :, 0, 0]
    assert mask.tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("normalization", "saved"), [("none", {"original"}), ("exponential", {"original0", "original1"})]
)
def test_masked_convolution_does_not_save_its_mask(normalization, saved):
    convolution = masked_convolution(
        2, 4, 3, center="earlier", columns="right", mirrored=False, normalization=normalization
    )
    assert set(convolution.state_dict()) == {"bias"} | {f"parametrizations.weight.{name}" for name in saved}
