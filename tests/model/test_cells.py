"""Residual cells: the fast ways of computing them give the numbers of the definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from nvae.model.cells import (
    BatchNorm,
    BatchNormSwish,
    CellStack,
    DoublingSkip,
    HalvingSkip,
    InvertedResidualCell,
    ResidualCell,
    SqueezeExcitation,
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(kind: type, *arguments) -> nn.Module:
    """A module in float64 whose every parameter, ones and zeros included, is random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        module = kind(*arguments).double()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
    return module


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def plain_norm(norm: BatchNorm) -> nn.BatchNorm2d:
    """torch's own batch norm with the settings of the paper's code and the parameters and statistics of ours."""
    plain = nn.BatchNorm2d(norm.num_features, eps=1e-5, momentum=0.05).double().train(norm.training)
    plain.load_state_dict(norm.state_dict())
    return plain


def assert_same_statistics(ours: nn.BatchNorm2d, theirs: nn.BatchNorm2d) -> None:
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_batch_norm_of_repeated_values_is_torchs_of_the_doubled_image():
    ours = build(BatchNorm, 3, 4)
    theirs = plain_norm(ours)
    for step in range(3):  # the statistics must stay together step after step
        x = random(2, 3, 2, 3, seed=step) * (step + 1) + step
        torch.testing.assert_close(doubled(ours(x)), theirs(doubled(x)))
        assert_same_statistics(ours, theirs)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(doubled(ours(x)), theirs(doubled(x)))


def test_batch_norm_of_repeated_values_has_the_gradients_of_the_doubled_image():
    ours = build(BatchNorm, 3, 4)
    theirs = plain_norm(ours)
    weighting = random(2, 3, 4, 6, seed=1)
    gradients = []
    for compute, norm in ((lambda x: doubled(ours(x)), ours), (lambda x: theirs(doubled(x)), theirs)):
        x = random(2, 3, 2, 3).requires_grad_()
        (compute(x) * weighting).sum().backward()
        gradients.append((x.grad, norm.weight.grad, norm.bias.grad))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("repeats", [1, 4])
def test_batch_norm_swish_is_batch_norm_then_swish(repeats):
    ours = build(BatchNormSwish, 3, repeats)
    h = plain_norm(ours)(random(2, 3, 4, 4))
    torch.testing.assert_close(ours(random(2, 3, 4, 4)), h * torch.sigmoid(h))


def test_squeeze_excitation_gates_channels_by_their_means():
    gate = build(SqueezeExcitation, 4, 2)
    x = random(3, 4, 5, 5)
    hidden = (x.mean((2, 3)) @ gate.squeeze.weight.T + gate.squeeze.bias).clamp(min=0)
    expected = 1 / (1 + torch.exp(-(hidden @ gate.excite.weight.T + gate.excite.bias)))
    assert gate(x).shape == (3, 4, 1, 1)
    torch.testing.assert_close(gate(x)[:, :, 0, 0], expected)
    torch.testing.assert_close(gate(x), gate(x.flip(2, 3)), msg="where a value stands must not matter")


def test_halving_skip_is_its_four_strided_convolutions_of_the_swish():
    skip = build(HalvingSkip, 3, 8)
    x = random(2, 3, 6, 4)
    swish = x * torch.sigmoid(x)
    expected = torch.cat([convolution(swish) for convolution in skip.convolutions], dim=1)
    assert [c.out_channels for c in skip.convolutions] == [2, 2, 2, 2]
    assert expected.shape == (2, 8, 3, 2)
    torch.testing.assert_close(skip(x), expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4)])
def test_doubling_skip_is_interpolation_then_convolution(size):
    skip = build(DoublingSkip, 3, 5)
    x = random(2, 3, *size)
    expected = skip.convolution(nn.UpsamplingBilinear2d(scale_factor=2)(x))  # which aligns corners
    torch.testing.assert_close(skip(x), expected)


