from typing import get_args

import pytest
import torch

from nvae.data import images as images_module
from nvae.data.images import Data
from nvae.data.registry import LOADERS, load_data
from nvae.schema import DatasetName

FACES = {"name": "toy_faces", "training_images": 30, "validation_images": 40}


@pytest.fixture
def load(make_config):
    def load(binarize=True, **changes):
        return load_data(make_config(sampling_method="bernoulli", dataset=FACES | {"binarize": binarize}, **changes))

    return load


def test_every_name_that_a_config_may_give_has_a_loader():
    assert set(get_args(DatasetName)) == set(LOADERS)


def test_binarized_validation_images_are_the_same_on_every_load_and_the_rest_stays_grey(load):
    original, first = load(binarize=False), load()
    torch.manual_seed(1)  # whatever else is drawn
    second = load()
    assert first.validation.dtype == torch.uint8
    assert set(first.validation.unique().tolist()) == {0, 255}
    assert torch.equal(first.validation, second.validation)
    assert first.fingerprint == second.fingerprint != original.fingerprint
    assert torch.equal(first.training, original.training)


def test_validation_images_are_drawn_from_their_grey_values(load):
    p = load(binarize=False).validation.double() / 255
    drawn = load().validation.double() / 255
    # Both sums of independent draws have a known variance; within five standard deviations of their means:
    variance = p * (1 - p)
    assert abs((drawn - p).sum()) < 5 * variance.sum().sqrt()
    assert abs(((drawn - p) * (p - p.mean())).sum()) < 5 * (variance * (p - p.mean()).square()).sum().sqrt()
    assert torch.equal(drawn[p == 0], p[p == 0])
    assert torch.equal(drawn[p == 1], p[p == 1])


def test_validation_images_are_drawn_at_the_depth_that_training_sees(load):
    """With one bit the values are 0 and 1 already, and nothing is left to chance."""
    gray = load(binarize=False, pixel_bits=1).validation
    assert torch.equal(load(pixel_bits=1).validation, (gray >= 128) * torch.tensor(255, dtype=torch.uint8))


def test_every_chunk_of_the_validation_images_is_drawn_anew(load, monkeypatch):
    gray = torch.full((30, 1, 8, 8), 128, dtype=torch.uint8).expand(-1, 3, -1, -1)  # as mnist in three channels
    monkeypatch.setitem(LOADERS, "toy_faces", lambda config: Data(gray, gray, ("a notice",)))
    at_once = load()
    monkeypatch.setattr(images_module, "CHUNK", 7)
    chunked = load()
    assert torch.equal(chunked.validation, at_once.validation)
    assert len(chunked.validation.flatten(1).unique(dim=0)) == 30
    assert chunked.notices == ("a notice",)
    assert (gray == 128).all()
