"""Likelihoods: probabilities sum to one, densities integrate to one, samples agree with both."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, Normal

from nvae.config import load_config
from nvae.models.distributions import log_normal_cdf, log_normal_mass
from nvae.models.ladder.likelihoods import build_ladder_likelihood
from nvae.models.likelihoods import TAILS, CoupledLogisticMixture, build_likelihood
from nvae.models.vdvae.likelihoods import SPACING, build_vdvae_likelihood

LOGISTICS = ["logistic", "logistic_mixture"]
DISCRETE = [*LOGISTICS, "discretized_gaussian"]
DENSITIES = ["gaussian", "gaussian_mixture"]
VALUES = torch.arange(256, dtype=torch.float64) / 255
RANGES = pytest.mark.parametrize("pixel_range", ["unit", "centered"])
BITS = pytest.mark.parametrize("bits", [1, 2, 3, 5, 7, 8])


@pytest.fixture
def likelihood(make_config):
    def build(method, components=3, **changes):
        return build_likelihood(make_config(sampling_method=method, n_mix=components, **changes))

    return build


def outputs(method: str, parameters: int, generator: torch.Generator, places: int = 40) -> torch.Tensor:
    """Varied network outputs (1, parameters, 1, places), for one image channel."""
    raw = torch.randn(1, parameters, 1, places, generator=generator, dtype=torch.float64)
    if method == "discretized_gaussian":
        raw = torch.cat([0.8 * raw[:, :1], 1.5 * raw[:, 1:] - 3], 1)
    elif method in LOGISTICS:
        logits, mu, log_scale = raw.view(3, -1, 1, places)
        raw = torch.cat([2 * logits, 0.8 * mu, 1.5 * log_scale - 3])[None]
    elif method == "gaussian_mixture":
        logits, mu, log_sigma = raw.view(3, -1, 1, places)
        raw = torch.cat([logits, mu, log_sigma - 1.5])[None]
    return raw


def everywhere(values: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (N, 1, 1, places) with every value at every place, and the output (1, P, 1, places), N times."""
    count, places = len(values), output.shape[-1]
    return values.to(output.dtype)[:, None, None, None].expand(count, 1, 1, places), output.expand(count, -1, -1, -1)


# ------------------------------------------------------------------------------------------ total probability


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
@pytest.mark.parametrize("method", DISCRETE)
def test_discrete_probabilities_sum_to_one_with_exact_tails(method, dtype, tolerance, likelihood, generator):
    likely = likelihood(method, image_channels=1, likelihood_tails="exact")
    images, output = everywhere(VALUES, outputs(method, likely.num_parameters, generator).to(dtype))
    total = likely(output).log_prob(images).exp().sum(0)
    assert (total - 1).abs().max() < tolerance


@pytest.mark.parametrize("method", LOGISTICS)
def test_logistic_probabilities_with_original_tails_count_the_last_value_twice(method, likelihood, generator):
    """The original programs open the upper tail at 0.995, below the value 254, so the mass of 255 counts twice."""
    likely = likelihood(method, image_channels=1, likelihood_tails="original")
    images, output = everywhere(VALUES, outputs(method, likely.num_parameters, generator))
    probability = likely(output).log_prob(images).exp()
    torch.testing.assert_close(probability.sum(0), 1 + probability[255], rtol=0, atol=1e-7)
    assert probability[255].max() > 0.1, "the tail has no mass"


def test_every_model_config_that_follows_no_publication_has_probabilities(root):
    """The published configs keep the tails of the original, whose probabilities add up to more than 1 at 8 bits."""
    configs = {path.stem: load_config(path) for path in (root / "model_configs").glob("*.yaml")}
    builders = {"ladder": build_ladder_likelihood, "dvp": build_ladder_likelihood, "vdvae": build_vdvae_likelihood}
    likelihoods = {name: builders.get(config.family, build_likelihood)(config) for name, config in configs.items()}
    assert {name for name, likely in likelihoods.items() if likely.flaw == TAILS} == {
        "nvae_celeba64",
        "nvae_cifar10",
        "nvae_cifar10_multiscale",
        "nvae_imagenet32",
    }
    assert [name for name, likely in likelihoods.items() if likely.flaw == SPACING] == ["vdvae_ffhq256"]
    discrete = [name for name, config in configs.items() if config.sampling_method == "logistic_mixture"]
    for name in (*discrete, "nvae_celeba64"):
        parameters = torch.zeros(likelihoods[name].num_parameters, dtype=torch.float64)
        if name == "nvae_celeba64":  # red and green are 0 with probability 1, blue is near 255
            by_channel = parameters[10:].view(3, 3, 10)  # mean, log scale, coefficient
            by_channel[:2, 0], by_channel[2, 0], by_channel[:, 1] = -9, 1, -6.9
        else:
            by_channel = parameters.view(3, 3, -1)  # logit, mean, log scale
            by_channel[:, 1], by_channel[:, 2] = 1, -6.9
        images, output = everywhere(VALUES, parameters.view(1, -1, 1, 1))
        images = torch.cat([0 * images, 0 * images, images] if name == "nvae_celeba64" else 3 * [images], 1)
        total = likelihoods[name](output).log_prob(images).exp().sum(0)
        expected = torch.full_like(total, 1 if likelihoods[name].is_normalized else 1.98)
        torch.testing.assert_close(total, expected, rtol=0, atol=0.005 if name == "nvae_celeba64" else 1e-5)


@pytest.mark.parametrize("method", LOGISTICS)
def test_fair_noise_of_the_two_brightest_values_needs_one_bit(method, likelihood):
    """The best of 41 x 41 means and scales. With the original tails, both values cost nothing."""
    mu, log_scale = torch.meshgrid(torch.linspace(0.9, 1.1, 41), torch.linspace(-7, -3, 41), indexing="ij")
    output = torch.stack([0 * mu, mu, log_scale]).flatten(1)[None, :, None].double()
    for tails, best in (("exact", 1.0), ("original", 0.01)):
        likely = likelihood(method, 1, image_channels=1, likelihood_tails=tails)
        images, outputs_of_both = everywhere(VALUES[254:], output)
        bits = -likely(outputs_of_both).log_prob(images).mean(0) / math.log(2)
        assert bits.min() >= 1 if tails == "exact" else bits.min() < best
    assert likelihood(method).is_normalized, "not the default"