@pytest.mark.parametrize(("resample", "out_channels"), [(None, 4), ("halve", 8)])
@pytest.mark.parametrize("training", [True, False])
def test_a_residual_cell_is_skip_plus_a_tenth_of_the_gated_branch(resample, out_channels, training):
    cell = build(ResidualCell, 4, out_channels, resample).train(training)
    norm1, norm2 = plain_norm(cell.norm1), plain_norm(cell.norm2)
    x = random(3, 4, 6, 6)
    h = functional.silu(norm1(x))
    h = functional.conv2d(h, cell.conv1.weight, cell.conv1.bias, stride=2 if resample else 1, padding=1)
    h = functional.silu(norm2(h))
    h = functional.conv2d(h, cell.conv2.weight, cell.conv2.bias, padding=1)
    expected = cell.skip(x) + 0.1 * cell.gate(h) * h
    torch.testing.assert_close(cell(x), expected)
    assert_same_statistics(cell.norm1, norm1)
    assert_same_statistics(cell.norm2, norm2)


def test_a_cell_that_keeps_the_resolution_has_the_identity_for_a_skip():
    x = random(3, 4, 6, 6)
    for cell in (build(ResidualCell, 4, 4), build(InvertedResidualCell, 4, 4, 2)):
        assert torch.equal(cell.skip(x), x)


@pytest.mark.parametrize(("resample", "out_channels"), [(None, 4), ("double", 2)])
@pytest.mark.parametrize("training", [True, False])
def test_an_inverted_residual_cell_equals_its_definition_in_the_naive_order(resample, out_channels, training):
    """The definition doubles first and normalises the big image; the cell does cheap things first."""
    cell = build(InvertedResidualCell, 4, out_channels, 3, resample).train(training)
    norms = [plain_norm(norm) for norm in (cell.norm1, cell.norm2, cell.norm3, cell.norm4)]
    x = random(2, 4, 5, 3)
    h = norms[0](doubled(x) if resample else x)
    h = functional.silu(norms[1](functional.conv2d(h, cell.expand.weight)))
    h = functional.silu(norms[2](functional.conv2d(h, cell.spread.weight, padding=2, groups=12)))
    h = norms[3](functional.conv2d(h, cell.project.weight))
    skip = cell.skip.convolution(nn.UpsamplingBilinear2d(scale_factor=2)(x)) if resample else x
    torch.testing.assert_close(cell(x), skip + 0.1 * cell.gate(h) * h)
    for ours, theirs in zip((cell.norm1, cell.norm2, cell.norm3, cell.norm4), norms, strict=True):
        assert_same_statistics(ours, theirs)


def stack() -> CellStack:
    return build(
        CellStack,
        ResidualCell(4, 8, "halve"),
        ResidualCell(8, 8),
        InvertedResidualCell(8, 8, 2),
        InvertedResidualCell(8, 4, 2, "double"),
    ).float()


@pytest.mark.parametrize("training", [True, False])
def test_recomputing_activations_changes_no_number(training):
    plain = stack().train(training)
    recomputing = copy.deepcopy(plain)
    recomputing.recompute = True
    results = []
    for cells in (plain, recomputing):
        x = random(3, 4, 8, 8, dtype=torch.float32).requires_grad_()
        for _ in range(2):
            y = cells(x)
            y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in cells.parameters()), *cells.buffers()])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)
    if training:
        assert not torch.equal(plain[0].norm1.running_mean, torch.zeros(4)), "there was nothing to compare"


def test_recomputing_happens_once_per_cell_and_only_for_gradients():
    cells = stack()
    calls = []
    for cell in cells:
        cell.register_forward_pre_hook(lambda module, _: calls.append(module))
    cells.recompute = True
    x = random(3, 4, 8, 8, dtype=torch.float32)
    y = cells(x)
    assert len(calls) == 4
    y.sum().backward()
    assert len(calls) == 8
    calls.clear()
    with torch.no_grad():
        cells(x)
    assert len(calls) == 4


def test_batch_norms_note_their_statistics_again_after_a_recomputation():
    cells = stack()
    cells.recompute = True
    cells(random(3, 4, 8, 8, dtype=torch.float32)).sum().backward()
    before = {name: buffer.clone() for name, buffer in cells.named_buffers() if name.endswith("running_mean")}
    cells(random(3, 4, 8, 8, seed=1, dtype=torch.float32))
    assert before
    for name, buffer in cells.named_buffers():
        if name in before:
            assert not torch.equal(buffer, before[name]), name
