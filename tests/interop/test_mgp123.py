"""The seed project's own weights, loaded under our names, give what the seed's program recorded."""

from __future__ import annotations

import pytest
import torch

from nvae.config import config_from_dict
from nvae.interop.key_mapping import load_with_key_map
from nvae.interop.mgp123 import key_map
from nvae.models.hierarchy import FromNoise, FromPosterior
from nvae.models.nvae.network import NVAE

RECORDINGS = ["mgp123_logistic_mixture", "mgp123_gaussian_flows"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=RECORDINGS)
def recording(request, reference):
    return torch.load(reference / f"{request.param}.pt", weights_only=True)


@pytest.fixture(scope="module")
def model(recording):
    config = config_from_dict(recording["config"], "the recording")
    return load_with_key_map(config, recording["state_dict"], key_map, "the recording")


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-4 of the recording's own size, which is its largest value: sums of terms that cancel have no more."""
    assert found.shape == expected.shape
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item())
    assert expected.std() > 100 * TOLERANCE * expected.abs().max(), "the recording is too flat to compare with"


def test_the_weights_fill_the_model_exactly(recording, model):
    """Filling it in the fixture says that no name is missing or left over."""
    assert sum(p.numel() for p in model.parameters()) == recording["parameters"]
    ours = model.state_dict()
    total = sum(tensor.double().sum() for tensor in recording["state_dict"].values())
    torch.testing.assert_close(sum(tensor.double().sum() for tensor in ours.values()), total)


@torch.no_grad()
def test_the_posterior_pass_is_the_recorded_one(recording, model):
    images, expected = recording["x"], recording["eval"]
    result = model.top_down(FromPosterior(model.bottom_up(images), noise=expected["noise"]), len(images))
    assert_close(result.kl, expected["kl_per_group"])
    assert_close(result.px_z.log_prob(images), expected["log_p_subpixel"])
    assert_close(result.px_z.mean(), expected["mean"])
    assert_close(result.px_z.most_likely(), expected["most_likely_value"])


@torch.no_grad()
def test_the_prior_pass_at_a_temperature_is_the_recorded_one(recording, model):
    expected = recording["sample"]
    chooser = FromNoise(expected["noise"], expected["temperature"])
    assert_close(model.top_down(chooser, 2).px_z.mean().clamp(0, 1), expected["mean"])  # clamped by the seed


@torch.no_grad()
def test_the_pass_from_given_noise_is_the_recorded_one(recording, model):
    expected = recording["from_noise"]
    assert_close(model.top_down(FromNoise(expected["noise"]), 2).px_z.mean().clamp(0, 1), expected["mean"])


@torch.no_grad()
def test_in_double_precision_only_the_recordings_own_rounding_is_left(recording, model):
    config = config_from_dict(recording["config"], "the recording")
    exact = NVAE(config).double().eval()
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    images, expected = recording["x"].double(), recording["eval"]
    noise = [n.double() for n in expected["noise"]]
    result = exact.top_down(FromPosterior(exact.bottom_up(images), noise=noise), len(images))
    for found, theirs in ((result.kl, expected["kl_per_group"]), (result.px_z.mean(), expected["mean"])):
        assert found.dtype == torch.float64
        assert (found - theirs).abs().max() < 2e-5 * theirs.abs().max()