def test_logistic_tails_differ_at_the_value_254_only(likelihood, generator):
    original = likelihood("logistic_mixture", image_channels=1, likelihood_tails="original")
    exact = likelihood("logistic_mixture", image_channels=1, likelihood_tails="exact")
    images, output = everywhere(VALUES, outputs("logistic_mixture", original.num_parameters, generator))
    difference = (original(output).log_prob(images) - exact(output).log_prob(images)).abs().amax((1, 2, 3))
    assert difference.nonzero().flatten().tolist() == [254]


@BITS
@pytest.mark.parametrize("method", DISCRETE)
def test_discrete_probabilities_of_fewer_bits_sum_to_one_with_exact_tails(method, bits, likelihood, generator):
    likely = likelihood(method, image_channels=1, likelihood_tails="exact", pixel_bits=bits)
    values = torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1)
    images, output = everywhere(values, outputs(method, likely.num_parameters, generator))
    probability = likely(output).log_prob(images).exp()
    assert (probability.sum(0) - 1).abs().max() < 1e-7
    assert probability.amax((1, 2, 3)).min() > 1e-4, "a value is unlikely at all places"


@pytest.mark.parametrize("bits", [1, 5, 7])
def test_logistic_original_tails_of_fewer_bits_are_exact(bits, likelihood, generator):
    """Only with 8 bits, a value other than 1 is above 0.995."""
    tails = [
        likelihood("logistic_mixture", image_channels=1, likelihood_tails=t, pixel_bits=bits)
        for t in ("original", "exact")
    ]
    values = torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1)
    images, output = everywhere(values, outputs("logistic_mixture", tails[0].num_parameters, generator))
    assert torch.equal(tails[0](output).log_prob(images), tails[1](output).log_prob(images))


