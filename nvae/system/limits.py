"""The CPUs and the memory that this process may use: those of the machine, or the smaller share of a container.

Linux limits a container, or a job of SLURM or systemd, by control groups (cgroups): files in a folder
for each group, with groups in groups (https://docs.kernel.org/admin-guide/cgroup-v2.html, and cgroup-v1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def cpu_count(root: Path = Path("/")) -> int:
    """Return how many CPUs this process may use: the fewest of machine, affinity and control groups, rounded up.

    root: the folder with proc/ and sys/.
    """
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        allowed = os.process_cpu_count()
    else:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    counts = [math.inf if allowed is None else allowed]
    for folder in _groups(root, "cpu"):
        texts = _text(folder / "cpu.max").split() or [
            _text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")
        ]
        with suppress(ValueError, ZeroDivisionError):  # "max", or a missing file
            quota, period = map(int, texts)
            counts += [quota / period] if quota > 0 else []  # -1: no limit
    return max(1, math.ceil(least)) if (least := min(counts)) < math.inf else 1


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the bytes of memory that this process may use: the least of machine and control groups; None if unknown.

    root: the folder with proc/ and sys/.
    """
    sizes = []
    with suppress(AttributeError, ValueError, OSError):  # some systems do not have these values
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(ValueError):  # "max", or a missing file
                sizes.append(int(_text(folder / name)))
    return min(sizes, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, and of those above, of both versions."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):  # version 2 has no names: all are in one folder
            mount = root / "sys/fs/cgroup" / (controller if names else "")
            group = mount / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))


def _text(path: Path) -> str:
    """Return a file's text without spaces around; an empty one for a file that cannot be read."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
