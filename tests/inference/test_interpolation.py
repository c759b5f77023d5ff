import math

import pytest
import torch

from nvae.inference.interpolation import interpolate, lerp, mix, slerp, walk
from nvae.inference.reconstruction import encode, reconstruct
from nvae.inference.sampling import Sampler, seed_noise
from nvae.models.hierarchy import FromPosterior
from nvae.system.errors import InvalidValueError

GROUPS = 4


@pytest.fixture
def sampler(bernoulli_model):
    return Sampler(bernoulli_model, 0.7, iterations=0)


@pytest.fixture
def noise_of_passes(sampler, monkeypatch):
    """A list that receives the noise of every later pass of the sampler, (B, ...) per group."""
    noises, top_down = [], sampler.top_down

    def spy(noise, *args, **options):
        noises.append(noise)
        return top_down(noise, *args, **options)

    monkeypatch.setattr(sampler, "top_down", spy)
    return noises


def draws(count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, size, generator=generator, dtype=torch.float64)


def angles(points, origin):
    cosine = torch.nn.functional.cosine_similarity(points, origin.expand_as(points), dim=1)
    return cosine.clamp(-1, 1).acos()


# --------------------------------------------------------------------------------------------------------- slerp


def test_slerp_ends_at_its_arguments(assert_within):
    a, b = draws(2, 50)
    assert_within(slerp(a, b, torch.tensor([0.0, 1.0])), torch.cat([a, b]), 1e-12)


def test_slerp_turns_at_constant_speed(assert_within):
    a, b = draws(2, 50)
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    points = slerp(a, 3 * b, times)  # the length of b changes neither the plane nor the angle
    whole = angles(b, a)
    between = slerp(a / a.norm(), b / b.norm(), times)
    assert_within(angles(between, a), times * whole, 1e-7)
    assert_within(angles(between, b), (1 - times) * whole, 1e-7)
    assert torch.linalg.matrix_rank(torch.cat([points, a, b])) == 2


def test_slerp_between_points_of_one_length_keeps_the_length(assert_within):
    a, b = draws(2, 50)
    b = b / b.norm() * a.norm()
    lengths = slerp(a, b, torch.linspace(0, 1, 9)).norm(dim=1)
    assert_within(lengths, a.norm().expand(9), 1e-12)
    assert (a + b).norm() / 2 < 0.9 * a.norm()


def test_slerp_between_normal_draws_has_the_length_of_a_draw():
    a, b = draws(2, 10_000)
    lengths = slerp(a, b, torch.linspace(0, 1, 9)).norm(dim=1)
    assert ((lengths / math.sqrt(10_000) - 1).abs() < 0.03).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [1, 2, 1 + 1e-6, 0, -1, -0.5, -3])
def test_slerp_of_collinear_points_is_linear(factor, dtype, assert_within):
    times = torch.linspace(0, 1, 5)
    for a in draws(40, 50).to(dtype):
        straight = (1 + (factor - 1) * times[:, None]).to(dtype) * a
        assert_within(slerp(a, factor * a, times), straight, 1e-5)
        assert_within(slerp(factor * a, a, times), straight.flip(0), 1e-5)


def test_slerp_from_zero_to_zero_is_zero():
    zero = torch.zeros(1, 2, 4, 4)
    assert torch.equal(slerp(zero, zero, torch.linspace(0, 1, 3)), zero.expand(3, -1, -1, -1))