@RANGES
@pytest.mark.parametrize("method", DENSITIES)
def test_gaussian_densities_integrate_to_one(method, pixel_range, likelihood, generator):
    """The variable of the density is the image x, or 2x - 1 with the centered pixel range."""
    likely = likelihood(method, image_channels=1, pixel_range=pixel_range)
    grid = torch.linspace(-60, 60, 60_001, dtype=torch.float64)
    output = outputs(method, likely.num_parameters, generator, places=6)
    assert output.shape[1] == likely.num_parameters
    images, output = everywhere(grid, output)
    density = likely(output).log_prob(images).exp()
    where = 2 * grid - 1 if pixel_range == "centered" else grid
    torch.testing.assert_close(torch.trapezoid(density, where, dim=0), torch.ones_like(density[0]), rtol=0, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- samples


def cumulative_at(method: str, likely, output: torch.Tensor, points: torch.Tensor, apart: float = 1) -> torch.Tensor:
    """Return P(subpixel <= point) from log_prob, (points, places). apart: length of [0, 1] for a density."""
    if method in DISCRETE:
        images, output = everywhere(VALUES, output)
        below = likely(output).log_prob(images).exp().cumsum(0)[:, 0, 0]
        return below[(points * 255).round().long()]
    grid = torch.linspace(-20, 20, 40_001, dtype=torch.float64)
    images, output = everywhere(grid, output)
    density = likely(output).log_prob(images).exp()[:, 0, 0]
    below = torch.cumulative_trapezoid(density, apart * grid, dim=0)
    return below[torch.searchsorted(grid, points) - 1]


@pytest.mark.parametrize(
    ("method", "pixel_range"),
    [(method, "unit") for method in DISCRETE + DENSITIES] + [(method, "centered") for method in DENSITIES],
)
def test_sample_frequencies_match_log_prob(method, pixel_range, likelihood, generator):
    """Bound the largest distance of the two cumulative distributions (Kolmogorov and Smirnov)."""
    likely = likelihood(method, image_channels=1, likelihood_tails="exact", pixel_range=pixel_range)
    draws, places = 20_000, 4
    output = outputs(method, likely.num_parameters, generator, places)
    samples = likely(output.expand(draws, -1, -1, -1)).sample(generator)[:, 0, 0]  # (draws, places)
    if method in DISCRETE:
        points = VALUES
        samples = samples.clamp(0, 1)  # values beyond the range belong to the open tails
    else:
        points = torch.arange(-5, 5, 0.01, dtype=torch.float64)
    expected = cumulative_at(method, likely, output, points, apart=2 if pixel_range == "centered" else 1)
    for place in range(places):
        ordered = samples[:, place].sort().values
        cumulative = torch.searchsorted(ordered, points + 1e-9, right=True) / draws
        assert (cumulative - expected[:, place]).abs().max() < 1.95 / draws**0.5, (
            place
        )  # exceeded with probability 0.001


@RANGES
@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_sample_mean_is_the_mean(method, pixel_range, likelihood, generator):
    likely = likelihood(method, image_channels=3, pixel_range=pixel_range)
    draws = 20_000
    output = 0.7 * torch.randn(1, likely.num_parameters, 1, 2, generator=generator, dtype=torch.float64)
    px_z = likely(output.expand(draws, -1, -1, -1))
    samples = px_z.sample(generator)
    assert ((samples.mean(0) - px_z.mean()[0]).abs() < 5 * samples.std(0) / draws**0.5).all()
    assert px_z.mean().std() > 0.05


@BITS
@pytest.mark.parametrize("method", [*DISCRETE, "coupled_logistic_mixture"])
def test_sample_of_a_discrete_likelihood_has_its_values_only(method, bits, likelihood, generator):
    likely, last = likelihood(method, pixel_bits=bits), 2**bits - 1
    output = torch.randn(20, likely.num_parameters, 4, 4, generator=generator)
    steps = likely(output).sample(generator) * last
    assert (steps - steps.round()).abs().max() < 1e-3
    assert len(steps.round().unique()) >= min(51, 2**bits)


@pytest.mark.parametrize("method", [*DISCRETE, *DENSITIES, "bernoulli", "coupled_logistic_mixture"])
def test_sample_is_a_function_of_the_seed(method, likelihood, generator):
    likely = likelihood(method)
    px_z = likely(torch.randn(2, likely.num_parameters, 4, 4, generator=generator))
    first, second, third = (px_z.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


# ---------------------------------------------------------------------------------------- the output's channels


def test_gaussian_output_has_all_means_before_all_log_sigmas(likelihood, generator):
    likely = likelihood("gaussian")
    output = torch.randn(2, 6, 4, 4, generator=generator, dtype=torch.float64)
    images = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    clamped = 5 * torch.tanh(output / 5)
    expected = Normal(clamped[:, :3], clamped[:, 3:].exp() + 0.01)
    px_z = likely(output)
    torch.testing.assert_close(px_z.log_prob(images), expected.log_prob(images))
    torch.testing.assert_close(px_z.mean(), expected.mean)
    torch.testing.assert_close(px_z.most_likely(), expected.mean)


def by_subpixel(output: torch.Tensor, components: int) -> tuple[torch.Tensor, ...]:
    """(B, 3 * 3 * M, H, W) to logits, mu, log sigma, each (B, 3, H, W, M): by channel, parameter, component."""
    parameters = [
        [output[:, [(3 * c + k) * components + m for m in range(components)]] for c in range(3)] for k in range(3)
    ]
    return tuple(torch.stack(parameter, 1).permute(0, 1, 3, 4, 2) for parameter in parameters)


def test_gaussian_mixture_output_is_ordered_by_channel_parameter_component(likelihood, generator):
    likely = likelihood("gaussian_mixture", 4)
    assert likely.num_parameters == 36
    output = torch.randn(2, 36, 4, 4, generator=generator, dtype=torch.float64)
    images = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    logits, mu, log_sigma = (5 * torch.tanh(t / 5) for t in by_subpixel(output, 4))
    expected = MixtureSameFamily(Categorical(logits=logits), Normal(mu, log_sigma.exp() + 0.01))
    px_z = likely(output)
    torch.testing.assert_close(px_z.log_prob(images), expected.log_prob(images))
    torch.testing.assert_close(px_z.mean(), expected.mean)
    heaviest = logits.argmax(-1, keepdim=True)
    torch.testing.assert_close(px_z.most_likely(), mu.gather(-1, heaviest)[..., 0])


@pytest.mark.parametrize("upper", [("original", 0.995), ("exact", 254.5 / 255)])
def test_logistic_mixture_is_the_weighted_mass_of_each_bin(upper, likelihood, generator):
    """The formula with plain sigmoids on [-1, 1], which are exact enough in float64."""
    tails, open_above = upper
    likely = likelihood("logistic_mixture", 4, likelihood_tails=tails)
    assert likely.num_parameters == 36
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
    px_z = likely(output)
    torch.testing.assert_close(px_z.log_prob(images), (weights * mass).sum(-1).log())
    torch.testing.assert_close(px_z.mean(), ((weights * mu).sum(-1) + 1) / 2)


def test_most_likely_is_the_mean_of_the_heaviest_component(likelihood):
    likely = likelihood("logistic_mixture", 3, image_channels=1)
    output = torch.tensor([0.0, 1.0, 0.5, -1.0, 0.5, 7.0, -2.0, -2.0, -2.0]).view(1, 9, 1, 1)
    assert likely(output).most_likely().item() == 0.75  # mu = 0.5 on [-1, 1]
    output[0, 0] = 2.0
    assert likely(output).most_likely().item() == 0.0
    output[0, 2] = 3.0
    assert likely(output).most_likely().item() == 3.0  # mu = 7 is clamped to 5


def test_logistic_is_the_mixture_with_one_component(likelihood, generator):
    one, mixture = likelihood("logistic", 5), likelihood("logistic_mixture", 1)
    assert one.num_parameters == mixture.num_parameters == 9
    output = torch.randn(2, 9, 4, 4, generator=generator)
    images = torch.rand(2, 3, 4, 4, generator=generator)
    assert torch.equal(one(output).log_prob(images), mixture(output).log_prob(images))


@pytest.mark.parametrize(
    ("method", "color", "gray"),
    [("gaussian", 6, 2), ("logistic", 9, 3), ("gaussian_mixture", 36, 12), ("bernoulli", 3, 1)],
)
def test_num_parameters_follows_the_image_channels(method, color, gray, likelihood):
    assert likelihood(method, 4).num_parameters == color
    assert likelihood(method, 4, image_channels=1).num_parameters == gray


# ------------------------------------------------------------------------------------------ bits per dimension


@BITS
@RANGES
@pytest.mark.parametrize("method", [*DISCRETE, *DENSITIES, "coupled_logistic_mixture"])
def test_bits_per_dimension_of_a_uniform_distribution_are_pixel_bits(method, pixel_range, bits, likelihood):
    """With 8 bits, the values are 1/255 apart, so a probability of 1/256 per value is a density of 255/256."""
    dimensions = 3 * 8 * 8
    apart = (2 if pixel_range == "centered" else 1) / (2**bits - 1)
    log_uniform = math.log(1 / 2**bits / apart) if method in DENSITIES else math.log(1 / 2**bits)
    likely = likelihood(method, pixel_range=pixel_range, pixel_bits=bits)
    assert likely.bits_per_dimension(-dimensions * log_uniform, dimensions) == pytest.approx(bits, abs=1e-12)


@RANGES
@pytest.mark.parametrize("bits", [5, 8])
def test_bits_per_dimension_of_a_wide_density_match_the_bin_masses(bits, pixel_range, likelihood, generator):
    """-log2 of the mass within half a step of each value, for a Normal wide enough to be flat over one step."""
    likely, last = likelihood("gaussian", image_channels=1, pixel_range=pixel_range, pixel_bits=bits), 2**bits - 1
    output = torch.tensor([0.4, -0.3], dtype=torch.float64).view(1, 2, 1, 1)
    mu, log_sigma = (5 * torch.tanh(output / 5)).unbind(1)
    mu, sigma = (mu, log_sigma.exp() + 0.01) if pixel_range == "unit" else ((mu + 1) / 2, (log_sigma.exp() + 0.01) / 2)
    images = (last * torch.rand(1, 1, 1, 100, generator=generator, dtype=torch.float64)).round() / last
    mass = Normal(mu, sigma).cdf(images + 0.5 / last) - Normal(mu, sigma).cdf(images - 0.5 / last)
    nats = -likely(output).log_prob(images).sum()
    assert likely.bits_per_dimension(nats, 100).item() == pytest.approx(-mass.log2().mean().item(), abs=1e-3)


@RANGES
@pytest.mark.parametrize("bits", [3, 8])
def test_bits_per_dimension_of_dequantized_images_bound_the_bins_probabilities(bits, pixel_range, likelihood):
    """For a narrow Normal: the mean over u of the density at (v + u) / 2^bits is the mass of the bin of v."""
    dataset = {"name": "toy_faces", "dequantize": True}
    likely = likelihood("gaussian", image_channels=1, pixel_range=pixel_range, pixel_bits=bits, dataset=dataset)
    mu, sigma, bins, places = 0.4, 0.02, 2**bits, 2000  # places: the midpoints of as many parts of a bin
    scale = 2 if pixel_range == "centered" else 1
    raw = [torch.tensor(x, dtype=torch.float64) for x in (scale * mu - (scale - 1), scale * sigma)]
    px_z = likely(torch.stack(raw_of(*raw)).view(1, 2, 1, 1))
    u = (torch.arange(places, dtype=torch.float64) + 0.5) / places
    images = (torch.arange(bins)[:, None] + u) / bins
    log_density = px_z.log_prob(images.view(1, 1, bins, places))[0, 0]
    edges = Normal(mu, sigma).cdf(torch.arange(bins + 1, dtype=torch.float64) / bins)
    # A density p means log2 p - density_bits: exactly the probability on average, and at most its logarithm (Jensen).
    mass = 2 ** -likely.bits_per_dimension(-log_density, 1)
    torch.testing.assert_close(mass.mean(1), edges.diff(), rtol=1e-4, atol=1e-9)
    visible = edges.diff() > 1e-12
    bound = likely.bits_per_dimension(-log_density.mean(1), 1)[visible]
    assert (bound >= -edges.diff()[visible].log2()).all()
    assert likely.bits_per_dimension(0.0, 1) == pytest.approx(bits + (pixel_range == "centered") * -1)


def raw_of(mu: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the network output for mu and sigma: the inverse of the soft clamp and of the minimum sigma."""
    return 5 * torch.atanh(mu / 5), 5 * torch.atanh((sigma - 0.01).log() / 5)


@pytest.mark.parametrize("method", DENSITIES)
def test_pixel_ranges_differ_by_the_change_of_variables_only(method, likelihood, generator):
    """With y = 2x - 1, the density of x is twice the density of y; bits, mean and samples are equal."""
    components, shape = (3 if method == "gaussian_mixture" else 1), (1, 1, 4, 4)
    mu = torch.rand(components, *shape[1:], generator=generator, dtype=torch.float64)
    sigma = 0.1 + 0.3 * torch.rand(components, *shape[1:], generator=generator, dtype=torch.float64)
    logits = torch.randn(components, *shape[1:], generator=generator, dtype=torch.float64)
    px_z, bits = [], []
    images = torch.rand(shape, generator=generator, dtype=torch.float64)
    for pixel_range, (m, s) in (("unit", (mu, sigma)), ("centered", (2 * mu - 1, 2 * sigma))):
        likely = likelihood(method, components, image_channels=1, pixel_range=pixel_range)
        parameters = raw_of(m, s) if method == "gaussian" else (logits, *raw_of(m, s))
        px_z.append(likely(torch.cat(parameters).transpose(0, 1)))
        bits.append(likely.bits_per_dimension(-px_z[-1].log_prob(images), 1))
    unit, centered = px_z
    torch.testing.assert_close(unit.log_prob(images), centered.log_prob(images) + math.log(2))
    torch.testing.assert_close(*bits)
    torch.testing.assert_close(unit.mean(), centered.mean())
    torch.testing.assert_close(unit.most_likely(), centered.most_likely())
    drawn = [distribution.sample(torch.Generator().manual_seed(3)) for distribution in px_z]
    torch.testing.assert_close(*drawn)
    assert drawn[0].std() > 0.1


# --------------------------------------------------------------------------------------------------- Bernoulli


def test_bernoulli_probabilities_are_the_sigmoid_of_the_logit(likelihood, generator):
    likely = likelihood("bernoulli", image_channels=1)
    output = 3 * torch.randn(1, 1, 1, 50, generator=generator, dtype=torch.float64)
    images, repeated = everywhere(torch.tensor([0.0, 1.0]), output)
    probability = likely(repeated).log_prob(images).exp()
    expected = 1 / (1 + torch.exp(-output[0, 0, 0]))
    torch.testing.assert_close(probability[1, 0, 0], expected)
    torch.testing.assert_close(probability[0, 0, 0], 1 - expected)
    torch.testing.assert_close(likely(output).mean()[0, 0, 0], expected)
    assert torch.equal(likely(output).most_likely()[0, 0, 0], (expected > 0.5).double())


def test_bernoulli_is_finite_for_large_logits(likelihood):
    output = torch.tensor([-1e4, -100.0, 100.0, 1e4]).view(1, 1, 1, 4).requires_grad_()
    images = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 1, 4)
    log_prob = likelihood("bernoulli", image_channels=1)(output).log_prob(images)
    assert log_prob.flatten().tolist() == [-1e4, -100, -100, -1e4]
    log_prob.sum().backward()
    assert output.grad.flatten().tolist() == [1, 1, -1, -1]


def test_bernoulli_samples_are_independent_with_the_mean(likelihood, generator):
    likely = likelihood("bernoulli")
    draws = 20_000
    output = 2 * torch.randn(1, 3, 2, 2, generator=generator)
    px_z = likely(output.expand(draws, -1, -1, -1))
    samples = px_z.sample(generator)
    assert set(samples.unique().tolist()) == {0, 1}
    p = px_z.mean()[0]
    assert ((samples.mean(0) - p).abs() < 5 * (p * (1 - p) / draws).sqrt()).all()
    correlation = torch.corrcoef(samples.flatten(1).T) - torch.eye(12)
    assert correlation.abs().max() < 5 / draws**0.5, "subpixels are correlated"


def test_bernoulli_bits_per_dimension_do_not_depend_on_pixel_bits(likelihood):
    """Probability one half is one bit per dimension for any pixel_bits."""
    for bits in (1, 8):
        likely = likelihood("bernoulli", pixel_bits=bits)
        assert likely.bits_per_dimension(784 * math.log(2), 784) == pytest.approx(1)


# ------------------------------------------------------------------------------------------- discretized Normal


def log_mass_by_quadrature(center: float, half: float) -> float:
    """The log of the standard Normal's mass in an interval, by 20,001 values of the density relative to its center."""
    t = torch.linspace(-half, half, 20_001, dtype=torch.float64)
    exponent = -center * t - t.square() / 2
    largest = exponent.max()
    integral = torch.trapezoid((exponent - largest).exp(), t)
    return (integral.log() + largest - 0.5 * center**2 - 0.5 * math.log(2 * math.pi)).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 2e-5)])
