"""Flows preserve volume, because every value depends only on earlier values."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils import parametrize

from nvae.models.nvae.flows import Flow, FlowCell

SIDE = 4


def build(kind: type, *arguments, **options) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return kind(*arguments, **options).double()


def jacobian(flow: torch.nn.Module, latents: int, columns: str = "right", mirrored: bool = False) -> torch.Tensor:
    """Return d output / d input, both in causal order: rows from the top, columns from the visible side, channels.

    The order of pixels is reversed for a mirrored cell.
    """
    z = torch.randn(1, latents, SIDE, SIDE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    size = z.numel()
    full = torch.autograd.functional.jacobian(flow, z, vectorize=True).reshape(size, size)
    position = torch.arange(size).view(latents, SIDE, SIDE).permute(1, 2, 0)  # (row, column, channel)
    if columns == "right":
        position = position.flip(1)
    order = (position.flip(0, 1) if mirrored else position).flatten()
    return full[order][:, order]


COLUMNS = pytest.mark.parametrize("columns", ["left", "right"])
NORMALIZATIONS = pytest.mark.parametrize("normalization", ["none", "linear", "exponential"])


@COLUMNS
@NORMALIZATIONS
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("latents", [1, 2, 3, 5])
def test_flow_cell_jacobian_is_triangular_with_a_unit_diagonal(latents, mirrored, normalization, columns):
    cell = build(FlowCell, latents, mirrored=mirrored, columns=columns, normalization=normalization)
    derivatives = jacobian(cell, latents, columns, mirrored)
    assert torch.equal(derivatives.triu(1), torch.zeros_like(derivatives)), (
        "a value depends on itself or on later values"
    )
    assert torch.equal(derivatives.diagonal(), torch.ones(len(derivatives), dtype=torch.float64))


@COLUMNS
@NORMALIZATIONS
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("latents", [1, 2, 3, 5])
def test_flow_cell_depends_on_all_earlier_values(latents, mirrored, normalization, columns):
    cell = build(FlowCell, latents, mirrored=mirrored, columns=columns, normalization=normalization)
    derivatives = jacobian(cell, latents, columns, mirrored)
    by_place = derivatives.view(SIDE, SIDE, latents, SIDE, SIDE, latents)  # places in causal order
    here, row_above = by_place[2, 2, :, 2, 2], by_place[2, 2, :, 1]  # (latents, latents), (latents, SIDE, latents)
    earlier = torch.ones(latents, latents).tril(-1).bool()
    assert (here[earlier] != 0).all()
    assert (row_above != 0).all()
    assert (by_place[2, 2, :, 2, :2] != 0).all()


def test_flow_cell_with_normalization_has_a_bias_in_the_last_convolution_only():
    def with_bias(normalization):
        cell = FlowCell(2, mirrored=False, normalization=normalization)
        return [c.bias is not None for c in (cell.expand, cell.depthwise, cell.project)]

    assert with_bias("none") == [True, True, True]
    assert with_bias("linear") == with_bias("exponential") == [False, False, True]


@pytest.mark.parametrize(("normalization", "offset"), [("linear", 0.0), ("exponential", 1e-2)])
def test_flow_cell_with_normalization_starts_with_a_small_last_weight(normalization, offset):
    """The flow starts near the identity."""
    project = build(FlowCell, 3, mirrored=False, normalization=normalization).project
    v = project.parametrizations.weight.original1.detach()
    visible = (project.weight != 0).double()
    initial = 0.1 * (v * visible).square().sum((1, 2, 3)).sqrt() + offset
    torch.testing.assert_close(project.weight.square().sum((1, 2, 3)).sqrt(), initial, rtol=1e-4, atol=0)


@COLUMNS
@NORMALIZATIONS
def test_flow_cell_mirrored_equals_the_cell_on_a_flipped_image(normalization, columns):
    cell, mirror = (
        build(FlowCell, 3, mirrored=mirrored, columns=columns, normalization=normalization)
        for mirrored in (False, True)
    )
    flipped = {name: value.flip(2, 3) if value.ndim == 4 else value for name, value in cell.state_dict().items()}
    mirror.load_state_dict(flipped)
    z = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(mirror(z), cell(z.flip(2, 3)).flip(2, 3))


@COLUMNS
@NORMALIZATIONS
@pytest.mark.parametrize("latents", [1, 2, 4])
@pytest.mark.parametrize("flows", [1, 2])
def test_flow_preserves_volume_and_mixes_in_both_directions(latents, flows, normalization, columns):
    derivatives = jacobian(build(Flow, latents, flows, columns, normalization), latents, columns)
    sign, log_determinant = torch.linalg.slogdet(derivatives)
    assert sign == 1
    assert abs(log_determinant) < 1e-10
    assert derivatives.tril(-1).abs().max() > 1e-3
    assert derivatives.triu(1).abs().max() > 1e-3, "no cell of the flow is mirrored"


@COLUMNS
def test_flow_passes_its_options_to_the_cells(columns):
    for cell in build(Flow, 2, 1, columns, "exponential"):
        assert set(cell.project.parametrizations.weight._parameters) == {"original0", "original1"}
    plain, mirrored = build(Flow, 2, 1, columns)
    for cell, is_mirrored in ((plain, False), (mirrored, True)):
        derivatives = jacobian(cell, 2, columns, is_mirrored)
        assert torch.equal(derivatives.triu(1), torch.zeros_like(derivatives))


def test_flow_has_two_cells_per_pair():
    assert len(Flow(2, 3)) == 6
    assert len(Flow(2, 0)) == 0
    z = torch.ones(1, 2, 3, 3)
    assert torch.equal(Flow(2, 0)(z), z)


@NORMALIZATIONS
def test_flow_masked_weights_have_no_effect_and_no_gradient(normalization):
    cell = build(FlowCell, 2, mirrored=False, normalization=normalization)
    z = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    before = cell(z)
    before.square().sum().backward()
    for convolution in (cell.expand, cell.depthwise, cell.project):
        assert parametrize.is_parametrized(convolution, "weight")
        weight = convolution.parametrizations.weight
        raw = weight.original if normalization == "none" else weight.original1
        masked = convolution.weight == 0
        assert masked.any()
        assert (raw.grad[masked] == 0).all()
        assert (raw.grad[~masked] != 0).any()
        with torch.no_grad():
            raw[masked] = 1e6
    assert torch.equal(cell(z), before)
