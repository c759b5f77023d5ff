import errno
import os
import threading
import time
import zipfile
from pathlib import Path

import pytest

from nvae.system.errors import UserError
from nvae.system.files import (
    DAY,
    WriteError,
    atomic_folder,
    atomic_write,
    expand_home,
    previous_path,
    remove_unfinished,
    text_in_place_of,
    unused_path,
    zip_members,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_replaces_only_at_the_end(tmp_path):
    path = tmp_path / "folder" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("one")
        assert temporary.parent == path.parent and not path.exists()
    with atomic_write(str(path)) as temporary:
        temporary.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two" and names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_write_keeps_the_old_file_on_errors(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path, keep_previous=True) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_atomic_write_keeps_the_previous_file(tmp_path, monkeypatch, links):
    def no_links(*paths):
        raise OSError(errno.EPERM, "no hard links")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.txt"
    for text in ("one", "two", "three"):
        with atomic_write(path, keep_previous=True) as temporary:
            temporary.write_text(text)
    assert path.read_text() == "three" and previous_path(path).read_text() == "two"
    assert names(tmp_path) == ["a.txt", "a.txt.previous"]


def test_atomic_write_with_racing_writers_shows_only_whole_files(tmp_path):
    path, contents = tmp_path / "a.txt", {letter * 50_000 for letter in "xyz"}
    path.write_text("x" * 50_000)
    previous_path(path).write_text("x" * 50_000)
    errors = []

    def save(text):
        try:
            for _ in range(60):
                with atomic_write(path, keep_previous=True) as temporary:
                    temporary.write_text(text)
        except BaseException as error:
            errors.append(error)

    writers = [threading.Thread(target=save, args=(letter * 50_000,)) for letter in "yz"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert {path.read_text(), previous_path(path).read_text()} <= contents
    assert not errors and names(tmp_path) == ["a.txt", "a.txt.previous"]


def test_atomic_write_does_not_damage_the_file_of_a_second_writer(tmp_path, monkeypatch):
    """The second writer saves at the instant at which the first one links the previous file (fault 27)."""
    path, link = tmp_path / "a.txt", os.link
    path.write_text("old")

    def overtaken(source, target):
        monkeypatch.setattr(os, "link", link)
        with atomic_write(path, keep_previous=True) as temporary:
            temporary.write_text("second")
        readers.append(open(path))  # noqa: SIM115
        raise FileExistsError(errno.EEXIST, "exists")

    readers = []
    monkeypatch.setattr(os, "link", overtaken)
    with atomic_write(path, keep_previous=True) as temporary:
        temporary.write_text("first")
    with readers[0] as reader:
        assert reader.read() == "second"
    assert path.read_text() == "first" and previous_path(path).read_text() == "second"


def test_remove_unfinished_removes_own_temporary_files_and_folders(tmp_path):
    def left_by(write, path):
        with pytest.raises(KeyboardInterrupt), write(path) as temporary:
            temporary.touch() if write is atomic_write else (temporary / "a.txt").touch()
            os.rename(temporary, tmp_path / "kept")
            raise KeyboardInterrupt
        os.rename(tmp_path / "kept", temporary)  # as if the process had been killed
        return temporary

    left = [left_by(atomic_write, tmp_path / "a.txt"), left_by(atomic_folder, tmp_path / "folder" / "b")]
    other = left_by(atomic_write, tmp_path / "other.txt")
    mine = tmp_path / "notes.unfinished"
    mine.touch()
    remove_unfinished(tmp_path.rglob("*"), lambda name: name in ("a.txt", "b"), age=0)
    assert not any(path.exists() for path in left)
    assert other.exists() and mine.exists()
    remove_unfinished(tmp_path.glob("*"))  # someone may write the file now
    assert other.exists()
    os.utime(other, (time.time() - DAY - 60,) * 2)
    remove_unfinished([*tmp_path.glob("*"), tmp_path / "absent"])
    assert not other.exists() and mine.exists()


@pytest.mark.parametrize(("number", "full"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False)])
def test_write_error_holds_path_and_cause(tmp_path, number, full):
    path = tmp_path / "a.txt"
    with pytest.raises(WriteError, match=r"a\.txt") as raised, atomic_write(path):
        raise OSError(number, os.strerror(number))
    assert isinstance(raised.value, UserError) and raised.value.path == path and raised.value.disk_full is full


def test_atomic_write_below_a_file_raises_write_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError), atomic_write(tmp_path / "file" / "a.txt") as temporary:
        temporary.touch()