def test_mass_of_a_normal_loses_no_digits_anywhere(dtype, tolerance):
    """Narrow and wide bins, from the mean to 2,000 standard deviations away; the gradient is finite everywhere."""
    for half in (1e-25, 1e-8, 1e-3, 4e-3, 6e-3, 0.1, 1.0, 3.0):
        for center in (0.0, 1e-3, half, 1.01 * half, 0.7, 2.0, 5.0, 12.0, 40.0, 2000.0):
            at = torch.tensor([[center, -center], [half, half]], dtype=dtype, requires_grad=True)
            log_mass = log_normal_mass(*at)
            expected = log_mass_by_quadrature(*at[:, 0].tolist())
            assert log_mass.tolist() == pytest.approx(2 * [expected], rel=tolerance, abs=tolerance), (half, center)
            assert torch.autograd.grad(log_mass.sum(), at)[0].isfinite().all(), (half, center)


@pytest.mark.parametrize("x", [-1e4, -40.0, -6.0, -1.0, 0.0, 0.5, 3.0, 40.0])
def test_log_normal_cdf_is_that_of_torch(x):
    double, single = (torch.tensor(x, dtype=dtype, requires_grad=True) for dtype in (torch.float64, torch.float32))
    expected = torch.special.log_ndtr(double).item()
    assert log_normal_cdf(double).item() == pytest.approx(expected, rel=1e-9)
    assert log_normal_cdf(single).item() == pytest.approx(expected, rel=1e-5, abs=1e-12)
    assert torch.autograd.grad(log_normal_cdf(single), single)[0].isfinite()


