"""No test of a data set reaches the network; `server` stands in for the publishers."""

import io
import sys
import types

import pytest

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
