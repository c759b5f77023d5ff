import subprocess
import sys

import pytest
import torch

from nvae.data import images as images_module
from nvae.data.images import Data
from nvae.data.registry import LOADERS, evaluation_images, load_data
from nvae.schema import DATASETS
from nvae.system.errors import UserError

FACES = {"name": "toy_faces", "training_images": 30, "validation_images": 40}
PARTS = ("training", "validation")


@pytest.fixture
def load(make_config):
    """A function: a data set, and the targets of both parts for an evaluation."""

    def load(binarize=True, encoder_input="binary", **changes):
        dataset = FACES | {"binarize": binarize, "encoder_input": encoder_input}
        config = make_config(sampling_method="bernoulli", dataset=dataset, **changes)
        data = load_data(config)
        parts = {part: evaluation_images(data, part, config) for part in PARTS}
        for part, (images, targets) in parts.items():
            assert torch.equal(images, getattr(data, part) if encoder_input == "gray" else targets)
        return data, {part: targets for part, (_, targets) in parts.items()}

    return load


def test_loaders_cover_every_dataset_name():
    assert set(DATASETS) == set(LOADERS)


@pytest.mark.slow
def test_registry_imports_nothing_that_takes_long(root):
    """Importing torchvision takes a second; only some sets and downloads need these packages (fault 23)."""
    heavy = {"torchvision", "pooch", "requests", "lmdb"}
    program = f"import sys, nvae.data.registry; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == 0


def test_evaluation_images_are_the_data_without_binarize(load):
    data, images = load(binarize=False)
    assert torch.equal(images["training"], data.training) and torch.equal(images["validation"], data.validation)


def test_binarized_data_is_the_same_on_every_load(load):
    (original, _), (first, images) = load(binarize=False), load()
    torch.manual_seed(1)  # the global random state has no influence
    second, again = load()
    assert first.fingerprint == second.fingerprint != original.fingerprint
    assert torch.equal(first.training, original.training)  # training binarizes anew at every step
    assert torch.equal(images["validation"], first.validation)
    for part in PARTS:
        assert images[part].dtype == torch.uint8
        assert set(images[part].unique().tolist()) == {0, 255}
        assert torch.equal(images[part], again[part])


def test_evaluation_images_gray_have_the_targets_of_binary(load):
    (original, _), (data, targets), (_, expected) = load(binarize=False), load(encoder_input="gray"), load()
    assert torch.equal(data.validation, original.validation) and data.fingerprint == original.fingerprint
    for part in PARTS:
        assert torch.equal(targets[part], expected[part])


def test_fingerprint_of_binary_input_is_that_of_earlier_versions(load):
    """Checkpoints compare the digest: of a gray and a binarized data set, from commit 93c6e14."""
    assert load(binarize=False)[0].fingerprint == "cdf7b72c8574cac79fb29263ba75da2a"
    assert load()[0].fingerprint == "ae2d4350d17e0e5e720d0b73217a8024"


@pytest.mark.parametrize("part", PARTS)
def test_evaluation_images_are_drawn_with_the_gray_values_as_means(load, part):
    """Both parts hold only 0 and 255 (fault 6), and both sums of independent draws have a known variance."""
    p = getattr(load(binarize=False)[0], part).double() / 255
    drawn = load()[1][part].double() / 255
    assert set(drawn.unique().tolist()) == {0, 1}
    variance = p * (1 - p)
    assert abs((drawn - p).sum()) < 5 * variance.sum().sqrt()
    assert abs(((drawn - p) * (p - p.mean())).sum()) < 5 * (variance * (p - p.mean()).square()).sum().sqrt()
    assert torch.equal(drawn[p == 0], p[p == 0])
    assert torch.equal(drawn[p == 1], p[p == 1])


def test_evaluation_images_of_the_test_part_are_its_own(make_config, monkeypatch):
    gray = torch.full((40, 3, 8, 8), 128, dtype=torch.uint8)
    monkeypatch.setitem(LOADERS, "toy_faces", lambda config, progress: Data(gray, gray, gray))
    config = make_config(sampling_method="bernoulli", dataset=FACES | {"binarize": True, "encoder_input": "gray"})
    images, targets = evaluation_images(load_data(config), "test", config)
    assert torch.equal(images, gray) and set(targets.unique().tolist()) == {0, 255}
    assert torch.equal(targets, evaluation_images(load_data(config), "test", config).targets)
    assert not torch.equal(targets, evaluation_images(load_data(config), "validation", config).targets)


@pytest.mark.parametrize("name", ["toy_faces", "mnist"])
def test_evaluation_images_without_a_test_part_are_refused(make_config, name):
    gray = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="validation part") as raised:
        evaluation_images(Data(gray, gray), "test", make_config(dataset={"name": name}))
    assert ("dataset.validation_images" in str(raised.value)) == (name == "mnist")


@pytest.mark.parametrize("part", PARTS)
def test_evaluation_images_have_the_bits_of_the_model(load, part):
    """With one bit, the values are 0 and 1 already, and the draw is deterministic."""
    gray = getattr(load(binarize=False, pixel_bits=1)[0], part)
    assert torch.equal(load(pixel_bits=1)[1][part], (gray >= 128) * torch.tensor(255, dtype=torch.uint8))


def test_binarized_chunks_are_drawn_independently(load, monkeypatch):
    gray = torch.full((30, 1, 8, 8), 128, dtype=torch.uint8).expand(-1, 3, -1, -1)  # as mnist in three channels
    monkeypatch.setitem(LOADERS, "toy_faces", lambda config, progress: Data(gray, gray, warnings=("a warning",)))
    _, at_once = load()
    monkeypatch.setattr(images_module, "CHUNK", 7)
    data, chunked = load()
    for part in PARTS:
        assert torch.equal(chunked[part], at_once[part])
        assert len(chunked[part].flatten(1).unique(dim=0)) == 30
    assert not torch.equal(chunked["training"], chunked["validation"])
    assert data.warnings == ("a warning",)
    assert (gray == 128).all()
