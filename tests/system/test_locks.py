import errno
import json
import os
import re
import signal
import socket
import threading

import pytest
from filelock import FileLock

from nvae.system import locks
from nvae.system.errors import Remedy
from nvae.system.files import WriteError
from nvae.system.locks import RunLockedError, folder_lock, holder_of, holder_path, run_lock

HOLD = """
import socket, sys
from pathlib import Path
from nvae.system.locks import RunLockedError, run_lock
if len(sys.argv) > 2:
    socket.gethostname = lambda: sys.argv[2]
try:
    with run_lock(Path(sys.argv[1]), "little", print):
        print("held", flush=True)
        sys.stdin.read()
except RunLockedError as error:
    print(error, flush=True)
"""


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "saved_weights" / "little.lock"


@pytest.fixture
def hold(start_process, lock):
    """A function: start a process that holds the lock until its input ends, or says why not, on a host of this name."""
    return lambda *host: start_process("-c", HOLD, lock, *host)


def fail(warning):
    pytest.fail(warning)


def test_lock_names_its_holder_and_is_free_afterwards(lock):
    with run_lock(lock, "little", fail):
        holder = json.loads(holder_path(lock).read_text())
        assert (holder["process"], holder["host"]) == (os.getpid(), socket.gethostname())
        with pytest.raises(RunLockedError) as raised, run_lock(lock, "little", fail):
            pytest.fail("the lock is held")
        assert str(os.getpid()) in str(raised.value) and socket.gethostname() in str(raised.value)
        assert raised.value.remedies == (Remedy.RUN_NAME,)
        assert holder_path(lock).exists()
    assert os.listdir(lock.parent) == []
    with run_lock(lock, "little", fail):
        pass


def test_lock_keeps_out_a_second_thread_and_no_other_run(lock):
    refused = []

    def train():
        try:
            with run_lock(lock.with_name("other.lock"), "other", fail), run_lock(lock, "little", fail):
                pass
        except RunLockedError as error:
            refused.append(error)

    with run_lock(lock, "little", fail):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "'little'" in str(refused[0])


def test_lock_of_another_process_is_refused_with_its_id(lock, hold):
    process = hold()
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunLockedError) as raised, run_lock(lock, "little", fail):
        pytest.fail("the lock is held")
    assert re.search(rf"\b{process.pid}\b", str(raised.value))


def test_lock_of_a_killed_process_stops_nobody(lock, hold):
    process = hold()
    process.stdout.readline()
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    assert holder_path(lock).exists()  # nobody removed the file
    with run_lock(lock, "little", fail):
        assert json.loads(holder_path(lock).read_text())["process"] == os.getpid()


def test_lock_of_a_folder_that_two_hosts_share(hold, lock):
    """A process id means nothing on another host: who holds the lock is asked of the file system alone."""
    first = hold("first.example.org")
    assert first.stdout.readline() == "held\n"
    assert json.loads(holder_path(lock).read_text())["host"] == "first.example.org"
    second = hold("second.example.org")
    refused = second.stdout.readline()
    assert str(first.pid) in refused and "first.example.org" in refused
    with pytest.raises(RunLockedError, match=r"first\.example\.org"), run_lock(lock, "little", fail):
        pytest.fail("the lock is held")
    first.kill()
    first.wait()
    third = hold("second.example.org")
    assert third.stdout.readline() == "held\n"
    assert json.loads(holder_path(lock).read_text()) | {"started": ""} == {
        "process": third.pid,
        "host": "second.example.org",
        "started": "",
    }


def test_one_of_racing_processes_gets_the_lock(hold):
    processes = [hold() for _ in range(3)]
    lines = {process.pid: process.stdout.readline() for process in processes}
    (holder,) = (process for process, line in lines.items() if line == "held\n")
    assert all(str(holder) in line for process, line in lines.items() if process != holder)


def test_threads_take_turns_one_at_a_time(lock, monkeypatch):
    """The file is removed by each of them, so a thread may wait for the lock of a file that is gone."""
    monkeypatch.setattr(locks, "PATIENCE", 60)
    inside, most, turns = [], [], []

    def take_turns():
        for _ in range(20):
            with run_lock(lock, "little", fail):
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                turns.append(1)

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(turns), max(most)) == (80, 1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"process": "x"}'])
def test_lock_with_a_damaged_name_of_its_holder_is_held_all_the_same(lock, text, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.01)
    with run_lock(lock, "little", fail):
        holder_path(lock).write_text(text)
        with pytest.raises(RunLockedError) as raised, run_lock(lock, "little", fail):
            pytest.fail("the lock is held")
    assert len(str(raised.value).splitlines()) == 1


def test_lock_is_released_after_errors(lock):
    with pytest.raises(KeyboardInterrupt), run_lock(lock, "little", fail):
        raise KeyboardInterrupt
    with run_lock(lock, "little", fail):
        pass


@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "EACCES", "EPERM", "EINVAL", "ENOSYS"])
@pytest.mark.parametrize("marker", [None, "", "12\nother.example.org\n"], ids=["new", "empty", "other host"])
@pytest.mark.filterwarnings("error")
def test_lock_on_a_file_system_without_locks_is_one_warning(lock, monkeypatch, name, marker):
    """A file that was left at the lock's path, also one of a host that is gone, locks nothing."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args):
        raise OSError(getattr(errno, name), "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock.parent.mkdir()
    if marker is not None:
        lock.write_text(marker)
        lock.chmod(0o600)
    warnings = []
    with run_lock(lock, "little", warnings.append):
        assert not holder_path(lock).exists() and holder_of(lock) is None
        with folder_lock(lock.parent, lambda: pytest.fail("nobody holds the lock")) as is_locked:
            assert not is_locked
    assert len(warnings) == 1
    assert os.listdir(lock.parent) == ([lock.name] if marker is not None else [])


def test_holder_of_a_lock_that_a_reader_holds_for_a_moment_is_nobody(lock):
    reader = FileLock(lock, thread_local=False)
    lock.parent.mkdir(parents=True, exist_ok=True)
    reader.acquire()
    timer = threading.Timer(0.1, lambda: reader.release(force=True))
    timer.start()
    try:
        assert holder_of(lock) is None
    finally:
        timer.join()


def test_lock_that_another_holds_by_eacces_is_held(lock, monkeypatch):
    """SMB answers EACCES for a file that is locked: the lock of a new file succeeds there."""
    fcntl = pytest.importorskip("fcntl")
    flock = fcntl.flock

    def flock_of_smb(file, operation):
        try:
            flock(file, operation)
        except BlockingIOError:
            raise OSError(errno.EACCES, "locked") from None

    with run_lock(lock, "little", fail):
        monkeypatch.setattr(fcntl, "flock", flock_of_smb)
        assert str(os.getpid()) in holder_of(lock)
        with pytest.raises(RunLockedError, match=re.escape(str(lock))), run_lock(lock, "little", fail):
            pytest.fail("the lock is held")


def test_lock_below_a_file_is_a_write_error(tmp_path):
    (tmp_path / "saved_weights").touch()
    with pytest.raises(WriteError), run_lock(tmp_path / "saved_weights" / "a.lock", "a", fail):
        pytest.fail("there is no folder")
