"""Building the model of a config: with initial weights, and with given weights."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nvae.checkpoint import load_model, save
from nvae.models.families import build_model, build_with_weights, clone

DVP: dict[str, Any] = {
    "family": "dvp",
    "latents_per_scale": [1, 2],
    "latent_size": 2,
    "channels": 8,
    "encoder_blocks_per_scale": 1,
    "sampling_method": "bernoulli",
    "context_size": 3,
    "diffusion_steps": 4,
    "unet_blocks": 1,
}
LADDER: dict[str, Any] = {
    "family": "ladder",
    "latents_per_scale": [1, 2],
    "latent_size": 2,
    "channels": 8,
    "sampling_method": "bernoulli",
}
CHANGES: dict[str, dict[str, Any]] = {
    "nvae": {},
    "flows": {"num_flows": 1},
    "nvlabs": {"style": "nvlabs", "num_flows": 1},
    "spectral": {"spectral_normalization": True},
    "ladder": LADDER,
    "dvp": DVP,
    "linear context": DVP | {"context": "linear"},
    "vampprior": LADDER | {"top_prior": "vampprior"},
    "vdvae": {
        "family": "vdvae",
        "enc_blocks": "8x1,8d2,4d4,1",
        "dec_blocks": "1,4m1,8m4",
        "custom_width": "4:12,1:16",
        "width": 8,
        "no_bias_above": 1,
        "sigma": "softplus",
    },
    "standard prior": LADDER | {"top_prior": "standard"},
}


@pytest.fixture(params=CHANGES)
def config(request, make_config):
    return make_config(**CHANGES[request.param])


@pytest.fixture
def model(config):
    """A model whose weights are not those that its seed gives."""
    model = build_model(config).eval().requires_grad_(False)
    for number, tensor in enumerate(model.state_dict().values()):
        if tensor.is_floating_point():
            tensor.mul_(0.9).add_(0.01 * (number % 5))
    return model


def everything(model):
    """Return parameters and buffers by name, with those that a state dictionary does not have."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def copies(model, path):
    save(model, path)
    yield load_model(path)
    yield clone(model)


def test_load_and_clone_give_every_number_and_every_stride(model, tmp_path):
    expected = everything(model)
    images, noise = torch.rand(2, *(model.config.image_channels, 8, 8)), model.draw_noise(2, posterior=True)
    result = model(images, noise)
    for copy in copies(model, tmp_path / "a.model"):
        tensors = everything(copy)
        assert tensors.keys() == expected.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, expected[name]), name
            assert (tensor.dtype, tensor.stride()) == (expected[name].dtype, expected[name].stride()), name
            assert not tensor.requires_grad and not tensor.is_meta
            assert not tensor.numel() or tensor.data_ptr() != expected[name].data_ptr()
        assert not any(module.training for module in copy.modules())
        again = copy(images, noise)
        assert torch.equal(again.parameters, result.parameters) and torch.equal(again.kl, result.kl)


def test_buffers_that_are_not_saved_have_their_values(make_config):
    changes = [CHANGES[name] for name in ("flows", "nvlabs", "dvp", "standard prior")]
    for config in (make_config(**change) for change in changes):
        model = build_model(config)
        unsaved = dict(model.named_buffers()).keys() - model.state_dict().keys()
        assert unsaved, "the test would see nothing"
        weights = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
        buffers = dict(build_with_weights(config, weights).named_buffers())
        assert all(torch.equal(buffers[name], model.get_buffer(name)) for name in unsaved)


def test_build_with_weights_draws_no_weights(make_config):
    config = make_config(**LADDER)
    expected, before = build_model(config), torch.get_rng_state()
    draws = []

    class Draws(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            draws.extend([func] if torch.Tag.nondeterministic_seeded in func.tags else [])
            return func(*args, **(kwargs or {}))

    with Draws():
        build_model(config)
        assert len(draws) > 10, "the test would see nothing"
        draws.clear()
        model = build_with_weights(config, expected.state_dict())
    assert not draws
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, expected.get_parameter(name)) for name, tensor in model.named_parameters())


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_build_with_weights_needs_all_weights(make_model, damage):
    model = make_model()
    weights = model.state_dict()
    if damage == "missing":
        del weights["constant"]
    elif damage == "extra":
        weights["other"] = torch.zeros(1)
    else:
        weights["constant"] = weights["constant"][:, :1]
    with pytest.raises(RuntimeError):
        build_with_weights(model.config, weights)
