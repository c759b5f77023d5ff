import numpy as np
import pytest
import torch

from nvae.data.images import Data, to_float
from nvae.data.registry import evaluation_images
from nvae.data.training_images import epoch_order, training_images
from nvae.tools.data_sheet import COLUMNS, data_sheet
from nvae.tools.grids import grid

FACES = {"name": "toy_faces"}


def some_data(training, validation):
    images = torch.randint(0, 256, (training + validation, 3, 8, 8), dtype=torch.uint8)
    return Data(images[:training], images[training:])


def assert_shows(picture, parts):
    """Assert that a sheet shows images in rows with labels; a row that is not full ends in white."""
    rows, labels = [], []
    for label, images in parts:
        for row in images.split(COLUMNS):
            rows += [row, torch.ones(COLUMNS - len(row), *row.shape[1:])]
            labels.append(label)
    assert np.array_equal(np.asarray(picture), np.asarray(grid(torch.cat(rows), COLUMNS, 96, labels)))


def test_data_sheet_shows_the_first_images_of_a_training_and_of_the_validation(make_config):
    config, data = make_config(dataset=FACES), some_data(40, 12)
    training, validation = (to_float(part, "cpu") for part in (data.training, data.validation))
    order = epoch_order(40, config, 0)[:16]
    assert_shows(data_sheet(data, config), [("training", training[order]), ("validation", validation)])


@pytest.mark.parametrize("keys", [{"horizontal_flip": True}, {"random_crop": 2}])
def test_data_sheet_shows_augmented_images_at_two_steps(make_config, keys):
    config, data = make_config(dataset=FACES | keys), some_data(5, 3)
    images_u8 = data.training[epoch_order(5, config, 0)]
    first, second = (training_images(images_u8, config, step).images for step in (0, 1))
    parts = [("training", first), ("next step", second), ("validation", to_float(data.validation, "cpu"))]
    assert_shows(data_sheet(data, config), parts)


def test_data_sheet_shows_gray_and_binary_images(make_config):
    keys = {"binarize": True, "encoder_input": "gray"}
    config, data = make_config(dataset=FACES | keys, sampling_method="bernoulli"), some_data(5, 3)
    first = training_images(data.training[epoch_order(5, config, 0)], config, 0)
    images, targets = (to_float(part, "cpu") for part in evaluation_images(data, "validation", config))
    parts = [("training", first.images), ("binary", first.targets)]
    assert_shows(data_sheet(data, config), [*parts, ("validation", images), ("binary validation", targets)])


def test_data_sheet_shows_the_bits_of_the_model(make_config):
    config, data = make_config(dataset=FACES, pixel_bits=2), some_data(1, 1)
    parts = [("training", to_float(data.training, "cpu", 2)), ("validation", to_float(data.validation, "cpu", 2))]
    assert_shows(data_sheet(data, config), parts)
