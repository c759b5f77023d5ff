import numpy as np
import pytest
import torch
from PIL import Image

from nvae.errors import UserError
from nvae.sampling.grids import MARGIN, grid, save_picture


def test_images_stand_row_by_row():
    images = torch.arange(6).float()[:, None, None, None].expand(6, 3, 8, 8) / 10
    picture = np.asarray(grid(images, columns=3, cell=16))
    assert picture.shape == (MARGIN + 2 * (16 + MARGIN), MARGIN + 3 * (16 + MARGIN), 3)
    centres = picture[MARGIN + 8 :: 16 + MARGIN, MARGIN + 8 :: 16 + MARGIN, 0]
    assert centres.tolist() == [[0, 26, 51], [76, 102, 128]]


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert grid(torch.zeros(1, 3, 8, 8), 1, cell=20).width == 24 + 2 * MARGIN
    assert grid(torch.zeros(1, 3, 64, 64), 1, cell=20).width == 64 + 2 * MARGIN


def test_grey_images_and_labels_are_fine():
    labelled = grid(torch.zeros(2, 1, 8, 8), 1, cell=16, labels=["t = 0.7", "t = 1"])
    assert labelled.width > grid(torch.zeros(2, 1, 8, 8), 1, cell=16).width


def test_the_metadata_are_read_back(tmp_path):
    path = save_picture(grid(torch.zeros(1, 3, 8, 8), 1), tmp_path / "new" / "a.png", {"seed": 3, "model": "ä.model"})
    with Image.open(path) as picture:
        assert picture.text == {"seed": "3", "model": "ä.model"}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be saved"):
        save_picture(grid(torch.zeros(1, 3, 8, 8), 1), tmp_path / "file" / "a.png", {})
