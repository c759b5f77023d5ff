import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nvae.inference import exploration
from nvae.inference.exploration import (
    base_point,
    draw_group_noise,
    explore,
    explore_positions,
    mean_change,
    resample_group,
    sweep,
)
from nvae.inference.sampling import Sampler
from nvae.models.hierarchy import FromNoise
from nvae.system.errors import InvalidValueError

GROUPS = 4
TEMPERATURE = 0.7
VARIANTS = {
    "plain": {},
    "fixed flows": {"num_flows": 1, "fixed_flows": True},
    "nvlabs": {"style": "nvlabs", "num_flows": 1},
}
ANY_GROUP = pytest.mark.parametrize("group", range(GROUPS))


@pytest.fixture(scope="module")
def model(bernoulli_model):
    return bernoulli_model


@pytest.fixture
def sampler(model):
    return Sampler(model, TEMPERATURE, iterations=0)


@pytest.fixture
def base(sampler):
    return base_point(sampler, sampler.noise([3]))


def with_noise_at(base, group, noise):
    """Return noise (K, L, H, W) per group: `noise` for one group, the base point's noise for the other groups."""
    return [noise if index == group else kept.expand(len(noise), -1, -1, -1) for index, kept in enumerate(base.noise)]


@pytest.fixture
def resampled(monkeypatch):
    """The noise of every later call of `resample_group`."""
    noises = []

    def spy(sampler, base, group, noise):
        noises.append(noise)
        return resample_group(sampler, base, group, noise)

    monkeypatch.setattr(exploration, "resample_group", spy)
    return noises


# ------------------------------------------------------------------------------------------------ resampled groups


def test_base_point_is_the_image_of_its_noise(sampler, base, assert_within):
    assert_within(base.image, sampler.decode(base.noise))
    assert list(base.states) == list(range(GROUPS))


@pytest.mark.parametrize("variant", VARIANTS)
def test_resample_group_equals_a_whole_pass_with_the_same_noise(make_model, variant, assert_within):
    model = make_model(**VARIANTS[variant] | {"sampling_method": "bernoulli"})
    sampler = Sampler(model, [0.4, 0.9], iterations=2)
    base = base_point(sampler, sampler.noise([3]))
    for group in range(GROUPS):
        noise = draw_group_noise(model, group, 3, seed=1)
        images = resample_group(sampler, base, group, noise)
        assert_within(images, sampler.decode(with_noise_at(base, group, noise)))
        assert (images - base.image).abs().amax((1, 2, 3)).min() > 1e-5, group


@ANY_GROUP
@torch.no_grad()
def test_resample_group_changes_no_group_above(model, sampler, base, group, passes, assert_within):
    """Groups above the resampled group are not computed; a whole pass gives them the same z."""
    noise = draw_group_noise(model, group, 3, seed=1)
    whole = model.top_down(FromNoise(with_noise_at(base, group, noise), TEMPERATURE), 3)
    unchanged = model.top_down(FromNoise(base.noise, TEMPERATURE), 1)
    outputs = passes(model)
    resample_group(sampler, base, group, noise)
    (output,) = outputs
    assert list(output.groups) == list(range(group, GROUPS))
    for index in range(GROUPS):
        if index < group:
            assert_within(whole.groups[index].z, unchanged.groups[index].z.expand(3, -1, -1, -1))
        else:
            assert_within(output.groups[index].z, whole.groups[index].z)
            assert (output.groups[index].z - unchanged.groups[index].z).abs().amax((1, 2, 3)).min() > 1e-3, index


def test_resample_group_image_does_not_depend_on_the_batch(model, sampler, base, assert_within):
    noise = draw_group_noise(model, 2, 5, seed=1)
    together = resample_group(sampler, base, 2, noise)
    assert_within(resample_group(sampler, base, 2, noise[3:4])[0], together[3])
    sampler.batch_size = 2
    assert_within(resample_group(sampler, base, 2, noise), together)


def test_group_noise_does_not_depend_on_the_number_of_draws(model):
    """Also if the size is not a multiple of 16, the number of values that torch draws together."""
    for group in range(GROUPS):
        many = draw_group_noise(model, group, 5, seed=1)
        assert all(torch.equal(draw_group_noise(model, group, n, seed=1), many[:n]) for n in range(1, 5)), group