def test_slerp_of_almost_equal_points_is_almost_linear(assert_within):
    """In float32, also for angles whose cosine rounds to 1."""
    a, other = draws(2, 200).float()
    times = torch.linspace(0, 1, 5)
    for size in 10.0 ** -torch.arange(2, 9):
        b = a + size * other
        straight = (1 - times[:, None]) * a + times[:, None] * b
        assert_within(slerp(a, b, times), straight, 2 * size.item() ** 2 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slerp_of_almost_opposite_points_has_their_length_or_is_linear(dtype):
    a, other = draws(2, 200).to(dtype)
    other = other / other.norm() * a.norm()
    times = torch.linspace(0, 1, 5, dtype=dtype)
    for size in 10.0 ** -torch.arange(1, 9, dtype=dtype):
        b = size.sin() * other - size.cos() * a
        b = b / b.norm() * a.norm()
        points, straight = slerp(a, b, times), (1 - times[:, None]) * a + times[:, None] * b
        is_round = (points.norm(dim=1) / a.norm() - 1).abs().max() < 1e-3
        assert is_round or torch.equal(points, straight), size


# --------------------------------------------------------------------------------------------------- interpolate


def test_interpolation_ends_at_the_two_images(sampler, assert_within):
    a, b = sampler.noise([1]), sampler.noise([2])
    images = interpolate(sampler, a, b, torch.tensor([0.0, 0.5, 1.0]))
    assert_within(images[:1], sampler.decode(a))
    assert_within(images[2:], sampler.decode(b))
    middle = [(group_a + group_b) / 2 for group_a, group_b in zip(a, b, strict=True)]
    assert (images[1] - sampler.decode(middle)[0]).abs().max() > 1e-3


def test_interpolation_of_a_count_is_evenly_spaced(sampler):
    a, b = sampler.noise([1]), sampler.noise([2])
    assert torch.equal(interpolate(sampler, a, b, 5), interpolate(sampler, a, b, torch.linspace(0, 1, 5)))


def test_interpolation_turns_every_group_by_itself(sampler, noise_of_passes, assert_within):
    a, b = sampler.noise([1]), sampler.noise([2])
    times = torch.linspace(0, 1, 5)
    interpolate(sampler, a, b, times)
    (noise,) = noise_of_passes
    for group, group_a, group_b in zip(noise, a, b, strict=True):
        assert_within(group, slerp(group_a, group_b, times))


def test_interpolation_in_batches_is_the_same(sampler, noise_of_passes, assert_within):
    a, b = sampler.noise([1]), sampler.noise([2])
    whole = interpolate(sampler, a, b, 8)
    sampler.batch_size = 3
    assert_within(interpolate(sampler, a, b, 8), whole)
    assert [len(noise[0]) for noise in noise_of_passes] == [8, 3, 3, 2]


def test_interpolation_refuses_noise_of_several_images(sampler):
    with pytest.raises(InvalidValueError):
        interpolate(sampler, sampler.noise([1, 2]), sampler.noise([3]), 5)


def test_lerp_between_normal_draws_is_shorter_by_up_to_the_root_of_two():
    a, b = draws(2, 10_000)
    times = torch.linspace(0, 1, 9, dtype=torch.float64)
    lengths = lerp(a, b, times).norm(dim=1) / math.sqrt(10_000)
    assert ((lengths - ((1 - times) ** 2 + times**2).sqrt()).abs() < 0.03).all()
    assert lengths.min() == pytest.approx(math.sqrt(0.5), abs=0.02)


def test_linear_interpolation_takes_the_straight_line_in_every_group(sampler, noise_of_passes, assert_within):
    a, b, times = sampler.noise([1]), sampler.noise([2]), torch.tensor([0.0, 0.25, 0.5, 1.0])
    images = interpolate(sampler, a, b, times, linear=True)
    for between, x, y in zip(noise_of_passes[0], a, b, strict=True):
        assert_within(between, torch.cat([x, 0.75 * x + 0.25 * y, (x + y) / 2, y]))
    assert_within(images[[0, 3]], sampler.sample([1, 2]))
    assert (images - interpolate(sampler, a, b, times)).abs().amax((1, 2, 3))[1:3].min() > 1e-3


@torch.no_grad()
def test_linear_interpolation_between_pictures_is_linear_in_z_of_the_first_group(bernoulli_model, assert_within):
    """The prior of the first group is the same for all images; those of the others depend on the groups above."""
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    noise = encode(bernoulli_model, images)
    a, b = ([group[i : i + 1] for group in noise] for i in (0, 1))
    _, output = Sampler(bernoulli_model, iterations=0).top_down(
        [lerp(*ends, torch.tensor([0.25])) for ends in zip(a, b, strict=True)]
    )
    z = (
        bernoulli_model.top_down(
            FromPosterior(bernoulli_model.bottom_up(images), bernoulli_model.no_noise(2, posterior=True)), 2
        )
        .groups[0]
        .z
    )
    assert_within(output.groups[0].z, 0.75 * z[:1] + 0.25 * z[1:], 1e-5)


@pytest.mark.parametrize("times", [0, 2.5, torch.zeros(0), torch.zeros(2, 2)])
def test_interpolation_refuses_other_times(sampler, times):
    with pytest.raises(InvalidValueError):
        interpolate(sampler, sampler.noise([1]), sampler.noise([2]), times)


# ----------------------------------------------------------------------------------------------------------- mix


def test_mix_takes_the_first_groups_of_one_image_and_the_rest_of_another(bernoulli_model, assert_within):
    sampler = Sampler(bernoulli_model, iterations=0)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    coarse, fine = ([group[i : i + 1] for group in encode(bernoulli_model, images)] for i in (0, 1))
    mixture = mix(sampler, coarse, fine)
    assert len(mixture) == GROUPS + 1
    for kept in range(GROUPS + 1):
        assert_within(mixture[kept : kept + 1], sampler.decode(coarse[:kept] + fine[kept:]))
    assert_within(mixture[:1], reconstruct(bernoulli_model, images[1:]), 1e-5)
    assert_within(mixture[-1:], reconstruct(bernoulli_model, images[:1]), 1e-5)


# ---------------------------------------------------------------------------------------------------------- walk


def test_walk_starts_at_the_first_seed_and_passes_every_other(sampler, assert_within):
    frames = torch.cat(list(walk(sampler, [1, 2, 3], 12)))
    assert len(frames) == 12
    assert_within(frames[[0, 4, 8]], sampler.sample([1, 2, 3]))


@pytest.mark.parametrize(
    ("seeds", "frames"),
    [([1, 2, 3], 12), ([1, 2, 3], 10), ([1, 2], 3), ([1], 4), ([1, 2, 3, 4], 3), ([1, 2, 3], 1)],
)
def test_walk_is_evenly_spaced_on_the_closed_curve(sampler, noise_of_passes, assert_within, seeds, frames):
    """Frame f is at position f * seeds / frames; whole positions are the seeds, the last one the first seed again."""
    assert len(torch.cat(list(walk(sampler, seeds, frames)))) == frames
    for group, ends in enumerate(seed_noise(sampler.model, [*seeds, seeds[0]])):
        noise = torch.cat([part[group] for part in noise_of_passes])
        for frame in range(frames):
            leg, rest = divmod(frame * len(seeds), frames)
            expected = slerp(ends[leg : leg + 1], ends[leg + 1 : leg + 2], torch.tensor([rest / frames]))
            assert_within(noise[frame : frame + 1], expected, 1e-5)


def test_walk_step_from_the_last_frame_to_the_first_is_like_the_others(sampler):
    images = torch.cat(list(walk(sampler, [1, 2], 60)))
    steps = (images - images.roll(-1, 0)).abs().mean((1, 2, 3))
    assert steps.max() < 4 * steps.mean()
    assert steps[-1] < 2 * steps[-2]
    assert steps.max() < 0.2 * (images[30] - images[0]).abs().mean()


def test_walk_yields_batches_within_each_leg(sampler):
    sampler.batch_size = 4
    assert [len(batch) for batch in walk(sampler, [1, 2], 14)] == [4, 3, 4, 3]


def test_linear_walk_takes_straight_lines(sampler, assert_within):
    expected = interpolate(sampler, sampler.noise([1]), sampler.noise([2]), torch.tensor([0.0, 0.5]), linear=True)
    assert_within(torch.cat(list(walk(sampler, [1, 2], 4, linear=True)))[:2], expected)


def test_walk_leaves_the_model_unchanged_between_its_batches(bernoulli_model):
    sampler = Sampler(bernoulli_model, 0.7, iterations=2, batch_size=4)
    before = {name: tensor.clone() for name, tensor in bernoulli_model.state_dict().items()}
    next(walk(sampler, [1, 2], 14))
    assert all(torch.equal(before[name], tensor) for name, tensor in bernoulli_model.state_dict().items())