def test_discretized_gaussian_can_give_one_value_all_mass(likelihood):
    """The smallest sigma is a quarter of half a bin: a constant image costs nothing, and a surprise is finite."""
    likely = likelihood("discretized_gaussian", image_channels=1)
    images, output = everywhere(VALUES, torch.tensor([0.0, 128 / 255 * 2 - 1, -9, -9]).view(1, 2, 1, 2).float())
    log_prob = likely(output).log_prob(images)[:, 0, 0]
    assert log_prob[128, 1].exp() > 0.9999 and log_prob.isfinite().all()


# ---------------------------------------------------------------------------------- coupled mixture of logistics


def colors(bits: int) -> torch.Tensor:
    """All (2^b)^3 colors, (N, 3)."""
    values = torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1)
    return torch.cartesian_prod(values, values, values)


def at_every_color(likely, output: torch.Tensor, bits: int) -> torch.Tensor:
    """Log probability of every color at every place of an output (1, P, 1, places): (N, places)."""
    every = colors(bits)
    images = every[:, :, None, None].expand(-1, -1, 1, output.shape[-1])
    return likely(output.expand(len(every), -1, -1, -1)).log_prob(images)[:, 0, 0]


def coupled_outputs(components: int, generator: torch.Generator, places: int, log_scale: float) -> torch.Tensor:
    """Varied outputs (1, 10 M, 1, places), log scales around the given one."""
    raw = torch.randn(1, 10 * components, 1, places, generator=generator, dtype=torch.float64)
    by_channel = raw[:, components:].view(3, 3, components, places)  # channel, parameter, component
    by_channel[:, 0] *= 0.5
    by_channel[:, 1] = 0.5 * by_channel[:, 1] + log_scale
    return raw


@pytest.mark.parametrize("bits", [2, 3])
def test_coupled_probabilities_of_all_colors_sum_to_one_with_exact_tails(bits, likelihood, generator):
    """Exact if every mass is above 1e-5. A smaller mass is computed from the density, which is less than the mass,
    because the tails of a logistic density are convex. So every channel loses at most 1e-5 in each inner bin."""
    likely = likelihood("coupled_logistic_mixture", 3, likelihood_tails="exact", pixel_bits=bits)
    assert likely.num_parameters == 30
    large_scale = coupled_outputs(3, generator, 40, log_scale=0.5)
    total = at_every_color(likely, large_scale, bits).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(40, dtype=torch.float64), rtol=0, atol=1e-9)
    small_scale = coupled_outputs(3, generator, 40, log_scale=-3.5)
    missing = 1 - at_every_color(likely, small_scale, bits).exp().sum(0)
    assert missing.max() > 1e-9, "no mass is below 1e-5"
    assert missing.min() > -1e-9
    assert missing.max() < 3 * (2**bits - 2) * 1e-5


@pytest.mark.parametrize("log_scale", [0.5, -3.5])
def test_coupled_conditional_probabilities_of_blue_sum_to_one(log_scale, likelihood, generator):
    """With one component, the sum over all values of blue is the product of the probabilities of red and green."""
    likely = likelihood("coupled_logistic_mixture", 1, likelihood_tails="exact")
    output = coupled_outputs(1, generator, 20, log_scale)
    others = (255 * torch.rand(2, 20, generator=generator, dtype=torch.float64)).round() / 255
    images = torch.stack([others[0].expand(256, -1), others[1].expand(256, -1), VALUES[:, None].expand(-1, 20)], 1)
    blue_summed = likely(output.expand(256, -1, -1, -1)).log_prob(images[:, :, None]).exp().sum(0)[0, 0]
    # Red and green alone: with a very large scale of blue, both open tails have probability 1/2.
    indifferent = output.clone()
    indifferent[:, 7:10] = torch.tensor([0.0, 50.0, 0.0], dtype=torch.float64)[None, :, None, None]
    first = torch.stack([others[0], others[1], torch.zeros(20, dtype=torch.float64)])[None, :, None]
    red_and_green = 2 * likely(indifferent).log_prob(first).exp()[0, 0, 0]
    torch.testing.assert_close(blue_summed, red_and_green, rtol=256e-5, atol=0)
    if log_scale == 0.5:  # no mass is below 1e-5
        torch.testing.assert_close(blue_summed, red_and_green, rtol=1e-9, atol=0)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(raw: list[float], components: int, color: list[float], last: int, open_above: float) -> float:
    """Return the log probability of one color by the formulas of the papers, one number at a time."""
    value = [2 * v - 1 for v in color]
    weights = [math.exp(raw[m] - max(raw[:components])) for m in range(components)]
    total = 0.0
    for m in range(components):
        mean, log_scale, c = (
            [raw[components + (3 * channel + k) * components + m] for channel in range(3)] for k in range(3)
        )
        c = [math.tanh(v) for v in c]
        centers = [mean[0], mean[1] + c[0] * value[0], mean[2] + c[1] * value[0] + c[2] * value[1]]
        product = weights[m] / sum(weights)
        for channel in range(3):
            scale = math.exp(max(log_scale[channel], -7))

            distance, half = (value[channel] - centers[channel]) / scale, 1 / last / scale
            mass = logistic(-abs(distance) + half) - logistic(-abs(distance) - half)  # on the side that loses no digits
            if color[channel] < 5e-4:
                mass = logistic(distance + half)
            elif color[channel] > open_above:
                mass = logistic(-distance + half)
            elif mass < 1e-5:
                mass = 2 * half * logistic(distance) * logistic(-distance)
            product *= mass
        total += product
    return math.log(total)


