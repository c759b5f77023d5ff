"""No test of a data set reaches the network; `server` stands in for the publishers."""

import io
import shutil
import sys
import types

import numpy as np
import pytest
from PIL import Image

from nvae.data import downloads
from nvae.data.registry import load_data


class Server:
    """Addresses with their contents, and the addresses that were asked for."""

    def __init__(self):
        self.files, self.requests = {}, []

    def urlopen(self, request, timeout):
        assert timeout == downloads.READ_TIMEOUT
        self.requests.append(request.full_url)
        response = io.BytesIO(self.files[request.full_url])
        response.length = len(self.files[request.full_url])
        return response


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(downloads.socket, "create_connection", refuse)
    monkeypatch.setattr(downloads, "urlopen", refuse)


@pytest.fixture
def server(offline, monkeypatch):
    server = Server()
    monkeypatch.setattr(downloads.socket, "create_connection", lambda *args: io.BytesIO())
    monkeypatch.setattr(downloads, "urlopen", server.urlopen)
    return server


@pytest.fixture
def set_folder(tmp_path):
    """The folder of the data set that `load` loads; it does not exist."""
    return tmp_path / "set"


@pytest.fixture
def load(make_config, set_folder):
    """A function: load the data set `name` from the folder, with keys of the dataset section and of the config."""

    def load(name, keys=None, **changes):
        dataset = {"name": name, "path": str(set_folder)} | (keys or {})
        return load_data(make_config(**({"dataset": dataset, "input_dimension": 32} | changes)))

    return load


@pytest.fixture
def medmnist(monkeypatch):
    """The package medmnist, as far as it is used: addresses and checksums of all data sets and sizes."""
    info = types.ModuleType("medmnist.info")
    info.INFO = {}
    monkeypatch.setitem(sys.modules, "medmnist", types.ModuleType("medmnist"))
    monkeypatch.setitem(sys.modules, "medmnist.info", info)
    return info.INFO


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache, for sets of more than a thousand bytes."""
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NVAE_MEMORY_LIMIT", str(1000 / 2**30))
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path):
    """A folder of random pictures, a broken file and a duplicate."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(60):
        Image.fromarray(random.integers(0, 256, (10, 12, 3), np.uint8)).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    shutil.copy(folder / "3.png", folder / "copy.png")
    return folder


@pytest.fixture
def picture_config(make_config, pictures):
    """The config of a tiny model on these pictures."""
    return make_config(
        dataset={"name": "folder", "path": str(pictures)},
        training_parameters={"batch_size": 8, "epochs": 1, "evaluation_samples": 1},
    )