def test_unused_path_counts_from_two(tmp_path):
    expected = ["a.png", "a_2.png", "a_3.png"]
    for name in expected:
        path = unused_path(tmp_path, "a", ".png")
        assert path == tmp_path / name
        path.touch()
    (tmp_path / "a_4.png").symlink_to(tmp_path / "missing")
    assert unused_path(tmp_path, "a", ".png").name == "a_5.png"


def test_unused_path_asks_is_free(tmp_path):
    (tmp_path / "a.json").write_text("other")
    (tmp_path / "a_2.json").write_text("same")
    same = unused_path(tmp_path, "a", ".json", lambda path: not path.exists() or path.read_text() == "same")
    assert same == Path(tmp_path, "a_2.json")


@pytest.mark.parametrize("exists", [False, True])
def test_atomic_folder_appears_only_when_complete(tmp_path, exists):
    path = tmp_path / "parent" / "new"
    if exists:
        path.mkdir(parents=True)
    with atomic_folder(path) as temporary:
        (temporary / "a.txt").write_text("one")
        assert temporary.parent == path.parent and not (path / "a.txt").exists()
    assert names(path) == ["a.txt"] and names(path.parent) == ["new"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_folder_leaves_nothing_on_errors(tmp_path, error):
    with pytest.raises(error), atomic_folder(tmp_path / "new") as temporary:
        (temporary / "a.txt").write_text("one")
        raise error
    assert names(tmp_path) == []


def test_atomic_folder_of_a_link_fills_the_folder_behind_it(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_folder(tmp_path / "link") as temporary:
        (temporary / "a.txt").write_text("one")
    assert names(tmp_path / "real") == ["a.txt"] and (tmp_path / "link").is_symlink()


def test_atomic_folder_refuses_what_exists(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(UserError, match="exists"), atomic_folder(path):
            pytest.fail("the folder exists")
    assert names(tmp_path) == ["a.txt"]


def test_atomic_folder_turns_errors_of_the_system_into_write_errors(tmp_path):
    with pytest.raises(WriteError) as raised, atomic_folder(tmp_path / "new"):
        raise OSError(errno.ENOSPC, "full")
    assert raised.value.disk_full and names(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\xef\xbb\xbf\n <HTML lang='en'>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b"version: 3\nname: x\n", None),
        (b"<svg>", None),
        (b"PK\x03\x04", None),
        (b"", None),
    ],
)
def test_text_in_place_of_a_file_is_recognized(tmp_path, content, found):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    for text in (text_in_place_of(path), text_in_place_of(content)):
        assert found in text if found else text == ""


@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_zip_members_are_as_many_as_the_file_says(tmp_path, comment):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for name in "abc":
            archive.writestr(name, name)
    with open(file, "ab") as more:
        more.write(b"\n")  # zipfile reads such files too
    with zipfile.ZipFile(file) as archive:
        assert [member.filename for member in zip_members(archive)] == ["a", "b", "c"]
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\1\2") + 32] = 47  # the length of the comment of the first member: all of the second one
    file.write_bytes(content)
    with zipfile.ZipFile(file) as archive, pytest.raises(zipfile.BadZipFile):
        zip_members(archive)


def test_expand_home_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # Windows
    assert [expand_home(path) for path in ("~", "~/a/b", "a/~", "")] == [
        tmp_path,
        tmp_path / "a/b",
        Path("a/~"),
        Path(),
    ]
    with pytest.raises(UserError, match=r"no_such_user"):
        expand_home("~no_such_user/a")