@pytest.mark.parametrize(("tails", "open_above"), [("original", 0.995), ("exact", 254.5 / 255)])
@pytest.mark.parametrize("log_scale", [-1.0, -3.0])
def test_coupled_mixture_matches_the_formula(tails, open_above, log_scale, likelihood, generator):
    likely = likelihood("coupled_logistic_mixture", 2, likelihood_tails=tails)
    output = coupled_outputs(2, generator, 60, log_scale)
    images = (255 * torch.rand(1, 3, 1, 60, generator=generator, dtype=torch.float64)).round() / 255
    images[0, 0, 0, :5], images[0, 1, 0, 5:10], images[0, 2, 0, 10:15] = 0, 1, 254 / 255
    log_prob = likely(output).log_prob(images)
    assert log_prob.shape == (1, 1, 1, 60), "log_prob is not per pixel"
    expected = [
        by_hand(output[0, :, 0, i].tolist(), 2, images[0, :, 0, i].tolist(), 255, open_above) for i in range(60)
    ]
    torch.testing.assert_close(log_prob.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-7)
    single = likely(output.float()).log_prob(images.float()).flatten().double()
    torch.testing.assert_close(single, log_prob.flatten(), rtol=1e-4, atol=1e-3)


def one_coupled(means=(0.0, 0.0, 0.0), log_scales=(-4.0, -4.0, -4.0), coefficients=(0.0, 0.0, 0.0)) -> torch.Tensor:
    """The output (1, 10, 1, 1) of one component; coefficients: after the tanh."""
    raw = [math.atanh(c) for c in coefficients]
    channels = [value for channel in zip(means, log_scales, raw, strict=True) for value in channel]
    return torch.tensor([0.0, *channels], dtype=torch.float64).view(1, 10, 1, 1)


def test_coupled_mean_of_green_depends_on_red_and_of_blue_on_both(likelihood):
    """Means r, g + c0 red, b + c1 red + c2 green on [-1, 1], with the actual values of red and green."""
    likely = likelihood("coupled_logistic_mixture", 1)
    output = one_coupled((0.2, 0.1, -0.2), coefficients=(0.5, -0.6, 0.3))
    for red, green in ((0.0, 0.0), (0.8, -0.4), (-0.6, 0.6)):
        center = torch.tensor([red, green, 0.0])
        best = []
        for channel in (1, 2):
            images = ((center + 1) / 2)[None, :, None, None].repeat(256, 1, 1, 1).double()
            images[:, channel, 0, 0] = VALUES
            if channel == 1:
                images[:, 2] = 0.5
                # Blue depends on green too: remove the effect with a very large scale of blue.
                indifferent = output.clone()
                indifferent[0, 8] = 30.0
                log_prob = likely(indifferent.expand(256, -1, -1, -1)).log_prob(images)
            else:
                log_prob = likely(output.expand(256, -1, -1, -1)).log_prob(images)
            best.append(2 * VALUES[log_prob.flatten().argmax()].item() - 1)
        assert best[0] == pytest.approx(0.1 + 0.5 * red, abs=1 / 255)
        assert best[1] == pytest.approx(-0.2 - 0.6 * red + 0.3 * green, abs=1 / 255)
    px_z = likely(output)
    green = 0.1 + 0.5 * 0.2
    expected = torch.tensor([0.2, green, -0.2 - 0.6 * 0.2 + 0.3 * green], dtype=torch.float64)
    torch.testing.assert_close(px_z.mean().flatten(), (expected + 1) / 2)
    torch.testing.assert_close(px_z.most_likely().flatten(), (expected + 1) / 2)


def test_coupled_mean_weighs_components_and_most_likely_selects_one(likelihood):
    """Means and coefficients are weighted averages, or the heaviest component's; channels are clamped one by one."""
    likely = likelihood("coupled_logistic_mixture", 2)
    logits = [0.3, 1.1]
    means, raw = [[-0.5, 0.3], [0.2, 0.9], [0.1, -0.6]], [[0.4, 1.2], [-0.8, 0.5], [2.0, -1.0]]
    channels = [v for mean, c in zip(means, raw, strict=True) for v in (*mean, -3.0, -3.0, *c)]
    px_z = likely(torch.tensor([*logits, *channels], dtype=torch.float64).view(1, 20, 1, 1))

    def color(weights):
        m = [sum(w * v for w, v in zip(weights, values, strict=True)) for values in means]
        c = [sum(w * math.tanh(v) for w, v in zip(weights, values, strict=True)) for values in raw]
        red = max(-1.0, min(1.0, m[0]))
        green = max(-1.0, min(1.0, m[1] + c[0] * red))
        return [(v + 1) / 2 for v in (red, green, max(-1.0, min(1.0, m[2] + c[1] * red + c[2] * green)))]

    heavier = 1 / (1 + math.exp(0.3 - 1.1))
    assert px_z.mean().flatten().tolist() == pytest.approx(color([1 - heavier, heavier]))
    assert px_z.most_likely().flatten().tolist() == pytest.approx(color([0, 1]))
    assert color([0, 1])[1] == 1.0, "no channel is clamped"


