"""Stand-ins for objects beside the weights of other projects: NumPy's numbers and arrays, and paths.

None of these classes is created, and no function of NumPy is called: a hostile file would choose its arguments.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

import numpy as np


class Skipped:
    """An object that the import does not need."""

    def __new__(cls, *args: Any) -> Skipped:
        skipped = super().__new__(cls)
        skipped.args = args
        return skipped

    args: tuple[Any, ...]

    def __setstate__(self, state: Any) -> None:
        """Ignore the object's state."""


def _number(dtype: Any, content: Any = b"") -> int | float | bool | Skipped:
    """Return one of NumPy's numbers as a plain number. dtype: the stand-in of its type, with a name such as f8."""
    name = str(dtype.args[0]) if isinstance(dtype, Skipped) and dtype.args else ""
    if re.fullmatch("[biuf][1248]", name) and isinstance(content, bytes) and len(content) == int(name[1]):
        return np.frombuffer(content, f"<{name}")[0].item()
    return Skipped()


# What a file of another project may have beside tensors and plain values: a class or a function, and the name in files.
OBJECTS: tuple[tuple[Callable[..., Any], str], ...] = (
    (argparse.Namespace, "argparse.Namespace"),  # the original's settings
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before and since NumPy 2
    *((Skipped, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((Skipped, f"numpy.{name}") for name in ("dtype", "ndarray")),
    *(
        (Skipped, f"{module}.{flavor}Path")
        for module in ("pathlib", "pathlib._local")  # of Python 3.13
        for flavor in ("", "Posix", "Windows", "PurePosix", "PureWindows")
    ),
)
