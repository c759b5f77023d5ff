"""Copies for inference against the models that they were made of."""

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from nvae.inference.recalibration import measure
from nvae.models.folding import FoldedConvolution, for_inference, unfolded_copy
from nvae.models.hierarchy import FromNoise, FromPosterior

VARIANTS = {
    "seed": {},
    "original": {"style": "nvlabs", "num_flows": 1},
    "spectral": {"spectral_normalization": True},
    "batch norms before ELU": {"arch_instance": "res_bnelu"},
    "no batch norms": {"arch_instance": "res_elu"},
    "inverted everywhere": {"arch_instance": "mbconv_sep11"},
    "grouped": {"arch_instance": "mbconv_den", "channel_towers": 8},
    "upsampling first": {"postprocess_upsample": "first", "num_cells_per_block_prepost": 2},
}


def passes(model, images):
    """Outputs of a pass from the prior and of a posterior pass."""
    generator = torch.Generator().manual_seed(0)
    noise, of_posterior = (
        [group.to(images) for group in model.draw_noise(len(images), generator, posterior=posterior)]
        for posterior in (False, True)
    )
    sampled = model.top_down(FromNoise(noise, 0.7), len(images))
    reconstructed = model.top_down(FromPosterior(model.bottom_up(images), of_posterior), len(images))
    return torch.stack([sampled.parameters, reconstructed.parameters])


def relative_error(one, other):
    return ((one - other).norm() / other.norm()).item()


def assert_same(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_folded_copy_computes_the_same(make_model, images, variant):
    model = make_model(**VARIANTS[variant])
    before, network = state(model), for_inference(model)
    assert relative_error(passes(network, images), passes(model, images)) < 1e-6
    assert_same(model, before)


@torch.no_grad()
def test_folded_copy_is_exact_but_for_rounding(make_model, images):
    model = make_model(style="nvlabs").double()
    images = images.double()
    assert relative_error(passes(for_inference(model), images), passes(model, images)) < 1e-14


@torch.no_grad()
def test_folded_copy_has_the_given_statistics(make_model, images):
    model = make_model()
    statistics = measure(model, 0.7, 2)
    recalibrated = make_model()
    recalibrated.load_state_dict(statistics.buffers, strict=False)
    folded = passes(for_inference(model, statistics.buffers), images)
    assert relative_error(folded, passes(recalibrated, images)) < 1e-6
    assert relative_error(folded, passes(model, images)) > 1e-3


def test_folding_leaves_only_the_batch_norms_that_an_activation_separates_from_convolutions(make_model):
    model = make_model()
    kept = {name for name, module in for_inference(model).named_modules() if isinstance(module, _BatchNorm)}
    assert kept == {name for name, _ in model.named_modules() if name.startswith("encoder") and name.endswith("norm1")}


def test_unfolded_copy_has_batch_norms_and_no_parametrizations(make_model, images):
    model = make_model(style="nvlabs")
    network = unfolded_copy(model)
    norms, own = ([m for m in of.modules() if isinstance(m, _BatchNorm)] for of in (network, model))
    assert len(norms) == len(own) and not set(norms) & set(own)
    assert not any(parametrize.is_parametrized(module) for module in network.modules())
    with torch.no_grad():
        assert torch.equal(passes(network, images), passes(model, images))


@torch.no_grad()
def test_copy_of_a_model_in_training_is_in_evaluation_mode_and_changes_nothing(make_model, images):
    """Not even the vectors of spectral normalization, which a use in training iterates."""
    model = make_model(spectral_normalization=True)
    expected = passes(model, images)
    model.train()
    before = state(model)
    assert relative_error(passes(for_inference(model), images), expected) < 1e-6
    assert_same(model, before)
    assert all(module.training for module in model.modules())


@torch.no_grad()
def test_copy_shares_the_weights_that_stay_as_they_are(make_model):
    model = make_model()
    network = for_inference(model)
    shared = {id(tensor) for tensor in model.parameters()} & {id(tensor) for tensor in network.parameters()}
    assert id(model.constant) in shared and id(model.groups[0].cells) != id(network.groups[0].cells)
    computed = [m for m in network.modules() if isinstance(m, FoldedConvolution) and "_folded" in m.__dict__]
    assert not computed  # before the first use
    network.top_down(FromNoise(network.no_noise(1)), 1)
    network.top_down(FromNoise(network.no_noise(1)), 1)
    folded = {name: m for name, m in network.named_modules() if isinstance(m, FoldedConvolution)}
    computed = {name for name, m in folded.items() if "_folded" in m.__dict__}
    assert computed == {
        name
        for name in folded
        if not name.startswith("encoder") and "posterior_head" not in name and "encoder_combiner" not in name
    }


def test_modules_that_occur_twice_are_copied_once():
    layer = nn.Linear(2, 2)
    copied = unfolded_copy(nn.Sequential(layer, layer))
    assert copied[0] is copied[1] is not layer
