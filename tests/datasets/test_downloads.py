"""The one function that downloads: checksums, archives, and folders that failures leave as they were."""

import errno
import gzip
import hashlib
import io
import os
import socket
import tarfile
import threading
import zipfile
from contextlib import nullcontext
from urllib.parse import quote

import pytest
import requests

from nvae.data import downloads
from nvae.data.downloads import SourceFile, fetch
from nvae.system.errors import UserError
from nvae.system.files import WriteError

URL = "https://example.org/a.bin"


def md5(content):
    return hashlib.md5(content).hexdigest()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def tarred(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def get(set_folder):
    def get(again=False, **files):
        return fetch("things", files, set_folder, "https://example.org", again=again)

    return get


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_file_is_downloaded_once(get, server, set_folder):
    server.files[URL] = b"hello"
    file = SourceFile("sub/a.bin", URL, md5(b"hello"))
    assert get(a=file) == get(a=file) == {"a": set_folder / "sub" / "a.bin"}
    assert server.requests == [URL]
    assert contents(set_folder) == {"sub/a.bin": b"hello"}


def test_only_missing_files_are_downloaded(get, server, set_folder):
    set_folder.mkdir()
    (set_folder / "other.bin").write_bytes(b"from another program")
    server.files[URL] = b"hello"
    get(a=SourceFile("a.bin", URL), b=SourceFile("b.bin", "https://example.org/b.bin", found_as=("*.bin",)))
    assert server.requests == [URL]


@pytest.mark.parametrize(
    "pack", [zipped(top__a=b"1", top__b=b"2"), tarred({"top/a": b"1", "top/b": b"2"})], ids=["zip", "tar"]
)
def test_archive_is_unpacked_and_removed(get, server, set_folder, pack):
    server.files[URL] = pack
    both = {key: SourceFile("a.bin", URL, md5(pack), unpack_to="x", found_as=(f"x/top/{key}",)) for key in "ab"}
    assert get(**both) == {"a": set_folder / "x" / "top" / "a", "b": set_folder / "x" / "top" / "b"}
    assert server.requests == [URL]
    assert contents(set_folder) == {"x/top/a": b"1", "x/top/b": b"2"}


@pytest.mark.parametrize("place", ["a.zip", "x/a.zip"])
def test_archive_from_the_user_is_unpacked_without_a_network_and_kept(get, set_folder, place):
    (set_folder / place).parent.mkdir(parents=True)
    (set_folder / place).write_bytes(zipped(a=b"1"))
    file = SourceFile("x/a.zip", unpack_to="x", found_as=("x/a",))
    assert get(a=file)["a"].read_bytes() == b"1"
    assert contents(set_folder) == {"x/a": b"1", place: zipped(a=b"1")}


def test_archive_of_archives_is_unpacked_into_folders(get, set_folder):
    set_folder.mkdir()
    inner = {f"class{i}.tar": tarred({f"{i}.jpg": b"%d" % i}) for i in range(2)}
    (set_folder / "all.tar").write_bytes(tarred(inner))
    get(a=SourceFile("all.tar", unpack_to="train", found_as=("train",)))
    assert sorted(contents(set_folder)) == ["all.tar", "train/class0/0.jpg", "train/class1/1.jpg"]


def test_file_of_the_user_is_copied_to_its_place(get, set_folder):
    set_folder.mkdir()
    (set_folder / "a.bin").write_bytes(b"hello")
    assert get(a=SourceFile("sub/a.bin", URL, md5(b"hello")))["a"] == set_folder / "sub" / "a.bin"


def test_again_replaces_damaged_content(get, server, set_folder):
    server.files[URL] = zipped(x__a=b"1", x__b=b"2")
    file = SourceFile("a.zip", URL, unpack_to=".", found_as=("x",))
    get(a=file)
    (set_folder / "x" / "a").write_bytes(b"damaged")
    (set_folder / "x" / "own").write_bytes(b"own")
    get(a=file)
    assert contents(set_folder)["x/a"] == b"damaged"
    get(a=file, again=True)
    assert contents(set_folder) == {"x/a": b"1", "x/b": b"2", "x/own": b"own"}


def member(name, type=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return info


@pytest.mark.parametrize(
    "members",
    [
        [member("../../../evil")],
        [member("x/../../evil")],
        [member("/tmp/evil")],
        [member("x", tarfile.SYMTYPE, "../.."), member("x/evil")],
        [member("x", tarfile.LNKTYPE, "nothing")],
        [member("x", tarfile.FIFOTYPE)],
        [member("x", tarfile.CHRTYPE)],
        # A chain of links longer than a path may be, which the filter of older releases of tarfile cannot follow.
        [
            *(member(f"{'d' * 247}{i}", tarfile.SYMTYPE, "d" * 247) for i in range(16)),
            member("escape", tarfile.SYMTYPE, "/".join(f"{'d' * 247}{i}" for i in range(16)) + "/.." * 20),
            member("escape/evil"),
        ],
    ],
)
def test_archive_that_could_write_outside_of_its_folder_is_refused(get, set_folder, tmp_path, members):
    set_folder.mkdir()
    with tarfile.open(set_folder / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for info in members:
            archive.addfile(info)
    with pytest.raises(UserError, match=r"a\.tar.*(leads out|a link or a device)"):
        get(a=SourceFile("a.tar", unpack_to=".", found_as=("evil",)))
    assert sorted(contents(tmp_path)) == ["set/a.tar"]


@pytest.mark.parametrize("name", ["..tar", "...tar"])
def test_archive_in_an_archive_that_names_the_folder_above_is_refused(get, set_folder, tmp_path, name):
    """Each is unpacked into a folder of its name without .tar, which is a folder above for three dots."""
    set_folder.mkdir()
    (set_folder / "a.tar").write_bytes(tarred({name: tarred({"evil": b"1"})}))
    with pytest.raises(UserError, match=r"a\.tar.*leads out"):
        get(a=SourceFile("a.tar", unpack_to=".", found_as=("evil",)))
    assert sorted(contents(tmp_path)) == ["set/a.tar"]


@pytest.mark.parametrize("name", ["../evil", "x/../../evil", "/tmp/evil"])
def test_zip_that_could_write_outside_of_its_folder_is_refused(get, set_folder, tmp_path, name):
    set_folder.mkdir()
    (set_folder / "a.zip").write_bytes(zipped(**{name: b"1"}))
    with pytest.raises(UserError, match=r"a\.zip.*leads out"):
        get(a=SourceFile("a.zip", unpack_to=".", found_as=("evil",)))
    assert sorted(contents(tmp_path)) == ["set/a.zip"]


# -------------------------------------------------------------------------------------------------------- failures


def test_interrupted_download_leaves_nothing(get, online, set_folder, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(requests, "get", interrupt)
    with pytest.raises(KeyboardInterrupt):
        get(a=SourceFile("sub/a.bin", URL))
    assert not set_folder.exists()


@pytest.mark.parametrize(
    "file",
    [
        SourceFile("a.bin", URL, md5(b"other")),
        SourceFile("a.bin", URL, starts_with="MATLAB"),
        SourceFile("a.zip", URL, unpack_to=".", found_as=("x",)),
    ],
)
def test_wrong_download_leaves_nothing(get, server, set_folder, file):
    server.files[URL] = b"<html>"
    with pytest.raises(UserError, match=r"a\.(bin|zip)"):
        get(a=file)
    assert not set_folder.exists()


def test_short_download_leaves_nothing(get, server, set_folder):
    server.files[URL], server.lengths[URL] = b"12345", 6
    with pytest.raises(UserError, match="5 bytes read"):
        get(a=SourceFile("a.bin", URL))
    assert not set_folder.exists()


def test_connection_that_breaks_off_is_tried_again(get, server, set_folder, monkeypatch):
    monkeypatch.setattr(downloads, "RETRIES", 1)
    server.files[URL], server.lengths[URL] = b"12345", 6
    server.before = lambda url: server.lengths.clear() if len(server.requests) > 1 else None
    get(a=SourceFile("a.bin", URL))
    assert server.requests == [URL, URL] and contents(set_folder) == {"a.bin": b"12345"}


def test_compressed_file_stays_compressed(get, server, set_folder):
    """Some servers declare the compression of a .gz file as one of the connection."""
    server.files[URL], server.headers["Content-Encoding"] = gzip.compress(b"hello"), "gzip"
    get(a=SourceFile("a.gz", URL, md5(server.files[URL])))
    assert contents(set_folder) == {"a.gz": server.files[URL]}


def test_second_of_two_files_fails_and_the_first_stays(get, server, set_folder):
    server.files |= {URL: b"1", "https://example.org/b": b"2"}
    with pytest.raises(UserError, match=r"example\.org/b"):
        get(a=SourceFile("a.bin", URL), b=SourceFile("b", "https://example.org/b", md5(b"other")))
    assert contents(set_folder) == {"a.bin": b"1"}


def test_archive_without_the_content_is_refused(get, server):
    server.files[URL] = zipped(y=b"1")
    with pytest.raises(UserError, match=r"example\.org"):
        get(a=SourceFile("a.zip", URL, unpack_to=".", found_as=("x",)))


def test_damaged_archive_of_the_user_is_refused(get, set_folder):
    set_folder.mkdir()
    (set_folder / "a.zip").write_bytes(b"damaged")
    for file in (SourceFile("a.zip", URL, md5(b"sound"), unpack_to="."), SourceFile("a.zip", unpack_to=".")):
        with pytest.raises(UserError, match=r"a\.zip"):
            get(a=file._replace(found_as=("x",)))
    assert sorted(contents(set_folder)) == ["a.zip"]


def test_full_disk_is_noticed_before_the_download(get, server, set_folder, monkeypatch):
    server.files[URL] = b"hello"
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: type("", (), {"free": 4}))
    with pytest.raises(WriteError) as raised:
        get(a=SourceFile("a.bin", URL))
    assert raised.value.disk_full and not set_folder.exists()


def test_folder_that_cannot_be_made_is_a_user_error(get, server, set_folder):
    server.files[URL] = b"hello"
    set_folder.write_bytes(b"a file")
    with pytest.raises(UserError, match="set"):
        get(a=SourceFile("a.bin", URL))


# ---------------------------------------------------------------------------------------------------- no connection


def test_offline_is_a_user_error_with_all_addresses(get, set_folder):
    with pytest.raises(UserError, match="no route to host") as raised:
        get(a=SourceFile("a.bin", URL), b=SourceFile("x/b", "https://example.org/?id=7", found_as=("b",)))
    assert all(text in str(raised.value) for text in (URL, "https://example.org/?id=7 (as b)", str(set_folder)))
    assert not set_folder.exists()


def test_account_is_a_user_error_without_a_connection(get, set_folder, monkeypatch):
    monkeypatch.setattr(downloads.socket, "create_connection", lambda *args: pytest.fail("connected"))
    with pytest.raises(UserError, match=r"b\.tar.*https://example\.org"):
        get(a=SourceFile("a.bin", URL), b=SourceFile("b.tar"))
    assert not set_folder.exists()


def test_connection_that_hangs_is_given_up(get, set_folder, monkeypatch):
    """The system's search for an address has no time limit; the connection has that of the whole check."""
    release, limits = threading.Event(), []

    def hang(address, timeout):
        limits.append(timeout)
        release.wait()
        return io.BytesIO()

    monkeypatch.setattr(downloads.socket, "create_connection", hang)
    assert downloads.CONNECTION_TIMEOUT <= 8  # of ten seconds in all
    monkeypatch.setattr(downloads, "CONNECTION_TIMEOUT", 0.05)
    with pytest.raises(UserError, match="timed out"):
        get(a=SourceFile("a.bin", URL), b=SourceFile("b.bin", "http://another.org/b.bin"))
    release.set()
    assert limits == [0.05] and not set_folder.exists()


def test_download_uses_the_proxy(get, server, online, set_folder, monkeypatch):
    monkeypatch.setattr(downloads.socket, "create_connection", lambda *args: pytest.fail("past the proxy"))
    monkeypatch.setattr(requests, "get", server.get)
    monkeypatch.setenv("http_proxy", server.address)
    server.files["http://example.org/a.bin"] = b"hello"
    get(a=SourceFile("a.bin", "http://example.org/a.bin"))
    assert contents(set_folder) == {"a.bin": b"hello"}


def test_connection_check_uses_a_real_socket(get, monkeypatch):
    """A port where nobody listens refuses the connection."""
    monkeypatch.undo()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin"
        with pytest.raises(UserError, match="127"):
            get(a=SourceFile("a.bin", url))


# ------------------------------------------------------------------------------------------------ several processes


def test_leftovers_of_killed_processes_of_any_host_are_removed(get, server, set_folder):
    names = [f"download.{process}.0123abcd.unfinished" for process in (os.getpid(), os.getppid(), 2**22 + 1)]
    kept = ["download.x.00.unfinished", "download.1", "other.1.0123abcd.unfinished"]
    for name in names + kept:
        (set_folder / name).mkdir(parents=True)
        (set_folder / name / "part").touch()
    server.files[URL] = b"hello"
    get(a=SourceFile("a.bin", URL))
    assert sorted(path.name for path in set_folder.iterdir()) == sorted(["a.bin", *kept])


@pytest.mark.parametrize("sound", [True, False])
def test_two_downloads_into_one_folder_take_turns(get, server, set_folder, monkeypatch, capsys, sound):
    """The second one waits, disturbs nothing, and then finds the files, or downloads what the first one could not."""
    is_waiting, results, file = threading.Event(), [], SourceFile("sub/a.bin", URL, md5(b"hello"))
    monkeypatch.setattr(downloads, "print", lambda *args, **options: is_waiting.set(), raising=False)
    server.files[URL] = b"hello"

    def answer(url):
        if len(server.requests) == 1:
            second.start()
            assert is_waiting.wait(30) and len(list(set_folder.glob("download.*.unfinished"))) == 1
            server.files[URL] = b"hello" if sound else b"other"
        else:
            server.files[URL] = b"hello"

    second = threading.Thread(
        target=lambda: results.append(fetch("things", {"a": file}, set_folder, "https://example.org", progress=True))
    )
    server.before = answer
    with nullcontext() if sound else pytest.raises(UserError):
        get(a=file)
    second.join()
    assert results == [{"a": set_folder / "sub" / "a.bin"}]
    assert server.requests == [URL] * (1 if sound else 2)
    assert contents(set_folder) == {"sub/a.bin": b"hello"}


def test_killed_download_is_repeated(server, set_folder, get, start_process, wait_until):
    """The lock of a killed process stops nobody, and its unfinished file is removed."""
    killed = threading.Event()
    server.files[URL], server.before = b"hello", lambda url: killed.wait(30)
    program = (
        "import sys; from pathlib import Path; from nvae.data.downloads import SourceFile, fetch\n"
        "fetch('things', {'a': SourceFile('a.bin', sys.argv[1])}, Path(sys.argv[2]), '')"
    )
    arguments = ["-c", program, server.address + quote(URL, safe=""), str(set_folder)]
    process = start_process(*arguments)
    wait_until(lambda: server.requests, process)
    process.kill()
    process.wait()
    killed.set()
    assert len(list(set_folder.glob("*.unfinished"))) == 1
    get(a=SourceFile("a.bin", URL))
    assert contents(set_folder) == {"a.bin": b"hello"}


def test_file_system_without_locks_keeps_what_may_be_in_use(get, server, set_folder, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)
    new, old = (set_folder / f"download.{i}.0123abcd.unfinished" for i in range(2))
    for folder in (new, old):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    server.files[URL] = b"hello"
    get(a=SourceFile("a.bin", URL))
    assert sorted(path.name for path in set_folder.iterdir()) == ["a.bin", new.name]


@pytest.mark.parametrize("proxy", ["socks5://localhost", "http://proxy:99999", "http://[::1", "http://"])
def test_proxy_that_is_none_is_a_user_error(get, online, monkeypatch, proxy):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UserError, match="cannot be downloaded"):
        get(a=SourceFile("a.bin", URL))


def test_download_into_a_folder_of_pictures_is_refused(get, server, set_folder):
    set_folder.mkdir(parents=True)
    (set_folder / "holiday.JPG").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holiday\.JPG.*folder"):
        get(a=SourceFile("a.bin", URL))
    assert server.requests == [] and [path.name for path in set_folder.iterdir()] == ["holiday.JPG"]
