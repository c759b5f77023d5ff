"""p(x | z): probabilities add up, densities integrate, samples agree with both."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from nvae.model.likelihoods import build_likelihood

DISCRETE = ["logistic", "logistic_mixture"]
DENSITIES = ["gaussian", "gaussian_mixture"]
VALUES = torch.arange(256, dtype=torch.float64) / 255


@pytest.fixture
def likelihood(make_config):
    def build(method, components=3, **changes):
        return build_likelihood(make_config(sampling_method=method, n_mix=components, **changes))

    return build


def outputs(method: str, parameters: int, generator: torch.Generator, places: int = 40) -> torch.Tensor:
    """Varied network outputs (1, parameters, 1, places), for one image channel."""
    raw = torch.randn(1, parameters, 1, places, generator=generator, dtype=torch.float64)
    if method in DISCRETE:
        logits, mu, log_scale = raw.view(3, -1, 1, places)
        raw = torch.cat([2 * logits, 0.8 * mu, 1.5 * log_scale - 3])[None]
    elif method == "gaussian_mixture":
        logits, mu, log_sigma = raw.view(3, -1, 1, places)
        raw = torch.cat([logits, mu, log_sigma - 1.5])[None]
    return raw


def everywhere(values: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Every value (N) at every place of an output (1, P, 1, places): images (N, 1, 1, places) and outputs (N, ...)."""
    count, places = len(values), output.shape[-1]
    return values.to(output.dtype)[:, None, None, None].expand(count, 1, 1, places), output.expand(count, -1, -1, -1)


# ------------------------------------------------------------------------------------------ total probability


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
@pytest.mark.parametrize("method", DISCRETE)
def test_the_probabilities_of_the_256_values_sum_to_one_with_exact_tails(
    method, dtype, tolerance, likelihood, generator
):
    likely = likelihood(method, image_channels=1, likelihood_tails="exact")
    images, output = everywhere(VALUES, outputs(method, likely.parameters, generator).to(dtype))
    total = likely(output).log_prob(images).exp().sum(0)
    assert (total - 1).abs().max() < tolerance


@pytest.mark.parametrize("method", DISCRETE)
def test_the_probabilities_of_the_256_values_sum_to_one_and_the_last_ones_with_original_tails(
    method, likelihood, generator
):
    """The originals open the upper tail at 0.995, below the value 254, so the mass of 255 counts twice."""
    likely = likelihood(method, image_channels=1, likelihood_tails="original")
    images, output = everywhere(VALUES, outputs(method, likely.parameters, generator))
    probability = likely(output).log_prob(images).exp()
    torch.testing.assert_close(probability.sum(0), 1 + probability[255], rtol=0, atol=1e-7)
    assert probability[255].max() > 0.1, "the tail was empty everywhere"


def test_the_two_treatments_of_the_tails_differ_at_the_value_254_only(likelihood, generator):
    original = likelihood("logistic_mixture", image_channels=1, likelihood_tails="original")
    exact = likelihood("logistic_mixture", image_channels=1, likelihood_tails="exact")
    images, output = everywhere(VALUES, outputs("logistic_mixture", original.parameters, generator))
    difference = (original(output).log_prob(images) - exact(output).log_prob(images)).abs().amax((1, 2, 3))
    assert difference.nonzero().flatten().tolist() == [254]


