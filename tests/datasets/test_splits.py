import numpy as np
import pytest
import torch

from nvae.data.splits import split
from nvae.schema import DATASETS, DownloadedDataset, NpzDataset
from nvae.system.errors import InvalidValueError

TRAINING, TEST = (torch.arange(first, last, dtype=torch.uint8).view(-1, 1, 1, 1) for first, last in ((0, 50), (50, 60)))


def parts_of(**keys):
    return split(TRAINING, [TEST], DownloadedDataset(name="mnist", **keys))


def numbers(part):
    return part.flatten().tolist()


def test_split_without_a_number_validates_on_the_test_images():
    data = parts_of(split_seed=3)
    assert (data.training is TRAINING, data.validation is TEST, data.test) == (True, True, None)


@pytest.mark.parametrize(
    ("name", "keys", "parts", "is_test"),
    [
        ("mnist", {}, 1, True),
        ("mnist", {"validation_images": 2}, 1, False),
        ("imagenet32", {}, 1, False),  # validation images only
        ("omniglot", {}, 1, True),
        ("pathmnist", {}, 2, False),
    ],
)
def test_split_knows_whether_the_validation_part_is_the_test_images(name, keys, parts, is_test):
    images = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    data = split(images, [images] * parts, DATASETS[name](name=name, **keys))
    assert data.validation_is_test == is_test
    assert data.map(lambda images_u8: images_u8).validation_is_test == is_test
    assert data.title("validation").startswith("test" if is_test else "validation")
    assert data.title("test") == "test images"


@pytest.mark.parametrize("count", [1, 20, 49])
def test_split_parts_are_disjoint_and_complete(count):
    data = parts_of(validation_images=count)
    assert data.test is TEST
    assert len(data.validation) == count
    assert sorted(numbers(data.training) + numbers(data.validation)) == numbers(TRAINING)
    assert numbers(data.training) == sorted(numbers(data.training))


def test_split_is_a_function_of_seed_and_number():
    one = parts_of(validation_images=20)
    torch.manual_seed(1)  # the global random state has no influence
    assert one.fingerprint == parts_of(validation_images=20).fingerprint
    assert one.fingerprint != parts_of(validation_images=20, split_seed=1).fingerprint
    assert set(numbers(parts_of(validation_images=10).validation)) < set(numbers(one.validation))


@pytest.mark.parametrize("count", [50, 51, 10**9])
def test_split_refuses_to_leave_no_training_image(count):
    with pytest.raises(InvalidValueError) as caught:
        parts_of(validation_images=count)
    assert (caught.value.name, caught.value.got) == ("dataset.validation_images", count)
    assert "at most 49" in caught.value.expected


def test_split_at_random_is_that_of_earlier_versions():
    """The training of a checkpoint continues with the same images; the numbers are from commit edd8933."""
    assert numbers(parts_of(validation_images=5).validation) == [7, 8, 25, 37, 39]
    assert numbers(parts_of(validation_images=5, split_seed=7).validation) == [0, 4, 17, 31, 43]


@pytest.mark.parametrize("seed", [0, 42, 11172018])
@pytest.mark.parametrize("count", [1, 20, 49])
def test_split_numpy_choices_are_the_ends_of_numpys_permutation(count, seed):
    order = np.random.RandomState(seed).permutation(50)
    for choice, validation, training in (
        ("numpy_first", order[:count], order[count:]),
        ("numpy_last", order[-count:], order[:-count]),
    ):
        data = parts_of(validation_images=count, validation_choice=choice, split_seed=seed)
        assert numbers(data.validation) == sorted(validation)
        assert numbers(data.training) == sorted(training)
        assert data.test is TEST


def test_split_of_cifar10_as_in_vdvae_does_not_change():
    """The numbers are those of NumPy 2.4.6; NumPy promises that the numbers of RandomState stay the same."""
    images = torch.arange(50_000, dtype=torch.int32).view(-1, 1, 1, 1)
    keys = {"validation_images": 5000, "validation_choice": "numpy_first", "split_seed": 11172018}
    data = split(images, [TEST], DownloadedDataset(name="cifar10", **keys))
    assert numbers(data.validation)[:5] == [18, 24, 29, 33, 36]


@pytest.mark.parametrize("count", [1, 20, 49])
def test_split_last_choice_copies_no_image(count):
    data = parts_of(validation_images=count, validation_choice="last", split_seed=3)
    assert numbers(data.training) == numbers(TRAINING)[:-count]
    assert numbers(data.validation) == numbers(TRAINING)[-count:]
    assert data.training.data_ptr() == TRAINING.data_ptr()


def test_split_without_held_out_images_has_no_test_part():
    data = split(TRAINING, [], NpzDataset(name="npz", validation_images=7, validation_choice="last"))
    assert (len(data.training), len(data.validation), data.test) == (43, 7, None)
    fraction = split(TRAINING, [], NpzDataset(name="npz", validation_fraction=0.1))
    assert torch.equal(fraction.validation, parts_of(validation_images=5).validation)


def test_fingerprint_is_of_training_and_validation_images_alone():
    data = parts_of(validation_images=20)
    other = split(TRAINING, [TEST.flip(0)], DownloadedDataset(name="mnist", validation_images=20))
    assert data.fingerprint == other.fingerprint
