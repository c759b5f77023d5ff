"""A model distributed over the processes of a group, of which these tests have one."""

import warnings
from contextlib import nullcontext
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn

from nvae.models.families import build_model
from nvae.system.errors import InvalidValueError
from nvae.system.ranks import Ranks, joined_ranks

from ..training.helpers import DVP, LADDER, NVLABS

RANKS = Ranks(0, 2)  # of one process: DistributedDataParallel is used, and waits for nobody
MODELS = {
    "seed": {},
    "nvae": NVLABS,
    "ladder": LADDER,
    "ladder_standard": LADDER | {"top_prior": "standard"},  # one buffer, (1, 1, S, S)
    "dvp": DVP,
}


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_buffers_have_the_strides_of_new_tensors_and_weights_are_channels_last(make_config):
    """Buffers are sent by their strides, also those of dimensions of size 1, which mean nothing."""
    for keys in MODELS.values():
        model = build_model(make_config(**keys))
        for name, buffer in model.named_buffers():
            assert buffer.stride() == torch.empty(buffer.shape).stride(), name
        for name, parameter in model.named_parameters():
            assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last), name


class Awkward(nn.Module):
    """Parameters and a buffer with dimensions of size 1, and a parameter without a gradient."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 1, 1)
        )
        self.register_buffer("only", torch.zeros(1, 1, 5, 5))
        self.frozen = nn.Parameter(torch.ones(1, 1, 1, 1), requires_grad=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.layers(x * self.frozen).sum() + self.only.sum()


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_distributed_model_steps_without_a_warning_and_with_equal_strides(group, format):
    model = Awkward()
    network = RANKS.distributed(model)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(memory_format=format)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            with network.no_sync():
                network(x).backward()
            network(x).backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    alone = Awkward()
    alone.load_state_dict(model.state_dict())
    (2 * alone(x)).backward()
    for name, parameter in alone.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(own[name], parameter.grad)
            assert own[name].stride() == model.get_parameter(name).stride()


@pytest.mark.parametrize(
    ("value", "minutes"), [(None, 30), ("5", 5), ("0.5", 0.5), ("", None), ("0", None), ("nan", None), ("1e9", None)]
)
def test_timeout_of_the_group_is_that_of_the_environment(monkeypatch, value, minutes):
    timeouts = []
    for name, text in {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "NVAE_TIMEOUT": value}.items():
        monkeypatch.delenv(name, raising=False) if text is None else monkeypatch.setenv(name, text)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: timeouts.append(timeout))
    for name, result in {"get_rank": 0, "get_world_size": 1, "destroy_process_group": None}.items():
        monkeypatch.setattr(dist, name, lambda result=result: result)
    with nullcontext() if minutes else pytest.raises(InvalidValueError), joined_ranks(torch.device("cpu")):
        assert timeouts == [timedelta(minutes=minutes)]