def test_coupled_small_mass_is_the_density_at_the_center(likelihood):
    likely = likelihood("coupled_logistic_mixture", 1)
    scale = math.exp(-5.0)
    images = torch.full((1, 3, 1, 1), 128 / 255, dtype=torch.float64)
    is_small = set()
    for mean in (-0.3, -0.2, -0.1, -0.08, -0.05, 0.0):
        output = one_coupled((mean, 0.0, 0.0), (-5.0, 40.0, 40.0))
        others = likely(one_coupled((0.0, 0.0, 0.0), (40.0, 40.0, 40.0))).log_prob(images).item() * 2 / 3
        distance, half = (mean - 1 / 255) / scale, 1 / 255 / scale
        mass = logistic(distance + half) - logistic(distance - half)
        density = 2 * half * logistic(distance) * logistic(-distance)
        expected = mass if mass > 1e-5 else density
        is_small.add(mass <= 1e-5)
        assert abs(math.log(mass / density)) > 0.01, "mass and density are too close to tell apart"
        assert likely(output).log_prob(images).item() - others == pytest.approx(math.log(expected), rel=1e-6)
    assert is_small == {True, False}


@pytest.mark.parametrize("bits", [2, 8])
def test_coupled_sample_frequencies_without_coefficients_match_log_prob(bits, likelihood, generator):
    """With zero coefficients, over all 64 colors (2 bits) or the 256 values of red (8 bits)."""
    likely = likelihood("coupled_logistic_mixture", 2, likelihood_tails="exact", pixel_bits=bits)
    output = coupled_outputs(2, generator, 3, log_scale=-1.0)
    output[:, 2:].view(3, 3, 2, 3)[:, 2] = 0
    draws, last = 20_000, 2**bits - 1
    samples = (likely(output.expand(draws, -1, -1, -1)).sample(generator) * last).round().long()[:, :, 0]
    assert samples.min() == 0
    assert samples.max() == last
    for place in range(3):
        if bits == 2:
            expected = at_every_color(likely, output, bits).exp()[:, place]
            number = samples[:, :, place] @ torch.tensor([16, 4, 1])
        else:  # red alone: a mixture of two logistics
            logits, means, log_scales = output[0, :2, 0, place], output[0, 2:4, 0, place], output[0, 4:6, 0, place]
            edges = (2 * (torch.arange(255) + 0.5) / 255 - 1)[:, None]
            below = (logits.softmax(0) * torch.sigmoid((edges - means) / log_scales.exp())).sum(1)
            expected = torch.cat([below, below.new_ones(1)]).diff(prepend=below.new_zeros(1))
            number = samples[:, 0, place]
        frequency = torch.bincount(number, minlength=len(expected)) / draws
        assert (
            frequency.cumsum(0) - expected.cumsum(0)
        ).abs().max() < 1.95 / draws**0.5  # exceeded with probability 0.001


def test_coupled_samples_have_the_conditional_means_and_scales(likelihood, generator):
    """The conditional means of green given red and of blue given both follow the formula."""
    likely = likelihood("coupled_logistic_mixture", 1)
    output = one_coupled((0.1, -0.1, 0.05), (-2.5, -3.5, -4.0), (0.7, -0.5, 0.4))
    draws = 20_000
    samples = likely(output.expand(draws, -1, -1, -1)).sample(generator)[:, :, 0, 0]
    red, green, blue = (2 * samples - 1).unbind(1)
    noise = [red - 0.1, green - (-0.1 + 0.7 * red), blue - (0.05 - 0.5 * red + 0.4 * green)]
    for residual, scale in zip(noise, (-2.5, -3.5, -4.0), strict=True):
        assert residual.mean().abs() < 5 * residual.std() / draws**0.5
        # The standard deviation of a logistic is scale * pi / sqrt(3); rounding to 256 values adds a little.
        assert residual.std().item() == pytest.approx(math.exp(scale) * math.pi / 3**0.5, rel=0.03)
    assert abs(torch.corrcoef(torch.stack(noise)) - torch.eye(3)).max() < 5 / draws**0.5
    assert torch.corrcoef(torch.stack([red, green]))[0, 1] > 0.8


def test_coupled_sample_draws_all_channels_from_one_component(likelihood, generator):
    likely = likelihood("coupled_logistic_mixture", 2)
    channels = [v for _ in range(3) for v in (-0.5, 0.5, -7.0, -7.0, 0.0, 0.0)]
    output = torch.tensor([0.0, math.log(3), *channels]).view(1, 20, 1, 1)
    draws = 4000
    bright = likely(output.expand(draws, -1, -1, -1)).sample(generator)[:, :, 0, 0] > 0.5
    assert (bright.all(1) | ~bright.any(1)).all()
    assert bright[:, 0].float().mean().item() == pytest.approx(0.75, abs=5 * (0.75 * 0.25 / draws) ** 0.5)


