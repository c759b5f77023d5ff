import itertools
import shutil
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data.loaders.folder import load_folder
from nvae.data.pictures import decoding as pictures
from nvae.system.errors import InvalidValueError, UserError


@pytest.fixture
def image_folder(tmp_path):
    """A folder of forty images of one color each, some in a subfolder, and two files that are not images."""
    folder = tmp_path / "image_folder"
    (folder / "more").mkdir(parents=True)
    for i in range(40):
        where = folder / "more" if i % 4 == 0 else folder
        Image.new("RGB", (12, 10), (i, 2 * i, 3 * i)).save(where / f"{i}.png")
    (folder / "readme.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image")
    return folder


@pytest.fixture
def load(make_config):
    def load(path, **changes):
        return load_folder(make_config(dataset={"name": "folder", "path": str(path)} | changes))

    return load


def colors(images):
    return {tuple(image[:, 4, 4].tolist()) for image in images}


def test_folder_parts_are_disjoint_and_complete(image_folder, load):
    data = load(image_folder)
    assert data.training.dtype == torch.uint8
    assert data.training.shape[1:] == (3, 8, 8)
    assert colors(data.training) | colors(data.validation) == {(i, 2 * i, 3 * i) for i in range(40)}
    assert not colors(data.training) & colors(data.validation)
    assert data.warnings == ()


def test_folder_split_is_stable_when_images_are_added(image_folder, load):
    before = load(image_folder, validation_fraction=0.3)
    for i in range(40, 50):
        Image.new("RGB", (9, 9), (i, 2 * i, 3 * i)).save(image_folder / f"{i}.png")
    after = load(image_folder, validation_fraction=0.3)
    assert colors(before.training) < colors(after.training)
    assert colors(before.validation) <= colors(after.validation)
    assert before.fingerprint != after.fingerprint


def test_folder_fingerprint_does_not_depend_on_its_path(image_folder, load, tmp_path):
    before = load(image_folder)
    moved = image_folder.rename(tmp_path / "moved")
    assert load(moved).fingerprint == before.fingerprint


def test_folder_of_two_images_fills_both_parts(tmp_path, load):
    for fraction in (0.01, 0.99):
        for shade, name in enumerate("ab"):
            Image.new("L", (8, 8), shade).save(tmp_path / f"{name}.png")
        data = load(tmp_path, validation_fraction=fraction)
        assert (len(data.training), len(data.validation)) == (1, 1)


def test_folder_converts_to_one_channel(image_folder, make_config):
    data = load_folder(make_config(image_channels=1, dataset={"path": str(image_folder)}))
    assert data.training.shape[1:] == (1, 8, 8)


def test_folder_names_unreadable_files_in_a_warning(image_folder, load):
    whole = (image_folder / "1.png").read_bytes()
    (image_folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "fake.jpg").write_text("hello")
    data = load(image_folder)
    assert len(data.training) + len(data.validation) == 40
    (warning,) = data.warnings
    assert all(part in warning for part in ("2 of 42", "broken.png", "fake.jpg"))


def test_folder_follows_links_in_a_circle(image_folder, tmp_path, load):
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8), (255, 255, 255)).save(outside / "one.png")
    (image_folder / "link").symlink_to(outside)
    (image_folder / "more" / "circle").symlink_to(image_folder)
    data = load(image_folder)
    assert len(data.training) + len(data.validation) == 41


@pytest.mark.parametrize("content", [{}, {"notes.txt": "hello"}, {"a.png": "broken"}])
def test_folder_without_pictures_is_refused(tmp_path, load, content):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"0 pictures.*dataset\.path"):
        load(tmp_path)


def test_folder_of_unreadable_files_is_refused(tmp_path, load):
    for name in "abc":
        (tmp_path / f"{name}.png").write_text("hello")
    with pytest.raises(UserError, match="3 of 3 pictures left out"):
        load(tmp_path)


def test_missing_folder_is_refused(tmp_path, load):
    with pytest.raises(UserError, match=r"nowhere.*dataset\.path"):
        load(tmp_path / "nowhere")


def add_picture(folder, name, part=None):
    path = folder / (part or "") / name
    path.parent.mkdir(exist_ok=True)
    shade = len(list(folder.rglob("*.png")))
    Image.new("RGB", (9, 9), (shade, 2 * shade, 3 * shade)).save(path)
    return (shade, 2 * shade, 3 * shade)


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Train", "validation"), ("train", "valid")])
def test_folder_subfolders_are_the_split(tmp_path, load, train, val):
    training = {add_picture(tmp_path, f"{i}.png", train) for i in range(5)}
    validation = {add_picture(tmp_path, f"{i}.png", val) for i in range(3)}
    add_picture(tmp_path, "stray.png")
    data = load(tmp_path, validation_fraction=0.9)
    assert colors(data.training) == training
    assert colors(data.validation) == validation
    assert data.test is None
    assert "1 no part (stray.png)" in data.warnings[-1]
    test = {add_picture(tmp_path, "one.png", "test")}
    assert colors(load(tmp_path).test) == test


