import pytest
import torch

from nvae.data.splits import split
from nvae.schema import DATASETS, DownloadedDataset
from nvae.system.errors import UserError

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
    with pytest.raises(UserError, match=r"dataset\.validation_images.* 49,"):
        parts_of(validation_images=count)


def test_fingerprint_is_of_training_and_validation_images_alone():
    data = parts_of(validation_images=20)
    other = split(TRAINING, [TEST.flip(0)], DownloadedDataset(name="mnist", validation_images=20))
    assert data.fingerprint == other.fingerprint
