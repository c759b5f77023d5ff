"""Residual cells: the fast computations give the numbers of the definitions."""

from __future__ import annotations

import copy
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from nvae.models.nvae.cells import (
    CellOptions,
    CellStack,
    FactorizedReduce,
    InvertedResidualCell,
    ResidualCell,
    SqueezeExcitation,
    Swish,
    UpsampleSkip,
    batch_norm,
    cell_types,
    normalize_before_upsampling,
)
from nvae.models.nvae.config import ArchInstance
from nvae.models.nvae.convolutions import SpectralNorm

SEED = CellOptions()
ORIGINAL = CellOptions(
    normalization="exponential", squeeze_excitation="sixteenth", downsample_skip="shifted", upsample_skip_bias=False
)
SPECTRAL = CellOptions(normalization="spectral", inverted_normalization="spectral")
BOTH_STYLES = pytest.mark.parametrize("options", [SEED, ORIGINAL], ids=["mgp123", "nvlabs"])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def build(kind: type, *arguments, **options) -> nn.Module:
    """Build a float64 module with random values in all parameters, also where the initial values are ones or zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        module = kind(*arguments, **options).double()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
    return module


def upsampled(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def plain_norm(norm: nn.Module) -> nn.BatchNorm2d:
    """Return a new batch norm with the original's settings and the parameters and statistics of `norm`."""
    plain = nn.BatchNorm2d(norm.num_features, eps=1e-5, momentum=0.05).double().train(norm.training)
    plain.load_state_dict(norm.state_dict())
    return plain


def assert_same_statistics(ours: nn.BatchNorm2d, theirs: nn.BatchNorm2d) -> None:
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_normalize_before_upsampling_equals_normalizing_the_upsampled_image():
    ours = build(batch_norm, 3)
    theirs = plain_norm(ours)
    for step in range(3):  # the running statistics must agree after every step
        x = random(2, 3, 2, 3, seed=step) * (step + 1) + step
        torch.testing.assert_close(upsampled(normalize_before_upsampling(ours, x, 4)), theirs(upsampled(x)))
        assert_same_statistics(ours, theirs)
        assert ours.num_batches_tracked == theirs.num_batches_tracked
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(upsampled(normalize_before_upsampling(ours, x, 4)), theirs(upsampled(x)))


def test_normalize_before_upsampling_has_the_gradients_of_the_upsampled_image():
    ours = build(batch_norm, 3)
    theirs = plain_norm(ours)
    weighting = random(2, 3, 4, 6, seed=1)
    gradients = []
    for compute, norm in (
        (lambda x: upsampled(normalize_before_upsampling(ours, x, 4)), ours),
        (lambda x: theirs(upsampled(x)), theirs),
    ):
        x = random(2, 3, 2, 3).requires_grad_()
        (compute(x) * weighting).sum().backward()
        gradients.append((x.grad, norm.weight.grad, norm.bias.grad))
    for actual, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("resample", [None, "upsample"])
def test_cell_converted_to_sync_batch_norm_is_unchanged(resample, training):
    """In one process, torch's conversion to synchronized batch norms changes no number."""
    for cell in (
        build(InvertedResidualCell, 4, 4, SEED, resample, expansion=3),
        build(ResidualCell, 4, 4, SEED, resample, activation="bnelu"),
    ):
        converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(cell)).train(training)
        norms = [m for m in converted.modules() if isinstance(m, nn.SyncBatchNorm)]
        assert len(norms) == sum(isinstance(m, nn.BatchNorm2d) for m in cell.modules()) > 0
        for seed in range(2):
            x = random(2, 4, 6, 4, seed=seed)
            torch.testing.assert_close(converted(x), cell.train(training)(x))
        for (name, ours), theirs in zip(converted.state_dict().items(), cell.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, msg=name)


def test_swish_is_x_times_sigmoid_and_in_place_only_without_gradient():
    x = random(2, 3, 4, 4)
    expected = x * torch.sigmoid(x)
    y = Swish()(x.requires_grad_())
    torch.testing.assert_close(y, expected)
    assert y.data_ptr() != x.data_ptr()
    with torch.no_grad():
        assert Swish()(x).data_ptr() == x.data_ptr()


