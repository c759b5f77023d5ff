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
