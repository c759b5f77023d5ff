from typing import get_args

import pytest
import torch

from nvae.optim import OPTIMIZERS, build_optimizer
from nvae.schema import TrainingParameters


def test_optimizers_are_those_of_the_schema():
    assert set(OPTIMIZERS) == set(get_args(TrainingParameters.model_fields["optimizer"].annotation))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_build_optimizer_keeps_the_moments_of_its_entry(name):
    model = torch.nn.Linear(3, 2)
    schedule = TrainingParameters(optimizer=name, optimizer_epsilon=1e-5, optimizer_betas=(0.7, 0.8), weight_decay=0.1)
    optimizer = build_optimizer(model, schedule)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["eps"], group["betas"], group["weight_decay"]) == (0.01, 1e-5, (0.7, 0.8), 0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        assert state.keys() == {"step", *OPTIMIZERS[name].moments}
        assert all(state[moment].shape == parameter.shape for moment in OPTIMIZERS[name].moments)