def test_squeeze_excitation_is_a_function_of_channel_means():
    se = build(SqueezeExcitation, 4, 2)
    x = random(3, 4, 5, 5)
    hidden = (x.mean((2, 3)) @ se.squeeze.weight.T + se.squeeze.bias).clamp(min=0)
    expected = 1 / (1 + torch.exp(-(hidden @ se.excite.weight.T + se.excite.bias)))
    assert se(x).shape == (3, 4, 1, 1)
    torch.testing.assert_close(se(x)[:, :, 0, 0], expected)
    torch.testing.assert_close(se(x), se(x.flip(2, 3)), msg="the result depends on the positions of values")


@pytest.mark.parametrize(
    ("width", "channels", "hidden"),
    [("half", 4, 2), ("half", 128, 64), ("sixteenth", 4, 4), ("sixteenth", 64, 4), ("sixteenth", 128, 8)],
)
def test_squeeze_excitation_hidden_width(width, channels, hidden):
    options = CellOptions(squeeze_excitation=width)
    for cell in (
        ResidualCell(8, channels, options, "downsample"),
        InvertedResidualCell(8, channels, options, "upsample", expansion=1),
    ):
        assert (cell.se.squeeze.in_features, cell.se.squeeze.out_features) == (channels, hidden)
        assert (cell.se.excite.in_features, cell.se.excite.out_features) == (hidden, channels)


@pytest.mark.parametrize("resample", [None, "downsample"])
def test_cell_without_squeeze_excitation_is_skip_plus_a_tenth_of_the_branch(resample):
    options = CellOptions(squeeze_excitation="none")
    for cell in (
        build(ResidualCell, 4, 4, options, resample).eval(),
        build(InvertedResidualCell, 4, 4, options, resample, expansion=2).eval(),
    ):
        x = random(2, 4, 6, 6)
        assert not any(".se." in f".{name}" for name, _ in cell.named_parameters())
        assert cell.branch(x).abs().max() > 0.1
        torch.testing.assert_close(cell(x), cell.skip(x) + 0.1 * cell.branch(x))


@pytest.mark.parametrize("normalization", ["none", "linear", "exponential", "spectral"])
def test_factorized_reduce_aligned_is_four_strided_convolutions(normalization):
    skip = build(FactorizedReduce, 3, 8, CellOptions(normalization=normalization)).eval()
    x = random(2, 3, 6, 4)
    swish = x * torch.sigmoid(x)
    expected = torch.cat([convolution(swish)[:, :, ::2, ::2] for convolution in skip.convolutions], dim=1)
    assert [c.out_channels for c in skip.convolutions] == [2, 2, 2, 2]
    assert expected.shape == (2, 8, 3, 2)
    torch.testing.assert_close(skip(x), expected)


