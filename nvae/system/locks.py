"""Locks of files: two processes or threads, on any hosts, never train one run or fill one folder at the same time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from nvae.system.errors import Remedy, UserError
from nvae.system.files import WriteError, atomic_write, temporary_path

PATIENCE = 0.5  # seconds: an earlier process may be about to end, and a new one to write who it is
FOLDER_LOCK = ".nvae.lock"  # in the folder


class RunLockedError(UserError):
    """A run that another process or thread trains."""


def holder_path(lock: Path) -> Path:
    """Return the file that names the process that holds a lock, which no other process may be able to read."""
    return lock.with_name(f"{lock.name}.json")


def holder_of(lock: Path) -> str | None:
    """Return who holds a lock, such as "process 12 on host h since 2026-01-01 12:00"; None if nobody does."""
    if not lock.exists():
        return None
    file_lock = FileLock(lock)
    try:
        _acquire(file_lock, PATIENCE)  # another reader holds the lock for a moment
    except Timeout:
        return _holder(holder_path(lock))
    except WriteError:  # a folder without write access
        return None
    file_lock.release()
    return None


@contextmanager
def run_lock(lock: Path, name: str, warn: Callable[[str], object]) -> Iterator[None]:
    """Hold the lock of the run `name`; the folder is created if needed.

    The operating system releases the lock when the process ends, however it ends: a file that is left locks nothing.
    warn: receives a warning where the file system has no locks. Raises RunLockedError, and WriteError for a folder that
    cannot be written.
    """
    file_lock = FileLock(lock)
    try:
        if _acquire(file_lock, PATIENCE):
            _write_holder(holder_path(lock))
        else:
            warn(f"the file system of {lock} has no locks: do not train the run {name!r} twice at the same time.")
    except Timeout:
        raise RunLockedError(
            f"the run {name!r} is trained by {_holder(holder_path(lock))}: expected one training of a run at a time. "
            "Wait until that training ends, stop it, or train under another name. If its host has failed and its file "
            f"system keeps the lock, delete {lock}.",
            Remedy.RUN_NAME,
        ) from None
    try:
        yield
    finally:
        _release(file_lock, holder_path(lock))


@contextmanager
def folder_lock(folder: Path, wait: Callable[[], object]) -> Iterator[bool]:
    """Hold the lock of a folder, which is created if needed; yield False where the file system has no locks.

    wait: called once if another process or thread holds the lock, before waiting for it. Raises WriteError as
    `run_lock` does.
    """
    file_lock = FileLock(folder / FOLDER_LOCK)
    try:
        is_locked = _acquire(file_lock, timeout=0)
    except Timeout:
        wait()
        is_locked = _acquire(file_lock, timeout=-1)
    try:
        yield is_locked
    finally:
        _release(file_lock)


def _acquire(file_lock: FileLock, timeout: float) -> bool:
    """Acquire a lock; return False where the file system has no locks. Raises Timeout and WriteError.

    timeout: seconds; -1 waits as long as another process holds the lock.
    """
    try:
        if not _has_locks(Path(file_lock.lock_file)):
            return False
        file_lock.acquire(timeout=timeout)
        return True
    except Timeout:
        raise
    except OSError as error:
        if isinstance(error, FileNotFoundError) and timeout < 0:  # the holder removed the folder, as it was empty
            return _acquire(file_lock, timeout)
        raise WriteError(file_lock.lock_file, error) from error


def _has_locks(lock: Path) -> bool:
    """Return whether the file system locks a new file beside `lock`, which no other process can hold.

    A file system without locks answers with one of many errors. EACCES is also the answer of SMB for a lock that is
    held (https://man7.org/linux/man-pages/man2/flock.2.html), and after ENOSYS filelock would write files that nobody
    removes after a crash. Raises OSError for a folder that cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    lock.parent.mkdir(parents=True, exist_ok=True)
    probe = temporary_path(lock)
    with open(probe, "xb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            return False
        finally:
            probe.unlink()


def _release(file_lock: FileLock, *files: Path) -> None:
    """Release a lock, if it is held, and remove its file and others."""
    if file_lock.is_locked:
        for path in (*files, Path(file_lock.lock_file)):  # filelock never takes the lock of a removed file
            with suppress(OSError):
                path.unlink()
        file_lock.release()


def _write_holder(path: Path) -> None:
    started = datetime.now().astimezone().isoformat(" ", "seconds")
    holder = {"process": os.getpid(), "host": socket.gethostname(), "started": started}
    with suppress(WriteError), atomic_write(path) as temporary:  # the lock is held without its holder's name too
        temporary.write_text(json.dumps(holder), encoding="utf-8")


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return "process {process} on host {host} since {started}".format(**holder)
    except (OSError, ValueError, TypeError, LookupError):  # just starting, or damaged
        return "another process"