def test_group_noise_is_standard_normal_and_differs_by_seed_and_group(model):
    noise = draw_group_noise(model, 0, 2000, seed=1)
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    others = (draw_group_noise(model, 0, 2000, seed=2), draw_group_noise(model, 1, 2000, seed=1))
    assert all(abs((noise * other).mean()) < 0.03 for other in others)


def test_strength_is_a_factor_per_scale(model):
    noise = draw_group_noise(model, 2, 3, seed=1)
    assert torch.equal(draw_group_noise(model, 2, 3, seed=1, strength=2), 2 * noise)
    assert torch.equal(draw_group_noise(model, 2, 3, seed=1, strength=[3.0, 0.5]), 0.5 * noise)


@torch.no_grad()
def test_strength_zero_gives_the_center_of_the_prior(model, sampler, base, assert_within):
    resampled = explore(sampler, base, 2, strength=0.0)
    for group in range(GROUPS):
        source = FromNoise(with_noise_at(base, group, torch.zeros(1, *model.noise_shapes[group])), TEMPERATURE)
        whole = model.top_down(source, 1)
        assert torch.equal(whole.groups[group].z, whole.groups[group].prior.mu)
        assert_within(resampled[group], whole.px_z.mean().expand(2, -1, -1, -1))
        assert mean_change(resampled[group], base.image) > 1e-6


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@torch.no_grad()
def test_absolute_jam_has_the_same_deviation_at_any_temperature(model, temperature, passes, assert_within):
    """z of a jammed group is mu + S sigma noise; the groups below keep their temperature."""
    sampler = Sampler(model, temperature, iterations=0)
    base = base_point(sampler, sampler.noise([3]), absolute=True)
    for group in range(GROUPS):
        noise = draw_group_noise(model, group, 2, seed=1)
        outputs = passes(model)
        resample_group(sampler, base, group, 0.6 * noise)
        groups = outputs[0].groups
        prior = groups[group].prior
        assert_within(groups[group].z, prior.mu + 0.6 * prior.sigma * noise)
        for below in range(group + 1, GROUPS):
            assert_within(
                groups[below].z, groups[below].prior.sample(base.noise[below].expand(2, -1, -1, -1), temperature)
            )


@ANY_GROUP
def test_absolute_base_point_keeps_its_image_in_sweeps_and_positions(sampler, base, group, assert_within):
    absolute = base_point(sampler, base.noise, absolute=True)
    assert_within(absolute.image, base.image)
    assert_within(next(sweep(sampler, absolute, group, 8, seed=1))[:1], base.image, 1e-5)
    assert_within(resample_group(sampler, absolute, group, absolute.jam_noise[group]), base.image, 1e-5)
    changed = explore_positions(sampler, absolute, group, 1, seed=1).influence
    relative = explore_positions(sampler, base, group, 1, seed=1).influence
    assert changed.mean() > 1.1 * relative.mean()  # temperature 1 instead of 0.7


def test_absolute_jam_equals_a_relative_one_at_temperature_one(model, assert_within):
    sampler = Sampler(model, 1.0, iterations=0)
    points = [base_point(sampler, sampler.noise([3]), absolute=absolute) for absolute in (False, True)]
    for relative, absolute in zip(*(explore(sampler, base, 2, 0.8, seed=4) for base in points), strict=True):
        assert torch.equal(relative, absolute)


def test_absolute_jam_keeps_the_statistics_of_the_temperature(model):
    sampler = Sampler(model, 0.5, iterations=2)
    other = sampler.with_group_temperature(1, 1.0)
    assert other.statistics is sampler.statistics
    assert other.group_temperatures == [0.5, 1.0, 0.5, 0.5] and sampler.group_temperatures == [0.5] * 4


def test_explore_resamples_every_group_in_turn(model, sampler, base, assert_within):
    strength = [1.0, 0.5]
    resampled = explore(sampler, base, 3, strength, seed=4)
    assert len(resampled) == GROUPS
    for group, images in enumerate(resampled):
        noise = draw_group_noise(model, group, 3, 4, strength)
        assert_within(images, sampler.decode(with_noise_at(base, group, noise)))