@pytest.mark.parametrize("size", [(6, 4), (2, 2)])
def test_factorized_reduce_shifted_sees_the_four_pixels_of_each_square(size):
    """The top left, bottom right, top right and bottom left pixel, for a quarter of the channels each."""
    skip = build(FactorizedReduce, 3, 8, CellOptions(normalization="exponential", downsample_skip="shifted"))
    x = random(2, 3, *size)
    y = skip(x)
    assert y.shape == (2, 8, size[0] // 2, size[1] // 2)
    for row in range(size[0] // 2):
        for column in range(size[1] // 2):
            for number, (down, right) in enumerate([(0, 0), (1, 1), (0, 1), (1, 0)]):
                pixel = x[:, :, 2 * row + down, 2 * column + right]  # (B, 3)
                convolution = skip.convolutions[number]
                expected = (pixel * torch.sigmoid(pixel)) @ convolution.weight[:, :, 0, 0].T + convolution.bias
                torch.testing.assert_close(y[:, 2 * number : 2 * number + 2, row, column], expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normalization", ["none", "linear", "exponential", "spectral"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4, 4)])
def test_upsample_skip_is_interpolation_then_convolution(size, normalization, bias):
    options = CellOptions(normalization=normalization, upsample_skip_bias=bias)
    skip = build(UpsampleSkip, 3, 5, options).eval()
    assert (skip.convolution.bias is not None) == bias
    x = random(2, 3, *size)
    expected = skip.convolution(nn.UpsamplingBilinear2d(scale_factor=2)(x))  # with aligned corners
    torch.testing.assert_close(skip(x), expected)


@BOTH_STYLES
@pytest.mark.parametrize(("resample", "out_channels"), [(None, 4), ("downsample", 8)])
@pytest.mark.parametrize("training", [True, False])
def test_residual_cell_matches_its_definition(resample, out_channels, training, options):
    cell = build(ResidualCell, 4, out_channels, options, resample).train(training)
    norm1, norm2 = plain_norm(cell.norm1), plain_norm(cell.norm2)
    x = random(3, 4, 6, 6)
    h = functional.silu(norm1(x))
    h = functional.conv2d(h, cell.conv1.weight, cell.conv1.bias, stride=2 if resample else 1, padding=1)
    h = functional.silu(norm2(h))
    h = functional.conv2d(h, cell.conv2.weight, cell.conv2.bias, padding=1)
    expected = cell.skip(x) + 0.1 * cell.se(h) * h
    torch.testing.assert_close(cell(x), expected)
    assert_same_statistics(cell.norm1, norm1)
    assert_same_statistics(cell.norm2, norm2)


def test_cell_without_resampling_has_an_identity_skip():
    x = random(3, 4, 6, 6)
    for cell in (build(ResidualCell, 4, 4, SEED), build(InvertedResidualCell, 4, 4, SEED, expansion=2)):
        assert torch.equal(cell.skip(x), x)


@pytest.mark.parametrize("training", [True, False])
def test_residual_cell_upsamples_between_activation_and_convolution(training):
    cell = build(ResidualCell, 4, 2, ORIGINAL, "upsample").train(training)
    norm1, norm2 = plain_norm(cell.norm1), plain_norm(cell.norm2)
    x = random(3, 4, 3, 5)
    h = functional.conv2d(upsampled(functional.silu(norm1(x))), cell.conv1.weight, cell.conv1.bias, padding=1)
    h = functional.conv2d(functional.silu(norm2(h)), cell.conv2.weight, cell.conv2.bias, padding=1)
    torch.testing.assert_close(cell(x), cell.skip(x) + 0.1 * cell.se(h) * h)
    assert_same_statistics(cell.norm1, norm1)
    assert_same_statistics(cell.norm2, norm2)


@pytest.mark.parametrize("dilations", [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize(("resample", "out_channels"), [(None, 4), ("downsample", 8), ("upsample", 2)])
def test_residual_cell_with_dilations_matches_a_5x5_kernel_with_zeros(resample, out_channels, dilations):
    """A dilated 3x3 convolution is a 5x5 convolution whose kernel has zeros between its entries."""
    cell = build(ResidualCell, 4, out_channels, SEED, resample, dilations=dilations).eval()

    def convolve(h, convolution, dilation, stride):
        kernel = convolution.weight
        if dilation == 2:
            kernel = kernel.new_zeros(*kernel.shape[:2], 5, 5)
            kernel[:, :, ::2, ::2] = convolution.weight
        return functional.conv2d(h, kernel, convolution.bias, stride, padding=dilation)

    x = random(2, 4, 6, 8)
    h = functional.silu(plain_norm(cell.norm1)(x))
    h = upsampled(h) if resample == "upsample" else h
    h = convolve(h, cell.conv1, dilations[0], 2 if resample == "downsample" else 1)
    h = convolve(functional.silu(plain_norm(cell.norm2)(h)), cell.conv2, dilations[1], 1)
    torch.testing.assert_close(cell(x), cell.skip(x) + 0.1 * cell.se(h) * h)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("resample", "out_channels"), [(None, 4), ("downsample", 8), ("upsample", 2)])
def test_residual_cell_with_elu_matches_its_definition(resample, out_channels, normalize):
    activation = "bnelu" if normalize else "elu"
    cell = build(ResidualCell, 4, out_channels, SEED, resample, activation=activation).eval()
    assert any(isinstance(m, nn.BatchNorm2d) for m in cell.modules()) == normalize
    x = random(2, 4, 6, 8)

    def activate(h, norm):
        h = plain_norm(norm)(h) if normalize else h
        return torch.where(h > 0, h, torch.expm1(h))

    h = activate(x, cell.norm1)
    h = upsampled(h) if resample == "upsample" else h
    stride = 2 if resample == "downsample" else 1
    h = functional.conv2d(h, cell.conv1.weight, cell.conv1.bias, stride, padding=1)
    h = functional.conv2d(activate(h, cell.norm2), cell.conv2.weight, cell.conv2.bias, padding=1)
    torch.testing.assert_close(cell(x), cell.skip(x) + 0.1 * cell.se(h) * h)


@BOTH_STYLES
@pytest.mark.parametrize(
    ("kernel_size", "groups"), [(5, None), (11, None), (5, 4)], ids=["depthwise 5x5", "depthwise 11x11", "4 groups"]
)
@pytest.mark.parametrize(("resample", "out_channels"), [(None, 4), ("upsample", 2), ("downsample", 8)])
@pytest.mark.parametrize("training", [True, False])
def test_inverted_residual_cell_matches_its_definition(resample, out_channels, training, kernel_size, groups, options):
    """The definition upsamples first; the cell computes some layers at the lower resolution."""
    cell = build(
        InvertedResidualCell, 4, out_channels, options, resample, expansion=3, kernel_size=kernel_size, groups=groups
    ).train(training)
    norms = [plain_norm(norm) for norm in (cell.norm1, cell.norm2, cell.norm3, cell.norm4)]
    x = random(2, 4, 6, 4)
    h = norms[0](upsampled(x) if resample == "upsample" else x)
    h = functional.silu(norms[1](functional.conv2d(h, cell.expand.weight)))
    stride = 2 if resample == "downsample" else 1
    h = functional.conv2d(h, cell.depthwise.weight, None, stride, kernel_size // 2, groups=groups or 12)
    h = functional.silu(norms[2](h))
    h = norms[3](functional.conv2d(h, cell.project.weight))
    skip = cell.skip.convolution(nn.UpsamplingBilinear2d(scale_factor=2)(x)) if resample == "upsample" else cell.skip(x)
    torch.testing.assert_close(cell(x), skip + 0.1 * cell.se(h) * h)
    for ours, theirs in zip((cell.norm1, cell.norm2, cell.norm3, cell.norm4), norms, strict=True):
        assert_same_statistics(ours, theirs)


@pytest.mark.parametrize(
    ("options", "residual", "inverted"),
    [(SEED, 0, 0), (ORIGINAL, 3, 1), (SPECTRAL, 3, 4)],
    ids=["none", "exponential", "spectral"],
)
def test_cell_options_normalize_residual_and_inverted_cells_separately(options, residual, inverted):
    """In the original, the skip is the only normalized part of an inverted cell."""

    def normalized(cell):
        return sum(nn.utils.parametrize.is_parametrized(m, "weight") for m in cell.modules())

    assert normalized(ResidualCell(4, 2, options, "upsample")) == residual
    assert normalized(InvertedResidualCell(4, 2, options, "upsample", expansion=2)) == inverted


# ---------------------------------------------------------------------------------------------- types of cells


def residual(activation: str = "bnswish", dilations: tuple[int, int] = (1, 1)) -> tuple:
    return "residual", activation, dilations


def inverted(expansion: int, kernel_size: int = 5, groups: int | None = None) -> tuple:
    return "inverted", expansion, kernel_size, groups


def description(cell: nn.Module) -> tuple:
    """Return the type of a cell, derived from its layers."""
    if isinstance(cell, ResidualCell):
        assert cell.conv1.kernel_size == cell.conv2.kernel_size == (3, 3)
        assert type(cell.norm1) is type(cell.norm2)
        activation = "bn" if isinstance(cell.norm1, nn.BatchNorm2d) else ""
        activation += {nn.ELU: "elu", Swish: "swish"}[type(cell.act)]
        return residual(activation, (cell.conv1.dilation[0], cell.conv2.dilation[0]))
    channels, expanded = cell.expand.in_channels, cell.expand.out_channels
    groups = None if cell.depthwise.groups == expanded else cell.depthwise.groups
    return inverted(expanded // channels, cell.depthwise.kernel_size[0], groups)


# Pre-processing, encoder, decoder, post-processing (shared/reference/README.md).
TYPES = {
    "res_mbconv": (residual(), residual(), inverted(6), inverted(3)),
    "res_elu": (residual("elu"),) * 4,
    "res_bnelu": (residual("bnelu"),) * 4,
    "res_bnswish": (residual(),) * 4,
    "mbconv_sep": (inverted(3), inverted(6), inverted(6), inverted(3)),
    "mbconv_sep11": (inverted(3), inverted(6, 11), inverted(6, 11), inverted(3)),
    "res53_mbconv": (residual(dilations=(2, 1)), residual(dilations=(2, 1)), inverted(6), inverted(3)),
    "res35_mbconv": (residual(dilations=(1, 2)), residual(dilations=(1, 2)), inverted(6), inverted(3)),
    "res55_mbconv": (residual(dilations=(2, 2)), residual(dilations=(2, 2)), inverted(6), inverted(3)),
    "mbconv_res": (inverted(3), inverted(6), residual(), residual()),
    "mbconv_den": (inverted(3, groups=8), inverted(6), inverted(6), inverted(3, groups=8)),
}
PARTS = ("preprocess", "encoder", "decoder", "postprocess")


@BOTH_STYLES
@pytest.mark.parametrize("name", get_args(ArchInstance))
def test_cell_types_match_the_original_and_resample(name, options):
    types = cell_types(name)
    for part, expected in zip(PARTS, TYPES[name], strict=True):
        for resample, out_channels, side in ((None, 8, 8), ("downsample", 16, 4), ("upsample", 4, 16)):
            cell = getattr(types, part)(8, out_channels, options, resample)
            assert description(cell) == expected, part
            y = cell(random(2, 8, 8, 8, dtype=torch.float32))
            assert y.shape == (2, out_channels, side, side), (part, resample)
            assert y.isfinite().all()


# --------------------------------------------------------------------------------------------------- recomputing


STACK_OPTIONS = pytest.mark.parametrize("options", [SEED, ORIGINAL, SPECTRAL], ids=["mgp123", "nvlabs", "spectral"])


def stack(options: CellOptions = SEED) -> CellStack:
    return build(
        CellStack,
        ResidualCell(4, 8, options, "downsample"),
        ResidualCell(8, 8, options, activation="bnelu"),
        InvertedResidualCell(8, 8, options, expansion=2),
        InvertedResidualCell(8, 4, options, "upsample", expansion=2),
    ).float()


@STACK_OPTIONS
@pytest.mark.parametrize("training", [True, False])
def test_cell_stack_recompute_changes_no_number(training, options):
    plain = stack(options).train(training)
    before = [vector.clone() for norm in plain.modules() if isinstance(norm, SpectralNorm) for vector in norm.buffers()]
    assert bool(before) == (options is SPECTRAL)
    recomputing = copy.deepcopy(plain)
    recomputing.recompute = True
    results = []
    for cells in (plain, recomputing):
        x = random(3, 4, 8, 8, dtype=torch.float32).requires_grad_()
        for _ in range(2):
            y = cells(x)
            y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in cells.parameters()), *cells.buffers()])
    for recomputed, expected in zip(*results, strict=True):
        assert torch.equal(recomputed, expected)
    if training:
        assert not torch.equal(plain[0].norm1.running_mean, torch.zeros(4)), "the statistics did not change"
    after = [vector for norm in plain.modules() if isinstance(norm, SpectralNorm) for vector in norm.buffers()]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new) != training, "power iteration must run in training only"


def test_cell_stack_recompute_keeps_the_training_mode():
    cells = stack(SPECTRAL)
    cells.recompute = True
    cells(random(3, 4, 8, 8, dtype=torch.float32)).sum().backward()
    assert all(module.training for module in cells.modules())
    cells.eval()
    cells(random(3, 4, 8, 8, dtype=torch.float32)).sum().backward()
    assert not any(module.training for module in cells.modules())


def test_cell_stack_recomputes_each_cell_once_and_only_for_gradients():
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


def test_cell_stack_batch_norms_update_after_a_recomputation():
    cells = stack()
    cells.recompute = True
    cells(random(3, 4, 8, 8, dtype=torch.float32)).sum().backward()
    before = {name: buffer.clone() for name, buffer in cells.named_buffers() if name.endswith("running_mean")}
    cells(random(3, 4, 8, 8, seed=1, dtype=torch.float32))
    assert before
    for name, buffer in cells.named_buffers():
        if name in before:
            assert not torch.equal(buffer, before[name]), name
