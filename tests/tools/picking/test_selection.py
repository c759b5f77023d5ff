import json
import os
import shutil
from functools import cache

import pytest
import torch
from PIL import Image

from nvae.checkpoint import load_model, save, weights_digest
from nvae.data.pictures.metadata import save_picture
from nvae.inference.sampling import Sampler
from nvae.system.errors import UserError
from nvae.tools.picking.selection import Pick, Selection, load_pick, load_selection, render, reserve, save_result


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
def pick(models, open_model):
    """A function: a sample of a.model as it was picked, with some things changed."""
    weights = weights_digest(open_model(str(models / "a.model")))

    def make(seed=5, **changes):
        plain = {"temperature": [0.7], "iterations": 0, "statistics": None}
        return Pick(**{"model": str(models / "a.model"), "weights": weights, "seed": seed} | plain | changes)

    return make


@pytest.fixture(scope="module")
def image_of(models, open_model):
    """A function: the image of a seed by itself."""

    def make(name, seed, temperature, iterations=0, scale_noise=(1.0,), pixels="mean"):
        model = open_model(str(models / name))
        return Sampler(model, temperature, iterations).sample([seed], pixels, scale_noise)[0]

    return make


# ----------------------------------------------------------------------------------------------------- the file


def test_selection_is_loaded_as_saved(pick, tmp_path):
    cells = [pick(3), pick(2, temperature=[0.6, 0.8], iterations=20, statistics="0123"), pick(2**70, model="ä b.model")]
    selection = Selection(pixels="most_likely", scale_noise=[1.0, 0.5], cells=cells)
    selection.save(tmp_path / "a.json")
    assert load_selection(tmp_path / "a.json") == selection
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def with_cell(**changes):
    cell = {"model": "a.model", "weights": "0", "seed": 1, "temperature": [0.7], "iterations": 2, "statistics": None}
    cell = {key: value for key, value in (cell | changes).items() if value != "left out"}
    return json.dumps({"format": "cherry-picked samples", "version": 1, "cells": [cell]})


