"""Flows are volume-preserving because every value sees only values before it."""

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
    """d output / d input with both in the causal order.

    Rows from above, columns from the side that is seen, then channels; a mirrored cell goes through the pixels the
    other way.
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
NORMALISATIONS = pytest.mark.parametrize("normalization", ["none", "linear", "exponential"])


@COLUMNS
@NORMALISATIONS
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("latents", [1, 2, 3, 5])
def test_a_cells_jacobian_is_triangular_with_ones_on_the_diagonal(latents, mirrored, normalization, columns):
    cell = build(FlowCell, latents, mirrored=mirrored, columns=columns, normalization=normalization)
    found = jacobian(cell, latents, columns, mirrored)
    assert torch.equal(found.triu(1), torch.zeros_like(found)), "a value sees itself or values after it"
    assert torch.equal(found.diagonal(), torch.ones(len(found), dtype=torch.float64))


@COLUMNS
@NORMALISATIONS
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("latents", [1, 2, 3, 5])
def test_a_cell_sees_the_row_above_the_columns_passed_and_every_earlier_channel(
    latents, mirrored, normalization, columns
):
    cell = build(FlowCell, latents, mirrored=mirrored, columns=columns, normalization=normalization)
    found = jacobian(cell, latents, columns, mirrored)
    by_place = found.view(SIDE, SIDE, latents, SIDE, SIDE, latents)  # places counted in causal order
    here, row_above = by_place[2, 2, :, 2, 2], by_place[2, 2, :, 1]  # (latents, latents), (latents, SIDE, latents)
    before = torch.ones(latents, latents).tril(-1).bool()
    assert (here[before] != 0).all()
    assert (row_above != 0).all()
    assert (by_place[2, 2, :, 2, :2] != 0).all()


def test_normalized_cells_have_a_bias_in_the_last_convolution_only():
    def with_bias(normalization):
        cell = FlowCell(2, mirrored=False, normalization=normalization)
        return [c.bias is not None for c in (cell.expand, cell.depthwise, cell.project)]

    assert with_bias("none") == [True, True, True]
    assert with_bias("linear") == with_bias("exponential") == [False, False, True]


@pytest.mark.parametrize(("normalization", "offset"), [("linear", 0.0), ("exponential", 1e-2)])
def test_a_normalized_flows_last_weight_starts_ten_times_smaller(normalization, offset):
    """So that the flow starts near the identity."""
    project = build(FlowCell, 3, mirrored=False, normalization=normalization).project
    v = project.parametrizations.weight.original1.detach()
    visible = (project.weight != 0).double()
    started = 0.1 * (v * visible).square().sum((1, 2, 3)).sqrt() + offset
    torch.testing.assert_close(project.weight.square().sum((1, 2, 3)).sqrt(), started, rtol=1e-4, atol=0)


@COLUMNS
@NORMALISATIONS
def test_the_mirror_of_a_cell_is_the_cell_in_a_picture_turned_round(normalization, columns):
    cell, mirror = (
        build(FlowCell, 3, mirrored=mirrored, columns=columns, normalization=normalization)
        for mirrored in (False, True)
    )
    turned = {name: value.flip(2, 3) if value.ndim == 4 else value for name, value in cell.state_dict().items()}
    mirror.load_state_dict(turned)
    z = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(mirror(z), cell(z.flip(2, 3)).flip(2, 3))


@COLUMNS
@NORMALISATIONS
@pytest.mark.parametrize("latents", [1, 2, 4])
@pytest.mark.parametrize("flows", [1, 2])
def test_a_whole_flow_preserves_volume_and_lets_every_side_be_seen(latents, flows, normalization, columns):
    found = jacobian(build(Flow, latents, flows, columns, normalization), latents, columns)
    sign, log_determinant = torch.linalg.slogdet(found)
    assert sign == 1
    assert abs(log_determinant) < 1e-10
    assert found.tril(-1).abs().max() > 1e-3
    assert found.triu(1).abs().max() > 1e-3, "no cell of the flow was mirrored"


@COLUMNS
def test_a_flow_gives_its_cells_what_it_was_given(columns):
    for cell in build(Flow, 2, 1, columns, "exponential"):
        assert set(cell.project.parametrizations.weight._parameters) == {"original0", "original1"}
    plain, mirrored = build(Flow, 2, 1, columns)
    for cell, turned in ((plain, False), (mirrored, True)):
        found = jacobian(cell, 2, columns, turned)
        assert torch.equal(found.triu(1), torch.zeros_like(found))


def test_a_flow_has_a_plain_and_a_mirrored_cell_per_pair():
    assert len(Flow(2, 3)) == 6
    assert len(Flow(2, 0)) == 0
    z = torch.ones(1, 2, 3, 3)
    assert torch.equal(Flow(2, 0)(z), z)


@NORMALISATIONS
def test_hidden_weights_stay_hidden_whatever_is_loaded_and_get_no_gradient(normalization):
    cell = build(FlowCell, 2, mirrored=False, normalization=normalization)
    z = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    before = cell(z)
    before.square().sum().backward()
    for convolution in (cell.expand, cell.depthwise, cell.project):
        assert parametrize.is_parametrized(convolution, "weight")
        weight = convolution.parametrizations.weight
        raw = weight.original if normalization == "none" else weight.original1
        hidden = convolution.weight == 0
        assert hidden.any()
        assert (raw.grad[hidden] == 0).all()
        assert (raw.grad[~hidden] != 0).any()
        with torch.no_grad():
            raw[hidden] = 1e6
    assert torch.equal(cell(z), before)
