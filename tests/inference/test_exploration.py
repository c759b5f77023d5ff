import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nvae.inference import exploration
from nvae.inference.exploration import (
    base_point,
    explore,
    explore_positions,
    fresh_noise,
    jammed,
    mean_change,
    sweep,
)
from nvae.inference.sampling import decode, noise_of
from nvae.models.hierarchy import FromNoise

GROUPS = 4
TEMPERATURE = 0.7
KINDS = {
    "plain": {},
    "fixed flows": {"num_flows": 1, "fixed_flows": True},
    "nvlabs": {"style": "nvlabs", "num_flows": 1},
}
ANY_GROUP = pytest.mark.parametrize("group", range(GROUPS))


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(sampling_method="bernoulli")  # whose means are nowhere clamped


@pytest.fixture(scope="module")
def view(model):
    return base_point(model, noise_of(model, [3]), TEMPERATURE)


def with_noise_at(view, group, noise):
    """The noise (K, L, H, W) of every group, that of one group given and that of the others the view's."""
    return [noise if index == group else kept.expand(len(noise), -1, -1, -1) for index, kept in enumerate(view.noise)]


def assert_close(one, other, within=1e-6):
    torch.testing.assert_close(one, other, rtol=0, atol=within)


@pytest.fixture
def jams(monkeypatch):
    """The noise of every call of `jammed`, and what came of it."""
    calls = []

    def spy(model, view, group, noise):
        calls.append((noise, jammed(model, view, group, noise)))
        return calls[-1][1]

    monkeypatch.setattr(exploration, "jammed", spy)
    return calls


# ---------------------------------------------------------------------------------------------------------- jams


def test_the_view_is_the_image_of_its_noise(model, view):
    assert_close(view.image, decode(model, view.noise, TEMPERATURE)[0])
    assert list(view.states) == list(range(GROUPS))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_jammed_image_is_that_of_a_whole_pass_with_the_same_noise(make_model, kind):
    model = make_model(**KINDS[kind] | {"sampling_method": "bernoulli"})
    view = base_point(model, noise_of(model, [3]), TEMPERATURE)
    for group in range(GROUPS):
        noise = fresh_noise(model, group, 3, seed=1)
        found = jammed(model, view, group, noise)
        assert_close(found, decode(model, with_noise_at(view, group, noise), TEMPERATURE))
        assert (found - view.image).abs().amax((1, 2, 3)).min() > 1e-5, group


@ANY_GROUP
@torch.no_grad()
def test_a_jam_touches_no_group_before_it(model, view, group, monkeypatch):
    """Nothing before it is computed at all; in a whole pass, all before it would have come to the same."""
    noise, top_down, passes = fresh_noise(model, group, 3, seed=1), model.top_down, []

    def spy(*args, **options):
        passes.append(top_down(*args, **options))
        return passes[-1]

    monkeypatch.setattr(model, "top_down", spy)
    jammed(model, view, group, noise)
    (found,) = passes
    whole = top_down(FromNoise(with_noise_at(view, group, noise), TEMPERATURE), 3)
    unchanged = top_down(FromNoise(view.noise, TEMPERATURE), 1)
    assert list(found.groups) == list(range(group, GROUPS))
    for index in range(GROUPS):
        if index < group:
            assert_close(whole.groups[index].z, unchanged.groups[index].z.expand(3, -1, -1, -1))
        else:
            assert_close(found.groups[index].z, whole.groups[index].z)
            assert (found.groups[index].z - unchanged.groups[index].z).abs().amax((1, 2, 3)).min() > 1e-3, index


def test_a_jam_is_the_same_image_in_any_company(model, view, monkeypatch):
    noise = fresh_noise(model, 2, 5, seed=1)
    together = jammed(model, view, 2, noise)
    assert_close(jammed(model, view, 2, noise[3:4])[0], together[3])
    monkeypatch.setattr(exploration, "PASS_IMAGES", 2)
    assert_close(jammed(model, view, 2, noise), together)