def test_folder_test_subfolder_stays_apart_without_a_validation_subfolder(tmp_path, load):
    training = {add_picture(tmp_path, f"{i}.png", "train") for i in range(20)}
    test = {add_picture(tmp_path, f"{i}.png", "test") for i in range(6)}
    data = load(tmp_path, validation_fraction=0.3)
    assert colors(data.training) | colors(data.validation) == training
    assert not colors(data.training) & colors(data.validation)
    assert colors(data.test) == test


def test_folder_of_labels_is_no_split(tmp_path, load):
    """A label may be called train: without val, it is an ordinary subfolder."""
    shades = {add_picture(tmp_path, f"{i}.png", label) for label in ("train", "bus") for i in range(10)}
    data = load(tmp_path)
    assert colors(data.training) | colors(data.validation) == shades


def test_folder_last_pictures_are_those_with_the_last_names(tmp_path, load):
    names = [f"{part}/{i:02}.png" for part in "ab" for i in range(5)]
    shades = {name: add_picture(tmp_path, *reversed(name.split("/"))) for name in reversed(names)}
    data = load(tmp_path, validation_images=3, validation_choice="last")
    assert [tuple(image[:, 4, 4].tolist()) for image in data.training] == [shades[name] for name in names[:-3]]
    assert [tuple(image[:, 4, 4].tolist()) for image in data.validation] == [shades[name] for name in names[-3:]]
    assert data.test is None


def test_folder_numpy_choice_is_of_the_order_of_the_names(image_folder, load):
    keys = {"validation_images": 4, "validation_choice": "numpy_last", "split_seed": 5}
    data = load(image_folder, **keys)
    shades = [(i, 2 * i, 3 * i) for i in sorted(range(40), key=lambda i: f"{'more/' if i % 4 == 0 else ''}{i}.png")]
    chosen = np.random.RandomState(5).permutation(40)[-4:]
    assert [tuple(image[:, 4, 4].tolist()) for image in data.validation] == [shades[i] for i in sorted(chosen)]


def test_folder_validation_images_leave_the_given_parts_for_the_test(tmp_path, load):
    training = {add_picture(tmp_path, f"{i}.png", "train") for i in range(8)}
    validation = {add_picture(tmp_path, f"{i}.png", "val") for i in range(3)}
    data = load(tmp_path, validation_images=2)
    assert (len(data.training), len(data.validation)) == (6, 2)
    assert colors(data.training) | colors(data.validation) == training
    assert colors(data.test) == validation


def test_folder_with_fewer_pictures_than_validation_images_is_refused(image_folder, load):
    with pytest.raises(InvalidValueError) as caught:
        load(image_folder, validation_images=40)
    assert (caught.value.name, caught.value.got) == ("dataset.validation_images", 40)


# --------------------------------------------------------------------------------------------------------- the cache


def test_folder_larger_than_the_memory_limit_is_cached_and_used_again(image_folder, load, cache, monkeypatch):
    before = sorted(image_folder.rglob("*"))
    first = load(image_folder)
    monkeypatch.setenv("NVAE_MEMORY_LIMIT", "1")
    monkeypatch.setattr(pictures, "fit", None)  # decoding a picture again would fail
    again = load(image_folder)
    assert (again.fingerprint, again.report, again.warnings) == (first.fingerprint, first.report, first.warnings)
    assert len(list(cache.glob("*.npy"))) == 1
    assert sorted(image_folder.rglob("*")) == before
    monkeypatch.undo()
    shutil.rmtree(cache)
    assert load(image_folder).fingerprint == first.fingerprint


def test_folder_cache_follows_changes_and_keys(image_folder, load, cache):
    load(image_folder)
    Image.new("RGB", (20, 10), (250, 250, 250)).save(image_folder / "1.png")
    (image_folder / "2.png").unlink()
    changed = load(image_folder)
    shades = colors(changed.training) | colors(changed.validation)
    assert (250, 250, 250) in shades and (2, 4, 6) not in shades
    assert len(list(cache.glob("*.npy"))) == 1  # the outdated file is gone
    padded = load(image_folder, fit="pad", background="red")
    assert padded.fingerprint != changed.fingerprint
    assert len(list(cache.glob("*.npy"))) == 2  # two runs with different keys do not replace each other's files
    load(image_folder, horizontal_flip=True, validation_fraction=0.5)
    assert len(list(cache.glob("*.npy"))) == 2