MALFORMED = {
    "nothing": b"",
    "no JSON": b"hello",
    "half of a file": with_cell()[:60].encode(),
    "a damaged picture": b"\x89PNG\r\n\x1a\n\x00\xff",
    "endless brackets": b"[" * 100_000,
    "a list": b"[]",
    "another format": b'{"format": "recipes", "cells": []}',
    "a newer version": b'{"version": 2, "cells": []}',
    "a missing key": with_cell(seed="left out"),
    "an unknown key": with_cell(color="red"),
    "an unknown key at the top": b'{"color": "red"}',
    "a negative seed": with_cell(seed=-1),
    "half a seed": with_cell(seed=1.5),
    "temperature NaN": with_cell(temperature=[float("nan")]),
    "temperature 1e400": with_cell().replace("0.7", "1e400"),
    "a negative temperature": with_cell(temperature=[-1.0]),
    "no temperature": with_cell(temperature=[]),
    "one temperature, no list": with_cell(temperature=0.7),
    "endless iterations": with_cell(iterations=10**15),
    "no model": with_cell(model=None),
    "other pixels": b'{"pixels": "best"}',
    "no scale of the noise": b'{"scale_noise": []}',
    "no picks": b'{"cells": []}',
    "an empty object": b"{}",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_load_selection_malformed_file_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "picks.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="picks.json") as error:
        load_selection(path)
    assert len(str(error.value).splitlines()) == 1


def test_load_selection_unreadable_file_names_it(tmp_path):
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(UserError, match=path.name):
            load_selection(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_load_selection_refuses_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(UserError, match="pipe.json"):
        load_selection(tmp_path / "pipe.json")


def test_load_selection_reads_a_picture(pick, tmp_path):
    selection = Selection(pixels="sample", scale_noise=[0.5], cells=[pick(3), pick(2**70, model="ä.model")])
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", selection.model_dump())
    assert load_selection(tmp_path / "a.png") == selection
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="b.png"):
        load_selection(tmp_path / "b.png")


def test_load_pick_counts_from_one(pick, tmp_path):
    path = tmp_path / "a:b.json"
    selection = Selection(cells=[pick(3), pick(5)])
    selection.save(path)
    assert load_pick(f"{path}:2") == (selection, pick(5))
    for wrong in (f"{path}:0", f"{path}:3", f"{path}:x", str(path), f"{path}:{'9' * 5000}"):
        with pytest.raises(UserError, match="a:b.json"):
            load_pick(wrong)


# ----------------------------------------------------------------------------------------------------- changing


def test_changed_without_changes_is_the_same(pick):
    selection = Selection(pixels="sample", cells=[pick(3), pick(4, temperature=[0.9])])
    assert selection.changed() == selection


def test_changed_keeps_the_seeds_of_every_pick(pick):
    selection = Selection(cells=[pick(3), pick(4, temperature=[0.9], iterations=20)])
    changed = selection.changed(
        model="b.model", temperature=[0.5, 1.0], iterations=0, pixels="sample", scale_noise=[0.0]
    )
    assert [(c.model, c.seed, c.temperature, c.iterations) for c in changed.cells] == [
        ("b.model", 3, [0.5, 1.0], 0),
        ("b.model", 4, [0.5, 1.0], 0),
    ]
    assert (changed.pixels, changed.scale_noise) == ("sample", [0.0])
    assert selection.cells[1].iterations == 20  # the first one is as it was


def test_changed_leaves_all_else(pick):
    selection = Selection(cells=[pick(3, iterations=20, statistics="0123")])
    assert selection.changed(iterations=5).cells == [pick(3, iterations=5)]  # whose statistics nobody knows yet
    assert selection.changed(pixels="sample").cells == selection.cells
    assert selection.changed(scale_noise=[0.5]) == Selection(scale_noise=[0.5], cells=selection.cells)


# ------------------------------------------------------------------------------------------------------ drawing


def test_render_follows_the_order_of_the_picks(pick, open_model, image_of):
    seeds = [9, 2, 5]
    images, _, warnings = render(Selection(cells=[pick(seed) for seed in seeds]), open_model)
    for image, seed in zip(images, seeds, strict=True):
        torch.testing.assert_close(image, image_of("a.model", seed, [0.7]), rtol=0, atol=1e-6)
    assert warnings == []


def test_render_models_and_settings_may_differ_from_pick_to_pick(pick, models, open_model, image_of):
    other = {"model": str(models / "b.model"), "weights": weights_digest(open_model(str(models / "b.model")))}
    wanted = [
        (pick(1), ("a.model", 1, [0.7])),
        (pick(2, **other), ("b.model", 2, [0.7])),
        (pick(2), ("a.model", 2, [0.7])),
        (pick(2, temperature=[1.5]), ("a.model", 2, [1.5])),
        (pick(1, temperature=[0.2, 1.5]), ("a.model", 1, [0.2, 1.5])),
        (pick(1, **other), ("b.model", 1, [0.7])),
        (pick(1, iterations=3), ("a.model", 1, [0.7], 3)),
    ]
    images, drawn, warnings = render(Selection(cells=[pick for pick, _ in wanted]), open_model)
    for image, (_, what) in zip(images, wanted, strict=True):
        torch.testing.assert_close(image, image_of(*what), rtol=0, atol=1e-6)
    distances = (images[:, None] - images[None]).abs().amax((2, 3, 4))
    assert distances[~torch.eye(len(images), dtype=bool)].min() > 1e-3  # so that no two could have been exchanged
    assert warnings == []
    assert [cell.seed for cell in drawn.cells] == [1, 2, 2, 2, 1, 1, 1]
    assert [bool(cell.statistics) for cell in drawn.cells] == [False] * 6 + [True]


@pytest.mark.parametrize("how", [{"pixels": "sample"}, {"pixels": "most_likely"}, {"scale_noise": [0.5, 2.0]}])
def test_render_uses_pixels_and_scale_of_the_selection(pick, how, open_model, image_of):
    (image,), _, _ = render(Selection(cells=[pick(3)], **how), open_model)
    torch.testing.assert_close(image, image_of("a.model", 3, [0.7], **how), rtol=0, atol=1e-6)
    assert (image - image_of("a.model", 3, [0.7])).abs().max() > 1e-3


def test_render_warns_about_other_weights(pick, models, tmp_path, open_model):
    shutil.copy(models / "b.model", tmp_path / "retrained.model")
    changed = pick(1, model=str(tmp_path / "retrained.model"))
    _, drawn, warnings = render(Selection(cells=[pick(2), changed, changed]), open_model)
    assert len(warnings) == 1
    assert "retrained.model" in warnings[0]
    assert [cell.weights for cell in drawn.cells] == [
        weights_digest(open_model(str(models / name))) for name in ("a.model", "b.model", "b.model")
    ]
    assert render(drawn, open_model)[2] == []  # which says what was drawn


def test_render_warns_about_other_statistics(pick, open_model):
    _, drawn, warnings = render(Selection(cells=[pick(1, iterations=2)]), open_model)
    assert warnings == []  # nothing is known about those of the picking
    assert render(drawn, open_model)[2] == []
    forgotten = Selection(cells=[drawn.cells[0].model_copy(update={"statistics": "0123"})])
    assert "rounding" in render(forgotten, open_model)[2][0]


def test_render_does_not_warn_about_statistics_after_a_change(pick, open_model):
    _, drawn, _ = render(Selection(cells=[pick(1, iterations=2)]), open_model)
    for changes in ({"temperature": [0.9]}, {"iterations": 3}, {"iterations": 0}):
        assert not any("rounding" in warning for warning in render(drawn.changed(**changes), open_model)[2])


def test_render_refuses_images_of_different_sizes(pick, models, open_model):
    small = pick(1, model=str(models / "small.model"))
    with pytest.raises(UserError, match="sizes"):
        render(Selection(cells=[pick(1), small]), open_model)


def test_render_refuses_a_wrong_number_of_scales(pick, open_model):
    with pytest.raises(UserError, match="temperature"):
        render(Selection(cells=[pick(1, temperature=[0.1, 0.2, 0.3])]), open_model)
    with pytest.raises(UserError, match="scale"):
        render(Selection(scale_noise=[1, 2, 3], cells=[pick(1)]), open_model)


# ------------------------------------------------------------------------------------------------------- saving


def test_save_result_is_the_same_to_the_byte(pick, tmp_path, open_model):
    selection = Selection(cells=[pick(seed, iterations=2) for seed in (8, 3, 5)])
    images, drawn, _ = render(selection, open_model)
    saved = save_result(images, drawn, tmp_path / "a.json")
    assert saved == tmp_path / "a.png"
    images, drawn, warnings = render(load_selection(tmp_path / "a.json"), open_model)
    again = save_result(images, drawn, tmp_path / "b.json")
    assert again.read_bytes() == saved.read_bytes()
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert warnings == []


def test_save_result_picture_has_the_metadata(pick, tmp_path, open_model):
    images, drawn, _ = render(Selection(cells=[pick(3), pick(1)]), open_model)
    saved = save_result(images, drawn, tmp_path / "a.json")
    with Image.open(saved) as picture:
        assert [made["seed"] for made in json.loads(picture.text["cells"])] == [3, 1]
        assert picture.size == (2 * 164 + 4, 164 + 4)


def test_reserve_gives_a_name_once_and_never_one_with_a_picture(tmp_path):
    for name in ("a.png", "a_2.json", "a_4.png"):
        (tmp_path / name).write_text("mine")
    assert [reserve(tmp_path, "a").name for _ in range(2)] == ["a_3.json", "a_5.json"]
    assert reserve(tmp_path / "new" / "b.png", "a") == tmp_path / "new" / "b.json"
    for taken in ("a.png", "a_2.png", "new/b.png"):
        with pytest.raises(UserError, match=taken.removesuffix(".png")):
            reserve(tmp_path / taken, "a")
    for name in ("a.png", "a_2.json", "a_4.png"):
        assert (tmp_path / name).read_text() == "mine"


def test_reserve_in_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OSError, match="file"):
            reserve(folder, "a")


def test_load_selection_bounds_the_iterations_of_all_recalibrations(pick, tmp_path):
    Selection(cells=[pick(i, iterations=100_000) for i in range(20)]).save(tmp_path / "one.json")  # one recalibration
    assert len(load_selection(tmp_path / "one.json").cells) == 20
    cells = [pick(i, iterations=100_000, temperature=[0.5 + i / 100]) for i in range(11)]
    Selection(cells=cells).save(tmp_path / "many.json")
    with pytest.raises(UserError, match="iterations"):
        load_selection(tmp_path / "many.json")
