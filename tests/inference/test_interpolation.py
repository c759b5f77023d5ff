import math

import pytest
import torch

from nvae.inference import interpolation
from nvae.inference.interpolation import interpolate, mix, slerp, walk
from nvae.inference.sampling import decode, encode, noise_of, reconstruct, sample

GROUPS = 4
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model(make_model):
    return make_model(sampling_method="bernoulli")  # whose means are nowhere clamped


@pytest.fixture
def noise(monkeypatch):
    """The noise of every pass of `walk`, (T, ...) per group."""
    calls = []

    def spy(model, noise, temperature):
        calls.append(noise)
        return decode(model, noise, temperature)

    monkeypatch.setattr(interpolation, "decode", spy)
    return calls


def draws(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, size, generator=generator, dtype=torch.float64)


def assert_close(one, other, within=1e-6):
    torch.testing.assert_close(one, other, rtol=0, atol=within)


def angles(points, origin):
    cosine = torch.nn.functional.cosine_similarity(points, origin.expand_as(points), dim=1)
    return cosine.clamp(-1, 1).acos()


# --------------------------------------------------------------------------------------------------------- slerp


def test_the_ends_are_the_two_that_are_given():
    a, b = draws(2, 50)
    assert_close(slerp(a, b, torch.tensor([0.0, 1.0])), torch.cat([a, b]), 1e-12)


def test_the_way_turns_at_constant_speed():
    a, b = draws(2, 50)
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    points = slerp(a, 3 * b, times)  # of any lengths: the plane and the angle between them are the same
    whole = angles(b, a)
    between = slerp(a / a.norm(), b / b.norm(), times)
    assert_close(angles(between, a), times * whole, 1e-7)
    assert_close(angles(between, b), (1 - times) * whole, 1e-7)
    assert torch.linalg.matrix_rank(torch.cat([points, a, b])) == 2


def test_between_points_of_one_length_every_point_has_it():
    a, b = draws(2, 50)
    b = b / b.norm() * a.norm()
    lengths = slerp(a, b, torch.linspace(0, 1, 9)).norm(dim=1)
    assert_close(lengths, a.norm().expand(9), 1e-12)
    assert (a + b).norm() / 2 < 0.9 * a.norm(), "the straight way would be shorter in the middle"


def test_points_between_draws_of_a_normal_have_a_draws_length():
    a, b = draws(2, 10_000)
    lengths = slerp(a, b, torch.linspace(0, 1, 9)).norm(dim=1)
    assert ((lengths / math.sqrt(10_000) - 1).abs() < 0.03).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1, 2, 1 + 1e-6, 0, -1, -0.5, -3])
def test_on_one_line_with_the_origin_the_way_is_straight(factor, dtype):
    times = torch.linspace(0, 1, 5)
    for a in draws(40, 50).to(dtype):
        straight = (1 + (factor - 1) * times[:, None]).to(dtype) * a
        assert_close(slerp(a, factor * a, times), straight, 1e-5)
        assert_close(slerp(factor * a, a, times), straight.flip(0), 1e-5)


def test_nothing_to_nothing_is_nothing():
    zero = torch.zeros(1, 2, 4, 4)
    assert torch.equal(slerp(zero, zero, torch.linspace(0, 1, 3)), zero.expand(3, -1, -1, -1))


