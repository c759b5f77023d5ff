import json
import re

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("configs")
FACES = ("--set", "dataset.training_images=9", "--set", "dataset.validation_images=4")


def show(command, name, *arguments):
    return command("-m", "datasets", name, "--show", "--no-window", *arguments)


def test_sheet_of_a_data_set_is_as_hvae_trains_on_it(command, files):
    code, out, _ = show(command, "toy_faces", *FACES)
    assert code == 0
    assert re.search(r"\b9 training.*\b4 validation.*3 x 32 x 32", out)
    path = files.only()
    assert path.name == "dataset_toy_faces_3x32x32.png"
    texts = files.texts(path)
    assert json.loads(texts["dataset"])["name"] == "toy_faces"
    assert (texts["input_dimension"], texts["image_channels"]) == ("32", "3")
    assert files.pixels(path).shape[0] > 3 * 96  # two rows of training images, one of validation images


def test_sheet_of_a_config_is_of_its_own_data_set(command, files):
    assert show(command, "little").code == 0
    path = files.only()
    assert path.name == "dataset_little_3x8x8.png"
    assert json.loads(files.texts(path)["dataset"])["training_images"] == 24
    before = files.pixels(path)
    assert show(command, "model_configs/little.yaml").code == 0  # the same picture
    assert (files.pixels(files.only()) == before).all()
    assert show(command, "little", "--set", "dataset.horizontal_flip=True").code == 0
    assert files.names() == ["dataset_little_3x8x8.png", "dataset_little_3x8x8_2.png"]
    heights = [files.pixels(f"images/{name}").shape[0] for name in files.names()]
    assert heights[1] > heights[0]  # rows of the next step


@pytest.mark.parametrize("name", ["folder", "hvae"])
def test_sheet_of_own_pictures_in_another_size_and_in_gray(command, configs, files, name):
    (configs / "mine").mkdir()
    for i in range(6):
        Image.new("RGB", (9, 9), (40 * i, 0, 255)).save(configs / "mine" / f"{i}.png")
    arguments = ("--data", "mine", "--size", "16", "--channels", "1", "--out", "here/a.png")
    code, out, _ = show(command, name, *arguments)
    assert code == 0
    assert "1 x 16 x 16" in out
    assert json.loads(files.texts("here/a.png")["dataset"])["path"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["minst", "--show"], "minst.*Did you mean mnist"),
        (["litle", "--show"], "litle.*little"),
        (["--show"], "NAME"),
        (["toy_faces", "--size", "8"], "--size.*--show"),
        (["toy_faces", "--set", "n_mix=3"], "--set.*--show"),
        (["toy_faces", "--show", "--size", "0"], "input_dimension"),
        (["toy_faces", "--show", "--channels", "2"], "image_channels"),
        (["toy_faces", "--show", "--out", "a.webp"], "a.webp"),
        (["folder", "--show", "--data", "absent"], "absent.*--data"),
        (["absent.yaml", "--show"], "absent"),
    ],
)
def test_sheet_mistakes_are_one_line_and_write_nothing(command, configs, files, arguments, pattern):
    before = files.all(configs)
    command("-m", "datasets", *arguments).assert_refused(pattern)
    assert files.all(configs) == before
