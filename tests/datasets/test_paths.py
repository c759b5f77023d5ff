import pytest

from nvae.data.paths import dataset_folder
from nvae.data.registry import load_data
from nvae.schema import FolderDataset
from nvae.system.errors import Remedy, UserError


def test_dataset_folder_expands_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dataset_folder(FolderDataset(path="~/missing")) == tmp_path / "missing"


@pytest.mark.parametrize(
    ("name", "advice"), [("folder", "no zip or tar archive"), ("mnist", "contains"), ("lmdb", "contains")]
)
@pytest.mark.parametrize("file", ["a.zip", "a.tar.gz", "a.png"])
def test_dataset_path_of_a_file_is_refused(tmp_path, make_config, name, file, advice):
    (tmp_path / file).write_bytes(b"not an archive")
    with pytest.raises(UserError, match=f"{file}' is a file") as raised:
        load_data(make_config(dataset={"name": name, "path": str(tmp_path / file)}))
    assert advice in str(raised.value)
    assert raised.value.remedies == (Remedy.DATASET_PATH,)


@pytest.mark.parametrize("name", ["folder", "lmdb", "npz", "mnist", "cifar10"])
@pytest.mark.parametrize("path", ["~nosuchuser/images", "x" * 5000])
def test_dataset_path_that_cannot_be_opened_is_refused(make_config, name, path):
    with pytest.raises(UserError, match=r"dataset\.path") as raised:
        load_data(make_config(dataset={"name": name, "path": path}))
    assert raised.value.remedies == (Remedy.DATASET_PATH,)


@pytest.mark.parametrize(
    ("content", "advice"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"), (b"<!doctype html>", "web page")],
)
@pytest.mark.parametrize(("name", "file"), [("folder", "a.zip"), ("npz", "a.npz"), ("npz", "a.npy")])
def test_text_in_place_of_a_file_is_named(tmp_path, make_config, name, file, content, advice):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=advice):
        load_data(make_config(dataset={"name": name, "path": str(tmp_path / file)}))


def test_text_in_place_of_pictures_and_archives_is_named(tmp_path, make_config):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0"
    (tmp_path / "1.png").write_bytes(pointer)
    with pytest.raises(UserError, match="Git LFS pointer"):
        load_data(make_config(dataset={"name": "folder", "path": str(tmp_path)}))
    for name in ("cifar-10-python.tar.gz", "Imagenet32_train_npz.zip"):  # with and without a checksum
        (tmp_path / name).write_bytes(pointer)
    for name in ("cifar10", "imagenet32"):
        (tmp_path / "1.png").unlink(missing_ok=True)
        (tmp_path / "val_data.npz").touch()
        with pytest.raises(UserError, match="git lfs pull"):
            load_data(make_config(dataset={"name": name, "path": str(tmp_path)}))
