"""Every tensor of a file must match a tensor of the model."""

from __future__ import annotations

import math
import re

import pytest
import torch

from nvae.interop.key_mapping import InteropError, load_with_key_map
from nvae.interop.mgp123 import key_map
from nvae.system.errors import Remedy


@pytest.fixture
def weights(make_model):
    model = make_model()
    return {theirs: model.state_dict()[ours].clone() for ours, theirs in key_map(model).items()}


HEAD = "mixer.encoder_sampler.1.weight_g"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({HEAD: None}, HEAD),
        ({"layer.weight": torch.zeros(2)}, "layer.weight"),
        ({HEAD: torch.zeros(2, 1, 1, 1)}, rf"{HEAD}.*\(2, 1, 1, 1\).*\(4, 1, 1, 1\)"),
        ({HEAD: torch.zeros(())}, f"{HEAD}.*\\(\\)"),
        ({HEAD: torch.zeros(4, 1, 1, 1, dtype=torch.int64)}, f"{HEAD}.*int64.*float32"),
        ({HEAD: torch.full((4, 1, 1, 1), math.nan)}, f"{HEAD}.*finite"),
        ({HEAD: torch.full((4, 1, 1, 1), 1e300, dtype=torch.float64)}, f"{HEAD}.*float32"),
        ({"x" * 10_000: torch.zeros(2)}, "xxx"),
        ({"two\nlines\x1b[2J": torch.zeros(2)}, re.escape(r"two\nlines\x1b[2J")),
    ],
    ids=lambda value: str(value)[:60],
)
def test_load_with_key_map_names_what_does_not_fit(weights, config, changes, named):
    state = {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}
    with pytest.raises(InteropError, match=named) as error:
        load_with_key_map(config, state, key_map, "a.pt")
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_load_with_key_map_converts_precision(weights, config):
    halves = {name: t.half() if t.is_floating_point() else t for name, t in weights.items()}
    model = load_with_key_map(config, halves, key_map, "a.pt")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for ours, theirs in key_map(model).items():
        assert torch.equal(model.state_dict()[ours], halves[theirs].to(weights[theirs].dtype))


@pytest.mark.slow
def test_load_with_key_map_refuses_configs_that_the_project_cannot_have(weights, make_config):
    config = make_config(spectral_normalization=True)
    with pytest.raises(InteropError, match=r"spectral|left|right|original") as error:
        load_with_key_map(config, weights, key_map, "a.pt")
    assert error.value.remedies == (Remedy.MODEL_CONFIG,)
