"""python3 -m nvae COMMAND ..., which an installed package also offers as the program `nvae`."""

import os
import sys
from pathlib import Path

if __name__ == "__main__" and sys.path[0] == os.getcwd():  # a file lmdb.py of a folder of data would be imported
    package = str(Path(__file__).resolve().parents[1])
    sys.path[:1] = [] if package in sys.path[1:] else [package]

from nvae.cli.main import console  # noqa: E402

if __name__ == "__main__":
    console()
