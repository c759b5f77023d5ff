import json
import shutil
from functools import cache

import pytest
import torch
from PIL import Image

from nvae.checkpoint import load_model, save, weights_digest
from nvae.errors import UserError
from nvae.inference.sampling import Sampler
from nvae.tools.picking.selection import Cell, Selection, load_selection, picture_of, render, reserve, save_result


@pytest.fixture(scope="module")
def models(make_model, tmp_path_factory):
    """A folder with two models of one architecture, a.model and b.model, and small.model that makes 4x4 images."""
    folder = tmp_path_factory.mktemp("models")
    mixture = {"sampling_method": "logistic_mixture"}  # whose mean is not its most likely value
    save(make_model(**mixture), folder / "a.model")
    save(make_model(seed=1, **mixture), folder / "b.model")
    save(make_model(input_dimension=4, number_of_scales=1), folder / "small.model")
    return folder


@pytest.fixture(scope="module")
def open_model():
    """A function: the model in a file, which is read once."""
    return cache(load_model)


@pytest.fixture(scope="module")
def cell(models, open_model):
    """A function: a sample of a.model as it was picked, with some things changed."""
    weights = weights_digest(open_model(str(models / "a.model")))

    def make(seed=5, **changes):
        plain = {"temperature": [0.7], "iterations": 0, "statistics": None}
        return Cell(**{"model": str(models / "a.model"), "weights": weights, "seed": seed} | plain | changes)

    return make


@pytest.fixture(scope="module")
def image_of(models, open_model):
    """A function: the image of a seed by itself."""

    def make(name, seed, temperature, iterations=0, scale_noise=(1.0,), **how):
        model = open_model(str(models / name))
        return Sampler(model, temperature, iterations).sample([seed], noise_scale=scale_noise, **how)[0]

    return make


# ----------------------------------------------------------------------------------------------------- the file


def test_what_is_saved_is_loaded(cell, tmp_path):
    cells = [cell(3), cell(2, temperature=[0.6, 0.8], iterations=20, statistics="0123"), cell(2**70, model="ä b.model")]
    selection = Selection(pixels="most_likely", scale_noise=[1.0, 0.5], cells=cells)
    selection.save(tmp_path / "a.json")
    assert load_selection(tmp_path / "a.json") == selection
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_saving_replaces_what_was_there(cell, tmp_path):
    for seeds in ([1, 2, 3], [4]):
        Selection(cells=[cell(seed) for seed in seeds]).save(tmp_path / "a.json")
    assert [found.seed for found in load_selection(tmp_path / "a.json").cells] == [4]


def test_the_file_says_all_that_makes_an_image(cell, tmp_path):
    Selection(cells=[cell(3)]).save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["format"] == "cherry-picked samples"
    assert content["cells"] == [cell(3).model_dump()]


def with_cell(**changes):
    cell = {"model": "a.model", "weights": "0", "seed": 1, "temperature": [0.7], "iterations": 2, "statistics": None}
    cell = {key: value for key, value in (cell | changes).items() if value != "left out"}
    return json.dumps({"format": "cherry-picked samples", "version": 1, "cells": [cell]})