def test_folder_cache_forgets_faults_that_may_be_temporary(image_folder, load, cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "read_content", refuse_every_fourth(pictures.read_content, OSError(5, "I/O error")))
        data = load(image_folder)
        assert len(data.training) + len(data.validation) < 40
        assert "unreadable" in data.report
    data = load(image_folder)
    assert len(data.training) + len(data.validation) == 40


def test_folder_without_memory_is_an_error_and_not_a_fault_of_the_picture(image_folder, load, cache, monkeypatch):
    monkeypatch.setattr(pictures, "read_content", refuse_every_fourth(pictures.read_content, MemoryError()))
    with pytest.raises(MemoryError):
        load(image_folder)
    assert list(cache.glob("*.facts")) == []


def refuse_every_fourth(function, error):
    calls = itertools.count(1)

    def refuse(*arguments):
        if next(calls) % 4 == 0:
            raise error
        return function(*arguments)

    return refuse


@pytest.mark.parametrize("damage", ["cut", "bit", "zeros", "other images", "facts", "digit of facts", "no facts"])
def test_folder_damaged_cache_is_noticed_and_replaced(image_folder, load, cache, damage):
    expected = load(image_folder)
    fingerprint = expected.fingerprint  # before the file changes
    (images,), (facts,) = cache.glob("*.npy"), cache.glob("*.facts")
    content, known = bytearray(images.read_bytes()), facts.read_text()
    if damage == "cut":
        images.write_bytes(content[:-100])
    elif damage == "bit":
        content[len(content) // 2] ^= 1
        images.write_bytes(content)
    elif damage == "zeros":  # after a power cut: the place is reserved, and nothing was written
        images.write_bytes(content[:128] + bytes(len(content) - 128))
    elif damage == "other images":  # a program that was killed after it had replaced the images
        images.write_bytes(content[:128] + content[128:][::-1])
    elif damage == "facts":
        facts.write_text('{"indices": [3, 2], "report": 1}')
    elif damage == "digit of facts":
        facts.write_text(known.replace("0,1,2", "0,1,3"))
        assert facts.read_text() != known
    else:
        facts.unlink()
    again = load(image_folder)
    assert again.fingerprint == fingerprint
    (sentence,) = set(again.warnings) - set(expected.warnings) or [None]
    assert (sentence is None) == (damage == "no facts")  # which an interrupted program leaves
    assert sentence is None or str(images) in sentence
    assert (load(image_folder).warnings, facts.read_text()) == (expected.warnings, known)


@pytest.mark.parametrize("interrupted", ["while decoding", "before the facts"])
def test_folder_interrupted_cache_has_no_facts(image_folder, load, cache, monkeypatch, interrupted):
    expected = load(image_folder).fingerprint
    shutil.rmtree(cache)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((np.memmap, "flush") if interrupted == "while decoding" else (Path, "write_bytes")), interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(image_folder)
    assert [file.suffix for file in cache.iterdir()] == ([] if interrupted == "while decoding" else [".npy"])
    again = load(image_folder)
    assert (again.fingerprint, again.warnings) == (expected, ())


def test_folder_images_of_the_cache_can_be_changed_in_memory(image_folder, load, cache):
    expected = load(image_folder).fingerprint
    load(image_folder).training.fill_(7)
    assert load(image_folder).fingerprint == expected


def test_folder_without_space_for_the_cache_is_refused(image_folder, load, cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**10))
    with pytest.raises(UserError, match="NVAE_CACHE") as raised:
        load(image_folder)
    assert raised.value.__cause__.disk_full
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("in_archive", [False, True])
def test_names_in_two_unicode_forms_give_the_same_split(load, tmp_path, in_archive):
    data = {}
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        folder.mkdir()
        for i in range(40):
            Image.new("RGB", (12, 10), (i, 2 * i, 3 * i)).save(folder / unicodedata.normalize(form, f"é ü {i}.png"))
        path = shutil.make_archive(str(folder), "zip", folder) if in_archive else folder
        data[form] = load(path, validation_fraction=0.3)
    assert torch.equal(data["NFC"].validation, data["NFD"].validation)
    assert data["NFC"].fingerprint == data["NFD"].fingerprint


def test_places_of_crops_do_not_depend_on_the_unicode_form_of_names(load, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 64, 3), np.uint8)
    data = {}
    for form in ("NFC", "NFD"):
        (tmp_path / form).mkdir()
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / form / unicodedata.normalize(form, f"é ü {i}.png"))
        data[form] = load(tmp_path / form, fit="crop_anywhere")
    assert data["NFC"].fingerprint == data["NFD"].fingerprint