def test_a_jam_is_the_same_however_many_there_are(model):
    """Also where its numbers are no multiple of 16, which torch draws at once."""
    for group in range(GROUPS):
        many = fresh_noise(model, group, 5, seed=1)
        assert all(torch.equal(fresh_noise(model, group, count, seed=1), many[:count]) for count in range(1, 5)), group


def test_fresh_noise_is_standard_normal_and_another_for_every_seed_and_group(model):
    noise = fresh_noise(model, 0, 2000, seed=1)
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    others = (fresh_noise(model, 0, 2000, seed=2), fresh_noise(model, 1, 2000, seed=1))
    assert all(abs((noise * other).mean()) < 0.03 for other in others)


def test_the_strength_is_a_factor_for_all_groups_or_one_per_group(model):
    plain = fresh_noise(model, 2, 3, seed=1)
    assert torch.equal(fresh_noise(model, 2, 3, seed=1, strength=2), 2 * plain)
    assert torch.equal(fresh_noise(model, 2, 3, seed=1, strength=[0.0, 1.0, 0.5, 3.0]), 0.5 * plain)


@torch.no_grad()
def test_a_jam_of_no_strength_is_the_priors_mean_for_its_group(model, view):
    found = explore(model, view, 2, strength=0.0)
    for group in range(GROUPS):
        chosen = FromNoise(with_noise_at(view, group, torch.zeros(1, *model.noise_shapes[group])), TEMPERATURE)
        whole = model.top_down(chosen, 1)
        assert torch.equal(whole.groups[group].z, whole.groups[group].prior.mu)
        assert_close(found[group], whole.px_z.mean().expand(2, -1, -1, -1))
        assert mean_change(found[group], view.image) > 1e-6


def test_every_group_is_jammed_in_turn(model, view):
    strength = [1.0, 0.5, 2.0, 1.5]
    found = explore(model, view, 3, strength, seed=4)
    assert len(found) == GROUPS
    for group, images in enumerate(found):
        noise = fresh_noise(model, group, 3, 4, strength)
        assert_close(images, decode(model, with_noise_at(view, group, noise), TEMPERATURE))


def test_temperatures_per_group_are_those_of_the_jams(model):
    temperature = [0.2, 0.5, 0.9, 1.2]
    view = base_point(model, noise_of(model, [3]), temperature)
    noise = fresh_noise(model, 1, 2, seed=1)
    assert_close(jammed(model, view, 1, noise), decode(model, with_noise_at(view, 1, noise), temperature))


def test_the_mean_change_is_a_mean_of_absolute_differences():
    image = torch.full((3, 2, 2), 0.5)
    images = torch.stack([image + 0.25, image - 0.25, image, image])
    images[2, 0, 0, 0] += 0.24
    assert mean_change(images, image) == pytest.approx((0.5 + 0.02) / 4)


# ----------------------------------------------------------------------------------------------------- positions


def test_the_noise_differs_at_one_position_alone(model, view, jams):
    group, count = 3, 2
    explore_positions(model, view, group, count, shown=3)
    *every, shown = [noise for noise, _ in jams]
    changed = (torch.cat(every) != view.noise[group]).any(1)  # (K, h, w)
    assert (changed.sum((1, 2)) == 1).all()
    assert (changed.sum(0) == count).all()
    assert (torch.cat(every) != view.noise[group]).sum() == len(changed) * model.config.latent_size
    assert (shown != view.noise[group]).any(1).sum((1, 2)).tolist() == [1] * 3 * count