@pytest.mark.parametrize("method", DENSITIES)
def test_a_density_integrates_to_one(method, likelihood, generator):
    likely = likelihood(method, image_channels=1)
    grid = torch.linspace(-60, 60, 60_001, dtype=torch.float64)
    output = outputs(method, likely.parameters, generator, places=6)
    assert output.shape[1] == likely.parameters
    images, output = everywhere(grid, output)
    density = likely(output).log_prob(images).exp()
    torch.testing.assert_close(torch.trapezoid(density, grid, dim=0), torch.ones_like(density[0]), rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- samples


def cumulative_at(method: str, likely, output: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """P(subpixel <= point) from log_prob, (points, places)."""
    if method in DISCRETE:
        images, output = everywhere(VALUES, output)
        below = likely(output).log_prob(images).exp().cumsum(0)[:, 0, 0]
        return below[(points * 255).round().long()]
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    images, output = everywhere(grid, output)
    density = likely(output).log_prob(images).exp()[:, 0, 0]
    below = torch.cumulative_trapezoid(density, grid, dim=0)
    return below[torch.searchsorted(grid, points) - 1]


@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_samples_have_the_frequencies_that_log_prob_says(method, likelihood, generator):
    """The largest distance of the two cumulative distributions (Kolmogorov and Smirnov)."""
    likely = likelihood(method, image_channels=1, likelihood_tails="exact")
    draws, places = 20_000, 4
    output = outputs(method, likely.parameters, generator, places)
    samples = likely(output.expand(draws, -1, -1, -1)).sample(generator)[:, 0, 0]  # (draws, places)
    if method in DISCRETE:
        points = VALUES
        samples = samples.clamp(0, 1)  # what lies beyond the range belongs to the open tails
    else:
        points = torch.arange(-5, 5, 0.01, dtype=torch.float64)
    expected = cumulative_at(method, likely, output, points)
    for place in range(places):
        ordered = samples[:, place].sort().values
        found = torch.searchsorted(ordered, points + 1e-9, right=True) / draws
        assert (found - expected[:, place]).abs().max() < 1.95 / draws**0.5, place  # exceeded one time in 1000


@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_the_mean_of_samples_is_the_mean(method, likelihood, generator):
    likely = likelihood(method, image_channels=3)
    draws = 20_000
    output = 0.7 * torch.randn(1, likely.parameters, 1, 2, generator=generator, dtype=torch.float64)
    pixels = likely(output.expand(draws, -1, -1, -1))
    samples = pixels.sample(generator)
    assert ((samples.mean(0) - pixels.mean()[0]).abs() < 5 * samples.std(0) / draws**0.5).all()
    assert pixels.mean().std() > 0.05


@pytest.mark.parametrize("method", DISCRETE)
def test_samples_of_a_discrete_likelihood_are_among_its_values(method, likelihood, generator):
    likely = likelihood(method)
    output = torch.randn(20, likely.parameters, 4, 4, generator=generator)
    steps = likely(output).sample(generator) * 255
    assert (steps - steps.round()).abs().max() < 1e-3
    assert len(steps.round().unique()) > 50


@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_one_seed_is_one_sample(method, likelihood, generator):
    likely = likelihood(method)
    pixels = likely(torch.randn(2, likely.parameters, 4, 4, generator=generator))
    first, second, third = (pixels.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


# ---------------------------------------------------------------------------------------- the output's channels


def test_a_gaussian_has_all_means_before_all_log_sigmas(likelihood, generator):
    likely = likelihood("gaussian")
    output = torch.randn(2, 6, 4, 4, generator=generator, dtype=torch.float64)
    images = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    clamped = 5 * torch.tanh(output / 5)
    expected = Normal(clamped[:, :3], clamped[:, 3:].exp() + 0.01)
    pixels = likely(output)
    torch.testing.assert_close(pixels.log_prob(images), expected.log_prob(images))
    torch.testing.assert_close(pixels.mean(), expected.mean)
    torch.testing.assert_close(pixels.most_likely(), expected.mean)


def by_subpixel(output: torch.Tensor, components: int) -> tuple[torch.Tensor, ...]:
    """(B, 3 * 3 * M, H, W) to logits, mu, log sigma, each (B, 3, H, W, M): channel, then kind, then component."""
    kinds = [
        [output[:, [(3 * c + kind) * components + m for m in range(components)]] for c in range(3)] for kind in range(3)
    ]
    return tuple(torch.stack(kind, 1).permute(0, 1, 3, 4, 2) for kind in kinds)


def test_a_gaussian_mixtures_channels_are_channel_then_kind_then_component(likelihood, generator):
    likely = likelihood("gaussian_mixture", 4)
    assert likely.parameters == 36
    output = torch.randn(2, 36, 4, 4, generator=generator, dtype=torch.float64)
    images = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    logits, mu, log_sigma = (5 * torch.tanh(t / 5) for t in by_subpixel(output, 4))
    expected = MixtureSameFamily(Categorical(logits=logits), Normal(mu, log_sigma.exp() + 0.01))
    pixels = likely(output)
    torch.testing.assert_close(pixels.log_prob(images), expected.log_prob(images))
    torch.testing.assert_close(pixels.mean(), expected.mean)
    heaviest = logits.argmax(-1, keepdim=True)
    torch.testing.assert_close(pixels.most_likely(), mu.gather(-1, heaviest)[..., 0])


@pytest.mark.parametrize("upper", [("original", 0.995), ("exact", 254.5 / 255)])
def test_a_logistic_mixture_is_the_mass_of_each_bin_weighed_by_the_selectors(upper, likelihood, generator):
    """Written out with sigmoids, which float64 can afford, on [-1, 1]; the channels as in the test above."""
    tails, open_above = upper
    likely = likelihood("logistic_mixture", 4, likelihood_tails=tails)
    assert likely.parameters == 36
    output = torch.randn(2, 36, 8, 8, generator=generator, dtype=torch.float64)
    images = (255 * torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)).round() / 255
    images[0, 0, 0], images[0, 1, 0], images[1, 2, 0] = 0, 1, 254 / 255
    logits, mu, log_scale = by_subpixel(output, 4)
    x, scale = (2 * images - 1)[..., None], log_scale.exp()
    below_upper = torch.sigmoid((x + 1 / 255 - mu) / scale)
    below_lower = torch.sigmoid((x - 1 / 255 - mu) / scale)
    mass = (below_upper - below_lower).clamp(min=1e-10)
    mass = torch.where(x < -0.999, below_upper, torch.where(x > 2 * open_above - 1, 1 - below_lower, mass))
    weights = (5 * torch.tanh(logits / 5)).softmax(-1)
    pixels = likely(output)
    torch.testing.assert_close(pixels.log_prob(images), (weights * mass).sum(-1).log())
    torch.testing.assert_close(pixels.mean(), ((weights * mu).sum(-1) + 1) / 2)


def test_the_most_likely_value_is_the_mean_of_the_component_with_the_largest_weight(likelihood):
    likely = likelihood("logistic_mixture", 3, image_channels=1)
    output = torch.tensor([0.0, 1.0, 0.5, -1.0, 0.5, 7.0, -2.0, -2.0, -2.0]).view(1, 9, 1, 1)
    assert likely(output).most_likely().item() == 0.75  # mu = 0.5 on [-1, 1]
    output[0, 0] = 2.0
    assert likely(output).most_likely().item() == 0.0
    output[0, 2] = 3.0
    assert likely(output).most_likely().item() == 3.0  # mu = 7 counts as 5


def test_logistic_is_the_mixture_with_one_component(likelihood, generator):
    one, mixture = likelihood("logistic", 5), likelihood("logistic_mixture", 1)
    assert one.parameters == mixture.parameters == 9
    output = torch.randn(2, 9, 4, 4, generator=generator)
    images = torch.rand(2, 3, 4, 4, generator=generator)
    assert torch.equal(one(output).log_prob(images), mixture(output).log_prob(images))


@pytest.mark.parametrize(
    ("method", "colour", "grey"), [("gaussian", 6, 2), ("logistic", 9, 3), ("gaussian_mixture", 36, 12)]
)
def test_the_number_of_output_channels_follows_the_images_channels(method, colour, grey, likelihood):
    assert likelihood(method, 4).parameters == colour
    assert likelihood(method, 4, image_channels=1).parameters == grey


# ------------------------------------------------------------------------------------------ bits per dimension


@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_a_uniform_distribution_over_256_values_costs_eight_bits(method, likelihood):
    """As a density on [0, 1], where the values are 1/255 apart, it is 255/256: each value's share is 1/256."""
    dimensions = 3 * 8 * 8
    log_uniform = math.log(1 / 256) if method in DISCRETE else math.log(255 / 256)
    bits = likelihood(method).bits_per_dimension(-dimensions * log_uniform, dimensions)
    assert bits == pytest.approx(8, abs=1e-12)


def test_bits_of_a_fine_density_are_those_of_the_probabilities_it_stands_for(likelihood, generator):
    """-log2 of the mass within half a step of each value, for a Normal wide enough to be flat over one step."""
    likely = likelihood("gaussian", image_channels=1)
    output = torch.tensor([0.4, -2.0], dtype=torch.float64).view(1, 2, 1, 1)
    normal = Normal(*likely(output).normal)
    images = (255 * torch.rand(1, 1, 1, 100, generator=generator, dtype=torch.float64)).round() / 255
    mass = normal.cdf(images + 0.5 / 255) - normal.cdf(images - 0.5 / 255)
    nats = -likely(output).log_prob(images).sum()
    assert likely.bits_per_dimension(nats, 100).item() == pytest.approx(-mass.log2().mean().item(), abs=1e-3)


# --------------------------------------------------------------------------------------------------- stability


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_far_from_the_mean_values_and_gradients_are_finite(method, dtype, likelihood):
    likely = likelihood(method, image_channels=1, components=2)
    images, _ = everywhere(VALUES[[0, 1, 128, 253, 254, 255]], torch.zeros(1, 1, 1, 1, dtype=dtype))
    for mu in (-1e4, -5.0, 0.0, 5.0, 1e4):
        for spread in (-1e4, -7.0, 0.0, 20.0, 60.0):
            output = torch.zeros(6, likely.parameters, 1, 1, dtype=dtype)
            if method == "gaussian":
                output[:, 0], output[:, 1] = mu, spread
            else:
                output.view(6, 3, -1)[:, 1], output.view(6, 3, -1)[:, 2] = mu, spread
            output.requires_grad_()
            log_prob = likely(output).log_prob(images)
            log_prob.sum().backward()
            assert log_prob.isfinite().all(), (mu, spread)
            assert output.grad.isfinite().all(), (mu, spread)


def one_logistic(mu: float, log_scale: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor([0.0, mu, log_scale], dtype=dtype).view(1, 3, 1, 1).requires_grad_()


def test_the_mass_of_a_bin_is_at_least_1e_10(likelihood):
    likely = likelihood("logistic", image_channels=1)
    image = torch.full((1, 1, 1, 1), 128 / 255)
    assert likely(one_logistic(-1.0, -5.0)).log_prob(image).item() == pytest.approx(math.log(1e-10))
    assert likely(one_logistic(-0.9, -2.5)).log_prob(image).item() > math.log(1e-10) + 0.1


def test_a_component_that_lost_its_pixel_still_feels_where_it_is(likelihood):
    """The floor bounds the value, not the gradient."""
    likely = likelihood("logistic", image_channels=1)
    output = one_logistic(-1.0, -5.0)
    likely(output).log_prob(torch.full((1, 1, 1, 1), 128 / 255)).sum().backward()
    _, mu, log_scale = output.grad.flatten().tolist()
    assert mu > 1, "a larger mean would come nearer"
    assert log_scale > 1, "a larger scale would come nearer"


def test_no_digits_are_lost_where_the_sigmoids_are_both_one(likelihood):
    """In float32 sigmoid(u) - sigmoid(l) is 0 here; the true mass is a hundred times the floor."""
    image = torch.full((1, 1, 1, 1), 200 / 255)
    likely = likelihood("logistic", image_channels=1)
    single = likely(one_logistic(-0.5, -2.65)).log_prob(image)
    double = likely(one_logistic(-0.5, -2.65, torch.float64)).log_prob(image.double())
    assert math.log(1e-10) + 1 < double.item() < math.log(1e-6)
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


def test_scales_are_at_least_exp_minus_seven(likelihood):
    likely = likelihood("logistic", image_channels=1)
    image = torch.full((1, 1, 1, 1), 128 / 255)
    assert torch.equal(
        likely(one_logistic(0.0, -7.0)).log_prob(image), likely(one_logistic(0.0, -30.0)).log_prob(image)
    )


@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_gradients_pass_gradcheck(method, likelihood, generator):
    """At values whose mass is above the floor, where value and gradient belong together."""
    likely = likelihood(method, components=2, image_channels=1)
    output = 0.5 * torch.randn(2, likely.parameters, 2, 2, generator=generator, dtype=torch.float64)
    images = torch.tensor([0, 3, 100, 128, 200, 253, 254, 255], dtype=torch.float64).view(2, 1, 2, 2) / 255
    assert torch.autograd.gradcheck(lambda o: likely(o).log_prob(images), output.requires_grad_())
    assert torch.autograd.gradcheck(lambda o: likely(o).mean(), output)


@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_outputs_in_half_precision_are_judged_in_single_precision(method, likelihood, generator):
    likely = likelihood(method)
    output = torch.randn(2, likely.parameters, 4, 4, generator=generator).bfloat16()
    images = torch.rand(2, 3, 4, 4, generator=generator)
    log_prob = likely(output).log_prob(images)
    assert log_prob.dtype == torch.float32
    assert torch.equal(log_prob, likely(output.float()).log_prob(images))
