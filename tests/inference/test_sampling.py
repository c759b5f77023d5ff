import pytest
import torch

from nvae.inference.sampling import Sampler, seed_noise, to_images
from nvae.models.hierarchy import FromNoise
from nvae.system.errors import InvalidValueError, UserError

GROUPS = 4
METHODS = pytest.mark.parametrize(
    "method",
    ["bernoulli", "gaussian", "gaussian_mixture", "logistic", "logistic_mixture", "coupled_logistic_mixture"],
)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


def plain(model, temperature=1.0, **options):
    """A sampler with the statistics of training."""
    return Sampler(model, temperature, iterations=0, **options)


# --------------------------------------------------------------------------------------------------------- noise


def test_seed_noise_is_standard_normal(model):
    noise = torch.cat([group.flatten() for group in seed_noise(model, range(400))])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_seed_noise_scale_is_a_factor_per_scale(model):
    noise, scaled = seed_noise(model, [3, 4]), seed_noise(model, [3, 4], [0.5, 3.0])
    for group, other, factor in zip(noise, scaled, [0.5, 0.5, 3, 3], strict=True):
        assert torch.equal(other, factor * group)


# ------------------------------------------------------------------------------------------------------- samples


def test_sample_of_a_seed_does_not_depend_on_the_other_seeds(model, assert_within):
    sampler = plain(model, 0.7, batch_size=2)
    together = sampler.sample([5, 6, 7])
    assert together.shape == (3, 3, 8, 8)
    for index, seed in enumerate([5, 6, 7]):
        assert_within(together[index], sampler.sample([seed])[0])
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_sample_of_a_count_is_that_of_the_first_seeds(model):
    assert torch.equal(plain(model).sample(3), plain(model).sample([0, 1, 2]))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_sample_runs_passes_of_at_most_the_batch_size(model, passes, batch_size):
    outputs = passes(model)
    plain(model, batch_size=batch_size).sample(7)
    counts = [len(output.parameters) for output in outputs]
    assert sum(counts) == 7
    assert max(counts) == min(batch_size, 7)


def test_sample_is_in_the_unit_interval(model):
    images = plain(model, 5.0).sample(9)
    assert images.min() >= 0
    assert images.max() <= 1


@torch.no_grad()
def test_temperature_is_one_number_per_scale(model, assert_within):
    output = model.top_down(FromNoise(seed_noise(model, [3, 4]), [0.4, 0.4, 0.9, 0.9]), 2)
    images = plain(model, [0.4, 0.9]).sample([3, 4])
    assert_within(images, output.px_z.mean().clamp(0, 1))
    assert (images - plain(model, 0.4).sample([3, 4])).abs().max() > 1e-3


@torch.no_grad()
def test_temperature_is_one_number_per_latent_group(model, assert_within):
    temperatures = [0.4, 0.6, 0.8, 1.0]
    output = model.top_down(FromNoise(seed_noise(model, [3, 4]), temperatures), 2)
    assert_within(plain(model, temperatures).sample([3, 4]), output.px_z.mean().clamp(0, 1))


def test_noise_scale_zero_gives_the_centers_of_the_priors(model, assert_within):
    without = plain(model, 0.7).sample([3, 4], noise_scale=0)
    assert_within(without, plain(model).decode(model.no_noise(1)).expand(2, -1, -1, -1))
    assert (without - plain(model, 0.7).sample([3, 4])).abs().max() > 1e-2


def test_noise_scale_multiplies_the_noise(model):
    sampler = plain(model, 0.7)
    expected = sampler.decode(seed_noise(model, [3], [0.0, 3.0]))
    assert torch.equal(sampler.sample([3], noise_scale=[0.0, 3.0]), expected)