def test_influence_and_where_are_means_over_all_jams(model, view):
    """Against every position and jam decoded by itself."""
    group, count = 2, 3
    height, width = model.noise_shapes[group][1:]
    fresh = fresh_noise(model, group, count, 5, 2.0)
    change = torch.zeros(height, width, count, 8, 8)
    image = torch.zeros(height, width, count, 3, 8, 8)
    for row in range(height):
        for column in range(width):
            noise = view.noise[group].repeat(count, 1, 1, 1)
            noise[:, :, row, column] = fresh[:, :, row, column]
            image[row, column] = decode(model, with_noise_at(view, group, noise), TEMPERATURE)
            change[row, column] = (image[row, column] - view.image).abs().mean(1)
    found = explore_positions(model, view, group, count, 2.0, seed=5, shown=4)
    assert found.influence.shape == (height, width)
    assert_close(found.influence, change.mean((2, 3, 4)))
    assert_close(found.where, change.mean((0, 1, 2)))
    assert found.influence.min() > 1e-5, "1e-6 would be no close look"
    for index, (row, column) in enumerate(found.strongest):
        assert_close(found.images[index], image[row, column, 0])
        assert_close(found.changes[index], change[row, column].mean(0))


def test_the_strongest_positions_are_those_of_most_influence(model, view):
    found = explore_positions(model, view, 3, 1, shown=5)
    influences = [found.influence[place].item() for place in found.strongest]
    assert influences == sorted(found.influence.flatten().tolist(), reverse=True)[:5]
    assert len(set(found.strongest)) == 5


def test_no_more_positions_are_shown_than_there_are(model, view):
    found = explore_positions(model, view, 0, 1, shown=8)
    assert len(found.strongest) == len(found.images) == len(found.changes) == 4


def test_positions_jammed_at_no_strength_say_what_their_own_noise_did(model, view):
    """Jams that are all alike: how many there are does not matter."""
    one, three = (explore_positions(model, view, 1, count, strength=0.0) for count in (1, 3))
    assert_close(one.influence, three.influence)
    assert_close(one.where, three.where)
    assert one.influence.min() > 0


# --------------------------------------------------------------------------------------------------------- sweep


@ANY_GROUP
def test_a_sweep_goes_round_a_circle_at_constant_speed_and_comes_back(model, view, jams, group):
    frames, strength = 40, 1.5
    images = torch.cat(list(sweep(model, view, group, frames, strength, seed=6)))
    assert len(images) == frames
    own, other = view.noise[group], fresh_noise(model, group, 1, 6, strength)
    noise = torch.cat([noise for noise, _ in jams]).flatten(1)
    place = torch.linalg.lstsq(torch.stack([own.flatten(), other.flatten()], 1), noise.T).solution.T
    turn = torch.arange(frames) * (2 * torch.pi / frames)
    assert_close(place, torch.stack([turn.cos(), turn.sin()], 1), 1e-5)
    assert_close(noise, place @ torch.stack([own.flatten(), other.flatten()]), 1e-5)
    assert_close(images[0], view.image)
    assert_close(images, decode(model, with_noise_at(view, group, noise.view(-1, *own.shape[1:])), TEMPERATURE))


def test_a_sweep_is_continuous_over_its_end(model, view):
    images = torch.cat(list(sweep(model, view, 2, 60, seed=6)))
    steps = (images - images.roll(-1, 0)).abs().mean((1, 2, 3))
    assert steps.max() < 4 * steps.mean()
    assert steps.max() < 0.3 * (images - view.image).abs().mean((1, 2, 3)).max()
    assert steps.min() > 0


# ---------------------------------------------------------------------------------------------------- operations


@torch.no_grad()
def test_a_jam_costs_less_than_a_whole_pass_and_less_from_group_to_group(make_model):
    """In multiplications."""
    model = make_model().requires_grad_(False)
    noise = model.no_noise(1)
    view = base_point(model, noise, TEMPERATURE)

    def operations(count, work, *args):
        with FlopCounterMode(display=False) as counter:
            work(*args)
        assert counter.get_total_flops() % count == 0
        return counter.get_total_flops() // count

    whole = operations(1, decode, model, noise, TEMPERATURE)
    assert operations(1, base_point, model, noise) == whole, "keeping where passes can start costs nothing"
    restarted = []
    for group in range(GROUPS):
        jams = torch.zeros(5, *model.noise_shapes[group])
        restarted.append(operations(5, jammed, model, view, group, jams))
    assert restarted[0] == whole, "above the top group there is nothing but a constant"
    assert restarted == sorted(set(restarted), reverse=True)
    assert restarted[-1] > 0