def test_resample_group_draws_pixels_with_one_seed(sampler):
    base = base_point(sampler, sampler.noise([3]), "sample", pixel_seed=5)
    same = resample_group(sampler, base, 1, base.noise[1].expand(2, -1, -1, -1))
    assert torch.equal(same, base.image.expand(2, -1, -1, -1))
    assert set(base.image.unique().tolist()) == {0, 1}


def test_mean_change_is_a_mean_of_absolute_differences():
    image = torch.full((1, 3, 2, 2), 0.5)
    images = torch.cat([image + 0.25, image - 0.25, image, image])
    images[2, 0, 0, 0] += 0.24
    assert mean_change(images, image) == pytest.approx((0.5 + 0.02) / 4)


@pytest.mark.parametrize("wrong", [{"group": GROUPS}, {"group": -1}, {"count": 0}, {"seed": -1}, {"strength": [1] * 3}])
def test_group_noise_refuses_wrong_arguments(model, wrong):
    with pytest.raises(InvalidValueError):
        draw_group_noise(model, **{"group": 0, "count": 1} | wrong)


def test_resample_group_refuses_noise_of_another_shape(sampler, base):
    with pytest.raises(InvalidValueError):
        base_point(sampler, sampler.noise([1, 2]))
    for group, noise in ((0, base.noise[3]), (3, base.noise[3][0]), (4, base.noise[3])):
        with pytest.raises(InvalidValueError):
            resample_group(sampler, base, group, noise)


# ----------------------------------------------------------------------------------------------------- positions


def test_explore_positions_resamples_one_position_at_a_time(model, sampler, base, resampled):
    group, count = 3, 2
    explore_positions(sampler, base, group, count, keep=3)
    *every, kept = resampled
    changed = (torch.cat(every) != base.noise[group]).any(1)  # (K, h, w)
    assert (changed.sum((1, 2)) == 1).all()
    assert (changed.sum(0) == count).all()
    assert (torch.cat(every) != base.noise[group]).sum() == len(changed) * model.config.latent_size
    assert (kept != base.noise[group]).any(1).sum((1, 2)).tolist() == [1] * 3 * count


def test_explore_positions_influence_and_where_are_means_over_draws(model, sampler, base, assert_within):
    """Compare with a separate pass for every position and draw."""
    group, count = 2, 3
    height, width = model.noise_shapes[group][1:]
    fresh = draw_group_noise(model, group, count, 5, 2.0)
    change = torch.zeros(height, width, count, 8, 8)
    image = torch.zeros(height, width, count, 3, 8, 8)
    for row in range(height):
        for column in range(width):
            noise = base.noise[group].repeat(count, 1, 1, 1)
            noise[:, :, row, column] = fresh[:, :, row, column]
            image[row, column] = sampler.decode(with_noise_at(base, group, noise))
            change[row, column] = (image[row, column] - base.image).abs().mean(1)
    effects = explore_positions(sampler, base, group, count, 2.0, seed=5, keep=4)
    assert effects.influence.shape == (height, width)
    assert_within(effects.influence, change.mean((2, 3, 4)))
    assert_within(effects.where, change.mean((0, 1, 2)))
    assert effects.influence.min() > 1e-5  # far above the tolerance
    for index, (row, column) in enumerate(effects.strongest):
        assert_within(effects.images[index], image[row, column, 0])
        assert_within(effects.changes[index], change[row, column].mean(0))


def test_explore_positions_strongest_have_the_largest_influence(sampler, base):
    effects = explore_positions(sampler, base, 3, 1, keep=5)
    influences = [effects.influence[position].item() for position in effects.strongest]
    assert influences == sorted(effects.influence.flatten().tolist(), reverse=True)[:5]
    assert len(set(effects.strongest)) == 5


def test_explore_positions_keeps_at_most_all_positions(sampler, base):
    effects = explore_positions(sampler, base, 0, 1, keep=8)
    assert len(effects.strongest) == len(effects.images) == len(effects.changes) == 4


def test_explore_positions_at_strength_zero_does_not_depend_on_the_draws(sampler, base, assert_within):
    one, three = (explore_positions(sampler, base, 1, count, strength=0.0) for count in (1, 3))
    assert_within(one.influence, three.influence)
    assert_within(one.where, three.where)
    assert one.influence.min() > 0


