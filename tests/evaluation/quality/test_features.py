"""Features of many images in parts: what a call computes, keeps, and takes from an earlier call."""

import os
from functools import partial

import pytest
import torch

from nvae.evaluation.quality import features as module
from nvae.evaluation.quality.features import set_folder

describe = partial(module.describe, step=4)  # parts of 6 images in two steps


@pytest.fixture(autouse=True)
def small_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "PART", 6)


class Images:
    """Makes images with the values of their numbers, and records which were made."""

    def __init__(self, fail_at=None):
        self.made, self.fail_at = [], fail_at

    def __call__(self, part):
        if self.fail_at in range(part.start, part.stop):
            raise KeyboardInterrupt
        self.made += range(part.start, part.stop)
        return torch.arange(part.start, part.stop).float().view(-1, 1, 1, 1)


FUNCTIONS = {"double": lambda images: 2 * images.flatten(1), "bytes": lambda images: images.byte()}
KEY = {"images": "numbers", "count": 17}


def test_values_of_all_images_in_order():
    described = describe(17, Images(), FUNCTIONS, KEY, "")
    assert described.values["double"].flatten().tolist() == [2.0 * n for n in range(17)]
    assert described.values["bytes"].shape == (17, 1, 1, 1) and described.values["bytes"].dtype == torch.uint8
    assert described.seconds > 0


def test_interrupted_call_continues_with_the_first_unfinished_part():
    with pytest.raises(KeyboardInterrupt):
        describe(17, Images(fail_at=13), FUNCTIONS, KEY, "")
    images = Images()
    described = describe(17, images, FUNCTIONS, KEY, "")
    assert images.made == list(range(12, 17))
    assert described.values["double"].flatten().tolist() == [2.0 * n for n in range(17)]


def test_second_call_computes_nothing():
    first = describe(17, Images(), FUNCTIONS, KEY, "")
    images = Images()
    second = describe(17, images, FUNCTIONS, KEY, "")
    assert images.made == [] and second.seconds == first.seconds
    assert torch.equal(second.values["double"], first.values["double"])


@pytest.mark.parametrize(
    ("key", "functions"), [({**KEY, "count": 16}, FUNCTIONS), (KEY, {"double": FUNCTIONS["double"]})]
)
def test_other_images_or_functions_are_computed(key, functions):
    describe(17, Images(), FUNCTIONS, KEY, "")
    images = Images()
    describe(17, images, functions, key, "")
    assert images.made == list(range(17))


def test_more_images_reuse_whole_parts():
    describe(17, Images(), FUNCTIONS, KEY, "")
    images = Images()
    describe(20, images, FUNCTIONS, KEY, "")
    assert images.made == [12, 13, 14, 15, 16, 17, 18, 19]


def test_damaged_part_is_computed_again():
    describe(17, Images(), FUNCTIONS, KEY, "")
    file = sorted(set_folder(KEY, FUNCTIONS).glob("*"))[1]
    file.write_bytes(file.read_bytes()[:-100])
    images = Images()
    describe(17, images, FUNCTIONS, KEY, "")
    assert images.made == list(range(6, 12))


def test_nothing_is_written_without_keep(tmp_path):
    describe(17, Images(), FUNCTIONS, KEY, "", keep=False)
    assert not list((tmp_path / "cache").rglob("*.features"))


def test_folder_that_cannot_be_written_changes_nothing(tmp_path):
    (tmp_path / "cache").write_text("a file")
    described = describe(17, Images(), FUNCTIONS, KEY, "")
    assert described.values["double"].flatten().tolist() == [2.0 * n for n in range(17)]


def test_old_sets_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    folders = [set_folder({"set": number}, FUNCTIONS) for number in range(4)]
    for number in range(4):
        describe(3, Images(), FUNCTIONS, {"set": number}, "")
    assert all(folder.exists() for folder in folders)  # all used today
    for number, folder in enumerate(folders):
        os.utime(folder, (1e9 + number, 1e9 + number))
    images = Images()
    describe(3, images, FUNCTIONS, {"set": 0}, "")  # used again, from the disk
    assert images.made == []
    assert [folder.exists() for folder in folders] == [True, False, False, True]


@pytest.mark.parametrize("step", [1, 4, 7, 50])
def test_step_changes_no_value(step, monkeypatch):
    monkeypatch.setattr(module, "PART", 5)
    described = describe(17, Images(), FUNCTIONS, KEY, "", keep=False, step=step)
    assert described.values["double"].flatten().tolist() == [2.0 * n for n in range(17)]


def test_order_of_the_functions_does_not_matter():
    describe(17, Images(), FUNCTIONS, KEY, "")
    images = Images()
    describe(17, images, dict(reversed(FUNCTIONS.items())), KEY, "")
    assert images.made == []