def test_between_almost_the_same_points_the_way_is_almost_straight():
    """In float32, with angles down to where a cosine is 1 and beyond."""
    a, other = draws(2, 200).float()
    times = torch.linspace(0, 1, 5)
    for size in 10.0 ** -torch.arange(2, 9):
        b = a + size * other
        straight = (1 - times[:, None]) * a + times[:, None] * b
        assert_close(slerp(a, b, times), straight, 2 * size.item() ** 2 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_between_almost_opposite_points_the_way_has_their_length_or_is_straight(dtype):
    a, other = draws(2, 200).to(dtype)
    other = other / other.norm() * a.norm()
    times = torch.linspace(0, 1, 5, dtype=dtype)
    for size in 10.0 ** -torch.arange(1, 9, dtype=dtype):
        b = size.sin() * other - size.cos() * a
        b = b / b.norm() * a.norm()
        found, straight = slerp(a, b, times), (1 - times[:, None]) * a + times[:, None] * b
        round_it = (found.norm(dim=1) / a.norm() - 1).abs().max() < 1e-3
        assert round_it or torch.equal(found, straight), size


# --------------------------------------------------------------------------------------------------- interpolate


def test_an_interpolation_ends_at_the_two_images(model):
    a, b = noise_of(model, [1]), noise_of(model, [2])
    found = interpolate(model, a, b, torch.tensor([0.0, 0.5, 1.0]), TEMPERATURE)
    assert_close(found[:1], decode(model, a, TEMPERATURE))
    assert_close(found[2:], decode(model, b, TEMPERATURE))
    middle = [(of_a + of_b) / 2 for of_a, of_b in zip(a, b, strict=True)]
    assert (found[1] - decode(model, middle, TEMPERATURE)[0]).abs().max() > 1e-3, "every group goes round, not straight"


def test_every_group_turns_by_itself(model, noise):
    a, b = noise_of(model, [1]), noise_of(model, [2])
    times = torch.linspace(0, 1, 5)
    interpolate(model, a, b, times, TEMPERATURE)
    (found,) = noise
    for group, of_a, of_b in zip(found, a, b, strict=True):
        assert_close(group, slerp(of_a, of_b, times))


def test_many_frames_come_in_passes(model, noise, monkeypatch):
    monkeypatch.setattr(interpolation, "PASS_IMAGES", 3)
    a, b = noise_of(model, [1]), noise_of(model, [2])
    many = interpolate(model, a, b, torch.linspace(0, 1, 8), TEMPERATURE)
    assert [len(part[0]) for part in noise] == [3, 3, 2]
    for index in (0, 3, 7):
        one = interpolate(model, a, b, torch.tensor([index / 7]), TEMPERATURE)
        assert_close(many[index : index + 1], one)


# ----------------------------------------------------------------------------------------------------------- mix


@torch.no_grad()
def test_a_mixture_has_the_first_groups_of_one_image_and_the_rest_of_another(model):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse, fine = ([group[i : i + 1] for group in encode(model, images)] for i in (0, 1))
    found = mix(model, coarse, fine)
    assert len(found) == GROUPS + 1
    for kept in range(GROUPS + 1):
        assert_close(found[kept : kept + 1], decode(model, coarse[:kept] + fine[kept:]))
    assert_close(found[:1], reconstruct(model, images[1:]), 1e-5)
    assert_close(found[-1:], reconstruct(model, images[:1]), 1e-5)


def test_a_mixture_takes_exactly_the_noise_of_its_groups(model, monkeypatch):
    monkeypatch.setattr(interpolation, "decode", lambda model, noise: noise)
    coarse, fine = noise_of(model, [1]), noise_of(model, [2])
    for index, group in enumerate(mix(model, coarse, fine)):
        for kept in range(GROUPS + 1):
            assert torch.equal(group[kept], (coarse if index < kept else fine)[index][0]), (index, kept)


# ---------------------------------------------------------------------------------------------------------- walk


def test_a_walk_starts_at_the_first_seed_and_passes_every_other(model):
    frames = torch.cat(list(walk(model, [1, 2, 3], 12, TEMPERATURE)))
    assert len(frames) == 12
    assert_close(frames[[0, 4, 8]], sample(model, [1, 2, 3], TEMPERATURE))


@pytest.mark.parametrize(
    ("seeds", "frames"),
    [
        ([1, 2, 3], 12),
        ([1, 2, 3], 10),
        ([1, 2, 3], 7),
        ([1, 2], 3),
        ([1, 2, 3], 3),
        ([1], 4),
        ([1, 2, 3, 4], 3),
        ([1, 2, 3], 1),
    ],
)
def test_the_frames_are_evenly_on_the_whole_way_round(model, noise, seeds, frames):
    """Frame f is at the place f * seeds / frames of a way whose whole numbers are the seeds and the first one again."""
    images = torch.cat(list(walk(model, seeds, frames, TEMPERATURE)))
    assert len(images) == frames
    ends = noise_of(model, [*seeds, seeds[0]])
    for group, group_value in enumerate(ends):
        found = torch.cat([part[group] for part in noise])
        for frame in range(frames):
            leg, left = divmod(frame * len(seeds), frames)
            time = torch.tensor([left / frames])
            expected = slerp(group_value[leg : leg + 1], group_value[leg + 1 : leg + 2], time)
            assert_close(found[frame : frame + 1], expected, 1e-5)


def test_a_walk_comes_back_to_its_first_image(model):
    """From the last frame to the first is a step like all others."""
    images = torch.cat(list(walk(model, [1, 2], 60, TEMPERATURE)))
    steps = (images - images.roll(-1, 0)).abs().mean((1, 2, 3))
    assert steps.max() < 4 * steps.mean()
    assert steps[-1] < 2 * steps[-2]
    assert steps.max() < 0.2 * (images[30] - images[0]).abs().mean()


def test_a_walk_comes_batch_by_batch_and_no_leg_twice(model, monkeypatch):
    monkeypatch.setattr(interpolation, "PASS_IMAGES", 4)
    assert [len(batch) for batch in walk(model, [1, 2], 14, TEMPERATURE)] == [4, 3, 4, 3]
