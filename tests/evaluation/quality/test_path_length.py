"""Path lengths and movements: against closed forms of a linear model of the noise."""

import math

import pytest
import torch

from nvae.evaluation.quality.path_length import (
    NamedDistance,
    movement_per_group,
    moving_groups,
    path_lengths,
    squared_distance,
    trimmed_mean,
)
from nvae.inference.sampling import Sampler
from nvae.system.errors import InvalidValueError


class LinearSampler:
    """Stands in for a sampler: the image is a weighted sum of the groups' noise, one number per group."""

    def __init__(self, *weights):
        self.weights, self.batch_size, self.progress = weights, 64, False
        self.model = type("Model", (), {"noise_shapes": [(1,)] * len(weights), "device": "cpu", "groups": weights})()

    def top_down(self, noise, pixels, seeds, start=None, return_states=False):
        total = sum(weight * part for weight, part in zip(self.weights, noise, strict=True))
        output = type("Output", (), {"states": [None] * len(self.weights)})()
        return total.view(-1, 1, 1, 1), output


PIXELS = NamedDistance("pixels", "pixels", squared_distance(lambda images: images.flatten(1)))


@pytest.mark.parametrize(("groups", "variance"), [([0, 1], 5.0), ([0], 1.0), ([1], 4.0)])
def test_path_length_of_a_linear_model(groups, variance):
    """x(t) is Normal on the arc, so E d^2 / epsilon^2 = 2 variance (1 - cos(epsilon pi / 2)) / epsilon^2."""
    epsilon = 0.05
    lengths = path_lengths(LinearSampler(1.0, 2.0), [PIXELS], 4000, groups, epsilon)
    expected = 2 * variance * (1 - math.cos(epsilon * math.pi / 2)) / epsilon**2
    # Squares of Normals, trimmed between the percentiles 1 and 99: the mean of the middle 98 % is 0.908 of the whole.
    length = lengths["pixels"]
    assert abs(length.mean - 0.908 * expected) < 5 * length.standard_error


def test_path_length_scales_with_the_square_of_the_movement():
    one, three = (path_lengths(LinearSampler(w), [PIXELS], 300, [0])["pixels"] for w in (1.0, 3.0))
    assert three.mean == pytest.approx(9 * one.mean, rel=1e-4)


def test_path_length_changes_little_with_epsilon(make_model):
    sampler = Sampler(make_model(), 0.8, iterations=2)
    lengths = [
        path_lengths(sampler, [PIXELS], 40, [0, 1, 2, 3], epsilon)["pixels"].mean for epsilon in (0.01, 0.005, 0.0025)
    ]
    assert max(lengths) < 1.02 * min(lengths)
    assert min(lengths) > 0


def test_path_length_is_zero_where_nothing_moves():
    length = path_lengths(LinearSampler(1.0, 2.0), [PIXELS], 50, [])["pixels"]
    assert tuple(length) == (0, 0)


def test_pairs_do_not_depend_on_the_batch_size(make_model):
    means = []
    for batch_size in (3, 64):
        sampler = Sampler(make_model(), 1.0, iterations=0, batch_size=batch_size)
        means.append(path_lengths(sampler, [PIXELS], 11, [0, 1, 2, 3])["pixels"].mean)
    assert means[0] == pytest.approx(means[1], rel=1e-3)


def test_finished_path_lengths_are_kept(make_model, tmp_path, monkeypatch):
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path))
    sampler = Sampler(make_model(), 1.0, iterations=0)
    first, again = (path_lengths(sampler, [PIXELS], 10, [0], key={"weights": "a"}) for _ in range(2))
    assert first == again
    monkeypatch.setattr(sampler, "top_down", None)  # not called
    assert path_lengths(sampler, [PIXELS], 10, [0], key={"weights": "a"}) == first
    with pytest.raises(TypeError):
        path_lengths(sampler, [PIXELS], 10, [1], key={"weights": "a"})


@pytest.mark.parametrize("epsilon", [0.0, 1e-5, 0.2, math.nan])
def test_epsilon_out_of_range_is_refused(epsilon):
    with pytest.raises(InvalidValueError):
        path_lengths(LinearSampler(1.0), [PIXELS], 10, [0], epsilon)


def test_trimmed_mean_leaves_out_the_tails():
    values = torch.cat([torch.ones(198), torch.tensor([1e9, -1e9])]).double()
    assert tuple(trimmed_mean(values)) == (1, 0)
    assert trimmed_mean(torch.tensor([1.0, 3.0])).mean == 2


def test_moving_groups():
    assert moving_groups(4, "all") == [0, 1, 2, 3]
    assert moving_groups(4, "top") == [0]
    assert moving_groups(4, 4) == [3]
    for wrong in (0, 5):
        with pytest.raises(InvalidValueError):
            moving_groups(4, wrong)


def test_movement_per_group_of_a_linear_model():
    """The change is weight (cos(h) a + sin(h) b - a), about weight h b: its root mean square over h is the weight."""
    movement = movement_per_group(LinearSampler(1.0, 2.0, 0.0), images=4000)
    assert movement == pytest.approx([1, 2, 0], rel=0.05)


def test_movement_per_group_from_cached_states_is_that_of_whole_passes(make_model):
    sampler = Sampler(make_model(), 1.0, iterations=0)
    whole = Sampler(make_model(), 1.0, iterations=0)
    original = whole.top_down
    whole.top_down = lambda noise, pixels, seeds, start=None, return_states=False: original(
        noise, pixels, seeds, None, return_states
    )
    assert movement_per_group(sampler, 5) == pytest.approx(movement_per_group(whole, 5), rel=1e-3)
    assert all(value > 0 for value in movement_per_group(sampler, 5))


def test_works_for_a_model_with_a_diffusion_prior(make_dvp):
    sampler = Sampler(make_dvp(), 1.0, iterations=0)
    assert path_lengths(sampler, [PIXELS], 4, [0])["pixels"].mean > 0
    assert len(movement_per_group(sampler, 3)) == len(sampler.model.groups)


class TensorWithoutFloat64(torch.Tensor):
    """Like a tensor on Apple's MPS: a conversion to float64 fails. `cpu` gives an ordinary tensor."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(function, types, args, kwargs)
        if isinstance(result, cls) and result.dtype == torch.float64:
            raise TypeError("the device has no float64")
        return result


def test_movement_and_path_length_on_a_device_without_float64():
    class DeviceSampler(LinearSampler):
        def top_down(self, *args, **options):
            images, output = super().top_down(*args, **options)
            return images.as_subclass(TensorWithoutFloat64), output

    # An extractor's features are on the CPU.
    pixels = PIXELS._replace(function=squared_distance(lambda images: images.flatten(1).cpu()))
    results = []
    for kind in (LinearSampler, DeviceSampler):
        lengths = path_lengths(kind(1.0, 2.0), [pixels], 9, [0])
        results.append((movement_per_group(kind(1.0, 2.0), images=9), lengths["pixels"]))
    assert results[0] == results[1]