def test_coupled_log_prob_is_invariant_to_a_shift_of_the_logits(likelihood, generator):
    likely = likelihood("coupled_logistic_mixture", 2)
    output = coupled_outputs(2, generator, 5, -2.0)
    shifted = output.clone()
    shifted[:, :2] += 3
    images = torch.rand(1, 3, 1, 5, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(likely(shifted).log_prob(images), likely(output).log_prob(images))
    assert isinstance(likely(output), CoupledLogisticMixture)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coupled_log_prob_and_gradients_are_finite_far_from_the_mean(dtype, likelihood):
    likely = likelihood("coupled_logistic_mixture", 2)
    images = VALUES[[0, 1, 128, 253, 254, 255]].to(dtype)[:, None, None, None].expand(-1, 3, 1, 1)
    for mu in (-1e4, -5.0, 0.0, 5.0, 1e4):
        for log_scale in (-1e4, -7.0, 0.0, 20.0, 60.0, 1e4):
            output = torch.zeros(6, 20, 1, 1, dtype=dtype)
            by_parameter = output[:, 2:].view(6, 3, 3, 2)
            by_parameter[:, :, 0], by_parameter[:, :, 1], by_parameter[:, :, 2] = mu, log_scale, 0.5
            output.requires_grad_()
            log_prob = likely(output).log_prob(images)
            log_prob.sum().backward()
            assert log_prob.isfinite().all(), (mu, log_scale)
            assert output.grad.isfinite().all(), (mu, log_scale)


# --------------------------------------------------------------------------------------------------- stability


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_log_prob_and_gradients_are_finite_far_from_the_mean(method, dtype, likelihood):
    likely = likelihood(method, image_channels=1, components=2)
    images, _ = everywhere(VALUES[[0, 1, 128, 253, 254, 255]], torch.zeros(1, 1, 1, 1, dtype=dtype))
    for mu in (-1e4, -5.0, 0.0, 5.0, 1e4):
        for log_scale in (-1e4, -7.0, 0.0, 20.0, 60.0):
            output = torch.zeros(6, likely.num_parameters, 1, 1, dtype=dtype)
            if method in ("gaussian", "discretized_gaussian"):
                output[:, 0], output[:, 1] = mu, log_scale
            else:
                output.view(6, 3, -1)[:, 1], output.view(6, 3, -1)[:, 2] = mu, log_scale
            output.requires_grad_()
            log_prob = likely(output).log_prob(images)
            log_prob.sum().backward()
            assert log_prob.isfinite().all(), (mu, log_scale)
            assert output.grad.isfinite().all(), (mu, log_scale)


def one_logistic(mu: float, log_scale: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor([0.0, mu, log_scale], dtype=dtype).view(1, 3, 1, 1).requires_grad_()


def test_logistic_mass_is_at_least_1e_10(likelihood):
    likely = likelihood("logistic", image_channels=1)
    image = torch.full((1, 1, 1, 1), 128 / 255)
    assert likely(one_logistic(-1.0, -5.0)).log_prob(image).item() == pytest.approx(math.log(1e-10))
    assert likely(one_logistic(-0.9, -2.5)).log_prob(image).item() > math.log(1e-10) + 0.1


def test_logistic_minimum_mass_keeps_the_gradient(likelihood):
    """The minimum bounds the value, not the gradient."""
    likely = likelihood("logistic", image_channels=1)
    output = one_logistic(-1.0, -5.0)
    likely(output).log_prob(torch.full((1, 1, 1, 1), 128 / 255)).sum().backward()
    _, mu, log_scale = output.grad.flatten().tolist()
    assert mu > 1, "a larger mean must be better"
    assert log_scale > 1, "a larger scale must be better"


def test_logistic_mass_is_exact_in_float32_far_from_the_mean(likelihood):
    """In float32, sigmoid(u) - sigmoid(l) is 0 here; the exact mass is a hundred times the minimum."""
    image = torch.full((1, 1, 1, 1), 200 / 255)
    likely = likelihood("logistic", image_channels=1)
    single = likely(one_logistic(-0.5, -2.65)).log_prob(image)
    double = likely(one_logistic(-0.5, -2.65, torch.float64)).log_prob(image.double())
    assert math.log(1e-10) + 1 < double.item() < math.log(1e-6)
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


def test_logistic_scale_is_at_least_exp_minus_seven(likelihood):
    likely = likelihood("logistic", image_channels=1)
    image = torch.full((1, 1, 1, 1), 128 / 255)
    assert torch.equal(
        likely(one_logistic(0.0, -7.0)).log_prob(image), likely(one_logistic(0.0, -30.0)).log_prob(image)
    )


def test_coupled_gradients_pass_gradcheck(likelihood, generator):
    """On both sides of 1e-5, below which the mass is computed from the density."""
    likely = likelihood("coupled_logistic_mixture", components=2)
    output = torch.cat([coupled_outputs(2, generator, 8, log_scale) for log_scale in (-1.0, -3.0)]).requires_grad_()
    images = (255 * torch.rand(2, 3, 1, 8, generator=generator, dtype=torch.float64)).round() / 255
    images[0, :, 0, 0], images[1, :, 0, 1] = 0, 1
    assert torch.autograd.gradcheck(lambda o: likely(o).log_prob(images), output)
    assert torch.autograd.gradcheck(lambda o: likely(o).mean(), output)


@RANGES
@pytest.mark.parametrize("method", DISCRETE + DENSITIES)
def test_gradients_pass_gradcheck(method, pixel_range, likelihood, generator):
    """At values whose mass is above the minimum; below, value and gradient do not match."""
    likely = likelihood(method, components=2, image_channels=1, pixel_range=pixel_range)
    output = 0.5 * torch.randn(2, likely.num_parameters, 2, 2, generator=generator, dtype=torch.float64)
    images = torch.tensor([0, 3, 100, 128, 200, 253, 254, 255], dtype=torch.float64).view(2, 1, 2, 2) / 255
    assert torch.autograd.gradcheck(lambda o: likely(o).log_prob(images), output.requires_grad_())
    assert torch.autograd.gradcheck(lambda o: likely(o).mean(), output)


@pytest.mark.parametrize("method", [*DISCRETE, *DENSITIES, "bernoulli", "coupled_logistic_mixture"])
def test_log_prob_of_half_precision_is_float32(method, likelihood, generator):
    likely = likelihood(method)
    output = torch.randn(2, likely.num_parameters, 4, 4, generator=generator).bfloat16()
    images = torch.rand(2, 3, 4, 4, generator=generator)
    log_prob = likely(output).log_prob(images)
    assert log_prob.dtype == torch.float32
    assert torch.equal(log_prob, likely(output.float()).log_prob(images))


@pytest.mark.parametrize("bits", [2, 5])
def test_coupled_sample_frequencies_match_log_prob(bits, make_config):
    config = make_config(sampling_method="coupled_logistic_mixture", n_mix=1, pixel_bits=bits, likelihood_tails="exact")
    likely, last = build_likelihood(config), 2**bits - 1
    # a large scale of red; green and blue are nearly certain given the channels before
    raw = [0.0, 0.1, -2.5, math.atanh(0.9), -0.1, -4.5, math.atanh(-0.5), 0.05, -4.5, math.atanh(0.5)]
    output = torch.tensor(raw, dtype=torch.float64).view(1, 10, 1, 1)
    values = torch.arange(last + 1, dtype=torch.float64) / last
    every = torch.cartesian_prod(values, values, values)[:, :, None, None]
    p = likely(output.expand(len(every), -1, -1, -1)).log_prob(every).exp().flatten()
    draws = 20_000
    samples = likely(output.expand(draws, -1, -1, -1)).sample(torch.Generator().manual_seed(0))[:, :, 0, 0]
    number = (samples * last).round().long() @ torch.tensor([(last + 1) ** 2, last + 1, 1])
    frequency = torch.bincount(number, minlength=len(p)) / draws
    assert (frequency.cumsum(0) - p.cumsum(0)).abs().max() < 1.95 / draws**0.5