MALFORMED = {
    "nothing": (b"", "as a whole: Invalid JSON"),
    "no JSON": (b"hello", "as a whole: Invalid JSON"),
    "half of it": (with_cell()[:60].encode(), "as a whole: Invalid JSON"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\xff", "as a whole: Invalid JSON"),
    "no end of brackets": (b"[" * 100_000, "as a whole: Invalid JSON"),
    "a list": (b"[]", "as a whole"),
    "another format": (b'{"format": "recipes", "cells": []}', "format: Input should be 'cherry-picked samples'"),
    "a newer version": (b'{"version": 2, "cells": []}', "version: Input should be 1"),
    "a missing key": (with_cell(seed="left out"), "cells.0.seed: Field required"),
    "an unknown key": (with_cell(color="red"), "cells.0.color: Extra inputs"),
    "an unknown key at the top": (b'{"color": "red"}', "color: Extra inputs"),
    "a negative seed": (with_cell(seed=-1), "cells.0.seed: Input should be greater than or equal to 0"),
    "half a seed": (with_cell(seed=1.5), "cells.0.seed: Input should be a valid integer"),
    "a seed in words": (with_cell(seed="1"), "cells.0.seed: Input should be a valid integer"),
    "temperature NaN": (with_cell(temperature=[float("nan")]), r"cells.0.temperature.0: Input should be .*number"),
    "temperature infinity": (with_cell(temperature=[float("inf")]), "cells.0.temperature.0: Input should be a finite"),
    "temperature 1e400": (with_cell().replace("0.7", "1e400"), "cells.0.temperature.0: Input should be a finite"),
    "a negative temperature": (with_cell(temperature=[-1.0]), "cells.0.temperature.0: Input should be greater than"),
    "no temperature": (with_cell(temperature=[]), "cells.0.temperature: List should have at least 1 item"),
    "one temperature, no list": (with_cell(temperature=0.7), "cells.0.temperature: Input should be a valid array"),
    "negative iterations": (with_cell(iterations=-1), "cells.0.iterations: Input should be greater than"),
    "no model": (with_cell(model=None), "cells.0.model: Input should be a valid string"),
    "other pixels": (b'{"pixels": "best"}', "pixels: Input should be 'mean', 'most_likely' or 'sample'"),
    "no scale of the noise": (b'{"scale_noise": []}', "scale_noise: List should have at least 1 item"),
    "no cells": (b'{"cells": []}', "holds no picks"),
    "an empty object": (b"{}", "holds no picks"),
}


@pytest.mark.parametrize(("content", "pattern"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_one_sentence_that_names_it_and_the_place(tmp_path, content, pattern):
    path = tmp_path / "picks.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=pattern) as error:
        load_selection(path)
    assert "picks.json" in str(error.value)
    assert "give the .json file that cherry.py wrote" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_an_absent_file_and_a_folder_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="nowhere.json cannot be read"):
        load_selection(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot be read"):
        load_selection(tmp_path)


# ----------------------------------------------------------------------------------------------------- changing


def test_nothing_changed_is_the_same(cell):
    selection = Selection(pixels="sample", cells=[cell(3), cell(4, temperature=[0.9])])
    assert selection.changed() == selection


def test_changes_are_made_to_every_cell_and_keep_the_seeds(cell):
    selection = Selection(cells=[cell(3), cell(4, temperature=[0.9], iterations=20)])
    changed = selection.changed("b.model", [0.5, 1.0], 0, "sample", [0.0])
    assert [(c.model, c.seed, c.temperature, c.iterations) for c in changed.cells] == [
        ("b.model", 3, [0.5, 1.0], 0),
        ("b.model", 4, [0.5, 1.0], 0),
    ]
    assert (changed.pixels, changed.scale_noise) == ("sample", [0.0])
    assert selection.cells[1].iterations == 20  # the first one is as it was


def test_one_change_leaves_all_else(cell):
    selection = Selection(cells=[cell(3, iterations=20, statistics="0123")])
    assert selection.changed(iterations=5).cells == [cell(3, iterations=5)]  # whose statistics nobody knows yet
    assert selection.changed(pixels="sample").cells == selection.cells
    assert selection.changed(scale_noise=[0.5]) == Selection(scale_noise=[0.5], cells=selection.cells)


# ------------------------------------------------------------------------------------------------------ drawing


def test_the_images_follow_the_order_of_the_cells(cell, open_model, image_of):
    seeds = [9, 2, 5]
    images, _, notices = render(Selection(cells=[cell(seed) for seed in seeds]), open_model)
    for image, seed in zip(images, seeds, strict=True):
        torch.testing.assert_close(image, image_of("a.model", seed, [0.7]), rtol=0, atol=1e-6)
    assert notices == []


def test_models_temperatures_and_iterations_may_differ_from_cell_to_cell(cell, models, open_model, image_of):
    other = {"model": str(models / "b.model"), "weights": weights_digest(open_model(str(models / "b.model")))}
    wanted = [
        (cell(1), ("a.model", 1, [0.7])),
        (cell(2, **other), ("b.model", 2, [0.7])),
        (cell(2), ("a.model", 2, [0.7])),
        (cell(2, temperature=[1.5]), ("a.model", 2, [1.5])),
        (cell(1, temperature=[0.2, 1.5]), ("a.model", 1, [0.2, 1.5])),
        (cell(1, **other), ("b.model", 1, [0.7])),
        (cell(1, iterations=3), ("a.model", 1, [0.7], 3)),
    ]
    images, drawn, notices = render(Selection(cells=[cell for cell, _ in wanted]), open_model)
    for image, (_, what) in zip(images, wanted, strict=True):
        torch.testing.assert_close(image, image_of(*what), rtol=0, atol=1e-6)
    distances = (images[:, None] - images[None]).abs().amax((2, 3, 4))
    assert distances[~torch.eye(len(images), dtype=bool)].min() > 1e-3  # so that no two could have been exchanged
    assert notices == []
    assert [cell.seed for cell in drawn.cells] == [1, 2, 2, 2, 1, 1, 1]
    assert [bool(cell.statistics) for cell in drawn.cells] == [False] * 6 + [True]


@pytest.mark.parametrize("how", [{"pixels": "sample"}, {"pixels": "most_likely"}, {"scale_noise": [0.5, 2.0]}])
def test_pixels_and_scale_of_the_noise_are_those_of_the_selection(cell, how, open_model, image_of):
    (image,), _, _ = render(Selection(cells=[cell(3)], **how), open_model)
    torch.testing.assert_close(image, image_of("a.model", 3, [0.7], **how), rtol=0, atol=1e-6)
    assert (image - image_of("a.model", 3, [0.7])).abs().max() > 1e-3


def test_a_model_is_opened_once(cell):
    opened = []

    def open_model(path):
        opened.append(path)
        return load_model(path)

    render(Selection(cells=[cell(1), cell(2, temperature=[0.9]), cell(3)]), open_model)
    assert len(opened) == 1


def test_other_weights_than_those_that_were_picked_from_are_noticed(cell, models, tmp_path, open_model):
    shutil.copy(models / "b.model", tmp_path / "retrained.model")
    changed = cell(1, model=str(tmp_path / "retrained.model"))
    _, drawn, notices = render(Selection(cells=[cell(2), changed, changed]), open_model)
    assert len(notices) == 1
    assert "retrained.model holds other weights than those that were picked from" in notices[0]
    assert [cell.weights for cell in drawn.cells] == [
        weights_digest(open_model(str(models / name))) for name in ("a.model", "b.model", "b.model")
    ]
    assert render(drawn, open_model)[2] == []  # which says what was drawn


def test_other_statistics_than_those_of_the_picking_are_noticed(cell, open_model):
    _, drawn, notices = render(Selection(cells=[cell(1, iterations=2)]), open_model)
    assert notices == []  # nothing is known about those of the picking
    assert render(drawn, open_model)[2] == []
    forgotten = Selection(cells=[drawn.cells[0].model_copy(update={"statistics": "0123"})])
    assert "differ from those of the picking by rounding" in render(forgotten, open_model)[2][0]


def test_statistics_that_were_asked_to_be_others_are_no_rounding(cell, open_model):
    _, drawn, _ = render(Selection(cells=[cell(1, iterations=2)]), open_model)
    for changes in ({"temperature": [0.9]}, {"iterations": 3}, {"iterations": 0}):
        assert not any("rounding" in notice for notice in render(drawn.changed(**changes), open_model)[2])


def test_images_of_different_sizes_are_refused(cell, models, open_model):
    small = cell(1, model=str(models / "small.model"))
    with pytest.raises(UserError, match="images of different sizes"):
        render(Selection(cells=[cell(1), small]), open_model)


def test_a_wrong_number_of_scales_is_refused(cell, open_model):
    with pytest.raises(UserError, match="temperature: got 3"):
        render(Selection(cells=[cell(1, temperature=[0.1, 0.2, 0.3])]), open_model)
    with pytest.raises(UserError, match="noise scale: got 3"):
        render(Selection(scale_noise=[1, 2, 3], cells=[cell(1)]), open_model)


# ------------------------------------------------------------------------------------------------------- saving


def test_the_same_selection_is_the_same_picture_to_the_byte(cell, tmp_path, open_model):
    selection = Selection(cells=[cell(seed, iterations=2) for seed in (8, 3, 5)])
    saved, _ = save_result(selection, tmp_path / "a.json", open_model)
    assert saved == tmp_path / "a.png"
    again, notices = save_result(load_selection(tmp_path / "a.json"), tmp_path / "b.json", open_model)
    assert again.read_bytes() == saved.read_bytes()
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert notices == []


def test_the_picture_itself_says_what_made_it(cell, tmp_path, open_model):
    saved, _ = save_result(Selection(cells=[cell(3), cell(1)]), tmp_path / "a.json", open_model)
    with Image.open(saved) as picture:
        assert [made["seed"] for made in json.loads(picture.text["cells"])] == [3, 1]
        assert picture.size == (2 * 164 + 4, 164 + 4)


def test_a_record_that_cannot_be_written_is_one_sentence(cell, tmp_path, open_model):
    with pytest.raises(UserError, match="a.json could not be saved"):
        save_result(Selection(cells=[cell(3)]), tmp_path / "nowhere" / "a.json", open_model)


def test_a_reserved_name_is_never_given_again(tmp_path):
    names = [reserve(tmp_path / "new", "cherry_0.7_a").name for _ in range(3)]
    assert names == ["cherry_0.7_a.json", "cherry_0.7_a_2.json", "cherry_0.7_a_3.json"]
    assert all((tmp_path / "new" / name).exists() for name in names)


def test_a_reserved_name_has_neither_a_record_nor_a_picture(tmp_path):
    for name in ("a.png", "a_2.json", "a_4.png"):
        (tmp_path / name).write_text("mine")
    first, second = reserve(tmp_path, "a"), reserve(tmp_path, "a")
    assert (first.name, second.name) == ("a_3.json", "a_5.json")
    for name in ("a.png", "a_2.json", "a_4.png"):
        assert (tmp_path / name).read_text() == "mine"


def test_the_picture_of_a_record_lies_beside_it(tmp_path):
    assert picture_of(tmp_path / "cherry_0.7_v1.5.json") == tmp_path / "cherry_0.7_v1.5.png"


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserError, match=r"could not be saved.*--out") as error:
            reserve(folder, "a")
        assert len(str(error.value).splitlines()) == 1
