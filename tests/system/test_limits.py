import os

import pytest

from nvae.system.limits import cpu_count, memory_bytes

GIB = 2**30


@pytest.fixture
def root(tmp_path):
    """A function: write files below a folder, by their paths, and return the folder."""

    def root(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return root


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 64 CPUs and 512 GiB, of which this process may use 16 CPUs."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 16, raising=False)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 2**27, "SC_PAGE_SIZE": 2**12}.__getitem__)


V1 = "4:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n2:cpuset:/docker/a\n"
CASES = {
    "none": ({}, 16, 512),
    "unlimited": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"},
        16,
        512,
    ),
    "container": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": f"{3 * GIB}\n",
        },
        2,
        3,
    ),
    "group in a group": (
        {
            "proc/self/cgroup": "0::/job.slice/step.scope\n",
            "sys/fs/cgroup/job.slice/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/job.slice/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/job.slice/step.scope/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/job.slice/step.scope/memory.max": "max\n",
        },
        3,
        8,
    ),
    "a sixth of a CPU": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 60000\n"}, 1, 512),
    "more than the machine has": (
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "9900000 100000\n",
            "sys/fs/cgroup/memory.max": f"{999 * GIB}\n",
        },
        16,
        512,
    ),
    "version 1": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/docker/a/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/docker/a/cpu.cfs_period_us": "50000\n",
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        4,
        4,
    ),
    "version 1 in a container, which sees its own group as the root": (
        {
            "proc/self/cgroup": V1,
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
        },
        16,
        2,
    ),
    "both versions": (
        {
            "proc/self/cgroup": f"{V1}0::/docker/a\n",
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": f"{5 * GIB}\n",
        },
        16,
        5,
    ),
    "a group outside of what the container sees": (
        {"proc/self/cgroup": "0::/../../other\n", "sys/fs/cgroup/memory.max": f"{6 * GIB}\n"},
        16,
        6,
    ),
    "damaged": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100 0\n", "sys/fs/cgroup/memory.max": "a lot\n"},
        16,
        512,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_limits_are_the_smallest_of_machine_affinity_and_groups(root, name):
    files, cpus, gib = CASES[name]
    assert (cpu_count(root(files)), memory_bytes(root(files))) == (cpus, gib * GIB)
