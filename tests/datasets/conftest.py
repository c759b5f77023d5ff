"""No test of a data set reaches the network; `server` stands in for the publishers."""

import shutil
import socket
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

import numpy as np
import pytest
import requests
from PIL import Image

from nvae.data import downloads, sources
from nvae.data.registry import load_data

REQUESTS_GET = requests.get


class Server:
    """A server of this machine: addresses of publishers with their contents, and the addresses that were asked for."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.lengths = {}  # of an address whose declared length is not that of the content
        self.headers = {}  # of every answer
        self.before = lambda url: None  # called before an answer
        self.get = REQUESTS_GET  # without the detour to this machine

        class Handler(BaseHTTPRequestHandler):
            def do_GET(handler):  # noqa: N802, N805
                self.answer(handler, unquote(handler.path.removeprefix("/")))

            def log_message(handler, *arguments):  # noqa: N805
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler, url):
        self.requests.append(url)
        self.before(url)
        if url not in self.files:
            handler.send_error(404)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(self.lengths.get(url, len(self.files[url]))))
        for name, value in self.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.files[url])


def unreachable(*args, **kwargs):
    raise OSError("no route to host")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr(downloads, "RETRIES", 0)  # each one waits
    monkeypatch.setattr(downloads.socket, "create_connection", unreachable)
    monkeypatch.setattr(requests, "get", unreachable)


@pytest.fixture
def online(offline, monkeypatch):
    """The network as it is, for addresses of this machine."""
    monkeypatch.setattr(downloads.socket, "create_connection", lambda *args: socket.socket())
    monkeypatch.setattr(requests, "get", REQUESTS_GET)


@pytest.fixture
def server(online, monkeypatch):
    server = Server()
    monkeypatch.setattr(
        requests, "get", lambda url, **options: REQUESTS_GET(server.address + quote(url, safe=""), **options)
    )
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def accept(monkeypatch):
    """A function: expect the files of a test, with this checksum or any, instead of the published ones."""
    published = sources.source_files

    def accept(md5=""):
        def files(*arguments):
            return {part: file._replace(md5=md5) for part, file in published(*arguments).items()}

        monkeypatch.setattr(sources, "source_files", files)

    return accept


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
