import copy
import math
from typing import get_args

import pytest
import torch
from torch import nn

from nvae.optim import OPTIMIZERS, build_optimizer, load_optimizer, num_moments, orthogonalized, set_learning_rate
from nvae.schema import TrainingParameters

OPTIONS = {"optimizer_epsilon": 1e-5, "optimizer_betas": (0.7, 0.8), "weight_decay": 0.1}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 2))


def take_steps(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        images = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(step))
        model(images).square().sum().backward()
        optimizer.step()


def test_optimizers_are_those_of_the_schema():
    assert set(OPTIMIZERS) == set(get_args(TrainingParameters.model_fields["optimizer"].annotation))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_build_optimizer_takes_the_options_of_the_schedule(name):
    optimizer = build_optimizer(network(), TrainingParameters(optimizer=name, **OPTIONS))
    for group in optimizer.param_groups:
        assert (group["lr"], group["eps"], group["betas"], group["weight_decay"]) == (0.01, 1e-5, (0.7, 0.8), 0.1)
        assert group["rate_factor"] > 0
        assert len(group["param_names"]) == len(group["params"])


def test_learning_rate_of_a_group_is_the_rate_times_its_factor():
    optimizer = build_optimizer(network(), TrainingParameters(optimizer="muon"))
    optimizer.param_groups[1]["rate_factor"] = 0.5
    set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_load_optimizer_continues_every_group_and_keeps_the_options(name):
    schedule = TrainingParameters(optimizer=name, learning_rate=1e-3)
    model, again = network(), network()
    optimizer, other = build_optimizer(model, schedule), build_optimizer(again, schedule)
    take_steps(model, optimizer, 2)
    state = copy.deepcopy(optimizer.state_dict())
    for group in state["param_groups"]:
        group["lr"] = 7.0
    again.load_state_dict(model.state_dict())
    load_optimizer(other, state, schedule)
    assert {group["lr"] for group in other.param_groups} == {1e-3}
    take_steps(model, optimizer, 2)
    take_steps(again, other, 2)
    assert all(map(torch.equal, model.parameters(), again.parameters()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_load_optimizer_refuses_moments_of_another_shape(name):
    model = network()
    schedule = TrainingParameters(optimizer=name)
    optimizer = build_optimizer(model, schedule)
    take_steps(model, optimizer, 1)
    state = optimizer.state_dict()
    moment = next(key for key, value in state["state"][0].items() if value.dim())
    state["state"][0][moment] = state["state"][0][moment][:2]
    with pytest.raises(ValueError, match="shape"):
        load_optimizer(optimizer, state, schedule)


def test_num_moments_counts_what_an_optimizer_keeps_for_a_weight():
    assert {name: num_moments(TrainingParameters(optimizer=name)) for name in OPTIMIZERS} == {
        "adamax": 2,
        "adam": 2,
        "adamw": 2,
        "muon": 1,
    }


# ---------------------------------------------------------------------------------------------------------------- Muon


@pytest.mark.parametrize("shape", [(6, 6), (4, 30)])
def test_orthogonalized_has_singular_values_near_one_and_the_same_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalized(torch.stack([torch.zeros(shape), matrix, -matrix]))[1]
    assert torch.linalg.svdvals(result).sub(1).abs().max() < 0.35  # the five steps are made for speed
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ result @ v.T
    assert (rotated - rotated.diag().diag()).abs().max() < 1e-4


def test_muon_takes_kernels_and_adamw_the_rest():
    optimizer = build_optimizer(network(), TrainingParameters(optimizer="muon"))
    kernels, others = optimizer.param_groups
    assert kernels["param_names"] == ["0.weight", "3.weight"]
    assert others["param_names"] == ["0.bias", "1.weight", "1.bias", "3.bias"]


def test_muon_updates_what_is_no_kernel_as_adamw():
    schedules = [TrainingParameters(optimizer=name, learning_rate=1e-2) for name in ("muon", "adamw")]
    models = [network(), network()]
    for model, schedule in zip(models, schedules, strict=True):
        take_steps(model, build_optimizer(model, schedule), 1)
    by_name = [dict(model.named_parameters()) for model in models]
    assert torch.equal(by_name[0]["3.bias"], by_name[1]["3.bias"])
    assert not torch.equal(by_name[0]["3.weight"], by_name[1]["3.weight"])


def test_muon_step_of_a_kernel_is_the_formula():
    """Nesterov momentum of one step, orthogonalized, as large as an update of AdamW (Liu et al. 2025)."""
    model, rate, decay, beta = network(), 0.01, 0.1, 0.7
    schedule = TrainingParameters(optimizer="muon", learning_rate=rate, **OPTIONS)
    kernel = model[0].weight
    before = kernel.detach().clone()
    take_steps(model, build_optimizer(model, schedule), 1)
    gradient = kernel.grad.flatten(1)
    momentum = (1 - beta) * gradient
    update = orthogonalized(((1 - beta) * gradient + beta * momentum)[None])[0]
    expected = before * (1 - rate * decay) - rate * 0.2 * math.sqrt(27) * update.view_as(before)
    torch.testing.assert_close(kernel.detach(), expected)
    assert update.square().mean().sqrt().item() * 0.2 * math.sqrt(27) == pytest.approx(0.2, rel=0.3)


@pytest.mark.parametrize("numbers", [2**22, 50, 1])
def test_muon_step_of_many_matrices_is_that_of_each_alone(numbers, monkeypatch):
    monkeypatch.setattr("nvae.optim.BATCH_NUMBERS", numbers)
    schedule = TrainingParameters(optimizer="muon", learning_rate=0.01, **OPTIONS)
    shapes = [(4, 2, 3, 1), (6, 4), (4, 6, 1, 1), (4, 6), (5, 3, 3, 3), (24, 6), (6, 6, 2, 2)]
    draws = torch.Generator().manual_seed(0)
    together, alone = nn.ParameterList(), nn.ParameterList()
    for shape in shapes:
        values = torch.randn(shape, generator=draws)
        values = values.to(memory_format=torch.channels_last) if len(shape) == 4 else values
        together.append(values.clone())
        alone.append(values.clone())
    optimizers = [build_optimizer(part, schedule) for part in (together, *(nn.ParameterList([p]) for p in alone))]
    for _ in range(3):
        for one, other in zip(together, alone, strict=True):
            one.grad = torch.randn(one.shape, generator=draws)
            other.grad = one.grad.clone()
        together[-1].grad = alone[-1].grad = None
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert len(optimizers[0].state) == len(shapes) - 1


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
def test_muon_moves_a_matrix_as_torchs_own_which_computes_in_bfloat16():
    torch.manual_seed(0)
    ours, torchs = nn.Linear(8, 6, bias=False), nn.Linear(8, 6, bias=False)
    torchs.load_state_dict(ours.state_dict())
    before = ours.weight.detach().clone()
    schedule = TrainingParameters(optimizer="muon", learning_rate=0.1, optimizer_betas=(0.95, 0.999), weight_decay=0.1)
    optimizers = [
        build_optimizer(ours, schedule),
        torch.optim.Muon(torchs.parameters(), lr=0.1, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
    ]
    for model, optimizer in zip((ours, torchs), optimizers, strict=True):
        for step in range(3):
            optimizer.zero_grad()
            model(torch.eye(8) + step).pow(3).sum().backward()
            optimizer.step()
    moved = (ours.weight - before).norm()
    assert (ours.weight - torchs.weight).norm() < 0.05 * moved


@pytest.mark.parametrize("rank", [1, 4])
def test_matrices_of_low_rank_are_orthogonalized_as_in_float64(rank, generator):
    low = torch.randn(3, 16, rank, generator=generator) @ torch.randn(3, rank, 144, generator=generator)
    noisy = low + 1e-4 * torch.randn(3, 16, 144, generator=generator)
    for matrices in (low, noisy):
        torch.testing.assert_close(
            orthogonalized(matrices), orthogonalized(matrices.double()).float(), atol=1e-3, rtol=0
        )
