"""What a figure needs beside it: the processor and the commit."""

import platform
import subprocess
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor():
    """Return the name of the processor."""
    for line in CPUINFO.read_text().splitlines() if CPUINFO.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit():
    """Return the short name of the commit of this working tree; unknown without git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
