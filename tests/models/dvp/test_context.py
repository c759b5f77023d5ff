"""The contexts of the DVP-VAE, and the group of the context."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.config import config_from_dict
from nvae.models.dvp.context import DCTContext, DownsampleContext, LinearContext, dct_matrix
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise
from nvae.objective import elbo_terms

KEYS = {
    "family": "dvp",
    "input_dimension": 8,
    "image_channels": 1,
    "sampling_method": "bernoulli",
    "latents_per_scale": [1, 1],
    "channels": 4,
    "encoder_blocks_per_scale": 1,
    "context_size": 4,
    "diffusion_steps": 3,
    "unet_blocks": 1,
}


def make_config(**changes):
    return config_from_dict(KEYS | changes, "the test")


def images(count: int = 5) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def images_u8(count: int = 300) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_dct_matrix_is_orthonormal():
    matrix = dct_matrix(8, 8)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(8, dtype=torch.float64))


def test_first_dct_coefficient_is_the_side_times_the_mean():
    context = DCTContext(make_config())
    coefficients = context.coefficients(images())
    torch.testing.assert_close(coefficients[:, :, 0, 0], 8 * images().mean((2, 3)))
    constant = context.coefficients(torch.full((1, 1, 8, 8), 0.3))
    assert constant.flatten()[1:].abs().max() < 1e-6


def test_dct_context_of_all_coefficients_restores_the_image():
    context = DCTContext(make_config(context_size=8))
    context.scale.fill_(100)
    pseudo_input = context.inverse(context(images()))
    torch.testing.assert_close((pseudo_input + 1) / 2, images(), atol=1e-4, rtol=0)


def test_calibration_takes_the_largest_magnitude_of_whole_numbers():
    context, data = DCTContext(make_config()), images_u8()
    context.calibrate(data)
    expected = context.coefficients(data / 255).floor().abs().amax(0, keepdim=True)
    assert torch.equal(context.scale, expected.where(expected > 0, torch.ones(())))
    u = context(data / 255)
    assert u.abs().max() <= 1


def test_calibration_of_black_images_gives_ones():
    context = DCTContext(make_config())
    context.calibrate(torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
    assert torch.equal(context.scale, torch.ones(1, 1, 4, 4))
    assert context(torch.zeros(1, 1, 8, 8)).isfinite().all()


def test_calibration_sees_images_of_few_bits_as_the_model_does():
    data = images_u8()
    for bits, seen in (({"pixel_bits": 1}, data >= 128), ({"pixel_bits": 1, "encoder_bits": 8}, data / 255)):
        context = DCTContext(make_config(**bits))
        context.calibrate(data)
        expected = context.coefficients(seen.float()).floor().abs().amax(0, keepdim=True)
        assert torch.equal(context.scale, expected.where(expected > 0, torch.ones(())))


def test_calibrated_scale_is_part_of_the_weights():
    model = build_model(make_config())
    model.calibrate(images_u8())
    assert model.state_dict()["groups.0.context.scale"].max() > 1


def test_downsample_context_is_a_resize_in_both_directions():
    context = DownsampleContext(make_config(context="downsample", context_size=8))
    torch.testing.assert_close(context.inverse(context(images())), 2 * images() - 1)


def test_linear_context_is_linear_in_the_pixels_and_inverts_by_a_resize():
    config = make_config(context="linear")
    context, pixels = LinearContext(config), 2 * images() - 1
    weight = context.linear.weight.reshape(1, 4, 4, 1, 8, 8)
    expected = torch.einsum("cijdhw,bdhw->bcij", weight, pixels) + context.linear.bias.reshape(1, 1, 4, 4)
    torch.testing.assert_close(context(images()), expected)
    u = context(images())
    assert torch.equal(context.inverse(u), DownsampleContext(make_config(context="downsample")).inverse(u))
    assert sum(p.numel() for p in context.parameters()) == 16 * 64 + 16


@pytest.mark.parametrize("top_prior", ["diffusion", "standard", "vampprior"])
def test_linear_context_learns_from_the_kl_and_from_the_likelihood(top_prior):
    model = build_model(make_config(context="linear", top_prior=top_prior, prior_components=3))
    output = model(images().round(), model.draw_noise(5, torch.Generator().manual_seed(1), posterior=True))
    terms = elbo_terms(output, images().round())
    weight = model.groups[0].context.linear.weight
    for part in (output.groups[0].kl.mean(), -terms.elbo.mean() - output.groups[0].kl.mean()):
        (gradient,) = torch.autograd.grad(part, weight, retain_graph=True)
        assert gradient.abs().max() > 0


def test_context_that_may_leave_the_unit_range_is_not_clamped_by_the_diffusion():
    bounded = [build_model(make_config(context=name)).groups[0].top_prior.bounded for name in ("dct", "linear")]
    assert bounded == [True, False]


@pytest.mark.parametrize("build", [DCTContext, LinearContext])
def test_transforms_stay_in_float32_under_autocast(build):
    context = build(make_config())
    with torch.autocast("cpu", torch.bfloat16):
        u = context(images())
        pseudo_input = context.inverse(u)
    assert u.dtype == pseudo_input.dtype == torch.float32
    torch.testing.assert_close(u, context(images()))


@pytest.mark.parametrize("value", [-20.0, 0.0])
def test_log_variance_of_the_context_is_clamped_and_still_learned(value):
    model = build_model(make_config())
    group = model.groups[0]
    with torch.no_grad():
        group.log_variance.fill_(value)
    model.eval()
    clamped = max(-12.0, min(-5.0, value))
    posterior = model(images(), model.no_noise(5, posterior=True)).groups[0].posterior
    assert 2 * posterior.sigma.log().max().item() == pytest.approx(clamped, abs=1e-5)
    assert group.log_variance.unique().item() == value  # evaluation changes no weight
    model.train()
    model(images(), model.draw_noise(5, posterior=True)).kl.sum().backward()
    assert group.log_variance.unique().item() == clamped
    assert group.log_variance.grad.abs().min() > 0


@torch.no_grad()
def test_image_of_the_context_is_the_pseudo_input_that_the_priors_see():
    model = build_model(make_config()).eval()
    output = model.top_down(FromNoise(model.draw_noise(2)), 2, return_states=True)
    pseudo_input = output.states[1].state.context
    torch.testing.assert_close(model.groups[0].image_of(output.groups[0].z), (pseudo_input + 1) / 2)
    assert model.groups[1].image_of(output.groups[1].z) is None
    assert [group.level.name for group in model.groups] == ["context", "", ""]


def test_diffusion_prior_can_be_half_precision():
    model = build_model(make_config())
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images(), model.draw_noise(5, posterior=True))
    assert output.kl.dtype == torch.float32 and output.kl.isfinite().all()
    output.kl.sum().backward()
    assert math.isfinite(sum(p.grad.sum().item() for p in model.parameters() if p.grad is not None))