WRONG = {
    "temperature of three scales": lambda model: Sampler(model, [0.5, 0.7, 0.9]),
    "temperature as a text": lambda model: Sampler(model, "0.7"),
    "negative iterations": lambda model: Sampler(model, iterations=-1),
    "batch size 0": lambda model: Sampler(model, batch_size=0),
    "no images": lambda model: plain(model).sample(0),
    "negative seed": lambda model: plain(model).sample([-1]),
    "seed as a text": lambda model: plain(model).sample("3"),
    "other pixels": lambda model: plain(model).sample(1, "median"),
    "noise of three groups": lambda model: plain(model).decode(model.no_noise(1)[:3]),
    "seeds of another count": lambda model: plain(model).decode(model.no_noise(3), "sample", [1, 2]),
    "noise scale of another count": lambda model: plain(model).sample(1, noise_scale=[1.0] * (GROUPS + 1)),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
def test_wrong_argument_is_refused(model, call):
    with pytest.raises(InvalidValueError):
        call(model)


def test_images_that_are_not_finite_are_refused(make_model):
    model = make_model()
    model.groups[-1].decoder_combiner.bias.data.fill_(float("inf"))
    with pytest.raises(UserError, match="finite"):
        plain(model).sample(1)


# -------------------------------------------------------------------------------------------------------- pixels


@torch.no_grad()
def test_mean_and_most_likely_image_are_those_of_the_distribution(make_model, assert_within):
    model = make_model(sampling_method="logistic_mixture", n_mix=3)
    noise = seed_noise(model, [3, 4])
    px_z = model.top_down(FromNoise(noise), 2).px_z
    mean, most_likely = (plain(model).decode(noise, pixels) for pixels in ("mean", "most_likely"))
    assert_within(mean, (px_z.logits.softmax(2) * px_z.means).sum(2).clamp(0, 1))
    chosen = torch.nn.functional.one_hot(px_z.logits.argmax(2), 3).movedim(-1, 2)
    assert_within(most_likely, (chosen * px_z.means).sum(2).clamp(0, 1))
    assert (most_likely - mean).abs().max() > 1e-2


@METHODS
def test_drawn_pixels_depend_on_the_seed_alone(make_model, method):
    """In batches of two: every batch must get its own part of the seeds."""
    model = make_model(sampling_method=method, n_mix=2)
    sampler = plain(model, 0.7, batch_size=2)
    together = sampler.sample([5, 6, 7, 8, 9], "sample")
    alone = sampler.sample([8], "sample")[0]
    # Rounding differs with the batch size, and can change single draws.
    assert ((together[3] - alone).abs() > 1e-3).float().mean() < 0.02
    assert ((together[2] - alone).abs() > 1e-3).float().mean() > 0.1
    assert torch.equal(together, sampler.sample([5, 6, 7, 8, 9], "sample"))
    assert (together - sampler.sample([5, 6, 7, 8, 9])).abs().mean() > 0.01
    assert together.min() >= 0
    assert together.max() <= 1


def test_draws_of_one_image_average_to_its_mean(bernoulli_model):
    sampler, draws = plain(bernoulli_model), 500
    noise = sampler.noise([3])
    mean = sampler.decode(noise)
    drawn = sampler.decode([group.expand(draws, -1, -1, -1) for group in noise], "sample", range(draws))
    assert set(drawn.unique().tolist()) == {0, 1}
    error = (mean * (1 - mean) / draws).sqrt()
    assert ((drawn.mean(0) - mean).abs() <= 5 * error).all()


def test_drawn_pixels_have_the_values_of_the_bit_depth(make_model):
    drawn = plain(make_model(sampling_method="logistic", pixel_bits=3)).sample(20, "sample")
    torch.testing.assert_close(drawn.unique(), torch.arange(8) / 7)


@torch.no_grad()
def test_to_images_refuses_draws_without_seeds(model):
    output = model.top_down(FromNoise(model.no_noise(1)), 1)
    with pytest.raises(ValueError):
        to_images(model, output, "sample")


# ------------------------------------------------------------------------------------------------- recalibration


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_sampler_recalibrates_by_itself(make_model, assert_within):
    """As the same passes with the measured statistics in the model itself."""
    model = make_model()
    sampler = Sampler(model, 0.7, iterations=2)
    images = sampler.sample(3)
    assert (images - plain(model, 0.7).sample(3)).abs().max() > 1e-3
    for name, mean in sampler.statistics.means.items():
        model.get_submodule(name).running_mean.copy_(mean)
        model.get_submodule(name).running_var.copy_(sampler.statistics.variances[name])
    assert_within(plain(model, 0.7).sample(3), images)


def test_sampler_leaves_the_model_as_it_was(make_model):
    model = make_model().train()
    before = state(model)
    Sampler(model, 0.7, iterations=2).sample(2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_sampler_with_one_converged_recalibration_has_no_warnings(model):
    sampler = Sampler(model, 0.7)
    assert sampler.warnings == []
    assert sampler.statistics is sampler.statistics
    assert len(Sampler(model, 0.7, iterations=1).warnings) == 1
    assert plain(model).warnings == []


def test_sampler_of_a_model_without_batch_norms_has_no_statistics_and_no_warnings(make_model, assert_within):
    model = make_model()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, torch.nn.Identity())
    sampler = Sampler(model, 0.7)
    assert sampler.statistics is None
    assert sampler.warnings == []
    assert_within(sampler.sample(2), plain(model, 0.7).sample(2), 0)