# --------------------------------------------------------------------------------------------------------- sweep


@ANY_GROUP
def test_sweep_moves_on_a_closed_ellipse_in_equal_angles(model, sampler, base, resampled, group, assert_within):
    frames, strength = 40, 1.5
    images = torch.cat(list(sweep(sampler, base, group, frames, strength, seed=6)))
    assert len(images) == frames
    own, fresh = base.noise[group], draw_group_noise(model, group, 1, 6, strength)
    noise = torch.cat(resampled).flatten(1)
    place = torch.linalg.lstsq(torch.stack([own.flatten(), fresh.flatten()], 1), noise.T).solution.T
    angle = torch.arange(frames) * (2 * torch.pi / frames)
    assert_within(place, torch.stack([angle.cos(), angle.sin()], 1), 1e-5)
    assert_within(noise, place @ torch.stack([own.flatten(), fresh.flatten()]), 1e-5)
    assert_within(images[:1], base.image)
    assert_within(images, sampler.decode(with_noise_at(base, group, noise.view(-1, *own.shape[1:]))))


def test_sweep_step_from_the_last_frame_to_the_first_is_like_the_others(sampler, base):
    images = torch.cat(list(sweep(sampler, base, 2, 60, seed=6)))
    steps = (images - images.roll(-1, 0)).abs().mean((1, 2, 3))
    assert steps.max() < 4 * steps.mean()
    assert steps.max() < 0.3 * (images - base.image).abs().mean((1, 2, 3)).max()
    assert steps.min() > 0


@pytest.mark.parametrize("top_prior", ["mixture", "vampprior"])
def test_position_of_a_mixture_is_explored_within_its_component(make_dvp, top_prior):
    """The draws that choose the component have no position: a jam changes one number of z."""
    model = make_dvp(top_prior=top_prior, prior_components=4)
    sampler = Sampler(model)
    base = base_point(sampler, sampler.noise([0]))
    z = base.states[0].prior.sample(base.noise[0])
    fresh = draw_group_noise(model, 0, 1)
    side = z.shape[-1]
    pairs = [(position, 0) for position in range(side**2)]
    noise = exploration._resample_positions(base.noise[0], fresh, pairs, model.groups[0].info.shared_draws)
    changed = base.states[0].repeated(len(pairs)).prior.sample(noise) != z
    expected = torch.eye(side**2, dtype=torch.bool).view(-1, 1, side, side).expand_as(changed)
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("family", ["nvae", "dvp"])
def test_strength_acts_as_a_temperature(make_model, make_dvp, family):
    model = make_model() if family == "nvae" else make_dvp(top_prior="standard")
    sampler = Sampler(model)
    base = base_point(sampler, sampler.noise([0]))
    expected = 0.25 if family == "nvae" else 0.5  # of sigma, or of the variance
    assert exploration.strength_of(model, base, 0.25) == [expected] * len(model.groups)
    prior, noise = base.states[0].prior, draw_group_noise(model, 0, 1)
    if family == "dvp":
        torch.testing.assert_close(prior.sample(noise, 0.25), prior.sample(expected * noise))


# ---------------------------------------------------------------------------------------------------- operations


@torch.no_grad()
def test_resample_group_costs_less_for_lower_groups(make_model):
    """Compare the numbers of multiplications per image."""
    model = make_model().requires_grad_(False)
    sampler = Sampler(model, TEMPERATURE, iterations=0)
    noise = model.no_noise(1)
    base = base_point(sampler, noise)

    def operations(count, work, *args):
        with FlopCounterMode(display=False) as counter:
            work(*args)
        assert counter.get_total_flops() % count == 0
        return counter.get_total_flops() // count

    whole = operations(1, sampler.decode, noise)
    assert operations(1, base_point, sampler, noise) == whole  # returning the states costs no operations
    resampled = []
    for group in range(GROUPS):
        zeros = torch.zeros(5, *model.noise_shapes[group])
        resampled.append(operations(5, resample_group, sampler, base, group, zeros))
    assert resampled[0] == whole  # no layer precedes the top group
    assert resampled == sorted(set(resampled), reverse=True)
    assert resampled[-1] > 0
